"""Stands in for the package of SageMaker's containers, as far as scripts use it."""
