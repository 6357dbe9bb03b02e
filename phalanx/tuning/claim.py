"""A sweep's folder belongs to one driver at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import storage
from ..errors import UserError
from .plan import SWEEP, read

_LOCK = ".driver"


@contextmanager
def claimed(folder: str, *, resume: bool) -> Iterator[dict[str, Any] | None]:
    """Within, the folder is this driver's; yield the sweep.json of the driver before, None where there was none.

    The lock of a local folder goes with the process that holds it, however that ends. A remote folder has none.

    Raises:
        UserError: the folder is there and the sweep is not to be resumed, it holds something else, or another driver is at it.
    """
    earlier = read(folder) if resume else None
    if earlier is None and not (resume and _is_bare(folder)):
        storage.claim_folder(folder)
    if not storage.is_local(folder):
        yield earlier
        return
    lock = os.open(storage.local_path(folder) / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process drives the sweep in {folder}: stop it first") from None
        try:
            yield read(folder) if resume else None
        except BaseException:
            _give_back(folder)
            raise
    finally:
        os.close(lock)


def _give_back(folder: str) -> None:
    """Remove a folder in which nothing has begun, so that the same command can be tried again."""
    path = storage.local_path(folder)
    if {entry.name for entry in path.iterdir()} == {_LOCK}:
        (path / _LOCK).unlink()
        path.rmdir()


def _is_bare(folder: str) -> bool:
    """Return whether a driver was killed here before it wrote anything: nothing but its lock and an empty study."""
    if not storage.is_local(folder):
        return not [name for name in storage.sizes_below(folder) if name != SWEEP]
    path = storage.local_path(folder)
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= {_LOCK, "optuna.journal", "optuna.journal.lock"}
