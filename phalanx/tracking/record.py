"""A job's record: `job.json`, `status.json`, `metrics.jsonl`, `resources.jsonl`, logs and `failure` in the job's folder.

One process writes it (the one that called `TrainingJob.run()`). For an output URL that is no local folder the files grow in a
scratch folder and are copied out at intervals and at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, final

from .. import storage
from ..contracts import Json, Member
from ..errors import Interruption, PhalanxError
from ..scratch import Scratch
from ..spot import Spot
from .best import Best
from .goodput import Goodput

SYNC_SECONDS = 10.0
ENDED = ("Completed", "Failed", "Stopped")


@final
class JobRecord:
    """Writes the folder of one job.

    Args:
        url: the job's folder; claimed already.
        name: the job's name.
        algorithm: what it trains.
        earlier: the status of a job that this one goes on with, whose record is continued.
        goals: metric (without its channel) -> "minimize" or "maximize", as the algorithm declares them.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        algorithm: str,
        earlier: Mapping[str, Any] | None = None,
        goals: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self._local = storage.is_local(url)
        self._scratch = None if self._local else Scratch("record")
        self.folder = storage.local_path(url) if self._scratch is None else self._scratch.path
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.metrics: dict[str, float | None] = dict(earlier["metrics"]) if earlier else {}
        if earlier and not self._local:
            storage.fetch_file(storage.join(url, "metrics.jsonl"), self.folder / "metrics.jsonl")
        self._best = Best(goals or {}, (earlier or {}).get("best") or {})
        self.last_step = _last_step(self.folder / "metrics.jsonl")
        self._spent_before = float(earlier["training_seconds"]) if earlier else 0.0
        self._metrics_file: TextIO = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._sent: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._tell: set[int] = set()  # ranks that say what they use
        self._status: dict[str, Any] = {
            "name": name,
            "algorithm": algorithm,
            "status": "InProgress",
            "secondary_status": "Starting",
            "created": time.time(),
            "ended": None,
            "workers": [],
            "restarts": 0,
            "step": 0,
            "metrics": {},
            "best": {},
            "training_seconds": 0.0,
            "billable_seconds": 0.0,
            "transitions": list(earlier["transitions"]) if earlier else [],
            "failure": None,
            "resumed_from_step": None,
            "goodput": None,
        }
        self._earlier_transitions = len(self._status["transitions"])
        self._goodput = Goodput()
        self._spot: tuple[Spot, int] | None = None
        (self.folder / "failure").unlink(missing_ok=True)
        self.enter("Starting")

    @property
    def status(self) -> Mapping[str, Any]:
        """What status.json holds."""
        return self._status

    def bill(self, spot: Spot, workers: int) -> None:
        """Have the record say what the job cost, where its prices are known."""
        self._spot = spot, workers

    def write_job(self, resolved: Mapping[str, Json]) -> None:
        """Write job.json."""
        _write_json(self.folder / "job.json", resolved)
        self.sync()

    def enter(self, secondary: str, message: str = "") -> None:
        """Move to the next secondary status; the same one again changes nothing."""
        with self._lock:
            transitions = self._status["transitions"]
            now = time.time()
            if transitions:
                if transitions[-1]["status"] == secondary:
                    return
                transitions[-1]["end"] = now
            transitions.append({"status": secondary, "start": now, "end": None, "message": message})
            self._status["secondary_status"] = secondary
            self._write_status()

    def saved(self, report: Mapping[str, Json]) -> None:
        """Note a checkpoint, and what it cost."""
        self._goodput.saved(int(report["step"]), float(report["stall_s"]))
        with self._lock:
            kept = {name: report[name] for name in ("step", "bytes", "stall_s", "write_s")}
            self._status["checkpoint"] = {**kept, "time": time.time()}
            self._write_status()

    def trains(self, when: float) -> None:
        """Note that an attempt begins to train."""
        self._goodput.began(when)

    def restored(
        self,
        step: int,
        when: float,
        passed_over: Sequence[Mapping[str, Json]],
        metrics: Mapping[str, float | None] = MappingProxyType({}),
    ) -> None:
        """Note from where an attempt goes on, since when, and which checkpoints could not be used.

        A driver that was killed may not have heard of the step that is gone on from: its `metrics` are in the checkpoint.
        """
        self._goodput.restored(step, when)
        if step > self.last_step and metrics:
            self.last_step = step
            self._write_metrics(step, when, metrics)
        with self._lock:
            self._status["resumed_from_step"] = step or None
            self._status["passed_over"] = list(passed_over)
            self._write_status()

    def interrupted(self, error: PhalanxError) -> None:
        """Note why the group is to be started again."""
        self._goodput.lost(time.time())
        self.enter("Interrupted" if isinstance(error, Interruption) else "Restarting", storage.redact(error.message))

    def group(self, members: Sequence[Member], attempt: int) -> None:
        """Note the workers of a new group; `attempt` counts restarts."""
        with self._lock:
            self._status["workers"] = [asdict(member) for member in members]
            self._status["restarts"] = attempt
            self._write_status()

    def step(self, step: int, when: float, metrics: Mapping[str, float | None]) -> None:
        """Add a line to metrics.jsonl; a step that is there already (done again after a restart) is not written twice."""
        self._goodput.step(step, when)
        if step <= self.last_step:
            return
        self.last_step = step
        self._write_metrics(step, when, metrics)

    def printed(self, name: str, step: int, when: float, value: float | None) -> None:
        """Add a metric that a worker printed; `step` counts the values of this metric. May be called from another thread."""
        self._write_metrics(step, when, {name: value})

    def silent_workers(self) -> list[tuple[int, str, str]]:
        """Return rank, host and process of the workers that have not told what they use."""
        with self._lock:
            return [(w["rank"], w["host"], str(w["pid"])) for w in self._status["workers"] if w["rank"] not in self._tell]

    def used(self, rank: int, when: float, used: Mapping[str, float | None], *, outside: bool = False) -> None:
        """Add a line to resources.jsonl: what a rank used since its last one; `outside`: it did not tell itself."""
        if not outside:
            self._tell.add(rank)
        if used:
            with self._lock, (self.folder / "resources.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": when, "rank": rank, **used}) + "\n")

    def _write_metrics(self, step: int, when: float, metrics: Mapping[str, float | None]) -> None:
        with self._lock:
            self.metrics.update(metrics)
            self._best.add(step, metrics)
            self._metrics_file.write(json.dumps({"step": step, "time": when, **metrics}) + "\n")
            self._metrics_file.flush()

    def end(self, status: str, secondary: str, error: PhalanxError | None = None, *, at: float | None = None) -> None:
        """Close the record: the final status, and `failure` with the root cause when there is one.

        Args:
            status: Completed, Failed or Stopped.
            secondary: also MaxRuntimeExceeded.
            error: the root cause.
            at: seconds since 1970 when the job ended; default: now.
        """
        text = None if error is None else storage.redact(error.message)
        if status == "Failed" and error is not None:
            details = storage.redact(error.details)
            (self.folder / "failure").write_text(
                f"{error.kind}: {text}\n" + (f"\n{details}" if details else ""), encoding="utf-8"
            )
        with self._lock:
            now = time.time() if at is None else at
            begun = self._account(now)
            self._status["transitions"][-1]["end"] = now
            self._status["transitions"].append({"status": secondary, "start": now, "end": now, "message": text or ""})
            self._status.update(status=status, secondary_status=secondary, ended=now, failure=text)
            goodput = self._status["goodput"] = self._goodput.read(begun, now)
            if self._spot is not None:
                spot, workers = self._spot
                billable = self._status["billable_seconds"]
                self._status["cost"] = spot.cost(workers, billable, goodput, self._status["restarts"])
            self._write_status()
        self._metrics_file.close()
        self.sync()

    def refresh(self) -> None:
        """Write how far a running job is, and that somebody still writes."""
        with self._lock:
            if self._status["status"] not in ENDED:
                self._account(time.time())
                self._write_status()

    def _account(self, now: float) -> float:
        """Bring step, metrics and seconds up to date; return since when the job trains."""
        own = self._status["transitions"][self._earlier_transitions :]
        times = {t["status"]: t["start"] for t in reversed(own)}
        begun = float(times.get("Downloading", times.get("Training", now)))
        spent = self._spent_before + now - begun
        gone = [t for t in own if t["status"] in ("Interrupted", "Restarting")]  # no workers until the next start
        waited = sum((t["end"] or now) - t["start"] for t in gone)
        self._status.update(step=self.last_step, metrics=self.metrics, best=self._best.read(), updated=now)
        self._status.update(training_seconds=round(spent, 3), billable_seconds=round(spent - waited, 3))
        return begun

    def sync(self) -> None:
        """Copy files that changed to a remote folder; nothing to do for a local one."""
        if self._local:
            return
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
            stat = path.stat()
            if self._sent.get(path) != (stat.st_size, stat.st_mtime_ns):
                storage.put_file(path, storage.join(self.url, path.relative_to(self.folder).as_posix()))
                self._sent[path] = (stat.st_size, stat.st_mtime_ns)

    def close(self) -> None:
        """Give the scratch folder back."""
        self._metrics_file.close()
        if self._scratch is not None:
            self._scratch.close()

    def _write_status(self) -> None:
        _write_json(self.folder / "status.json", self._status)


def _last_step(path: Path) -> int:
    """Return the newest step of a metrics file, 0 where there is none; a line that was cut off counts for nothing."""
    newest = 0
    if path.exists():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
                newest = max(newest, int(json.loads(line)["step"]))
    return newest


def _write_json(path: Path, value: Mapping[str, Json]) -> None:
    """Write so that a reader sees the old text or the whole new one; a line a field, for `indent` all the way is slow."""
    partial = path.with_name(f".{path.name}.partial")
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items())
    partial.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    os.replace(partial, path)
