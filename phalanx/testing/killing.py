"""Kills workers of a running job with SIGKILL, at a place of its life or after a time, and waits for nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import final


@final
class Killer:
    """A `progress` of `TrainingJob.run` that kills ranks, once a place.

    Args:
        folder: of the job.
        places: in the order in which they are to be reached: the name of a secondary status ("Downloading", "Training",
            "Uploading" …) or the number of a step.
        ranks: that are killed at each place; a number beyond the group counts from its beginning again.
    """

    def __init__(self, folder: Path, places: Sequence[str | int], ranks: Sequence[int] = (0,)) -> None:
        self._folder = folder
        self._places = list(places)
        self._ranks = ranks
        self._falls = False  # a group that was struck: what it still has to say is no place of the next
        self.killed: list[int] = []  # process ids

    def started(self, name: str, headline: str) -> None:
        """See `tracking.console.Progress`."""

    def status(self, secondary: str, message: str) -> None:
        """See `tracking.console.Progress`."""
        if secondary in ("Restarting", "Interrupted"):
            self._falls = False
        if self._places and self._places[0] == secondary and not self._falls:
            self._kill()

    def log(self, rank: int, line: str) -> None:
        """See `tracking.console.Progress`."""

    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        """See `tracking.console.Progress`."""
        if self._places and isinstance(self._places[0], int) and step >= self._places[0] and not self._falls:
            self._kill()

    def ended(self) -> None:
        """See `tracking.console.Progress`."""

    def _kill(self) -> None:
        del self._places[0]
        killed = kill_ranks(self._folder, self._ranks)
        self._falls = bool(killed)
        self.killed += killed


def kill_ranks(folder: Path, ranks: Sequence[int]) -> list[int]:
    """Kill ranks of the group that a job's status.json names; return the processes that were there to be killed."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        workers = json.loads((folder / "status.json").read_text(encoding="utf-8"))["workers"]
        for rank in ranks:
            if workers:
                pid = int(workers[rank % len(workers)]["pid"])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    found.append(pid)
    return found


@contextlib.contextmanager
def killing_after(seconds: Sequence[float], folder: Path, ranks: Sequence[int]) -> Iterator[list[int]]:
    """Within: one rank is killed after each of `seconds`, counted from now; yields the list of processes that were killed."""
    killed: list[int] = []
    timers = [
        threading.Timer(after, lambda rank=rank: killed.extend(kill_ranks(folder, [rank])))
        for after, rank in zip(seconds, ranks, strict=True)
    ]
    for timer in timers:
        timer.start()
    try:
        yield killed
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
