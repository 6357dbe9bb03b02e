"""`session.checkpoints`: the folder of a script's own files that outlives its job's processes, its machine and a resumed job.

Where the job's checkpoints are on this machine, the folder lies among them. Else what changed in it is copied there every few
seconds and once at the end, and copied back when the job is resumed.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import final

from .. import storage

_FOLDER = "files"  # beside the checkpoints' own folders, whose names are numbers


def kept_url(checkpoints: str, job: str) -> str:
    """Return where the files of a job's script lie, given where its checkpoints do."""
    return storage.join(checkpoints, _FOLDER, job)


@final
class KeptFiles:
    """Files of a script's job that are kept.

    Args:
        scratch: a folder of this machine for them, which is not there yet; used where `url` is elsewhere.
        url: where they are kept.

    Attributes:
        folder: as the script sees it.
    """

    def __init__(self, scratch: Path, url: str) -> None:
        self._is_local = storage.is_local(url)
        self.folder = storage.local_path(url) if self._is_local else scratch
        self._url = url
        self._copied: dict[str, tuple[int, int]] = {}  # name -> size and time of change of what is kept
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Make the folder, with the files that are kept already in it.

        Raises:
            UserError: a file may not be read.
            PlatformError: the storage does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._is_local:
            return
        for name in storage.sizes_below(self._url):
            storage.download(storage.join(self._url, name), self.folder / name)
        self._copied = self._seen()

    def keep(self) -> None:
        """Copy what changed since, and remove what the script removed. A file that changes meanwhile is copied again later.

        Raises:
            PlatformError: the storage does not answer.
        """
        if self._is_local:
            return
        with self._lock:
            seen = self._seen()
            for name, mark in seen.items():
                if self._copied.get(name) == mark:
                    continue
                try:
                    storage.put_file(self.folder / name, storage.join(self._url, name))
                except FileNotFoundError:  # the script has removed it
                    continue
                self._copied[name] = mark
            gone = sorted(set(self._copied) - set(seen))
            storage.remove_below(self._url, gone)
            for name in gone:
                del self._copied[name]

    def end(self) -> None:
        """Keep the rest; leave no empty folder."""
        self.keep()
        if self._is_local:
            with contextlib.suppress(OSError):  # it holds something, or is gone
                for folder in (self.folder, *self.folder.parents[:2]):
                    folder.rmdir()

    def _seen(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            try:
                if path.is_file():
                    about = path.stat()
                    found[path.relative_to(self.folder).as_posix()] = (about.st_size, about.st_mtime_ns)
            except FileNotFoundError:
                continue
        return found
