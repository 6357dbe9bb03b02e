"""A training job: what a user asks for, validated, run through the five hops, recorded.

TrainingJob.run()  ->  launch.supervise(launcher, worker.main)  ->  algorithm.fit(session)  ->  report  ->  model.tar.gz
                                    or a user's script          ->  phalanx.session()
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any, Literal, final

from . import environment, registry, storage
from .checkpoint.policy import Retention, parse_when
from .checkpoint.store import checkpoints_at
from .contracts import Event, Launcher, WorkerSpec
from .data.channel import Channel
from .errors import EXIT_SIGINT, EXIT_SIGTERM, AlgorithmError, Interruption, PhalanxError, Stopped, UserError, nearest
from .launch.interruptions import InterruptionSource, Watch, source_of
from .launch.local import LocalLauncher
from .launch.supervise import Budget, Outcome, StopRequest, supervise
from .provenance import code_and_versions
from .spot import Spot
from .tracking.console import Progress, Silent, progress_for
from .tracking.housekeeping import Housekeeping
from .tracking.record import JobRecord
from .work import AlgorithmWork, ScriptWork, Work

GRACE_SECONDS = 30.0
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_.]?[a-zA-Z0-9])*")
_CHANNEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LAUNCHERS = {"local": LocalLauncher}


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended."""

    name: str
    status: Literal["Completed", "Failed", "Stopped"]
    secondary_status: str  # also MaxRuntimeExceeded
    folder: str  # URL of the job's folder
    artifact: str | None  # URL of model.tar.gz
    metrics: Mapping[str, float | None]  # the last value of each
    step: int
    restarts: int
    training_seconds: float
    billable_seconds: float
    failure: str | None


@final
@dataclass(kw_only=True)
class TrainingJob:
    """One training run, from a request to `model.tar.gz`.

    Args:
        algorithm: name of a built-in or an installed algorithm (`phalanx algorithms`); or give a script.
        inputs: channel name -> `Channel` or URL; `train` is the one an algorithm learns from. A script may have none.
        hyperparameters: name -> value, typed or as text; a script gets them as arguments `--name value`.
        workers: processes that train together.
        output: folder or fsspec URL under which the job's own folder `output/name` is made.
        name: at most 63 characters; default: the algorithm and the time.
        seed: of everything random; the same seed, data and versions give the same artifact.
        threads_per_worker: default: cores // workers.
        launcher: "local", or an object with `start(spec)`.
        max_restarts: how often a failed worker group is started again.
        max_runtime_s: the job is stopped after so long; None for no limit.
        environment: variables added to the workers' environment.
        script: path of a Python file to run in every worker, in place of an algorithm.
        source_dir: folder that the script needs; default: its own.
        arguments: the end of the script's command line.
        strategy: of `phalanx.Trainer` in the script, in place of its own.
        metric_definitions: mappings with "name" and "regex": the first group of each match in what rank 0 of the script prints
            is a value of the metric.
        checkpoints: folder or fsspec URL of the job's checkpoints; default: `checkpoints` in the job's folder.
        checkpoint_every: a number of steps, a time as "60s" or "5m", "auto" (from what a save costs and how often workers are
            lost), or "never".
        keep: newest checkpoints that stay; or a mapping with last, best (a metric), mode ("min", "max"), best_count, every.
        spot: how the job lives with interruptions; None: they count as failures.
        resume: go on from the newest checkpoint that verifies of the job of this name, with this number of workers.
        hang_timeout_s: seconds that a worker may give no sign of life, or keep others waiting in a collective, before the group
            counts as failed; its first step is waited for without limit. None: for ever.
        elastic: "exact": the same bits whatever the number of workers, also when it changes on the way. Some algorithms are so
            anyway, others are refused; the Trainer of a script gets the strategy `exact`. None: as algorithm and strategy are.
        micro_batches: that the Trainer of a script cuts every global batch into with elastic "exact"; a multiple of `workers`.
    """

    algorithm: str | None = None
    inputs: Mapping[str, Channel | str] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    output: str = "runs"
    name: str | None = None
    seed: int = 0
    threads_per_worker: int | None = None
    launcher: str | Launcher = "local"
    max_restarts: int = 0
    max_runtime_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    script: str | None = None
    source_dir: str | None = None
    arguments: Sequence[str] = ()
    strategy: str | None = None
    metric_definitions: Sequence[Mapping[str, str]] = ()
    checkpoints: str | None = None
    checkpoint_every: int | str = "auto"
    keep: int | Mapping[str, Any] = 3
    spot: Spot | Mapping[str, Any] | None = None
    resume: bool = False
    hang_timeout_s: float | None = 30.0
    elastic: str | None = None
    micro_batches: int = 12

    def __post_init__(self) -> None:
        self._stop = StopRequest()

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> TrainingJob:
        """Return the job that a mapping (a YAML file's content) describes; it mirrors the fields.

        Raises:
            UserError: an unknown field, or one of the wrong kind.
        """
        if not isinstance(given, Mapping):
            raise UserError(f"a job is a mapping of fields, not {type(given).__name__}; see `phalanx run --schema`")
        known = {f.name for f in fields(cls)}
        for key in given:
            if key not in known:
                raise UserError(f"a job has no field '{key}'; {nearest(str(key), known)}")
        if "script" not in given:
            for key in ("algorithm", "inputs"):
                if key not in given:
                    raise UserError(f"a job needs the field '{key}'; see `phalanx run --schema`")
        values = dict(given)
        values["inputs"] = {
            n: c if isinstance(c, str) else _channel(n, c) for n, c in _mapping("inputs", given.get("inputs", {})).items()
        }
        return cls(**values)

    def stop(self) -> None:
        """Ask the running job to stop in order, from any thread; `run()` then raises `Stopped`."""
        self._stop.request("stopped by TrainingJob.stop()", EXIT_SIGTERM)

    def run(self, *, progress: Progress | bool = True) -> JobResult:
        """Train: launch the workers, wait, publish `model.tar.gz`; return how it ended.

        Args:
            progress: True: a live display on a terminal, plain lines elsewhere; False: nothing; or an object to tell.

        Raises:
            UserError, AlgorithmError, PlatformError, Stopped: each with the `JobResult` as `.result` (None when the request
                itself was wrong and no job began).
        """
        request = _validated(self)
        shown = progress_for() if progress is True else Silent() if progress is False else progress
        earlier = _claimed(self, request)
        record = JobRecord(request.url, name=request.name, algorithm=request.work.label, earlier=earlier)
        with tempfile.TemporaryDirectory(prefix="phalanx-job-") as scratch:
            try:
                return _Run(self, request, record, shown, Path(scratch), self._stop).run()
            finally:
                record.close()


