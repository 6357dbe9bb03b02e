"""A job's request, looked through before anything starts: what can be wrong with it is told here, in one sentence."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import environment, registry, storage
from .checkpoint.policy import Retention, parse_when
from .checkpoint.store import checkpoints_at
from .cluster import Cluster, Count, count_of
from .contracts import Launcher, WorkerSpec
from .data.channel import Channel
from .errors import UserError, nearest
from .launch.attach import AttachLauncher
from .launch.interruptions import InterruptionSource, source_of
from .launch.local import LocalLauncher
from .launch.prepared import PreparedLauncher
from .scripts.kept import kept_url
from .spot import Spot
from .tracking.rules import rules_of
from .tracking.sinks import parsed
from .work import AlgorithmWork, ScriptWork, Work

if TYPE_CHECKING:
    from .job import TrainingJob

T = TypeVar("T")
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_.]?[a-zA-Z0-9])*")
_CHANNEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LAUNCHERS = ("attach", "local", "ray")


@dataclass(frozen=True, slots=True)
class Request:
    """A job after validation: nothing in it can be wrong in a way that could have been seen without starting."""

    name: str
    url: str
    work: Work
    inputs: Mapping[str, Channel]
    files: Mapping[str, list[storage.File]]
    workers: Count
    threads: int  # of each worker
    launcher: Launcher
    cluster: Cluster | None  # of the launcher "ray"
    checkpoints: Mapping[str, Any] | None  # as `trainer.saving.Saver` takes them
    spot: Spot | None
    sources: Sequence[InterruptionSource]


def validated(job: TrainingJob) -> Request:
    """Return the request of a job.

    Raises:
        UserError: anything in it is wrong.
    """
    if job.algorithm is not None and job.script is None:
        registry.entry(job.algorithm)  # the name first: it is what one most easily gets wrong
    cluster = _cluster(job)
    workers = count_of("workers", job.workers) if cluster is None else cluster.workers(job.workers)
    launcher = _launcher(job.launcher, cluster)
    inputs = {n: Channel(url=c) if isinstance(c, str) else c for n, c in mapping_of("inputs", job.inputs).items()}
    _whole("micro_batches", job.micro_batches, 1)
    if job.elastic not in (None, "exact"):
        raise UserError(f"elastic must be 'exact' or left out, not {job.elastic!r}")
    work = _work(job, launcher, inputs, workers)
    _whole("max_restarts", job.max_restarts, 0)
    _texts("rules", job.rules, "overfit")
    rules_of(job.rules)
    _check_sinks(job.sinks)
    if not isinstance(job.profile, bool):
        raise UserError(f"profile={job.profile!r} is not allowed: it is true or false")
    _whole("seed", job.seed, 0)
    if job.threads_per_worker is not None:
        _whole("threads_per_worker", job.threads_per_worker, 1)
    _seconds("max_runtime_s", job.max_runtime_s)
    _seconds("hang_timeout_s", job.hang_timeout_s)
    name = job.name or name_of(work.slug)
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise UserError(f"name '{name}' is not allowed: 1 to 63 letters and digits, with single - _ . between them")
    for channel_name in inputs:
        if not _CHANNEL_NAME.fullmatch(channel_name):
            raise UserError(f"channel name '{channel_name}' is not allowed: 1 to 64 letters, digits, - _ .")
    work.check_inputs(inputs)
    files = {n: [file for url in channel.urls for file in storage.list_files(url)] for n, channel in inputs.items()}
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    url = storage.join(job.output, name)
    spot = None if job.spot is None else options(Spot, "spot", job.spot)
    return Request(
        name=name,
        url=url,
        work=work,
        inputs=inputs,
        files=files,
        workers=workers,
        threads=job.threads_per_worker or max(1, cores // workers.most),
        launcher=launcher,
        cluster=cluster,
        checkpoints=_checkpoints(job, name, url),
        spot=spot,
        sources=[] if spot is None else [source_of(text) for text in spot.notices],
    )


def name_of(slug: str) -> str:
    """Return a job's name where the user gave none."""
    return f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def worker_group(
    job: TrainingJob, request: Request, *, logs: Path, scratch: Path, observations: Mapping[str, Any]
) -> tuple[WorkerSpec, dict[str, Any]]:
    """Return the worker group of a job but for what its workers run, and what they are told of the job.

    Args:
        job: the job.
        request: the same, validated.
        logs: folder of the workers' logs.
        scratch: the job's folder on this machine.
        observations: what workers measure of themselves.
    """
    checkpoints = None if request.checkpoints is None else {**request.checkpoints, "begun": time.time()}
    if checkpoints is not None and not isinstance(request.launcher, (LocalLauncher, PreparedLauncher)):
        checkpoints["fence"] = secrets.token_hex(8)  # its workers may live on where nobody here can end them
    spec = WorkerSpec(
        workers=request.workers.most,
        least_workers=request.workers.least,
        log_folder=logs,
        attempt=0,
        environment={
            **dict(job.environment),
            **environment.checkpoint_variables(checkpoints),
            **environment.observe_variables(observations),
        },
        threads=request.threads,
        scratch=scratch,
    )
    told = {
        "name": request.name,
        "inputs": {name: channel.to_json() for name, channel in request.inputs.items()},
        "seed": job.seed,
        "checkpoints": checkpoints,
        "restarts": job.max_restarts > 0 or request.spot is not None,
    }
    return spec, told


