"""Where a result came from: versions of what ran it, without importing any of it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_GIT_SECONDS = 5.0
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


def code_version(folder: Path, script: str) -> dict[str, Any]:
    """Return {"script": its SHA-256, "commit", "changed"}: git's commit of the folder, and whether files in it differ from it.

    The last two are None where the folder is not in a git repository.
    """
    try:
        found: str | None = hashlib.sha256((folder / script).read_bytes()).hexdigest()
    except OSError:
        found = None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = None if commit is None else _git(folder, "status", "--porcelain", "--", ".")
    return {"script": found, "commit": commit, "changed": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
