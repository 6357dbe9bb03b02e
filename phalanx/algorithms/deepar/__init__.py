"""DeepAR: probabilistic forecasts of many series."""