def _checkpoints(job: TrainingJob, name: str, url: str) -> dict[str, Any] | None:
    if job.resume and job.name is None:
        raise UserError("resume goes on with a job of a name: give the name of the job that was interrupted")
    if isinstance(job.keep, bool) or not isinstance(job.keep, (int, Mapping)):
        raise UserError(f"keep={job.keep!r} is not allowed: a number of checkpoints, or a mapping with {_names(Retention)}")
    keep = {"last": job.keep} if isinstance(job.keep, int) else dict(job.keep)
    options(Retention, "keep", keep)
    if str(job.checkpoint_every) == "never":
        if job.resume:
            raise UserError("resume needs checkpoints, and checkpoint_every is never")
        return None
    parse_when(job.checkpoint_every)
    place = job.checkpoints or storage.join(url, "checkpoints")
    if storage.is_local(place):
        place = str(storage.local_path(place).absolute())  # a script runs in another folder
    return {"url": place, "job": name, "every": str(job.checkpoint_every), "keep": keep}


def claimed(job: TrainingJob, request: Request) -> Mapping[str, Any] | None:
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
        if job.script is not None and storage.sizes_below(kept_url(request.checkpoints["url"], request.name)):
            raise UserError(
                f"there are files that a script of a job '{request.name}' kept at {storage.redact(job.checkpoints)}: go on "
                "from them with resume, or give another name or place"
            )
    return earlier


def _work(job: TrainingJob, launcher: Launcher, inputs: Mapping[str, Channel], workers: Count) -> Work:
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
        return AlgorithmWork(job.algorithm, job.hyperparameters, workers=workers.most, inputs=inputs, prepare=launcher.prepare)
    launcher.prepare(())  # its workers are forked from the warm server, to become interpreters of their own
    return ScriptWork(
        str(job.script),
        source_dir=job.source_dir,
        given=job.hyperparameters,
        arguments=job.arguments,
        strategy=job.strategy if job.elastic is None else _exact(job, workers),
        metric_definitions=job.metric_definitions,
        inputs=inputs,
        variables=list(job.environment),
    )


