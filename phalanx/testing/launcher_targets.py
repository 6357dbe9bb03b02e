"""What the launcher suite runs in workers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from types import FrameType

from .. import environment
from ..contracts import WorkerContext
from ..errors import PlatformError, Stopped, UserError


def report(context: WorkerContext) -> None:
    """Tell who and where this worker is."""
    variables = environment.snapshot()
    context.send({"kind": "hello", "rank": context.rank, "size": context.size, "pid": os.getpid(), "payload": context.payload})
    context.send(
        {"kind": "environment", "variables": variables, "attempt": context.attempt, "store": context.store_fd is not None}
    )
    print(f"hello from {context.rank}")


def threads(context: WorkerContext) -> None:
    """Tell how many threads the libraries take."""
    import numpy  # noqa: F401
    import threadpoolctl

    from ..launch.child import limit_threads

    limit_threads(context.threads)
    context.send({"kind": "threads", "threads": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]})


def flood(context: WorkerContext) -> None:
    """Send many events, then end."""
    for number in range(5000):
        context.send({"kind": "number", "number": number, "text": "x" * 50})


def fail(context: WorkerContext) -> None:
    """Rank 0 is the user's error, the others lose it; they all report nearly at once."""
    if context.rank == 0:
        raise UserError("rank 0 was given something wrong")
    raise PlatformError("lost contact with another worker")


def crash(context: WorkerContext) -> None:
    """The last rank is killed; the others wait for ever."""
    if context.rank == context.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def crash_once(context: WorkerContext) -> None:
    """The first attempt is killed, the next ends well."""
    if context.attempt == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def exit_with(context: WorkerContext) -> None:
    """End with the payload as exit code."""
    sys.exit(context.payload)


def wait_in_order(context: WorkerContext) -> None:
    """Wait for SIGTERM, then stop in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("asked to")

    signal.signal(signal.SIGTERM, stop)
    context.send({"kind": "ready"})
    while True:
        select.select([], [], [], 0.05)  # signal.pause() would sleep over a signal that came just before it


def ignore_stop(context: WorkerContext) -> None:
    """Wait for ever, deaf to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    context.send({"kind": "ready"})
    while True:
        signal.pause()


def with_descendant(context: WorkerContext) -> None:
    """Start a process of its own and end without it."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    context.send({"kind": "descendant", "pid": child.pid})
    child.returncode = 0  # nobody waits for it: this is what leaves orphans
