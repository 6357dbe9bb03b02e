"""The warm server: a process that has loaded the heavy modules once and forks workers from them in milliseconds.

Why not the standard library's: it imports the user's `__main__` again, speaks pickle, and lives as long as any child does. This
one speaks JSON over a socket to the process that started it. When that process ends, even by SIGKILL, the server kills every
worker with its descendants and ends; when the server itself is killed, its workers get SIGKILL from the kernel.

When it forks it has one thread: it reads requests, forks, and tells each worker's pid and exit through that worker's own pipe.
A worker that lasts (`lasting`) gets further jobs of its kind; without one for a while, it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, final

from .asking import SpawnFds, close_all, receive_request, send_request
from .child import ChildRequest, run_child, thread_pools
from .lasting import TAKEN, likeness, work

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# The server's life hangs on its parent alone. Blocked, not ignored: what reaches a worker that is being born waits for it.
_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_IDLE_SECONDS = 2.0  # that a worker waits for another job


@dataclass(slots=True)
class _Worker:
    """What the server holds of one worker."""

    pid: int
    status: int | None  # of its job; None: it waits for one
    control: socket.socket | None = None  # to one that lasts
    likeness: tuple[object, ...] | None = None
    offered: tuple[dict[str, Any], SpawnFds] | None = None  # a job handed over that it has not taken yet
    told: bool = False  # the exit of its job; whoever waits for it has not closed the status pipe yet
    idle_since: float = 0.0

    def is_idle(self) -> bool:
        return self.control is not None and self.status is None and self.offered is None


@final
class ForkServer:
    """The server's side: one loop over requests, ended workers, and the parent's end."""

    def __init__(self, sock: socket.socket, *, fork: bool, parent_fd: int | None) -> None:
        self._sock = sock
        self._fork = fork
        self._parent_fd = parent_fd
        self._workers: dict[int, _Worker] = {}  # by pid
        self._selector = selectors.PollSelector()  # holds no file of its own that a worker would inherit
        self._woken, self._waker = socket.socketpair()
        self._pid = os.getpid()
        self._pools = thread_pools() if fork else None

    def serve(self) -> None:
        """Serve until the parent or its end of the socket is gone, then kill what is left."""
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            for source in (self._sock, self._woken, self._parent_fd):
                if source is not None:
                    self._selector.register(source, selectors.EVENT_READ)
            while self._turn({key.fileobj: key.data for key, _ in self._selector.select(self._patience())}):
                pass
        finally:
            self._kill_all()

    def _turn(self, ready: dict[Any, _Worker | None]) -> bool:
        """Handle what is ready; return whether to go on."""
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                while self._woken.recv(4096):
                    pass
        self._reap()
        for source, worker in ready.items():
            if worker is not None and source is worker.control:
                self._hear(worker)
            elif worker is not None and source == worker.status:
                self._release(worker)
        self._end_idle()
        if self._parent_fd in ready:
            return False
        if self._sock in ready:
            try:
                given = receive_request(self._sock)
            except (EOFError, OSError):
                return False
            if given is None:
                return False
            request, fds = given
            if fds is not None:
                self._spawn(request, fds)
        return True

    def _spawn(self, request: dict[str, Any], fds: SpawnFds) -> None:
        """Hand a job to a process that waits for one of its kind, or fork one."""
        kind = likeness(request) if self._fork else None
        idle = [worker for worker in self._workers.values() if worker.is_idle() and worker.likeness == kind]
        if kind is not None and idle:
            self._offer(max(idle, key=lambda worker: worker.idle_since), request, fds)
        else:
            self._fork_worker(request, fds, kind)

    def _offer(self, worker: _Worker, request: dict[str, Any], fds: SpawnFds) -> None:
        """Hand a job to a worker; where it ends before it has taken it, `_reap` forks another."""
        worker.offered = (request, fds)
        if worker.control is not None:
            try:
                send_request(worker.control, request, fds)
            except OSError:
                self._dismiss(worker)

    def _fork_worker(self, request: dict[str, Any], fds: SpawnFds, kind: tuple[object, ...] | None) -> None:
        control, end = socket.socketpair() if kind is not None else (None, None)
        try:
            pid = os.fork()
        except OSError as error:
            _tell(fds.status, {"error": f"no process for rank {request['rank']}: {error.strerror}"})
            close_all(*fds.given(), *(s.detach() for s in (control, end) if s is not None))
            return
        if pid == 0:
            if control is not None:
                control.close()
            self._become_worker(request, fds, end)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the worker does so too: whoever is told its pid can signal its group
        self._workers[pid] = worker = _Worker(pid, None, control, kind)
        if control is not None and end is not None:
            end.close()
            self._selector.register(control, selectors.EVENT_READ, worker)
        self._begun(worker, fds)

    def _begun(self, worker: _Worker, fds: SpawnFds) -> None:
        """Tell whoever asked for a worker its pid."""
        close_all(fds.log, fds.events, *([] if fds.store is None else [fds.store]))
        worker.status = fds.status
        if not _tell(fds.status, {"pid": worker.pid}):
            _kill_group(worker.pid)  # nobody waits for it any more

    def _hear(self, worker: _Worker) -> None:
        """Take in what a worker that lasts has to say."""
        words = b""
        with contextlib.suppress(OSError):
            words = worker.control.recv(64) if worker.control is not None else b""
        if not words:
            self._dismiss(worker)  # it has ended
        for word in words:
            if word == TAKEN and worker.offered is not None:
                _, fds = worker.offered
                worker.offered = None
                self._begun(worker, fds)
            elif worker.status is not None:
                worker.told = True
                self._end_orphans(worker.pid)
                _tell(worker.status, {"code": word, "time": time.time()})
                self._selector.register(worker.status, selectors.EVENT_READ, worker)  # readable when its other end is closed

    def _release(self, worker: _Worker) -> None:
        """Nobody signals a worker any more whose job has ended: it may be given another."""
        if worker.told and worker.status is not None:
            self._selector.unregister(worker.status)
            os.close(worker.status)
            worker.status, worker.told, worker.idle_since = None, False, time.monotonic()

    def _patience(self) -> float | None:
        """Return seconds until a worker has been idle for long."""
        idle = [worker.idle_since for worker in self._workers.values() if worker.is_idle()]
        return max(0.0, min(idle) + _IDLE_SECONDS - time.monotonic()) if idle else None

    def _end_idle(self) -> None:
        for worker in self._workers.values():
            if worker.is_idle() and time.monotonic() - worker.idle_since >= _IDLE_SECONDS:
                self._dismiss(worker)

    def _dismiss(self, worker: _Worker) -> None:
        """Close the way to a worker, which then ends."""
        if worker.control is not None:
            self._selector.unregister(worker.control)
            worker.control.close()
            worker.control = None

    def _become_worker(self, request: dict[str, Any], fds: SpawnFds, control: socket.socket | None) -> Never:
        """Never returns: the forked side runs its target or becomes its command."""
        code = 1
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            die_with_parent(self._pid)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *_BLOCKED):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(fds.log, 1)
            os.dup2(fds.log, 2)
            close_all(fds.log, fds.status)
            for other in self._workers.values():
                self._let_go(other)
            close_all(*(s.detach() for s in (self._sock, self._woken, self._waker)))
            if self._parent_fd is not None:
                close_all(self._parent_fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            child = ChildRequest.of(request)
            if child.command is None and not self._fork:
                _exec_fresh(request, fds)
            if control is None:
                code = run_child(child, events=fds.events, store=fds.store, pools=self._pools)
            else:
                code = work(request, fds.events, control, self._pools)
        finally:
            os._exit(code)

    def _let_go(self, worker: _Worker) -> None:
        """Close all files that belong to a worker."""
        if worker.control is not None:
            worker.control.close()
        if worker.status is not None:
            os.close(worker.status)
        if worker.offered is not None:
            close_all(*worker.offered[1].given())

    def _reap(self) -> None:
        """Tell the exits of workers; what they left running ends with them."""
        ended: list[tuple[_Worker, int]] = []
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                worker = self._workers.pop(pid, None)
                if worker is not None:
                    _kill_group(pid)
                    ended.append((worker, os.waitstatus_to_exitcode(status)))
        if ended:
            self._end_orphans()
        for worker, code in ended:
            self._dismiss(worker)
            if worker.told:
                self._release(worker)
            elif worker.status is not None:
                _tell(worker.status, {"code": code, "time": time.time()})
                os.close(worker.status)
            if worker.offered is not None:  # it ended before it had begun with that job
                self._fork_worker(*worker.offered, worker.likeness)

    def _end_orphans(self, group: int | None = None) -> None:
        """End children that are no workers: of a worker's group, or, where no worker has a job, all.

        Whose one was that has left its group, nobody knows.
        """
        busy = any(not worker.is_idle() for worker in self._workers.values())
        for orphan in _children():
            with contextlib.suppress(ProcessLookupError):
                if orphan not in self._workers and (not busy or os.getpgid(orphan) == group):
                    _kill(orphan)

    def _kill_all(self) -> None:
        for pid in self._workers:
            _kill_group(pid)
        while left := {*self._workers, *_children()}:  # a descendant becomes a child when its parent has ended
            for pid in left:
                _kill(pid)
            self._workers.pop(os.waitpid(-1, 0)[0], None)


def shield() -> None:
    """Make this process one that serves: its life hangs on its parent alone, and what its workers leave is its own to end."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends (Linux); end now if it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Return this process's children, where the kernel lists them (Linux)."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _tell(pipe: int, message: dict[str, Any]) -> bool:
    """Write a message; return whether somebody listens."""
    try:
        os.write(pipe, json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


def _exec_fresh(request: dict[str, Any], fds: SpawnFds) -> None:
    """Become a fresh interpreter that runs the target, where a forked one is not safe."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps({"request": request, "path": sys.path}).encode())
        file.seek(0)
        for fd in (file.fileno(), fds.events, *([] if fds.store is None else [fds.store])):
            os.set_inheritable(fd, True)
        places = json.dumps([file.fileno(), fds.events, fds.store])
        os.execv(sys.executable, [sys.executable, "-c", _FRESH, places])


_FRESH = """
import json, os, sys
file, events, store = json.loads(sys.argv[1])
with os.fdopen(file) as f:
    given = json.load(f)
sys.path[:] = given["path"]
from phalanx.launch.child import ChildRequest, run_child
os._exit(run_child(ChildRequest.of(given["request"]), events=events, store=store))
"""


@contextlib.contextmanager
def _ending_with_parent(sock: socket.socket, parent_fd: int | None) -> Iterator[None]:
    """Within, while modules are loaded, this process ends at once when its parent does."""
    done, finish = os.pipe()
    poller = select.poll()
    poller.register(sock, 0)  # reports only that the other end was closed
    poller.register(done, select.POLLIN)
    if parent_fd is not None:
        poller.register(parent_fd, select.POLLIN)

    def watch() -> None:
        if done not in {fd for fd, _ in poller.poll()}:
            os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.write(finish, b"x")
        watcher.join()
        close_all(done, finish)


def _parent_fd(parent: int) -> int | None:
    """Return a file that becomes readable when the parent ends, None where there is no such thing.

    The socket tells so too, unless a process that the parent forked still holds a copy of it.
    """
    try:
        fd: int | None = os.pidfd_open(parent)
    except (AttributeError, OSError):
        fd = None
    if os.getppid() != parent:
        os._exit(1)
    return fd


def _stand_apart(sock: socket.socket) -> None:
    """Go on in a child; this process waits for it, and whoever kills it does not kill the server.

    Ray kills the children of a process that it ends, at once: the server would have no time to end what its workers left.
    """
    pid = os.fork()
    if pid:
        sock.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    shield()  # a child does not inherit all of it


def main(arguments: list[str]) -> None:
    """Run the server: parent, socket fd, whether to fork and to stand apart, and the modules to preload come as JSON."""
    given = json.loads(arguments[0])
    shield()
    sock = socket.socket(fileno=given["socket"])
    parent_fd = _parent_fd(given["parent"])
    if given["apart"]:
        _stand_apart(sock)
    with _ending_with_parent(sock, parent_fd):
        for module in given["preload"]:
            with contextlib.suppress(Exception, SystemExit):  # the worker that needs it will say what is wrong
                loaded = importlib.import_module(module)
                if "warm_up" in vars(loaded):  # compiles, or loads what was compiled, once for all workers
                    loaded.warm_up()
    sys.stdout.flush()  # or every worker would print it again
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the workers
    ForkServer(sock, fork=given["fork"], parent_fd=parent_fd).serve()
