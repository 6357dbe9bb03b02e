"""One trial: an ordinary job in a thread of the driver, watched while it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from .. import storage
from ..cluster import Cluster
from ..contracts import Json
from ..errors import AlgorithmError, PhalanxError
from ..job import TrainingJob
from ..result import JobResult
from .declared import Objective
from .placing import DEVICES
from .ranges import Values
from .stopping import Curve

_WAITS_S = 7 * 86400.0
Status = Literal["InProgress", "Completed", "Stopped", "Failed"]


@dataclass(slots=True)
class Trial:
    """What the driver knows of a trial."""

    number: int
    job: str  # its name, and that of its folder
    values: Values
    status: Status = "InProgress"
    curve: Curve = field(default_factory=Curve)
    metrics: dict[str, float | None] = field(default_factory=dict)
    objective: list[float] | None = None  # final values, as reported
    feasible: bool = True
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0  # of training
    step: int = 0
    retries: int = 0
    stuck: int = 0  # failures in a row that came no further than the one before
    failed_at: int = -1  # the furthest step at which it failed
    stopped_at: int | None = None  # the step at which the early stopping rule judged it
    failure: str | None = None
    retryable: bool = False
    artifact: str | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the trial as it stands in sweep.json."""
        kept = ("number", "job", "values", "status", "objective", "feasible", "started", "ended", "seconds", "step", "retries")
        more = ("stuck", "failed_at", "stopped_at", "failure", "retryable", "artifact", "metrics")
        return {name: getattr(self, name) for name in (*kept, *more)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Trial:
        """Return the trial that `to_json` wrote, without its curve."""
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Judged:
    """Message: the early stopping rule has stopped a trial at a step."""

    number: int
    step: int


@dataclass(frozen=True, slots=True)
class Computed:
    """Message: a trial's workers have ended; its model is being published.

    Attributes:
        number: of the trial.
        step: its last one.
        metrics: their last values.
    """

    number: int
    step: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Ended:
    """Message: a trial's job has ended."""

    number: int
    result: JobResult | None
    error: PhalanxError | None


@dataclass(frozen=True, slots=True)
class Wake:
    """Message: somebody asked the sweep to stop."""


Message = Judged | Computed | Ended | Wake


@final
class Running:
    """A trial's job in its thread.

    Args:
        trial: whose curve grows.
        job: to run.
        objective: what the curve holds.
        stops: is told a step that the trial has come to, and returns whether it is to be stopped there; called from the job's
            threads, so that nothing else the driver does is waited for.
        tell: takes messages; called from the job's threads.
        devices: the GPUs that its workers see, where they are given out.
    """

    def __init__(
        self,
        trial: Trial,
        job: TrainingJob,
        objective: Objective,
        stops: Callable[[Trial, int], bool],
        tell: Callable[[Message], None],
        devices: str | None = None,
    ) -> None:
        self.trial = trial
        self.devices = devices
        self._job = job
        self._watch = _Watch(trial, objective, stops, self.stop, tell)
        self._tell = tell
        self._thread = threading.Thread(target=self._run, name=f"phalanx-trial-{trial.number}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the job to stop in order; again: at once."""
        self._job.stop()

    def join(self) -> None:
        """Wait for the thread, after its `Ended`."""
        self._thread.join()

    def _run(self) -> None:
        result, error = None, None
        try:
            result = self._job.run(progress=self._watch)
        except PhalanxError as raised:
            result, error = raised.result, raised
        except BaseException as raised:  # a thread that ends without a word would be waited for for ever
            error = AlgorithmError(f"{type(raised).__name__}: {raised}")
            error.__cause__ = raised
        self._tell(Ended(self.trial.number, result, error))


@final
class _Watch:
    """`tracking.console.Progress` that fills the trial's curve."""

    def __init__(
        self,
        trial: Trial,
        objective: Objective,
        stops: Callable[[Trial, int], bool],
        stop: Callable[[], None],
        tell: Callable[[Message], None],
    ) -> None:
        self._trial = trial
        self._objective = objective
        self._stops = stops
        self._stop = stop
        self._tell = tell
        self._metrics: dict[str, float | None] = {}

    def started(self, name: str, headline: str) -> None: ...

    def status(self, secondary: str, message: str) -> None:
        """Tell when the workers have ended."""
        if secondary == "Uploading" and not message:
            self._tell(Computed(self._trial.number, self._trial.step, self._metrics))

    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        """Add to the curve, and stop the job where its trial is to be stopped."""
        trial = self._trial
        trial.step = max(trial.step, step)
        self._metrics.update(metrics)
        value = metrics.get(self._objective.metric)
        trial.curve.of = total_steps
        if value is None or not math.isfinite(value):
            return
        newer = not trial.curve.steps or step > trial.curve.steps[-1]
        trial.curve.add(step, self._objective.sign * value)
        if newer and self._stops(trial, step):
            self._stop()

    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...


def job_name(sweep: str, number: int, values: Values) -> str:
    """Return `sweep-NNN-hash`, the same for the same trial."""
    text = json.dumps([sweep, number, values], sort_keys=True)
    return f"{sweep}-{number:03d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def job_of(
    template: TrainingJob, trial: Trial, *, static: Mapping[str, Any], folder: str, threads: int, devices: str | None = None
) -> TrainingJob:
    """Return the job of a trial; one whose folder is there goes on from its newest checkpoint.

    Args:
        template: the sweep's job.
        trial: whose values it takes.
        static: hyperparameters that all trials share.
        folder: URL of the sweep's folder.
        threads: for each worker.
        devices: the GPUs that its workers see; None: those that this process sees.
    """
    place = storage.join(folder, trial.job)
    resumes = str(template.checkpoint_every) != "never" and storage.read_json(storage.join(place, "status.json")) is not None
    if not resumes:
        clear(place)
    return replace(
        template,
        hyperparameters={**static, **trial.values},
        output=folder,
        name=trial.job,
        threads_per_worker=threads,
        environment=template.environment if devices is None else {**template.environment, DEVICES: devices},
        checkpoints=None if template.checkpoints is None else storage.join(template.checkpoints, trial.job),
        resume=resumes,
        cluster=_patient(template),
    )


def _patient(template: TrainingJob) -> Cluster | None:
    """Return where trials run: one that waits for room waits for other trials, which is no failure."""
    if template.launcher != "ray":
        return None
    given = template.cluster or Cluster()
    there = given if isinstance(given, Cluster) else Cluster(**given)
    return replace(there, start_timeout_s=max(there.start_timeout_s, _WAITS_S))


def clear(place: str) -> None:
    """Remove what a job left that was killed before its record began, or that cannot be gone on with."""
    if storage.is_local(place):
        shutil.rmtree(storage.local_path(place), ignore_errors=True)
    else:
        storage.remove_below(place, list(storage.sizes_below(place)))


def curve_of(place: str, objective: Objective) -> Curve:
    """Return what a job has recorded of the objective so far."""
    curve = Curve()
    for entry in _recorded(place):
        value = entry.get(objective.metric)
        if value is not None:
            curve.add(int(entry["step"]), objective.sign * float(value))
    return curve


def metrics_of(place: str) -> dict[str, float | None]:
    """Return the last value of every metric a job has recorded, over all its attempts."""
    found: dict[str, float | None] = {}
    for entry in _recorded(place):
        found.update(entry)
    return {name: value for name, value in found.items() if name not in ("step", "time")}


def _recorded(place: str) -> list[dict[str, Json]]:
    """Return the lines of a job's metrics.jsonl; half a line at its end is left out."""
    try:
        lines = storage.read_bytes(storage.join(place, "metrics.jsonl")).splitlines()
    except PhalanxError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "step" in entry:
                entries.append(entry)
    return entries
