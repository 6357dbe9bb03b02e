"""A worker's process that lasts: when its job has ended in order, it waits for another of the same kind in place of ending.

Each job brings its environment, folder, log and threads. What else a job may have changed is put back when it ends: signal
handlers, random generators, warnings, context variables, the file mask, what was noted of its course. Where more is left (a
thread, a child, an open file, much memory), or the job failed, the process ends with it, and the next gets a forked one.

Who waits for a worker may signal it until it has read the worker's exit and closed the status pipe. Only then is the process
given another job, so that no signal ever meets the wrong one.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import faulthandler
import gc
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any, final

from .. import environment, observing, pulse, usage
from ..errors import EXIT_SIGTERM
from .asking import close_all, receive_request
from .child import ChildRequest, run_child

TAKEN = 0xFF  # a worker tells its server by single bytes: the job handed over is its own now; or, the exit code of its job
MOST_JOBS = 100
_IN_ORDER = (0, EXIT_SIGTERM)  # done; stopped when it was asked to
_MOST_BYTES = 256 << 20  # of memory that the process may hold beyond what it began with
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
_PR_SET_NAME = 15
IDLE_NAME = "phalanx-idle"  # in `ps` and `top`


def likeness(request: Mapping[str, Any]) -> tuple[object, ...] | None:
    """Return what two requests must have in common for one process to do both; None for one that needs its own."""
    if request.get("lasts") is None or request["size"] != 1 or request["folder"] is None or sys.platform != "linux":
        return None
    variables = environment.beside_the_job(request["environment"])  # libraries have read some of them, once for all
    return request["lasts"], request["threads"], variables


def work(request: Mapping[str, Any], events: int, control: socket.socket, pools: Any) -> int:
    """Do a job, whose log stdout and stderr are, then those that the server hands over; return the exit code of the last.

    Args:
        request: the first job.
        events: its pipe to its supervisor.
        control: the way to the server; the process ends when the server closes it.
        pools: see `run_child`.
    """
    slate = _Slate(events)
    name = _name()
    for job in range(1, MOST_JOBS + 1):
        with warnings.catch_warnings():
            asked = ChildRequest.of(request)
            code = contextvars.copy_context().run(run_child, asked, events=events, store=None, pools=pools)
        os.close(events)
        if code not in _IN_ORDER or job == MOST_JOBS or not slate.wipe():
            return code
        _log_to(os.open(os.devnull, os.O_WRONLY))
        _rename(IDLE_NAME)
        control.send(bytes([code]))
        gc.collect()
        given = receive_request(control)
        if given is None:
            return code
        request, fds = given
        if fds is None:  # it may open no more files: the server will fork another
            return code
        _rename(name)
        _log_to(fds.log)
        close_all(fds.status)
        events = fds.events
        control.send(bytes([TAKEN]))
    raise AssertionError("the last job returns")


@final
class _Slate:
    """What a process was before its first job.

    Args:
        events: a file that is closed with the job.
    """

    def __init__(self, events: int) -> None:
        self._files = _open_files() - {events}
        self._threads = threading.active_count()
        self._handlers = {number: signal.getsignal(number) for number in _HANDLED}
        self._streams = sys.stdout, sys.stderr
        self._mask = _file_mask()
        self._random = random.getstate()
        self._numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        self._torch = sys.modules["torch"].random.get_rng_state() if "torch" in sys.modules else None
        self._bytes = usage.own_memory()

    def wipe(self) -> bool:
        """Make the process what it was; return whether that could be done."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        faulthandler.unregister(signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.umask(self._mask)
        random.setstate(self._random)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        if self._torch is not None:
            sys.modules["torch"].random.set_rng_state(self._torch)
        pulse.now.reset()
        observing.stop()
        return (
            (sys.stdout, sys.stderr) == self._streams
            and threading.active_count() == self._threads
            and not _has_children()
            and _open_files() <= self._files
            and usage.own_memory() - self._bytes < _MOST_BYTES
        )


def _open_files() -> set[int]:
    found = set()
    for fd in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            os.fstat(fd)
            found.add(fd)
    return found


def _file_mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _log_to(fd: int) -> None:
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _name() -> str:
    with open("/proc/self/comm", encoding="utf-8") as file:
        return file.read().strip()


def _rename(name: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
