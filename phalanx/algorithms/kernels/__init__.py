"""Phalanx."""

from ...data import kernel_cache  # noqa: F401 - before anything compiles
