"""A training job: what a user asks for, validated, run through the five hops, recorded.

TrainingJob.run()  ->  launch.supervise(launcher, worker.main)  ->  algorithm.fit(session)  ->  report  ->  model.tar.gz
                                    or a user's script          ->  phalanx.session()
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, final

from . import archive, attached, environment, heartbeat, storage
from .checkpoint.fence import Pass, put_fence
from .cluster import Cluster
from .contracts import Event, Launcher, Member
from .data.channel import Channel
from .errors import EXIT_SIGTERM, AlgorithmError, Interruption, PhalanxError, Stopped, UserError, nearest
from .launch.fencing import FencingLauncher
from .launch.interruptions import Watch
from .launch.stopping import StopRequest, stopping_on_signals
from .launch.supervise import Budget, Outcome, supervise
from .provenance import code_and_versions
from .request import Request, channel_of, claimed, launcher_name, mapping_of, validated, worker_group
from .result import JobResult
from .scratch import Scratch
from .spot import Spot
from .tracking.console import Progress, ShowsNodes, Silent, progress_for
from .tracking.housekeeping import Housekeeping
from .tracking.lineage import DataHashes
from .tracking.profile import ProfileRecord
from .tracking.record import JobRecord
from .tracking.sinks import Sinks
from .tracking.watching import RuleWatch

GRACE_SECONDS = 30.0


@final
@dataclass(kw_only=True)
class TrainingJob:
    """One training run, from a request to `model.tar.gz`.

    Args:
        algorithm: name of a built-in or an installed algorithm (`phalanx algorithms`); or give a script.
        inputs: channel name -> `Channel` or URL; `train` is the one an algorithm learns from. A script may have none.
        hyperparameters: name -> value, typed or as text; a script gets them as arguments `--name value`.
        workers: processes that train together; or a range as "2:4", of which a launcher starts as many as it has room for.
        output: folder or fsspec URL under which the job's own folder `output/name` is made.
        name: at most 63 characters; default: the algorithm and the time.
        seed: of everything random; the same seed, data and versions give the same artifact.
        threads_per_worker: default: cores // workers.
        launcher: "local"; "ray": on a Ray cluster, as `cluster` says; "attach": on the group that torchrun, srun, mpirun or a
            container started, each of whose ranks runs this job; or an object with `start(spec)`.
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
        rules: that watch the run, as "overfit", "overfit:patience=3,action=stop" or "all"; what they find is in findings.jsonl.
        sinks: where metrics also go: "tensorboard", "mlflow:uri=http://host:5000,experiment=digits", "wandb:project=digits".
        profile: write a trace of every rank and a summary into `profile` in the job's folder.
        cluster: of launcher "ray": which one, what each worker gets, how they are spread.
    """

    algorithm: str | None = None
    inputs: Mapping[str, Channel | str] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    workers: int | str = 1
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
    rules: Sequence[str] = ()
    sinks: Sequence[str] = ()
    profile: bool = False
    cluster: Cluster | Mapping[str, Any] | None = None

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
            n: c if isinstance(c, str) else channel_of(n, c) for n, c in mapping_of("inputs", given.get("inputs", {})).items()
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
        shown = progress_for() if progress is True else Silent() if progress is False else progress
        attach = attached.launcher_of(self)
        if attach is None:
            return _conducted(self, validated(self), shown, self._stop)
        if attach.group.rank > 0:
            return attached.take_part(self, attach, self._stop)
        with attached.Leading(self, attach, self._stop) as leading:
            request = leading.request()
            leading.result = leading.done(request) or _conducted(leading.job, request, shown, self._stop)
            return leading.result


def _conducted(job: TrainingJob, request: Request, progress: Progress, stop: StopRequest) -> JobResult:
    """Run a validated job to its end."""
    earlier = claimed(job, request)
    goals = request.work.goals
    record = JobRecord(request.url, name=request.name, algorithm=request.work.label, earlier=earlier, goals=goals)
    with Scratch("job") as scratch:
        try:
            return _Run(job, request, record, progress, scratch, stop).run()
        finally:
            record.close()


@final
class _Run:
    """One pass of a validated job through launcher, workers and publishing."""

    def __init__(
        self, job: TrainingJob, request: Request, record: JobRecord, progress: Progress, scratch: Path, stop: StopRequest
    ) -> None:
        self._job = job
        self._request = request
        self._record = record
        self._progress = progress
        self._scratch = scratch
        self._stop = stop
        self._rules = RuleWatch(
            job.rules, record.folder, self._warn, lambda why: stop.request(why, EXIT_SIGTERM), request.work.goals
        )
        self._sinks = Sinks(job.sinks, request.url, record.folder, job.output, lambda text: progress.status("Sinks", text))
        self._profile = ProfileRecord(record.folder) if job.profile else None

    def run(self) -> JobResult:
        """Run to the end; raise the job's error with its result."""
        request = self._request
        self._record.write_job(self._resolved())
        self._sinks.start()
        count, threads = request.workers, request.threads
        workers = f"{count} worker{'s' * (count.most > 1)} with {threads} thread{'s' * (threads > 1)} each"
        self._progress.started(request.name, f"{request.work.label} on {workers}, to {storage.redact(request.url)}")
        try:
            with stopping_on_signals(self._stop):
                beside = Housekeeping(self._record, self._on_line, self._asked, request.work.keep)
                with beside, DataHashes(request.files, self._record.folder), self._rules:
                    outcome = self._supervise()
                    self._keep_last()
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
        if spot is not None:
            self._record.bill(spot, request.workers.most)
        limits = [s for s in (job.max_runtime_s, None if spot is None else spot.max_wait_s) if s is not None]
        spec, given = worker_group(
            job, request, logs=self._record.logs, scratch=self._scratch, observations=self._observations()
        )
        spec = replace(spec, shared=self._shared())
        output = storage.local_path(job.output) if storage.is_local(job.output) else None
        spec = request.work.begin(spec, given, self._scratch, output, self._printed)
        with Watch(request.sources, lambda text: self._progress.status("Notices", storage.redact(text))) as watch:
            return supervise(
                self._launcher(given["checkpoints"]),
                spec,
                budget=Budget(job.max_restarts, None if spot is None else spot.max_restarts),
                stop=self._stop,
                max_runtime_s=min(limits) if limits else None,
                grace_s=GRACE_SECONDS if spot is None else spot.grace_s,
                on_event=self._on_event,
                on_group=self._on_group,
                on_retry=self._on_retry,
                watch=watch,
                hang_timeout_s=job.hang_timeout_s,
            )

    def _launcher(self, checkpoints: Mapping[str, Any] | None) -> Launcher:
        """Return who starts the group; a fence lets each attempt shut those before it out, where the job has one."""
        launcher = self._request.work.launcher(self._request.launcher)
        if checkpoints is None or "fence" not in checkpoints:
            return launcher
        url, job, run = str(checkpoints["url"]), self._request.name, str(checkpoints["fence"])
        return FencingLauncher(launcher, lambda attempt: put_fence(url, job, Pass(run, attempt)))

    def _shared(self) -> list[str]:
        """Return the paths of this machine that workers read and write: they are theirs too, or the job cannot run there."""
        request = self._request
        urls = [url for channel in request.inputs.values() for url in channel.urls if not any(c in url for c in "*?[")]
        paths = [str(storage.local_path(url).absolute()) for url in urls if storage.is_local(url)]
        if request.checkpoints is not None and storage.is_local(request.checkpoints["url"]):
            own = self._job.checkpoints is None
            place = self._record.folder if own else storage.local_path(request.checkpoints["url"])
            place.mkdir(parents=True, exist_ok=True)
            paths.append(str(place.absolute()))
        return paths + ([] if self._profile is None else [str(self._record.folder.absolute())])

    def _on_event(self, event: Event) -> None:
        body = event.body
        self._request.work.on_event(event)
        self._rules.event(event)
        if self._profile is not None:
            self._profile.event(event)
        if body["kind"] == "phase" and event.rank == 0:
            self._record.enter(body["phase"])
            if body["phase"] == "Training":
                self._record.trains(event.time)
            self._progress.status(body["phase"], "")
        elif body["kind"] == "step":
            self._record.step(body["step"], body["time"], body["metrics"])
            self._progress.step(body["step"], body["metrics"], body["rows"], body["of"])
        elif body["kind"] == heartbeat.KIND:
            self._record.used(event.rank, event.time, body.get("used") or {})
        elif body["kind"] == "saved":
            self._record.saved(body)
        elif body["kind"] == "restored":
            self._record.restored(body["step"], event.time, body["passed_over"], body.get("metrics") or {})
            if body["step"]:
                self._progress.status("Training", f"goes on from step {body['step']}")

    def _observations(self) -> dict[str, Any]:
        """Return what workers measure of themselves, for rules and the profile."""
        wanted = self._rules.observations
        if self._profile is None:
            return wanted
        kinds = sorted({*wanted.get("kinds", ()), "windows"})
        return {**wanted, "kinds": kinds, "profile": {"folder": str(self._profile.folder.absolute())}}

    def _on_group(self, members: Sequence[Member], attempt: int) -> None:
        self._record.group(members, attempt)
        if self._request.cluster is not None and isinstance(self._progress, ShowsNodes):
            self._progress.nodes([member.host for member in members])

    def _on_retry(self, error: PhalanxError) -> None:
        self._record.interrupted(error)
        what = "interrupted" if isinstance(error, Interruption) else "failed"
        self._progress.status(
            "Interrupted" if what == "interrupted" else "Restarting", f"{what}: {storage.redact(error.message)}"
        )

    def _on_line(self, rank: int, line: str) -> None:
        self._request.work.on_line(rank, line)
        self._progress.log(rank, line)

    def _printed(self, name: str, step: int, when: float, value: float | None) -> None:
        self._record.printed(name, step, when, value)
        self._rules.printed(name, step, when, value)

    def _warn(self, text: str) -> None:
        self._progress.status("Rules", text)

    def _asked(self) -> None:
        self._stop.request("stopped by phalanx stop", EXIT_SIGTERM)

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
            packed = self._scratch / "model.tar.gz"
            archive.pack(folder, packed)
            target = storage.join(self._request.url, "model.tar.gz")
            storage.put_file(packed, target)
        if folder is not None or not stopped:
            self._publish_output(work.output(outcome.restarts))
        return target

    def _keep_last(self) -> None:
        """Keep the rest of a script's files; a model that is there is published even where that fails."""
        try:
            self._request.work.keep(last=True)
        except PhalanxError as error:
            why = storage.redact(error.message)
            self._progress.status("Uploading", f"the last files of session.checkpoints were not kept: {why}")

    def _publish_output(self, folder: Path) -> None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            storage.put_file(path, storage.join(self._request.url, "output", path.relative_to(folder).as_posix()))

    def _end(self, error: PhalanxError | None, secondary: str, artifact: str | None) -> JobResult:
        status: Literal["Completed", "Failed", "Stopped"]
        status = "Completed" if error is None else "Stopped" if isinstance(error, Stopped) else "Failed"
        if error is not None:
            self._rules.failed(self._record.last_step, error.message)
        self._rules.close()
        if self._profile is not None:
            self._profile.write()
        ended = time.time()
        self._sinks.close(status)  # before the record's last copy, which takes their files; their time is not the job's
        self._record.end(status, secondary, error, at=ended)
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
            "workers": request.workers.most if request.workers.least == request.workers.most else str(request.workers),
            "output": storage.redact(job.output),
            "threads_per_worker": request.threads,
            "launcher": launcher_name(job.launcher),
            "max_restarts": job.max_restarts,
            "max_runtime_s": job.max_runtime_s,
            "environment": environment.masked(job.environment),
            "checkpoints": None if request.checkpoints is None else storage.redact(request.checkpoints["url"]),
            "checkpoint_every": str(job.checkpoint_every),
            "keep": None if request.checkpoints is None else request.checkpoints["keep"],
            "spot": None if request.spot is None else asdict(request.spot),
            "resume": job.resume,
            "hang_timeout_s": job.hang_timeout_s,
            "elastic": job.elastic,
            "micro_batches": job.micro_batches,
            "rules": list(job.rules),
            "sinks": [storage.redact(sink) for sink in job.sinks],
            "profile": job.profile,
            "cluster": None if request.cluster is None else request.cluster.to_json(),
            "provenance": {
                **code_and_versions(),
                "code": request.work.code(),
                "parents": [storage.redact(request.url)] if job.resume else [],
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
