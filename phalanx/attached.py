"""A job on a group that somebody else started: every rank runs `TrainingJob.run()`, rank 0 leads, the others take part.

All ranks look through the same request for themselves, and rank 0 goes on only when none found it wrong and all were given the
same. How the job ends is told to all, so that each returns the same result or raises the same error. A job that its starter
starts again (torchrun --max-restarts, Slurm's requeue) goes on from its newest checkpoint without being asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

from . import environment, storage
from .contracts import Json, WorkerSpec
from .errors import AlgorithmError, PhalanxError, Stopped, UserError, from_record, to_record
from .groups import Group
from .launch.attach import AttachLauncher, Lead
from .launch.following import Follower
from .launch.meeting import Meeting, join, machine, turn_of
from .launch.stopping import StopRequest, stopping_on_signals
from .launch.wire import Message
from .provenance import code_and_versions
from .request import Request, name_of, validated, worker_group
from .result import JobResult
from .scratch import Scratch
from .work import slug_of

if TYPE_CHECKING:
    from .job import TrainingJob

_NOT_COMPARED = ("launcher", "workers", "name", "threads_per_worker")
_FAREWELL_SECONDS = 60.0  # in which ranks that have not come yet can still learn what is wrong
_ECHO_SECONDS = 5.0  # in which a starter passes on a signal that its processes may have got too
_UUID = re.compile(r"([0-9a-f]{8})(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # whose first part will do
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9]+")


def launcher_of(job: TrainingJob) -> AttachLauncher | None:
    """Return the attaching launcher of a job, None where it has another one."""
    if job.launcher == "attach":
        return AttachLauncher()
    return job.launcher if isinstance(job.launcher, AttachLauncher) else None


def follows(job: TrainingJob) -> bool:
    """Return whether this process is a rank other than 0 of an attached group: rank 0 tells people how the job goes."""
    launcher = launcher_of(job)
    return launcher is not None and launcher.group.rank > 0


@final
class Leading:
    """Rank 0's side, a context manager: on leaving it all ranks are told how the job ended.

    Args:
        job: as rank 0 was given it.
        launcher: its launcher.
        stop: of the job; a rank that is told to stop asks it.

    Attributes:
        job: the same with name, workers and threads of the group.
        result: how it ended, to be set; what the others return.
    """

    def __init__(self, job: TrainingJob, launcher: AttachLauncher, stop: StopRequest) -> None:
        self._group = launcher.group
        self._given = job
        self._launcher = launcher
        self._stop = stop
        stop.echo_s = _ECHO_SECONDS
        turn = turn_of(self._group)
        self.job = replace(job, name=job.name or _name(job, self._group, turn))
        self.result: JobResult | None = None
        self._meeting = Meeting(self._group, turn, {"name": self.job.name})
        self._gathered = False
        self._lead: Lead | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._gathered and isinstance(error, PhalanxError):
                self._wait_for_the_late()
            result = error.result if isinstance(error, PhalanxError) else self.result
            if error is not None:
                _tell_torchrun(error)
            self._meeting.tell(
                {
                    "do": "end",
                    "result": None if result is None else asdict(result),
                    "error": None if error is None else _record(error),
                }
            )
        finally:
            if self._lead is not None:
                self._lead.close()
            self._meeting.close()

    def request(self) -> Request:
        """Return the request, once all ranks have come and agree on it.

        Raises:
            UserError: it is wrong, here or on another rank, or the ranks were given different ones.
            PlatformError: not all came.
            Stopped: somebody asked for it meanwhile.
        """
        with stopping_on_signals(self._stop):
            self.job = _fitted(self.job, self._group, self._launcher, self.job.name)
            request = validated(self.job)
            self._gathered = True  # or given up: nobody is waited for again
            self._meeting.gather(self._launcher.timeout_s, self._stop.requested)
        if self._stop.requested():
            raise Stopped(self._stop.reason or "the job was asked to stop", self._stop.exit_code)
        self._compare(_marks(self._given, request))
        self._lead = Lead(self._meeting, self._stop)
        self._launcher.lead(self._lead)
        if not (self._given.threads_per_worker or self._group.threads or self._group.local_size):
            request = replace(request, threads=_share(self._lead.densest))
        self._check_places(request)
        if self._is_begun(request):
            self.job.resume = True
        return request

    def done(self, request: Request) -> JobResult | None:
        """Return the result of the job where it was completed before its starter started it again."""
        status = storage.read_json(storage.join(request.url, "status.json")) if self._group.restarts else None
        if status is None or status.get("status") != "Completed":
            return None
        try:
            artifact: str | None = storage.list_files(storage.join(request.url, "model.tar.gz"))[0].url
        except UserError:  # a script saved none
            artifact = None
        kept = {f.name: status[f.name] for f in fields(JobResult) if f.name in status}
        return JobResult(**kept, folder=request.url, artifact=artifact)

    def _wait_for_the_late(self) -> None:
        try:
            self._meeting.gather(_FAREWELL_SECONDS, self._stop.requested)
        except PhalanxError:  # they will find nobody
            return

    def _compare(self, mine: Mapping[str, str]) -> None:
        for rank in sorted(self._meeting.peers):
            peer = self._meeting.peers[rank]
            if "error" in peer.hello:
                told = from_record(peer.hello["error"])
                told.args = (f"{told.message} ({peer.name()})",)
                told.message = told.args[0]
                raise told
            theirs = peer.hello.get("marks", {})
            other = [name for name in mine if theirs.get(name) != mine[name]]
            if other:
                raise UserError(
                    f"{peer.name()} and worker 0 on {socket.gethostname()} do not have the same {', '.join(other)}: start the "
                    "same command on all ranks, with the same files and versions"
                )

    def _check_places(self, request: Request) -> None:
        """The ranks of other machines must reach the checkpoints' place."""
        if self._lead is None or self._lead.is_local or request.checkpoints is None:
            return
        place = self.job.checkpoints or self.job.output
        if storage.is_local(place) and not self._lead.all_see(storage.local_path(place)):
            raise UserError(
                f"not all machines see the same folder {place}: checkpoints need a place that all share, a shared file system "
                "or the URL of an object store; checkpoint_every='never' does without them"
            )

    def _is_begun(self, request: Request) -> bool:
        """Return whether a run of this job was cut off before.

        Raises:
            UserError: there is another job of this name.
        """
        status = storage.read_json(storage.join(request.url, "status.json"))
        if status is None or status.get("status") == "Completed" or self.job.resume:
            return False
        before = storage.read_json(storage.join(request.url, "job.json"))
        if before is None:
            return False
        now = json.loads(json.dumps(_learns(self.job, request)))
        other = [name for name, value in now.items() if before.get(name) != value]
        if other:
            raise UserError(
                f"the unfinished job '{request.name}' at {storage.redact(request.url)} has another {', '.join(other)}: give "
                "another name, or go on with it by resume"
            )
        return True


