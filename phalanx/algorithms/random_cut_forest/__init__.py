"""Random cut forest: anomaly scores."""
