"""What goes on beside a running job: its workers' log lines are shown, its growing files copied to a remote output."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, final

from .. import storage
from ..errors import PhalanxError
from . import stop_file
from .outside import Outside
from .record import SYNC_SECONDS, JobRecord

_LOG = re.compile(r"rank-(\d+)\.log")
_POLL_SECONDS = 0.1
STOP_SECONDS = 1.0
_REFRESH_SECONDS = 2.0
_MAX_READ = 1 << 20


@final
class LogTail:
    """Reads what was added to `rank-N.log` files, line by line."""

    def __init__(self, folder: Path, show: Callable[[int, str], None]) -> None:
        self._folder = folder
        self._show = show
        self._offsets: dict[int, int] = {}  # by rank

    def poll(self, *, last: bool = False) -> None:
        """Show complete new lines; with `last`, an unfinished one too."""
        with os.scandir(self._folder) as entries:
            sizes = {int(found[1]): entry.stat().st_size for entry in entries if (found := _LOG.fullmatch(entry.name))}
        for rank, size in sorted(sizes.items()):
            path = self._folder / f"rank-{rank}.log"
            offset = self._offsets.get(rank, 0)
            while offset < size or last:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read(_MAX_READ)
                whole = data if last or len(data) == _MAX_READ else data[: data.rfind(b"\n") + 1]
                if not whole:
                    break
                offset += len(whole)
                for line in whole.decode("utf-8", "replace").splitlines():
                    self._show(rank, line)
            self._offsets[rank] = offset


@final
class Housekeeping:
    """A thread that tails logs, syncs the record and looks for a request to stop while a job runs; a context manager.

    Args:
        record: the job's.
        show: is given every line that a rank writes.
        stop: called once when the job's folder asks it to stop.
        keep: called whenever the record is synced.
    """

    def __init__(
        self,
        record: JobRecord,
        show: Callable[[int, str], None],
        stop: Callable[[], None] = lambda: None,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self._record = record
        self._stop = stop
        self._keep = keep
        self._begun = time.time()
        self._look_every = STOP_SECONDS if storage.is_local(record.url) else SYNC_SECONDS
        self._outside = Outside(record)
        self._tail = LogTail(record.logs, show)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="phalanx-housekeeping", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._tail.poll(last=True)

    def _run(self) -> None:
        due = time.monotonic() + SYNC_SECONDS
        look: float | None = 0.0
        refresh = time.monotonic() + _REFRESH_SECONDS
        while not self._done.wait(_POLL_SECONDS):
            self._tail.poll()
            if look is not None and time.monotonic() >= look:
                look = None if self._asked() else time.monotonic() + self._look_every
            if time.monotonic() >= refresh:
                self._record.refresh()
                self._outside.look()
                refresh = time.monotonic() + _REFRESH_SECONDS
            if time.monotonic() >= due:
                try:
                    self._record.sync()
                    self._keep()
                except PhalanxError as error:  # tried again at the next interval, and at the end, where it counts
                    self._tail_note(str(error))
                due = time.monotonic() + SYNC_SECONDS

    def _asked(self) -> bool:
        """Pass a request to stop on; return whether there was one."""
        try:
            if not stop_file.asked(self._record.url, self._begun):
                return False
        except PhalanxError:  # the storage does not answer: asked again later
            return False
        self._stop()
        return True

    def _tail_note(self, text: str) -> None:
        with (self._record.logs / "launcher.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")
