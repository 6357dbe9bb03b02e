"""One worker's process, from the moment it exists: log, environment, threads, then its target or its command."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO, final

from .. import environment
from ..contracts import Json, WorkerContext
from ..errors import EXIT_ALGORITHM, UserError, from_record, to_record


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """What the launcher asks of one worker's process."""

    rank: int
    size: int
    attempt: int
    threads: int
    environment: Mapping[str, str]
    target: str | None
    command: list[str] | None
    payload: Json
    folder: str | None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> ChildRequest:
        """Read a request as it came over the socket."""
        return cls(**request)


@final
class EventPipe:
    """Writes events to the supervisor, one JSON object a line; safe from several threads, quiet when nobody listens."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()  # a signal handler that raises can leave a plain one held by its own thread
        self._torn = False

    def send(self, event: Mapping[str, Json]) -> None:
        """Send one event."""
        line = json.dumps({"at": time.time(), **event}).encode() + b"\n"
        with self._lock:
            data = memoryview(b"\n" + line if self._torn else line)
            self._torn = True  # until all of it is written: a signal handler may raise in between
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # the supervisor is gone, and this process soon will be
                return
            self._torn = False


def run_child(request: ChildRequest, *, log: int, events: int, store: int | None) -> int:
    """Run what was asked in this process; return its exit code. A command replaces the process."""
    _redirect(log)
    environment.replace(request.environment)
    if request.folder is not None:
        os.chdir(request.folder)
    if request.command is not None:
        return _become_command(request.command, events, store)
    faulthandler.enable()
    pipe = EventPipe(events)
    context = WorkerContext(
        rank=request.rank,
        size=request.size,
        local_rank=request.rank,
        threads=request.threads,
        attempt=request.attempt,
        payload=request.payload,
        send=pipe.send,
        store_fd=store,
    )
    code = EXIT_ALGORITHM
    try:
        limit_threads(request.threads)
        code = _call(str(request.target), context)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else EXIT_ALGORITHM if ended.code else 0
    except BaseException as error:
        record = to_record(error)
        pipe.send({"kind": "failure", "error": record})
        sys.stderr.write(record["details"])
        code = from_record(record).exit_code
    finally:
        _flush(sys.stdout)
        _flush(sys.stderr)
    return code


def limit_threads(threads: int) -> None:
    """Give this process `threads` threads in every library that is loaded already; others read the environment."""
    if "numpy" in sys.modules:
        import threadpoolctl

        threadpoolctl.threadpool_limits(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    numba = sys.modules.get("numba")
    if numba is not None:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _call(target: str, context: WorkerContext) -> int:
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the worker's target '{target}' cannot be loaded: {error}") from error
    function(context)
    return 0


def _become_command(command: list[str], events: int, store: int | None) -> int:
    if store is not None:
        os.close(store)  # the command's own store listens there
    os.set_inheritable(events, True)
    environment.set_variable(environment.EVENTS_FD, str(events))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        cannot = UserError(f"cannot run {command[0]}: {error.strerror}")
        EventPipe(events).send({"kind": "failure", "error": to_record(cannot)})
        traceback.print_exc()
        return 2


def _redirect(log: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True, errors="backslashreplace", encoding="utf-8")  # type: ignore[union-attr]


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return
