"""Stands in for the package of SageMaker's containers, as far as scripts use it."""

from . import content_types, encoders, env, modules, transformer, worker

__all__ = ["content_types", "encoders", "env", "modules", "transformer", "worker"]
