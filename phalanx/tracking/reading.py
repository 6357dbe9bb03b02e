"""A job's folder as it stands, read from any storage: what is missing or half written counts for nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from .. import storage
from ..errors import UserError
from ..phases import PHASES
from . import sound
from .curves import Curve, curves_of
from .record import ENDED

_POLL_SECONDS = 0.2
_REMOTE_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        kind: "status" (a new secondary status), "step" (metrics of a step), "finding" (of a rule) or "end".
        time: seconds since 1970.
        step: the job's step, 0 where the event has none.
        message: of people's words.
        metrics: of a step; None where a value was not finite.
    """

    kind: Literal["status", "step", "finding", "end"]
    time: float
    step: int = 0
    message: str = ""
    metrics: Mapping[str, float | None] | None = None


@final
@dataclass(frozen=True, slots=True)
class TrackedJob:
    """A job as its folder tells of it.

    Attributes:
        url: its folder.
        status: what is whole of its status.json.
        request: what is whole of its job.json.
    """

    url: str
    status: Mapping[str, Any]
    request: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The job's name, else its folder's."""
        return str(self.status.get("name") or self.request.get("name") or self.url.rstrip("/").rsplit("/", 1)[-1])

    @property
    def algorithm(self) -> str:
        """What it trains."""
        return str(self.status.get("algorithm") or self.request.get("algorithm") or "")

    @property
    def state(self) -> str:
        """InProgress, Completed, Failed, Stopped, or Unknown where the folder does not say."""
        return str(self.status.get("status") or "Unknown")

    @property
    def silent_s(self) -> float | None:
        """For how many seconds nobody has written of a job that runs: its process may be gone. None where that is not known."""
        updated = self.status.get("updated")
        return None if self.ended or updated is None else max(0.0, time.time() - updated)

    @property
    def ended(self) -> bool:
        """Whether it has come to an end."""
        return self.state in ENDED

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that its ranks were on at last, by rank; nothing where one machine had them all."""
        if not self.request.get("cluster"):
            return []
        return [str(worker.get("host", "")) for worker in self.status.get("workers") or ()]

    def curves(self) -> dict[str, Curve]:
        """Return every point of every metric, by name."""
        return curves_of(_bytes(storage.join(self.url, "metrics.jsonl")))

    def points(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the lines of metrics.jsonl from byte `start` on and how many bytes they take, whole lines only."""
        data = _bytes(storage.join(self.url, "metrics.jsonl"), start)
        whole = data[: data.rfind(b"\n") + 1]
        return sound.lines(whole), len(whole)

    def findings(self) -> list[dict[str, Any]]:
        """Return what rules found, oldest first."""
        return sound.lines(_bytes(storage.join(self.url, "findings.jsonl")))

    def resources(self) -> list[dict[str, Any]]:
        """Return what the ranks did and used of their machines, a line every few seconds of each, oldest first."""
        return sound.lines(_bytes(storage.join(self.url, "resources.jsonl")), ("time", "rank"))

    def windows(self) -> list[dict[str, Any]]:
        """Return what every rank did, a line every quarter of a second of each; nothing where the job had no `profile`."""
        return sound.lines(_bytes(storage.join(self.url, "profile", "windows.jsonl")), ("time", "rank", "slot", *PHASES))

    def data(self) -> list[dict[str, Any]]:
        """Return the files of the job's channels: channel, file, bytes, xxh3_128 (None where it was not made)."""
        return sound.lines(_bytes(storage.join(self.url, "data.jsonl")))

    def forecasts(self) -> list[dict[str, Any]]:
        """Return the forecasts of a test of series, as rank 0 wrote them; nothing where there was none."""
        return sound.lines(_bytes(storage.join(self.url, "output", "0-forecasts.jsonl")))

    def events(self, *, follow: bool = True) -> Iterator[JobEvent]:
        """Yield what has happened and, while the job runs, what happens; ends with the job.

        Args:
            follow: False: only what has happened by now.
        """
        seen = {"metrics": 0, "findings": 0}  # bytes
        told = 0
        while True:
            status = sound.status(storage.read_json(storage.join(self.url, "status.json")))
            transitions = status.get("transitions") or []
            for entry in transitions[told:]:
                yield JobEvent("status", float(entry["start"]), message=f"{entry['status']} {entry['message']}".strip())
            told = max(told, len(transitions))
            for what in seen:
                data = _bytes(storage.join(self.url, f"{what}.jsonl"), seen[what])
                whole = data[: data.rfind(b"\n") + 1]
                for line in sound.lines(whole):
                    yield _event(what, line)
                seen[what] += len(whole)
            if status.get("status") in ENDED:
                message = str(status.get("failure") or status["status"])
                yield JobEvent("end", float(status.get("ended") or 0), int(status.get("step") or 0), message)
                return
            if not follow:
                return
            time.sleep(poll_seconds(self.url))

    def log(self, rank: int = 0, start: int = 0) -> bytes:
        """Return what a rank has written, from byte `start` on."""
        return _bytes(storage.join(self.url, "logs", f"rank-{rank}.log"), start)

    def log_end(self, rank: int, most: int) -> tuple[bytes, bool]:
        """Return the last `most` bytes of what a rank has written, and whether there is more before them."""
        try:
            with storage.open_reader(storage.join(self.url, "logs", f"rank-{rank}.log")) as source:
                start = max(0, source.seek(0, os.SEEK_END) - most)
                source.seek(start)
                return source.read(most), start > 0
        except UserError:
            return b"", False

    def ranks(self) -> list[int]:
        """Return the ranks whose logs are there."""
        folder = storage.join(self.url, "logs")
        try:
            names = [file.url.rsplit("/", 1)[-1] for file in storage.list_files(folder)]
        except UserError:
            return []
        found = (name.removeprefix("rank-").removesuffix(".log") for name in names if name.startswith("rank-"))
        return sorted(int(number) for number in found if number.isdigit())


def load_job(url: str) -> TrackedJob:
    """Return the job in a folder.

    Args:
        url: folder or URL of the job.

    Raises:
        UserError: there is neither status.json nor job.json.
    """
    status = sound.status(storage.read_json(storage.join(url, "status.json")))
    request = sound.request(storage.read_json(storage.join(url, "job.json")))
    if not status and not request and not _bytes(storage.join(url, "status.json")):
        raise UserError(
            f"there is no job at {storage.redact(url)}: its folder must hold status.json; `phalanx jobs` lists jobs"
        )
    return TrackedJob(url, status, request)


def jobs(url: str = "runs") -> list[TrackedJob]:
    """Return the jobs below a folder (its own, in it, and the trials of its sweeps), the newest first.

    job.json is not read: `request` is empty, `load_job` has it.

    Args:
        url: folder or URL.

    Raises:
        UserError: there is no such local folder.
    """
    found = [
        TrackedJob(place, sound.status(storage.read_json(storage.join(place, "status.json"))), {}) for place in places(url)
    ]
    return sorted(found, key=lambda job: (-(job.status.get("created") or 0.0), job.name))


def poll_seconds(url: str) -> float:
    """Return how long to wait before a running job is looked at again."""
    return _POLL_SECONDS if storage.is_local(url) else _REMOTE_POLL_SECONDS


def places(url: str) -> list[str]:
    """Return the folders below `url` (its own, in it, and in its sweeps) that hold a job."""
    if not storage.is_local(url):
        return _remote_places(url)
    root = storage.local_path(url)
    if not root.is_dir():
        raise UserError(f"there is no folder {url}; jobs stand in the folder that they had as --output")
    places = [root]
    for folder in _folders(root):
        places += [folder, *(_folders(folder) if (folder / "sweep.json").is_file() else ())]
    return [str(place) for place in places if (place / "status.json").is_file()]


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []


def _remote_places(url: str) -> list[str]:
    """Return the folders below a remote URL that hold a job, at most two levels down."""
    found = []
    for path in storage.sizes_below(url):
        *folders, last = path.strip("/").split("/")
        if last == "status.json" and len(folders) <= 2:
            found.append(storage.join(url, *folders) if folders else url)
    return sorted(found)


def _bytes(url: str, start: int = 0) -> bytes:
    """Return what a file holds from byte `start` on, nothing where there is no such file."""
    try:
        with storage.open_reader(url) as source:
            source.seek(start)
            return source.read()
    except UserError:
        return b""


def _event(what: str, line: Mapping[str, Any]) -> JobEvent:
    when, step = float(sound.number(line.get("time")) or 0.0), int(sound.number(line.get("step")) or 0)
    if what == "findings":
        return JobEvent("finding", when, step, f"{line.get('rule')}: {line.get('message')}")
    return JobEvent("step", when, step, metrics={name: v for name, v in line.items() if name not in ("step", "time")})
