"""Writing a checkpoint behind the step loop: one thread a save, one save in flight.

A thread is enough: hashing (xxhash), copying (numpy) and writing release the interpreter's lock; `benchmarks/checkpoint.py`
measures what is left. The ranks agree through the storage alone, so that the step loop makes no extra calls: every rank puts
its files and then a record of them; rank 0 waits for the records and puts the manifest.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from ..errors import PhalanxError, PlatformError, UserError
from .fence import Pass, commit
from .manifest import (
    DamagedError,
    FileRecord,
    Manifest,
    RankRecord,
    digest,
    manifest_name,
    read_record,
    record_name,
    write_manifest,
    write_record,
)
from .place import Place
from .state import Snapshot

_FIRST_POLL_S, _LONGEST_POLL_S = 0.005, 1.0


@dataclass(frozen=True, slots=True)
class SaveJob:
    """One save as one rank sees it."""

    step: int
    folder: str  # STEP/ATTEMPT-NONCE-N, the same on all ranks of this save and nobody else's
    snapshot: Snapshot
    rank: int
    world: int
    job: str
    attempt: int
    parts: tuple[str, ...]
    metrics: Mapping[str, float | None]
    commit_timeout_s: float  # that rank 0 waits for the records of the others
    fence: Pass | None = None  # of jobs whose workers may outlive their attempt


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save cost this rank."""

    step: int
    bytes: int  # that this rank wrote
    stall_s: float  # that the step loop was blocked: waiting for the save before, copying
    write_s: float  # hashing, writing and, on rank 0, waiting for the others and the commit
    note: str = ""  # what went wrong after the commit: deleting old checkpoints


@final
class BackgroundSave:
    """A save in flight: starts at once, in its own thread.

    Args:
        place: to write to.
        job: what to write.
        after: called after rank 0's commit, for deleting old checkpoints; what it raises becomes the report's note.
    """

    def __init__(self, place: Place, job: SaveJob, after: Callable[[], None] | None = None) -> None:
        self._place = place
        self._job = job
        self._after = after
        self._cancelled = threading.Event()
        self._written_s = 0.0
        self._note = ""
        self._error: BaseException | None = None
        # a daemon, so that a worker that must end need not wait for a storage; what it leaves has no manifest
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"checkpoint-{job.step}-rank-{job.rank}")
        self._thread.start()

    @property
    def step(self) -> int:
        """The step that is saved."""
        return self._job.step

    def join(self, timeout_s: float | None) -> bool:
        """Wait; return whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def failed(self) -> bool:
        """Return whether it has ended and failed."""
        return self._error is not None

    def cancel(self) -> None:
        """Let rank 0 stop waiting for records."""
        self._cancelled.set()

    def result(self, stall_s: float) -> SaveReport:
        """Return the report of a save that has ended.

        Args:
            stall_s: that the step loop was blocked.

        Raises:
            PhalanxError: it failed.
        """
        if self._error is not None:
            raise self._error
        return SaveReport(self._job.step, self._job.snapshot.bytes, stall_s, self._written_s, self._note)

    def _run(self) -> None:
        begun = time.perf_counter()
        try:
            write(self._place, self._job, self._cancelled)
        except BaseException as error:
            self._error = _told(error, self._job)
        self._written_s = time.perf_counter() - begun
        if self._error is None and self._after is not None:
            try:
                self._after()
            except BaseException as error:
                self._note = f"old checkpoints could not be deleted: {error or type(error).__name__}"


def write(place: Place, job: SaveJob, cancelled: threading.Event) -> None:
    """Write one rank's part of a save; on rank 0, commit it once all have written theirs.

    Raises:
        PhalanxError: what the storage says; a save that failed leaves no manifest and, where it can, no files.
    """
    try:
        mine = _put_files(place, job)
        if job.world > 1 and job.rank != 0:
            place.put(record_name(job.folder, job.rank), write_record(mine))
            return
        records = [mine, *_await_records(place, job, cancelled)]
    except Exception as error:
        _give_up(place, job, error)
        raise
    # from here on nothing is cleaned up: a put that fails may yet have arrived
    manifest = _manifest(job, records)
    if job.fence is None:
        place.put(manifest_name(job.step), write_manifest(manifest))
    else:
        commit(place, manifest, job.fence)


def _put_files(place: Place, job: SaveJob) -> RankRecord:
    files = []
    for name, data in job.snapshot.files.items():
        place.put(f"{job.folder}/{name}", data)
        files.append(FileRecord(_in_step(job, name), len(data), digest(data)))
    entries = tuple(replace(entry, file=_in_step(job, entry.file)) for entry in job.snapshot.entries)
    return RankRecord(job.rank, tuple(files), entries)


def _in_step(job: SaveJob, name: str) -> str:
    return f"{job.folder.split('/', 1)[1]}/{name}"


def _await_records(place: Place, job: SaveJob, cancelled: threading.Event) -> list[RankRecord]:
    """Return the records of ranks 1… in order, once all are there."""
    found: dict[int, RankRecord] = {}
    deadline = time.monotonic() + job.commit_timeout_s
    pause = _FIRST_POLL_S
    while len(found) < job.world - 1:
        before = len(found)
        missing = [rank for rank in range(1, job.world) if rank not in found]
        sizes = place.sizes(job.folder)
        for rank in missing:
            name = record_name(job.folder, rank)
            if name in sizes:
                found[rank] = _read(place, name, sizes[name])
                if found[rank].failed is not None:
                    raise PlatformError(f"rank {rank} could not write its part of step {job.step}: {found[rank].failed}")
        if len(found) == job.world - 1:
            break
        pause = _FIRST_POLL_S if len(found) > before else min(2 * pause, _LONGEST_POLL_S)
        missing = [rank for rank in missing if rank not in found]
        if cancelled.wait(pause):
            raise PlatformError(f"the save of step {job.step} was given up; rank {missing[0]} had not written its part")
        if time.monotonic() > deadline:
            raise PlatformError(
                f"rank {missing[0]} did not write its part of step {job.step} within {job.commit_timeout_s:g} s of rank 0's"
            )
    return [found[rank] for rank in range(1, job.world)]


def _read(place: Place, name: str, size: int) -> RankRecord:
    try:
        return read_record(place.read(name, size).tobytes())
    except (DamagedError, UserError) as error:
        raise PlatformError(f"{place.url}/{name} did not come back as it was written: {error}") from error


def _give_up(place: Place, job: SaveJob, error: Exception) -> None:
    """Take away what was written, for the room it takes, and tell rank 0; neither may hide what happened."""
    names = [f"{job.folder}/{name}" for name in job.snapshot.files]
    with contextlib.suppress(Exception):
        place.remove(names)
    with contextlib.suppress(Exception):
        if job.rank != 0:
            place.put(record_name(job.folder, job.rank), write_record(RankRecord(job.rank, failed=str(error))))


def _manifest(job: SaveJob, records: Sequence[RankRecord]) -> Manifest:
    return Manifest(
        job=job.job,
        attempt=job.attempt,
        step=job.step,
        world=job.world,
        time=time.time(),
        metrics=job.metrics,
        parts=job.parts,
        files=tuple(file for record in records for file in record.files),
        entries=tuple(entry for record in records for entry in record.entries),
    )


def _told(error: BaseException, job: SaveJob) -> BaseException:
    if isinstance(error, PhalanxError):
        error.message = f"saving the checkpoint of step {job.step}: {error.message}"
        error.args = (error.message,)
    return error
