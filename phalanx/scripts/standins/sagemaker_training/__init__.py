"""Stands in for the toolkit of SageMaker's containers, as far as scripts use it."""
