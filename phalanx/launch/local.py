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
from dataclasses import dataclass, field
from typing import Any, Literal, final

from .. import environment
from ..contracts import Event, Exit, Member, WorkerSpec
from ..errors import AlgorithmError, PlatformError, UserError
from .forkserver import SpawnFds
from .warm import WarmServer, acquire_server

LOOPBACK = "127.0.0.1"
_READ = 1 << 16
_MAX_LINE = 1 << 26


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

    def start(self, spec: WorkerSpec) -> LocalWorkers:
        """Start a group; returns when every worker has a process.

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
        with socket.create_server((LOOPBACK, 0), backlog=spec.workers + 8) as listener:
            port = listener.getsockname()[1]
            if spec.command is not None:
                listener.close()  # the command's rank 0 listens there itself
            server = acquire_server(spec.preload, fork=self._fork)
            workers = LocalWorkers(server)
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
    exited: bool = False  # told by poll
    event_tail: bytearray = field(default_factory=bytearray)
    status_tail: bytearray = field(default_factory=bytearray)


@final
class LocalWorkers:
    """`contracts.Workers` on this machine."""

    def __init__(self, server: WarmServer) -> None:
        self._server = server
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._pending: deque[Event | Exit] = deque()
        self._kill_at: float | None = None
        self._closed = False

    @property
    def members(self) -> Sequence[Member]:
        """The workers by rank."""
        host = socket.gethostname()
        return [Member(w.rank, w.pid or 0, host) for w in self._workers]

    def add(self, rank: int, spec: WorkerSpec, port: int, store: int | None) -> None:
        """Ask the server for the worker of one rank."""
        place = environment.Placement(rank, spec.workers, rank, LOOPBACK, port)
        variables = environment.worker_variables(place, threads=spec.threads, attempt=spec.attempt)
        request: dict[str, Any] = {
            "rank": rank,
            "size": spec.workers,
            "attempt": spec.attempt,
            "threads": spec.threads,
            "environment": {**environment.snapshot(), **variables, **(spec.environment or {})},
            "target": spec.target,
            "command": None if spec.command is None else list(spec.command),
            "payload": spec.payload,
            "folder": None if spec.folder is None else str(spec.folder),
        }
        log = os.open(spec.log_folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        events, events_in = os.pipe()
        status, status_in = os.pipe()
        worker = _Worker(rank, events, status)
        self._workers.append(worker)
        try:
            self._server.spawn(request, SpawnFds(log, events_in, status_in, store))
        finally:
            for fd in (log, events_in, status_in):
                os.close(fd)
        for fd, kind in ((events, "events"), (status, "status")):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, (worker, kind))

    def await_pids(self) -> None:
        """Wait until the server has forked every worker."""
        while any(w.pid is None for w in self._workers):
            self._collect(1.0)
            if any(w.pid is None and w.status is None for w in self._workers):
                raise PlatformError("the warm server ended before it had started the workers")

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """Return what happened, waiting at most `timeout_s` for something."""
        deadline = time.monotonic() + timeout_s
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
        return result

    def stop(self, grace_s: float) -> None:
        """Ask all living workers to end; `poll` kills those that live on after `grace_s`. 0 kills at once."""
        if grace_s <= 0:
            self._kill_at = None
            self._signal(signal.SIGKILL)
        else:
            self._signal(signal.SIGTERM)
            self._kill_at = time.monotonic() + grace_s

    def close(self) -> None:
        """Kill what still lives; give back pipes and the server. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(w.status is not None for w in self._workers) and time.monotonic() < deadline:
            self._collect(0.1)
        for worker in self._workers:
            self._drop(worker, "events")
            self._drop(worker, "status")
        self._selector.close()
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
        *lines, rest = worker.event_tail.split(b"\n")
        worker.event_tail = bytearray(rest if len(rest) <= _MAX_LINE else b"")
        for line in filter(None, lines):
            try:
                body = json.loads(line)
                self._pending.append(Event(worker.rank, float(body.get("at", time.time())), body))
            except (ValueError, AttributeError):
                continue  # a command wrote something else into the pipe
        return True

    def _read_status(self, worker: _Worker) -> None:
        if worker.status is None:
            return
        try:
            data = os.read(worker.status, _READ)
        except BlockingIOError:
            return
        worker.status_tail += data
        *lines, rest = worker.status_tail.split(b"\n")
        worker.status_tail = bytearray(rest)
        for line in lines:
            message = json.loads(line)
            worker.pid = message.get("pid", worker.pid)
            worker.code = message.get("code", worker.code)
        if not data:
            self._drop(worker, "status")
            if worker.code is None and worker.pid is not None:
                worker.code = -signal.SIGKILL  # the server was killed, and the kernel killed its workers
        if worker.code is not None and not worker.exited:
            worker.exited = True
            while self._read_events(worker):
                pass
            self._pending.append(Exit(worker.rank, worker.code, time.time()))

    def _drop(self, worker: _Worker, kind: Literal["events", "status"]) -> None:
        fd = worker.events if kind == "events" else worker.status
        if fd is None:
            return
        self._selector.unregister(fd)
        os.close(fd)
        if kind == "events":
            worker.events = None
        else:
            worker.status = None
