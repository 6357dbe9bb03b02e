"""The local launcher: a worker group on this machine, forked from the warm server."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from .. import environment
from ..contracts import Event, Exit, Member, WorkerSpec
from ..errors import AlgorithmError, PlatformError, UserError
from .asking import SpawnFds
from .warm import Server, acquire_server

LOOPBACK = "127.0.0.1"
_READ = 1 << 16
_PIPE = 1 << 20  # the most that the kernel lets an ordinary process keep in a pipe
_MAX_LINE = 1 << 26
_CLOSE_SECONDS, _CLOSE_POLL_SECONDS = 10.0, 0.1
# After some events the next are left to gather, for a part of the time since the first ones: whoever judges a short job by what
# it tells hears of it early, a long one wakes its supervisor seldom. That workers end is told at once.
_GATHER_SHARE, _GATHER_SECONDS = 0.1, 0.05


@final
class LocalLauncher:
    """`contracts.Launcher` for this machine.

    Args:
        start_method: "fork": from the warm server; "spawn": a fresh interpreter for every worker, for systems where forking a
            process with loaded libraries is not safe; default: spawn on macOS, fork elsewhere.
    """

    def __init__(self, start_method: Literal["fork", "spawn"] | None = None) -> None:
        self._fork = (start_method or ("spawn" if sys.platform == "darwin" else "fork")) == "fork"

    def prepare(self, preload: Sequence[str]) -> None:
        """Start a warm server that loads these modules, unless one has; returns at once."""
        acquire_server(preload, fork=self._fork).release()

    def start(self, spec: WorkerSpec, server: Server | None = None) -> LocalWorkers:
        """Start a group; returns when every worker has a process.

        Args:
            spec: the group.
            server: who forks its workers; default: the warm server.

        Raises:
            AlgorithmError: the payload is no JSON.
            UserError: not exactly one of target and command.
            PlatformError: processes cannot be had.
        """
        if (spec.target is None) == (spec.command is None):
            raise UserError("a worker group needs a target or a command, and not both")
        try:
            json.dumps(spec.payload)
        except (TypeError, ValueError) as error:
            raise AlgorithmError(f"the workers' payload must be JSON values: {error}") from None
        spec.log_folder.mkdir(parents=True, exist_ok=True)
        spec = _within_cores(spec)
        try:
            with socket.create_server((LOOPBACK, 0), backlog=spec.workers + 8) as listener:
                return self._start(spec, listener, server)
        except OSError as error:
            raise PlatformError(f"the worker group cannot be started: {error}") from error

    def _start(self, spec: WorkerSpec, listener: socket.socket, server: Server | None) -> LocalWorkers:
        port = listener.getsockname()[1]
        if spec.command is not None:
            listener.close()  # the command's rank 0 listens there itself
        fresh = spec.command is not None and (spec.forked is None or not self._fork)
        workers = LocalWorkers(server or acquire_server(() if fresh else spec.preload, fork=self._fork))
        spec = replace(spec, forked=None) if fresh else spec
        try:
            for rank in range(spec.workers):
                store = listener.fileno() if rank == 0 and spec.target is not None and spec.workers > 1 else None
                workers.add(rank, spec, port, store)
            workers.await_pids()
        except BaseException:
            workers.close()
            raise
        return workers


@dataclass(slots=True)
class _Worker:
    """What this process holds of one worker."""

    rank: int
    events: int | None  # read end; None when closed
    status: int | None
    pid: int | None = None
    code: int | None = None
    ended_at: float | None = None
    refused: str | None = None  # why there is no process
    exited: bool = False  # told by poll
    event_tail: bytearray = field(default_factory=bytearray)
    status_tail: bytearray = field(default_factory=bytearray)


@final
class LocalWorkers:
    """`contracts.Workers` on this machine."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._ends = selectors.DefaultSelector()  # the pipes that tell of ends alone
        self._first_told: float | None = None
        self._gather_until = 0.0
        self._pending: deque[Event | Exit] = deque()
        self._kill_at: float | None = None
        self._closed = False

    @property
    def members(self) -> Sequence[Member]:
        """The workers by rank."""
        host = socket.gethostname()
        return [Member(w.rank, w.pid or 0, host) for w in self._workers]

    def add(
        self,
        rank: int,
        spec: WorkerSpec,
        port: int,
        store: int | None,
        *,
        place: environment.Placement | None = None,
        interface: str = "lo",
    ) -> None:
        """Ask the server for the worker of one rank.

        Args:
            rank: in the group.
            spec: the group.
            port: where it meets on this machine.
            store: a socket that listens there already.
            place: where the group has other machines too; default: all of it is here.
            interface: the network interface at which it meets the others.
        """
        place = place or environment.Placement(rank, spec.workers, rank, LOOPBACK, port)
        variables = environment.worker_variables(place, threads=spec.threads, attempt=spec.attempt, interface=interface)
        request: dict[str, Any] = {
            "rank": rank,
            "size": spec.workers,
            "local_rank": place.local_rank,
            "attempt": spec.attempt,
            "threads": spec.threads,
            "environment": {**environment.snapshot(), **variables, **(spec.environment or {})},
            "target": spec.target if spec.command is None else spec.forked,
            "command": None if spec.command is None else list(spec.command),
            "payload": spec.payload,
            "lasts": spec.lasts,
            "folder": str(spec.folder) if spec.folder is not None else _here(),
        }
        with contextlib.ExitStack() as files:
            log = os.open(spec.log_folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            files.callback(os.close, log)
            worker = _Worker(rank, None, None)
            self._workers.append(worker)
            worker.events, events_in = self._open_pipe(worker, "events")
            files.callback(os.close, events_in)
            worker.status, status_in = self._open_pipe(worker, "status")
            files.callback(os.close, status_in)
            self._server.spawn(request, SpawnFds(log, events_in, status_in, store))

    def _open_pipe(self, worker: _Worker, kind: Literal["events", "status"]) -> tuple[int, int]:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        self._selector.register(ours, selectors.EVENT_READ, (worker, kind))
        if kind == "status":
            self._ends.register(ours, selectors.EVENT_READ)
        return ours, theirs

    def await_pids(self) -> None:
        """Wait until the server has forked every worker."""
        while any(w.pid is None for w in self._workers):
            self._collect(1.0)
            if any(w.pid is None and w.status is None for w in self._workers):
                refused = next((w.refused for w in self._workers if w.refused), None)
                raise PlatformError(refused) if refused else self._server.lost("the workers were not started yet")

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """Return what happened, waiting at most `timeout_s` for something."""
        now = time.monotonic()
        deadline = now + timeout_s
        if now < self._gather_until and self._ends.get_map():
            self._ends.select(min(timeout_s, self._gather_until - now))
        while not self._pending:
            left = deadline - time.monotonic()
            if self._kill_at is not None:
                left = min(left, self._kill_at - time.monotonic())
            self._collect(max(0.0, left))
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill_at = None
                self._signal(signal.SIGKILL)
            if time.monotonic() >= deadline or not self._selector.get_map():
                break
        result = list(self._pending)
        self._pending.clear()
        if result:
            now = time.monotonic()
            self._first_told = now if self._first_told is None else self._first_told
            self._gather_until = now + min(_GATHER_SHARE * (now - self._first_told), _GATHER_SECONDS)
        return result

    def stop(self, grace_s: float) -> None:
        """Ask all living workers to end; `poll` kills those that live on after `grace_s`. 0 kills at once."""
        if grace_s <= 0:
            self._kill_at = None
            self._signal(signal.SIGKILL)
        else:
            self._signal(signal.SIGTERM)
            self._kill_at = time.monotonic() + grace_s

    def dump(self, rank: int) -> None:
        """Ask one worker for its stacks; to the process alone, not to those it started, which may not listen."""
        worker = self._workers[rank]
        if worker.pid is not None and worker.code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(worker.pid, signal.SIGUSR1)

    def close(self) -> None:
        """Kill what still lives; give back pipes and the server. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + _CLOSE_SECONDS
        while any(w.status is not None for w in self._workers) and time.monotonic() < deadline:
            self._signal(signal.SIGKILL)  # again: a worker may be told of only now
            self._collect(_CLOSE_POLL_SECONDS)
        for worker in self._workers:
            self._drop(worker, "events")
            self._drop(worker, "status")
        self._selector.close()
        self._ends.close()
        self._server.release()

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid is not None and worker.code is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, number)

    def _collect(self, timeout_s: float) -> None:
        """Read what is there into `_pending`; wait at most `timeout_s` for something."""
        for key, _ in self._selector.select(timeout_s):
            worker, kind = key.data
            if kind == "events":
                self._read_events(worker)
            else:
                self._read_status(worker)

    def _read_events(self, worker: _Worker) -> bool:
        """Read once; return whether there may be more."""
        if worker.events is None:
            return False
        try:
            data = os.read(worker.events, _READ)
        except BlockingIOError:
            return False
        if not data:
            self._drop(worker, "events")
            return False
        worker.event_tail += data
        if b"\n" in data:
            *lines, rest = bytes(worker.event_tail).split(b"\n")
            worker.event_tail = bytearray(rest)
            self._pending.extend(event for line in lines if (event := _parse(worker.rank, line)) is not None)
        if len(worker.event_tail) > _MAX_LINE:
            worker.event_tail.clear()  # what follows is no JSON, and is passed over
        return True

    def _read_status(self, worker: _Worker) -> None:
        if worker.status is None:
            return
        try:
            data = os.read(worker.status, _READ)
        except BlockingIOError:
            return
        worker.status_tail += data
        *lines, rest = bytes(worker.status_tail).split(b"\n")
        worker.status_tail = bytearray(rest)
        for line in lines:
            message = json.loads(line)
            worker.pid = message.get("pid", worker.pid)
            worker.refused = message.get("error")
            worker.code = message.get("code", worker.code)
            worker.ended_at = message.get("time")
        if worker.code is not None:
            self._drop(worker, "status")  # tells the server that this worker is not signalled any more
        elif not data:
            self._drop(worker, "status")
            if worker.pid is not None:
                self._signal(
                    signal.SIGKILL
                )  # the server was killed, and the kernel kills its workers; their descendants it does not
                worker.code = -signal.SIGKILL
        if worker.code is not None and not worker.exited:
            self._note_exit(worker, worker.code)

    def _note_exit(self, worker: _Worker, code: int) -> None:
        worker.exited = True
        for _ in range(_PIPE // _READ):  # no more fits into the pipe, so that nobody who still holds it can keep us here
            if not self._read_events(worker):
                break
        self._drop(worker, "events")
        self._pending.append(Exit(worker.rank, code, worker.ended_at or time.time()))

    def _drop(self, worker: _Worker, kind: Literal["events", "status"]) -> None:
        fd = worker.events if kind == "events" else worker.status
        if fd is None:
            return
        self._selector.unregister(fd)
        if kind == "status":
            self._ends.unregister(fd)
        os.close(fd)
        if kind == "events":
            worker.events = None
        else:
            worker.status = None


def _within_cores(spec: WorkerSpec) -> WorkerSpec:
    """Return the group with as many of an elastic job's workers as this machine has cores for."""
    if spec.least_workers is None or spec.least_workers >= spec.workers:
        return spec
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    return replace(spec, workers=max(spec.least_workers, min(spec.workers, cores // spec.threads)))


def _parse(rank: int, line: bytes) -> Event | None:
    """Return the event in a line; None for what a command may write there else, or had no time to finish."""
    try:
        body = json.loads(line)
        if isinstance(body, dict) and isinstance(body.get("kind"), str):
            return Event(rank, float(body.get("at", time.time())), body)
    except (ValueError, TypeError, RecursionError):
        pass
    return None


def _here() -> str | None:
    """Return the working directory, None where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None