@dataclass(frozen=True, slots=True)
class _Request:
    """A job after validation: nothing in it can be wrong in a way that could have been seen without starting."""

    name: str
    url: str
    work: Work
    inputs: Mapping[str, Channel]
    files: Mapping[str, list[storage.File]]
    threads: int
    launcher: Launcher
    checkpoints: Mapping[str, Any] | None  # as `trainer.saving.Saver` takes them
    spot: Spot | None
    sources: Sequence[InterruptionSource]


def _validated(job: TrainingJob) -> _Request:
    if job.algorithm is not None and job.script is None:
        registry.entry(job.algorithm)  # the name first: it is what one most easily gets wrong
    _whole("workers", job.workers, 1)
    launcher = _launcher(job.launcher)
    inputs = {n: Channel(url=c) if isinstance(c, str) else c for n, c in _mapping("inputs", job.inputs).items()}
    _whole("micro_batches", job.micro_batches, 1)
    if job.elastic not in (None, "exact"):
        raise UserError(f"elastic must be 'exact' or left out, not {job.elastic!r}")
    work = _work(job, launcher, inputs)
    _whole("max_restarts", job.max_restarts, 0)
    _whole("seed", job.seed, 0)
    if job.threads_per_worker is not None:
        _whole("threads_per_worker", job.threads_per_worker, 1)
    _seconds("max_runtime_s", job.max_runtime_s)
    _seconds("hang_timeout_s", job.hang_timeout_s)
    name = job.name or f"{work.slug}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise UserError(f"name '{name}' is not allowed: 1 to 63 letters and digits, with single - _ . between them")
    for channel_name in inputs:
        if not _CHANNEL_NAME.fullmatch(channel_name):
            raise UserError(f"channel name '{channel_name}' is not allowed: 1 to 64 letters, digits, - _ .")
    work.check_inputs(inputs)
    files = {n: [file for url in channel.urls for file in storage.list_files(url)] for n, channel in inputs.items()}
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    url = storage.join(job.output, name)
    spot = _spot(job.spot)
    return _Request(
        name=name,
        url=url,
        work=work,
        inputs=inputs,
        files=files,
        threads=job.threads_per_worker or max(1, cores // job.workers),
        launcher=launcher,
        checkpoints=_checkpoints(job, name, url),
        spot=spot,
        sources=[] if spot is None else [source_of(text) for text in spot.notices],
    )


def _checkpoints(job: TrainingJob, name: str, url: str) -> dict[str, Any] | None:
    if job.resume and job.name is None:
        raise UserError("resume goes on with a job of a name: give the name of the job that was interrupted")
    keep = {"last": job.keep} if isinstance(job.keep, int) else job.keep
    known = {f.name for f in fields(Retention)}
    if not isinstance(keep, Mapping) or isinstance(job.keep, bool):
        raise UserError(
            f"keep={job.keep!r} is not allowed: a number of checkpoints, or a mapping with {', '.join(sorted(known))}"
        )
    for key in keep:
        if key not in known:
            raise UserError(f"keep has no field '{key}'; {nearest(str(key), known)}")
    Retention(**keep)
    if str(job.checkpoint_every) == "never":
        if job.resume:
            raise UserError("resume needs checkpoints, and checkpoint_every is never")
        return None
    parse_when(job.checkpoint_every)
    place = job.checkpoints or storage.join(url, "checkpoints")
    if storage.is_local(place):
        place = str(storage.local_path(place).absolute())  # a script runs in another folder
    return {"url": place, "job": name, "every": str(job.checkpoint_every), "keep": dict(keep), "begun": time.time()}


def _spot(given: Spot | Mapping[str, Any] | None) -> Spot | None:
    if given is None or isinstance(given, Spot):
        return given
    known = {f.name for f in fields(Spot)}
    if not isinstance(given, Mapping):
        raise UserError(f"spot must be a phalanx.Spot or a mapping with {', '.join(sorted(known))}, not {given!r}")
    for key in given:
        if key not in known:
            raise UserError(f"spot has no field '{key}'; {nearest(str(key), known)}")
    return Spot(**given)


def _claimed(job: TrainingJob, request: _Request) -> Mapping[str, Any] | None:
    """Make the job's folder, or take over that of the job to go on with; return the status it had.

    Raises:
        UserError: the folder or checkpoints of this name are there and resume was not asked for, or the job has completed.
    """
    earlier = storage.read_json(storage.join(request.url, "status.json")) if job.resume else None
    if earlier is None:
        storage.claim_folder(request.url)
    elif earlier.get("status") == "Completed":
        raise UserError(f"the job '{request.name}' has completed: there is nothing to resume; its artifact is in {request.url}")
    if not job.resume and request.checkpoints is not None and job.checkpoints is not None:
        found = [info for info in checkpoints_at(request.checkpoints["url"], content=False) if info.job == request.name]
        if found:
            raise UserError(
                f"there are checkpoints of a job '{request.name}' at {storage.redact(job.checkpoints)} (newest: step "
                f"{found[0].step}): go on from them with resume, or give another name or place"
            )
    return earlier


def _work(job: TrainingJob, launcher: Launcher, inputs: Mapping[str, Channel]) -> Work:
    """Return what the workers are to do: exactly one of an algorithm and a script was given."""
    if (job.algorithm is None) == (job.script is None):
        given = "neither was given" if job.script is None else f"both were given: {job.algorithm} and {job.script}"
        raise UserError(f"a job runs an algorithm or a script; {given}")
    if job.algorithm is not None:
        for field_name in ("source_dir", "arguments", "strategy", "metric_definitions"):
            if getattr(job, field_name):
                raise UserError(f"{field_name} is for scripts, and the job runs the algorithm {job.algorithm}")
        if job.elastic is not None and not registry.entry(job.algorithm).elastic:
            exact = ", ".join(name for name, entry in registry.algorithms().items() if entry.elastic)
            raise UserError(
                f"elastic='exact': what {job.algorithm} learns depends on the number of workers; it does not for {exact}, "
                "nor for a script's phalanx.Trainer"
            )
        return AlgorithmWork(job.algorithm, job.hyperparameters, workers=job.workers, inputs=inputs, prepare=launcher.prepare)
    launcher.prepare(())  # its workers are forked from the warm server, to become interpreters of their own
    return ScriptWork(
        str(job.script),
        source_dir=job.source_dir,
        given=job.hyperparameters,
        arguments=job.arguments,
        strategy=job.strategy if job.elastic is None else _exact(job),
        metric_definitions=job.metric_definitions,
        inputs=inputs,
        variables=list(job.environment),
    )


def _exact(job: TrainingJob) -> str:
    """Return the strategy of a script whose result must not depend on the number of workers.

    Raises:
        UserError: another strategy was given, or the workers cannot share the micro-batches evenly.
    """
    if job.strategy not in (None, "ddp", "exact"):
        raise UserError(f"elastic='exact' is the strategy 'exact'; strategy='{job.strategy}' was given as well: leave one out")
    if job.micro_batches % job.workers:
        raise UserError(f"micro_batches={job.micro_batches} is no multiple of workers={job.workers}, who share them evenly")
    return f"exact:micro_batches={job.micro_batches}"


@final
class _Run:
    """One pass of a validated job through launcher, workers and publishing."""

    def __init__(
        self, job: TrainingJob, request: _Request, record: JobRecord, progress: Progress, scratch: Path, stop: StopRequest
    ) -> None:
        self._job = job
        self._request = request
        self._record = record
        self._progress = progress
        self._scratch = scratch
        self._stop = stop

    def run(self) -> JobResult:
        """Run to the end; raise the job's error with its result."""
        request, job = self._request, self._job
        self._record.write_job(self._resolved())
        workers = (
            f"{job.workers} worker{'s' * (job.workers > 1)} with {request.threads} thread{'s' * (request.threads > 1)} each"
        )
        self._progress.started(request.name, f"{request.work.label} on {workers}, to {storage.redact(request.url)}")
        try:
            with _signals(self._stop):
                with Housekeeping(self._record, self._on_line):
                    outcome = self._supervise()
                    artifact = self._publish(outcome)
                request.work.ended()
            error, secondary = outcome.error, outcome.secondary_status
        except Exception as unexpected:
            error = (
                unexpected
                if isinstance(unexpected, PhalanxError)
                else AlgorithmError(f"{type(unexpected).__name__}: {unexpected}")
            )
            error.__cause__ = None if error is unexpected else unexpected
            artifact, secondary = None, "Failed"
        finally:
            self._progress.ended()
        return self._end(error, secondary, artifact)

    def _supervise(self) -> Outcome:
        request, job = self._request, self._job
        spot = request.spot
        limits = [s for s in (job.max_runtime_s, None if spot is None else spot.max_wait_s) if s is not None]
        spec = WorkerSpec(
            workers=job.workers,
            log_folder=self._record.logs,
            attempt=0,
            environment={**dict(job.environment), **environment.checkpoint_variables(request.checkpoints)},
            threads=request.threads,
        )
        given: dict[str, Any] = {
            "name": request.name,
            "inputs": {name: channel.to_json() for name, channel in request.inputs.items()},
            "seed": job.seed,
            "checkpoints": request.checkpoints,
        }
        output = storage.local_path(job.output) if storage.is_local(job.output) else None
        spec = request.work.begin(spec, given, self._scratch, output, self._record.printed)
        with Watch(request.sources, lambda text: self._progress.status("Notices", storage.redact(text))) as watch:
            return supervise(
                request.work.launcher(request.launcher),
                spec,
                budget=Budget(job.max_restarts, None if spot is None else spot.max_restarts),
                stop=self._stop,
                max_runtime_s=min(limits) if limits else None,
                grace_s=GRACE_SECONDS if spot is None else spot.grace_s,
                on_event=self._on_event,
                on_group=self._record.group,
                on_retry=self._on_retry,
                watch=watch,
                hang_timeout_s=job.hang_timeout_s,
            )

    def _on_event(self, event: Event) -> None:
        body = event.body
        self._request.work.on_event(event)
        if body["kind"] == "phase" and event.rank == 0:
            self._record.enter(body["phase"])
            if body["phase"] == "Training":
                self._record.trains(event.time)
            self._progress.status(body["phase"], "")
        elif body["kind"] == "step":
            self._record.step(body["step"], body["time"], body["metrics"])
            self._progress.step(body["step"], body["metrics"], body["rows"], body["of"])
        elif body["kind"] == "saved":
            self._record.saved(body)
        elif body["kind"] == "restored":
            self._record.restored(body["step"], event.time, body["passed_over"])
            if body["step"]:
                self._progress.status("Training", f"goes on from step {body['step']}")

    def _on_retry(self, error: PhalanxError) -> None:
        self._record.interrupted(error)
        what = "interrupted" if isinstance(error, Interruption) else "failed"
        self._progress.status(
            "Interrupted" if what == "interrupted" else "Restarting", f"{what}: {storage.redact(error.message)}"
        )

    def _on_line(self, rank: int, line: str) -> None:
        self._request.work.on_line(rank, line)
        self._progress.log(rank, line)

    def _publish(self, outcome: Outcome) -> str | None:
        """Pack and publish the model the workers left; None where a stopped or failed job left none."""
        stopped = isinstance(outcome.error, Stopped)
        if outcome.error is not None and not stopped:
            return None
        work, target = self._request.work, None
        self._record.enter("Uploading")
        self._progress.status("Uploading", "")
        folder = work.model(outcome.restarts, stopped=stopped)
        if folder is not None:
            archive = self._scratch / "model.tar.gz"
            storage.pack(folder, archive)
            target = storage.join(self._request.url, "model.tar.gz")
            storage.put_file(archive, target)
        if folder is not None or not stopped:
            self._publish_output(work.output(outcome.restarts))
        return target

    def _publish_output(self, folder: Path) -> None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            storage.put_file(path, storage.join(self._request.url, "output", path.relative_to(folder).as_posix()))

    def _end(self, error: PhalanxError | None, secondary: str, artifact: str | None) -> JobResult:
        status: Literal["Completed", "Failed", "Stopped"]
        status = "Completed" if error is None else "Stopped" if isinstance(error, Stopped) else "Failed"
        self._record.end(status, secondary, error)
        seen = self._record.status
        result = JobResult(
            name=self._request.name,
            status=status,
            secondary_status=secondary,
            folder=self._request.url,
            artifact=artifact,
            metrics=dict(self._record.metrics),
            step=self._record.last_step,
            restarts=seen["restarts"],
            training_seconds=seen["training_seconds"],
            billable_seconds=seen["billable_seconds"],
            failure=seen["failure"],
        )
        if error is not None:
            error.result = result
            raise error
        return result

    def _resolved(self) -> dict[str, Any]:
        """Return what job.json holds: the request with every default filled in, and where it all came from."""
        job, request = self._job, self._request
        inputs = {name: channel.to_json() for name, channel in request.inputs.items()}
        for channel in inputs.values():
            channel["url"] = [storage.redact(url) for url in channel["url"]]
        return {
            "name": request.name,
            **request.work.described(),
            "inputs": inputs,
            "seed": job.seed,
            "workers": job.workers,
            "output": storage.redact(job.output),
            "threads_per_worker": request.threads,
            "launcher": job.launcher if isinstance(job.launcher, str) else type(job.launcher).__name__,
            "max_restarts": job.max_restarts,
            "max_runtime_s": job.max_runtime_s,
            "environment": environment.masked(job.environment),
            "checkpoints": None if request.checkpoints is None else storage.redact(request.checkpoints["url"]),
            "checkpoint_every": str(job.checkpoint_every),
            "keep": None if request.checkpoints is None else request.checkpoints["keep"],
            "spot": None if request.spot is None else asdict(request.spot),
            "resume": job.resume,
            "hang_timeout_s": job.hang_timeout_s,
            "provenance": {
                **code_and_versions(),
                "data": {
                    name: {
                        "files": len(files),
                        "bytes": sum(file.size for file in files),
                        "fingerprint": storage.fingerprint(files),
                    }
                    for name, files in request.files.items()
                },
            },
        }


@contextmanager
def _signals(stop: StopRequest) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM stop the job in order; a second Ctrl-C does not wait. Only the main thread can listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        code = EXIT_SIGINT if number == signal.SIGINT else EXIT_SIGTERM
        stop.request(f"stopped by {signal.Signals(number).name}", code)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _launcher(given: str | Launcher) -> Launcher:
    if not isinstance(given, str):
        return given
    if given not in _LAUNCHERS:
        raise UserError(f"there is no launcher '{given}'; {nearest(given, _LAUNCHERS)}")
    return _LAUNCHERS[given]()


def _channel(name: str, given: Any) -> Channel:
    known = {f.name for f in fields(Channel)}
    if isinstance(given, Channel):
        return given
    if isinstance(given, list):
        return Channel(url=given)
    if not isinstance(given, Mapping) or "url" not in given:
        raise UserError(f"inputs.{name} must be a URL, a list of URLs, or a mapping with 'url'")
    for key in given:
        if key not in known:
            raise UserError(f"inputs.{name} has no field '{key}'; {nearest(str(key), known)}")
    return Channel(**given)


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"{what} must be a mapping of channel names to URLs or Channels, not {type(given).__name__}")
    return given


def _whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name}={value!r} is not allowed: it must be a whole number of at least {low}")


def _seconds(name: str, value: float | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
        raise UserError(f"{name}={value!r} is not allowed: it must be a number of seconds above 0, or None for no limit")
