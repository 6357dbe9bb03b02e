"""A launcher around another: a script that fails says so by exit code and log, which become a declared failure here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from ..contracts import Event, Exit, Launcher, Member, Workers, WorkerSpec
from ..errors import AlgorithmError, to_record
from . import failure, forked
from .plan import Folders

_LOG_TAIL = 64 << 10


@final
class WatchingLauncher:
    """`contracts.Launcher` for scripts.

    Args:
        inner: who starts the group.
        scratch: the job's folder.
        channels: names of the job's channels.
    """

    def __init__(self, inner: Launcher, scratch: Path, channels: Sequence[str]) -> None:
        self._inner = inner
        self._scratch = scratch
        self._channels = channels
        self._loaded: Sequence[str] = ()

    def expect_restarts(self, loaded: Sequence[str]) -> None:
        """Have these modules loaded in the warm server, from which later attempts are forked."""
        self._loaded = [*loaded, forked.__name__]
        self._inner.prepare(self._loaded)

    def prepare(self, preload: Sequence[str]) -> None:
        """See `contracts.Launcher`."""
        self._inner.prepare(preload)

    def start(self, spec: WorkerSpec) -> Workers:
        """See `contracts.Launcher`."""
        paths = [spec.log_folder / f"rank-{rank}.log" for rank in range(spec.workers)]
        begin = [path.stat().st_size if path.exists() else 0 for path in paths]
        folders = Folders(self._scratch, spec.attempt)
        if self._loaded:
            spec = replace(spec, forked=forked.TARGET, preload=self._loaded, payload=str(self._scratch))
        return WatchedWorkers(self._inner.start(spec), paths, begin, folders, self._channels)


@final
class WatchedWorkers:
    """`contracts.Workers` whose failures are declared for them where they have not done so themselves."""

    def __init__(
        self, inner: Workers, logs: Sequence[Path], begin: Sequence[int], folders: Folders, channels: Sequence[str]
    ) -> None:
        self._inner = inner
        self._logs = logs
        self._begin = begin
        self._folders = folders
        self._channels = channels
        self._declared: set[int] = set()

    @property
    def members(self) -> Sequence[Member]:
        """See `contracts.Workers`."""
        return self._inner.members

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """See `contracts.Workers`."""
        told: list[Event | Exit] = []
        for happened in self._inner.poll(timeout_s):
            if isinstance(happened, Event):
                told.append(self._declared_by(happened) if happened.body.get("kind") == "failure" else happened)
                continue
            if happened.code > 0 and happened.rank not in self._declared:
                told.append(self._read_from(happened))
            told.append(happened)
        return told

    def stop(self, grace_s: float) -> None:
        """See `contracts.Workers`."""
        self._inner.stop(grace_s)

    def dump(self, rank: int) -> None:
        """See `contracts.Workers`."""
        self._inner.dump(rank)

    def close(self) -> None:
        """See `contracts.Workers`."""
        self._inner.close()

    def _declared_by(self, event: Event) -> Event:
        """Return a rank's own words, as what they mean: a lost peer is no mistake of this rank's script."""
        self._declared.add(event.rank)
        record = event.body.get("error")
        if not isinstance(record, dict) or record.get("kind") != "AlgorithmError":
            return event
        trace = failure.last_traceback(str(record.get("details", "")))
        if trace is None:
            return event
        error = failure.of_traceback(event.rank, trace, channels=self._channels)
        if isinstance(error, AlgorithmError):
            error = AlgorithmError(f"{record.get('message')} (worker {event.rank})")
        error.details = str(record["details"])
        return Event(event.rank, event.time, {"kind": "failure", "error": {**to_record(error), "time": event.time}})

    def _read_from(self, seen: Exit) -> Event:
        written = self._folders.output / "failure"
        log = self._tail(seen.rank)
        error = failure.of_exit(seen.rank, seen.code, log, channels=self._channels, written=written)
        record = {**to_record(error), "time": seen.time}
        return Event(seen.rank, time.time(), {"kind": "failure", "error": record})

    def _tail(self, rank: int) -> str:
        try:
            with self._logs[rank].open("rb") as file:
                file.seek(max(self._begin[rank], self._logs[rank].stat().st_size - _LOG_TAIL))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""
