"""Scratch folders that go away also where the process that made them was killed: a later one sweeps up after it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import final

_PREFIX = "phalanx-"
_OWNER = "owner"  # in every scratch folder; locked for as long as the process that made it lives, whatever namespace it is in


@final
class Scratch:
    """A folder in the system's temporary folder, as `path`; gone after `close`, or when this process has ended.

    Args:
        purpose: a word for whoever looks at the temporary folder.
    """

    def __init__(self, purpose: str) -> None:
        _sweep(tempfile.gettempdir())
        while True:  # a process that sweeps may come between making a folder and owning it
            self._root = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}-")
            self._owner = _owned(Path(self._root.name) / _OWNER)
            if self._owner is not None:
                break
            self._root.cleanup()
        self.path = Path(self._root.name) / "files"
        self.path.mkdir()

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        if self._owner is not None:
            self._root.cleanup()
            os.close(self._owner)
            self._owner = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _owned(path: Path) -> int | None:
    """Make the file and lock it; None where somebody else has taken it for abandoned."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


@functools.cache
def _sweep(folder: str) -> None:
    """Remove what processes have left behind, once in the life of this one."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                _remove_abandoned(Path(entry.path))


def _remove_abandoned(root: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(root / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by an owner that lives: an OSError
                shutil.rmtree(root, ignore_errors=True)
        finally:
            os.close(descriptor)
