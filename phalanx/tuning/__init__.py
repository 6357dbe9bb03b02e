"""Hyperparameter sweeps: ranges, search over Optuna, the driver that runs trials as jobs, early stopping, reports."""
