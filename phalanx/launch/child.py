"""One worker's process, from the moment it exists: log, environment, threads, then its target or its command.

A forked worker starts with a copy of the warm server's random generators: a target seeds what it draws from. It ends by
`os._exit`: its threads are not waited for, and nothing registered with `atexit` runs, for that would be the server's.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO, final

from .. import environment
from ..contracts import Json, WorkerContext
from ..errors import EXIT_ALGORITHM, AlgorithmError, PhalanxError, UserError, from_record, to_record
from ..heartbeat import Heartbeat

_PARENT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """What the launcher asks of one worker's process."""

    rank: int
    size: int
    local_rank: int
    attempt: int
    threads: int  # 0: no library is told, which would start some
    environment: Mapping[str, str]
    target: str | None  # beside a command: does the same in a forked process, unless it raises `Fresh`
    command: list[str] | None
    payload: Json
    folder: str | None
    lasts: str | None = None  # see `contracts.WorkerSpec`

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> ChildRequest:
        """Read a request as it came over the socket."""
        return cls(**request)


@final
class Fresh(Exception):
    """Raised by a target that stands for a command and cannot: the command gets its fresh process."""


@final
class EventPipe:
    """Writes events to the supervisor, one JSON object a line; safe from several threads, quiet when nobody listens."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()  # a signal handler that raises can leave a plain one held by its own thread
        self._torn = False

    def send(self, event: Mapping[str, Json]) -> None:
        """Send one event. A supervisor that does not keep up makes the worker wait.

        Raises:
            AlgorithmError: it holds something that is no JSON value.
        """
        try:
            line = json.dumps({"at": time.time(), **event}).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise AlgorithmError(f"an event must hold JSON values only: {error}") from None
        with self._lock:
            data = memoryview(b"\n" + line if self._torn else line)
            self._torn = True  # until all of it is written: a signal handler may raise in between
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # the supervisor is gone, and this process soon will be
                return
            self._torn = False


def run_child(request: ChildRequest, *, events: int, store: int | None, pools: Any = None) -> int:
    """Run what was asked in this process, whose stdout and stderr are its log; return its exit code.

    A command replaces the process. A target's exception is declared to the supervisor before the process ends.

    Args:
        request: what to run.
        events: the pipe to the supervisor.
        store: a listening socket for the group's store; only rank 0 has one.
        pools: what `thread_pools` found before this process was forked, None for a fresh process.
    """
    _prepare_streams()
    pipe = EventPipe(events)
    code: object = EXIT_ALGORITHM
    beating: Heartbeat | None = None
    try:
        environment.replace(request.environment)
        _enter(request.folder)
        if request.command is not None and request.target is None:
            _become_command(request.command, events, store)
        for fd in (events,) if store is None else (events, store):
            os.set_inheritable(fd, False)  # a process that the target starts must not hold them open
        faulthandler.enable()
        if sys.platform != "linux":
            end_with_parent(os.getppid())
        if request.threads:
            limit_threads(request.threads, thread_pools() if pools is None else pools)
        if request.command is not None:
            environment.set_variable(environment.EVENTS_FD, str(events))
        elif (every_s := environment.heartbeat_seconds()) is not None:  # a command's session sees to its own
            beating = Heartbeat(pipe.send, every_s)
        try:
            _call(str(request.target), _context(request, pipe, store))
        except Fresh:
            _become_command(request.command or [], events, store)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        record = to_record(error)
        pipe.send({"kind": "failure", "error": record})
        sys.stderr.write(record["details"])
        code = error.exit_code if isinstance(error, PhalanxError) else from_record(record).exit_code
    finally:
        if beating is not None:
            beating.close()
        _flush(sys.stdout)
        _flush(sys.stderr)
        ctypes.CDLL(None).fflush(None)  # what C libraries printed
    return exit_code(code)


def exit_code(given: object) -> int:
    """Return the exit code that `sys.exit(given)` means; text goes to stderr, as in any Python program."""
    if given is None:
        return 0
    if isinstance(given, int):
        return given & 0xFF
    sys.stderr.write(f"{given}\n")
    return EXIT_ALGORITHM


def thread_pools() -> Any:
    """Find the thread pools of the libraries that are loaded; to search them takes time, so once for all workers will do."""
    if "numpy" not in sys.modules:
        return None
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def limit_threads(threads: int, pools: Any) -> None:
    """Give this process `threads` threads in every library that is loaded already; others read the environment.

    Args:
        threads: of each library.
        pools: what `thread_pools` found.
    """
    numba = sys.modules.get("numba")
    if numba is not None:  # first: starting its pool sets OpenMP's number anew, which is torch's too
        numba.config.reload_config()  # now: NUMBA_NUM_THREADS found changed once its pool runs is an error
        numba.set_num_threads(min(threads, numba.np.ufunc.parallel.NUM_THREADS))
        if pools is not None and not len(pools.select(user_api="openmp")):  # its pool may have loaded the library only now
            pools = thread_pools()
    if pools is not None:
        pools.limit(limits=threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def end_with_parent(parent: int) -> None:
    """End this process soon after `parent` has, where the kernel does not see to that."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="phalanx-parent", daemon=True).start()


def _context(request: ChildRequest, pipe: EventPipe, store: int | None) -> WorkerContext:
    return WorkerContext(
        rank=request.rank,
        size=request.size,
        local_rank=request.local_rank,
        threads=request.threads,
        attempt=request.attempt,
        payload=request.payload,
        send=pipe.send,
        store_fd=store,
    )


def _enter(folder: str | None) -> None:
    if folder is None:
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"the working directory {folder} cannot be entered: {error.strerror}") from None


def _call(target: str, context: WorkerContext) -> None:
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the worker's target '{target}' cannot be loaded: {error}") from error
    function(context)


def _become_command(command: list[str], events: int, store: int | None) -> None:
    """Return only by raising."""
    if store is not None:
        os.close(store)  # the command's own store listens there
    for fd in map(int, os.listdir("/dev/fd")):  # of all that the server's libraries may hold open, it gets one
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, fd <= 2 or fd == events)
    environment.set_variable(environment.EVENTS_FD, str(events))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec keeps that
    try:
        os.execvp(command[0], command)
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        traceback.print_exc()
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from None


def _prepare_streams() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True, errors="backslashreplace", encoding="utf-8")  # type: ignore[union-attr]


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return
