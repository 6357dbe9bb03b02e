"""Stands in for the package of SageMaker's XGBoost container, as far as scripts use it."""
