"""What the launcher suite runs in workers."""

from __future__ import annotations

import fcntl
import importlib
import os
import random
import select
import signal
import stat
import subprocess
import sys
import threading
import warnings
from types import FrameType

import numpy

from .. import environment
from ..contracts import WorkerContext
from ..errors import PlatformError, Stopped, UserError
from ..heartbeat import Heartbeat

_KEPT: list[object] = []


def report(context: WorkerContext) -> None:
    """Tell who and where this worker is."""
    variables = environment.snapshot()
    context.send({"kind": "hello", "rank": context.rank, "size": context.size, "pid": os.getpid(), "payload": context.payload})
    context.send(
        {"kind": "environment", "variables": variables, "attempt": context.attempt, "store": context.store_fd is not None}
    )
    print(f"hello from {context.rank}")


def threads(context: WorkerContext) -> None:
    """Tell how many threads the libraries take; the payload names the ones to look at."""
    import threadpoolctl

    for name in context.payload:
        importlib.import_module(name)
    found = {f"{pool['internal_api']} {pool['filepath']}": pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    if "torch" in context.payload:
        found["torch"] = sys.modules["torch"].get_num_threads()
    if "numba" in context.payload:
        found["numba"] = sys.modules["numba"].get_num_threads()
    context.send({"kind": "threads", "threads": found})


def compile_kernel(context: WorkerContext) -> None:
    """Compile a parallel loop in the worker, and tell what it found."""
    import numba

    @numba.njit(parallel=True)  # type: ignore[untyped-decorator, unused-ignore]
    def total(count: int) -> int:
        found = 0
        for number in numba.prange(count):
            found += number
        return found

    context.send({"kind": "compiled", "total": total(1000), "threads": numba.get_num_threads()})


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


def wait_for_ever(context: WorkerContext) -> None:
    """Wait for ever, with no handler for any signal."""
    while True:
        signal.pause()


def deep_in_thought(context: WorkerContext) -> None:
    """Give signs of life, and do nothing else."""
    Heartbeat(context.send, 0.05)
    while True:
        signal.pause()


def with_descendant(context: WorkerContext) -> None:
    """Start a process of its own, in a session of its own where the payload says so, and wait or end without it."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=context.payload.get("session", False)
    )
    context.send({"kind": "descendant", "pid": child.pid})
    child.returncode = 0  # nobody waits for it: this is what leaves orphans
    if context.payload.get("wait", False):
        wait_for_ever(context)


def inside(context: WorkerContext) -> None:
    """Tell what a process inherits that a program can trip over."""
    found = []
    for fd in map(int, os.listdir("/dev/fd")):
        try:
            found.append((fd, os.get_inheritable(fd)))
        except OSError:  # the one that listed the folder
            continue
    context.send(
        {
            "kind": "inside",
            "inheritable": sorted(fd for fd, inheritable in found if inheritable),
            "files": len(found),
            "folder": os.getcwd(),
            "group": os.getpgid(0),
            "session": os.getsid(0),
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "ignored": sorted(n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN),
            "unicode": print("ünïcödé \udc80"),
        }
    )


def say_and_exit(context: WorkerContext) -> None:
    """End as a script does that has something to say."""
    sys.exit("no such flavour")


def send_nonsense(context: WorkerContext) -> None:
    """Send what is no JSON."""
    context.send({"kind": "odd", "value": object()})


def killed_while_it_sends(context: WorkerContext) -> None:
    """Send whole events, then die in the middle of one."""
    for number in range(3):
        context.send({"kind": "number", "number": number})
    events = [fd for fd in range(3, 64) if _is_pipe_to_write(fd)]
    for fd in events:
        os.write(fd, b'{"kind": "number", "num')
    os.kill(os.getpid(), signal.SIGKILL)


def _is_pipe_to_write(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        return False


def disturb(context: WorkerContext) -> None:
    """Change what can be put back between two jobs; and do, or leave, what the payload names."""
    environment.set_variable("PHALANX_DISTURBED", "yes")
    os.chdir("/")
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    random.seed(7)
    numpy.random.seed(7)
    numpy.seterr(all="raise")
    warnings.simplefilter("ignore")
    sys.stdout.write("a line without an end")
    left = context.payload
    if left == "thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif left == "child":
        subprocess.Popen(["sleep", "600"])
    elif left == "file":
        os.open(os.devnull, os.O_RDONLY)
    elif left == "memory":
        _KEPT.append(numpy.ones(40 << 20))
    elif left == "stream":
        sys.stdout = sys.stderr
    elif left == "failure":
        raise UserError("this job fails")
    elif left == "exit":
        sys.exit(3)
    elif left == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    context.send({"kind": "disturbed"})


def state(context: WorkerContext) -> None:
    """Tell what a job can see of the jobs before it."""
    os.umask(mask := os.umask(0))
    context.send(
        {
            "kind": "state",
            "folder": os.getcwd(),
            "variables": environment.beside_the_job(environment.snapshot()),
            "mask": mask,
            "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "random": [random.random(), float(numpy.random.random())],
            "errors": str(numpy.geterr()),
            "filters": str(warnings.filters),
            "files": sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in (0, 1, 2)),
        }
    )
    print("state told")