def take_part(job: TrainingJob, launcher: AttachLauncher, stop: StopRequest) -> JobResult:
    """Be a rank other than 0 from the beginning to the end; return the result that rank 0 tells.

    Raises:
        PhalanxError: the error of the job.
        PlatformError: rank 0 cannot be found, or is lost.
    """
    group = launcher.group
    stop.echo_s = _ECHO_SECONDS
    with stopping_on_signals(stop):
        found = join(group, turn_of(group), launcher.timeout_s, stop.requested)
        if found is None:
            raise Stopped(stop.reason or "the job was asked to stop", stop.exit_code)
        connection, welcome = found
        request: Request | None = None
        try:
            given, job = job, _fitted(job, group, launcher, job.name or str(welcome["name"]))
            request = validated(job)
            hello: dict[str, Json] = {"marks": _marks(given, request)}
        except PhalanxError as error:
            hello = {"error": _record(error)}
        connection.send({"do": "hello", **machine(), **hello})
        if request is not None:
            sys.stderr.write(f"worker {group.rank} of {group.size} joins the job {request.name}\n")
        with Scratch("job") as scratch:
            part = _Part(job, request, scratch)
            said = Follower(connection, group.rank, group.size, stop).serve(part.prepare, part.spec)
    return _ended(said)


@final
class _Part:
    """What a rank other than 0 makes of its request."""

    def __init__(self, job: TrainingJob, request: Request | None, scratch: Path) -> None:
        self._job = job
        self._request = request
        self._scratch = scratch

    def prepare(self) -> str:
        """Make the job's folder on this machine; the first of its ranks does."""
        request = self._known()
        output = storage.local_path(self._job.output) if storage.is_local(self._job.output) else None
        spec, told = self._group(self._scratch)
        request.work.begin(spec, told, self._scratch, output, lambda name, step, when, value: None)
        return str(self._scratch)

    def spec(self, said: Message) -> WorkerSpec:
        """Return the group, whose scratch folder on this machine rank 0 names."""
        scratch = Path(str(said["scratch"]))
        spec, told = self._group(scratch)
        return self._known().work.group(spec, told, scratch)

    def _group(self, scratch: Path) -> tuple[WorkerSpec, dict[str, Any]]:
        return worker_group(self._job, self._known(), logs=scratch / "logs", scratch=scratch, observations={})

    def _known(self) -> Request:
        if self._request is None:
            raise AlgorithmError("rank 0 went on with a request that this rank had found wrong")
        return self._request