def _exact(job: TrainingJob, workers: Count) -> str:
    """Return the strategy of a script whose result must not depend on the number of workers.

    Raises:
        UserError: another strategy was given, or the workers cannot share the micro-batches evenly.
    """
    if job.strategy not in (None, "ddp", "exact"):
        raise UserError(f"elastic='exact' is the strategy 'exact'; strategy='{job.strategy}' was given as well: leave one out")
    for count in range(workers.least, workers.most + 1):
        if job.micro_batches % count:
            raise UserError(f"micro_batches={job.micro_batches} is no multiple of workers={count}, who share them evenly")
    return f"exact:micro_batches={job.micro_batches}"


def _cluster(job: TrainingJob) -> Cluster | None:
    if job.cluster is None:
        return Cluster() if job.launcher == "ray" else None
    if isinstance(job.launcher, str) and job.launcher != "ray":
        raise UserError(
            f"cluster says where on a Ray cluster the workers run, and the launcher is {job.launcher}: give launcher 'ray'"
        )
    return options(Cluster, "cluster", job.cluster)


def _launcher(given: str | Launcher, cluster: Cluster | None) -> Launcher:
    if not isinstance(given, str):
        return given
    if given not in _LAUNCHERS:
        raise UserError(f"there is no launcher '{given}'; {nearest(given, _LAUNCHERS)}")
    if given == "local":
        return LocalLauncher()
    if given == "attach":
        return AttachLauncher()
    if importlib.util.find_spec("ray") is None:
        raise UserError("launcher 'ray' needs Ray: pip install 'phalanx[ray]'")
    from .launch.ray import RayLauncher  # Ray takes a second to load

    return RayLauncher(cluster)


def launcher_name(launcher: str | Launcher) -> str:
    """Return what job.json calls a launcher."""
    if isinstance(launcher, str):
        return launcher
    return "attach" if isinstance(launcher, AttachLauncher) else type(launcher).__name__


def channel_of(name: str, given: Any) -> Channel:
    """Return the channel that a job file describes.

    Raises:
        UserError: it is no URL, list of URLs, or mapping of a channel's fields.
    """
    if isinstance(given, Channel):
        return given
    if isinstance(given, list):
        return Channel(url=given)
    if not isinstance(given, Mapping) or "url" not in given:
        raise UserError(f"inputs.{name} must be a URL, a list of URLs, or a mapping with 'url'")
    return options(Channel, f"inputs.{name}", given)


def mapping_of(what: str, given: Any) -> Mapping[str, Any]:
    """Return `given`, which must map channel names to something."""
    if not isinstance(given, Mapping):
        raise UserError(f"{what} must be a mapping of channel names to URLs or Channels, not {type(given).__name__}")
    return given


def _whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name}={value!r} is not allowed: it must be a whole number of at least {low}")


def _texts(name: str, given: Any, example: str) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise UserError(f"{name} must be a list of texts, as ['{example}'], not {given!r}")


def _check_sinks(given: Any) -> None:
    _texts("sinks", given, "tensorboard")
    names = [parsed(text)[0] for text in given]
    if len(set(names)) < len(names):
        raise UserError(f"a sink can be given once; there are {', '.join(names)}")


def _seconds(name: str, value: float | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
        raise UserError(f"{name}={value!r} is not allowed: it must be a number of seconds above 0, or None for no limit")


def options(kind: type[T], name: str, given: Any) -> T:
    """Return a dataclass from a mapping of its fields, or as it was given.

    Args:
        kind: the dataclass.
        name: what it is called in error texts.
        given: an instance, or a mapping as a file has it.

    Raises:
        UserError: it is neither, or names a field that there is not.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"{name} must be a {kind.__name__} or a mapping with {_names(kind)}, not {given!r}")
    for key in given:
        if key not in _fields(kind):
            raise UserError(f"{name} has no field '{key}'; {nearest(str(key), _fields(kind))}")
    for missing in (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING):  # type: ignore[arg-type]
        if missing not in given:
            raise UserError(f"{name} needs the field '{missing}'")
    return kind(**given)


def _fields(kind: Any) -> list[str]:
    return sorted(f.name for f in fields(kind))


def _names(kind: Any) -> str:
    return ", ".join(_fields(kind))
