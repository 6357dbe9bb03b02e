"""Where a result came from: versions of what ran it, without importing any of it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from typing import Any

LIBRARIES = ("numpy", "torch", "numba", "scikit-learn", "scipy", "pyarrow", "fsspec", "xgboost-cpu", "xgboost")


@functools.cache
def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def phalanx_version() -> str:
    """Return Phalanx's own version."""
    return version_of("phalanx-train") or "0+unknown"


def code_and_versions() -> dict[str, Any]:
    """Return versions of Python, Phalanx and the libraries, and the kind of machine."""
    versions = {name: version for name in LIBRARIES if (version := version_of(name)) is not None}
    return {
        "versions": {"python": platform.python_version(), "phalanx": phalanx_version(), **versions},
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
    }