def _ended(said: Message) -> JobResult:
    given = said.get("result")
    result = None if given is None else JobResult(**given)
    if said.get("error") is not None or result is None:
        error = from_record(said["error"])
        if isinstance(error, Stopped):
            error.exit_code = int(said["error"]["exit_code"])
        error.told = True
        error.result = result
        raise error
    return result


def _tell_torchrun(error: BaseException) -> None:
    """Leave the error where torchrun looks for the root cause, which it prints; nothing under other starters."""
    path = environment.get("TORCHELASTIC_ERROR_FILE")
    if path:
        record = _record(error)
        extra = {"py_callstack": record["details"], "timestamp": str(int(record["time"]))}
        told = {"message": {"message": f"{record['kind']}: {record['message']}", "extraInfo": extra}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(told), encoding="utf-8")


def _record(error: BaseException) -> dict[str, Any]:
    record = to_record(error)
    code = error.exit_code if isinstance(error, PhalanxError) else from_record(record).exit_code
    shown = {key: storage.redact(str(record[key])) for key in ("message", "details")}
    return {**record, **shown, "exit_code": code}


def _fitted(job: TrainingJob, group: Group, launcher: AttachLauncher, name: str | None) -> TrainingJob:
    """Return the job with what the group decides.

    Raises:
        UserError: another number of workers was asked for.
    """
    if str(job.workers) not in ("1", str(group.size)):
        raise UserError(
            f"workers={job.workers} were asked for, and the group that {group.starter} started has {group.size}: leave workers "
            "out"
        )
    threads = job.threads_per_worker or group.threads or _share(group.local_size or 1)
    return replace(job, workers=group.size, launcher=launcher, name=name, threads_per_worker=threads)


def _share(ranks: int) -> int:
    """Return the threads of one of so many ranks on this machine."""
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    return max(1, cores // ranks)


def _marks(job: TrainingJob, request: Request) -> dict[str, str]:
    """Return a hash of everything that all ranks must have been given alike, by its name."""
    given: dict[str, Any] = {f.name: getattr(job, f.name) for f in fields(job) if f.name not in _NOT_COMPARED}
    given["inputs"] = {name: channel.to_json() for name, channel in request.inputs.items()}
    given |= {f"files of channel {name}": storage.fingerprint(files) for name, files in request.files.items()}
    given["script's text"] = request.work.code().get("script")
    versions = code_and_versions()["versions"]
    given |= {f"version of {name}": versions.get(name) for name in ("phalanx", "numpy", "torch")}
    given["output"] = job.output if not storage.is_local(job.output) else str(storage.local_path(job.output).absolute())
    return {name: hashlib.sha256(json.dumps(value, default=_plain).encode()).hexdigest() for name, value in given.items()}


def _plain(value: object) -> Any:
    return asdict(value) if "__dataclass_fields__" in dir(type(value)) else str(value)  # type: ignore[call-overload]


def _learns(job: TrainingJob, request: Request) -> dict[str, Any]:
    """Return what job.json says of that which decides what is learnt."""
    inputs = {name: channel.to_json() for name, channel in request.inputs.items()}
    for channel in inputs.values():
        channel["url"] = [storage.redact(url) for url in channel["url"]]
    return {**request.work.described(), "inputs": inputs, "seed": job.seed}


def _name(job: TrainingJob, group: Group, turn: int) -> str:
    """Return the job's name: the same when the group is started again, where that can be known."""
    slug = job.algorithm or (slug_of(job.script) if job.script else "job")
    again = "" if turn == 0 else f"-{turn + 1}"
    if group.run:
        run = _NOT_IN_A_NAME.sub("-", _UUID.sub(r"\1", group.run)).strip("-")[:40]
        kind = _NOT_IN_A_NAME.sub("-", group.starter.split()[-1]).lower()
        return f"{slug[: 63 - len(run) - len(kind) - len(again) - 2]}-{kind}-{run}{again}"
    if group.starter == "torchrun":  # its agent lives on when it starts its workers again
        return f"{slug}-torchrun-{_parent()}{again}"
    return name_of(slug)


def _parent() -> str:
    """Return what tells this process's parent from all others."""
    parent = os.getppid()
    try:
        born = Path(f"/proc/{parent}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        born = ""
    return hashlib.sha256(f"{machine()['machine']} {parent} {born}".encode()).hexdigest()[:8]
