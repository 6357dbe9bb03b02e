"""A job's record: written while it runs, read from any storage, compared, reported, watched by rules.

`load_job(url)`, `jobs(url)` and `dataframe(url)` are what users call; they are loaded at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frame import dataframe as dataframe
    from .reading import JobEvent as JobEvent
    from .reading import TrackedJob as TrackedJob
    from .reading import jobs as jobs
    from .reading import load_job as load_job

__all__ = ["JobEvent", "TrackedJob", "dataframe", "jobs", "load_job"]
_HOMES = {"dataframe": "frame", "JobEvent": "reading", "TrackedJob": "reading", "jobs": "reading", "load_job": "reading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'phalanx.tracking' has no attribute '{name}'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
