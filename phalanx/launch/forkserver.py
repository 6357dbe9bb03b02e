"""The warm server: a process that has loaded the heavy modules once and forks workers from them in milliseconds.

Why not the standard library's: it imports the user's `__main__` again, speaks pickle, and lives as long as any child does. This
one speaks JSON over a socket to the process that started it. When that process ends, even by SIGKILL, the server kills every
worker with its descendants and ends; when the server itself is killed, its workers get SIGKILL from the kernel.

When it forks it has one thread: it reads requests, forks, and tells each worker's pid and exit through that worker's own pipe.
"""

from __future__ import annotations

import array
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
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, final

from .child import ChildRequest, run_child, thread_pools

_HEADER = struct.Struct("<Q")
_MAX_FDS = 4
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# The server's life hangs on its parent alone. Blocked, not ignored: what reaches a worker that is being born waits for it.
_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class SpawnFds:
    """What a worker is given: its log, the pipe for its events, the pipe for its pid and exit, rank 0's listening socket."""

    log: int
    events: int
    status: int
    store: int | None

    def given(self) -> list[int]:
        """Return those that are there, in the order they travel."""
        return [self.log, self.events, self.status, *([] if self.store is None else [self.store])]


def send_request(sock: socket.socket, request: dict[str, Any], fds: SpawnFds) -> None:
    """Ask the server behind `sock` for a worker."""
    body = json.dumps(request).encode()
    socket.send_fds(sock, [_HEADER.pack(len(body))], fds.given())
    sock.sendall(body)


def receive_request(sock: socket.socket) -> tuple[dict[str, Any], SpawnFds | None] | None:
    """Return the next request, None when the other side is gone.

    Its file descriptors are None when this process may open no more files: whoever asked sees their other ends close.
    """
    ancillary = socket.CMSG_LEN(_MAX_FDS * array.array("i").itemsize)
    header, messages, flags, _ = sock.recvmsg(_HEADER.size, ancillary)
    fds = array.array("i")
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not header:
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    header += _read_exactly(sock, _HEADER.size - len(header))
    body = json.loads(_read_exactly(sock, _HEADER.unpack(header)[0]))
    if len(fds) < 3 or flags & socket.MSG_CTRUNC:
        _close(*fds)
        return body, None
    return body, SpawnFds(fds[0], fds[1], fds[2], fds[3] if len(fds) > 3 else None)


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


@final
class ForkServer:
    """The server's side: one loop over requests, ended workers, and the parent's end."""

    def __init__(self, sock: socket.socket, *, fork: bool, parent_fd: int | None) -> None:
        self._sock = sock
        self._fork = fork
        self._parent_fd = parent_fd
        self._status: dict[int, int] = {}  # pid -> the worker's status pipe
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
            with selectors.PollSelector() as selector:  # holds no file of its own that a worker would inherit
                for source in (self._sock, self._woken, self._parent_fd):
                    if source is not None:
                        selector.register(source, selectors.EVENT_READ)
                while self._turn({key.fileobj for key, _ in selector.select()}):
                    pass
        finally:
            self._kill_all()

    def _turn(self, ready: set[Any]) -> bool:
        """Handle what is ready; return whether to go on."""
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                while self._woken.recv(4096):
                    pass
        self._reap()
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
        try:
            pid = os.fork()
        except OSError as error:
            _tell(fds.status, {"error": f"no process for rank {request['rank']}: {error.strerror}"})
            _close(*fds.given())
            return
        if pid == 0:
            self._become_worker(request, fds)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the worker does so too: whoever is told its pid can signal its group
        _close(fds.log, fds.events, *([] if fds.store is None else [fds.store]))
        self._status[pid] = fds.status
        if not _tell(fds.status, {"pid": pid}):
            _kill_group(pid)  # nobody waits for it any more

    def _become_worker(self, request: dict[str, Any], fds: SpawnFds) -> Never:
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
            _close(fds.log, fds.status, *self._status.values())
            _close(*(s.detach() for s in (self._sock, self._woken, self._waker)))
            if self._parent_fd is not None:
                _close(self._parent_fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            child = ChildRequest.of(request)
            if child.command is None and not self._fork:
                _exec_fresh(request, fds)
            code = run_child(child, events=fds.events, store=fds.store, pools=self._pools)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        """Tell the exits of workers; what they left running ends with them."""
        ended: list[tuple[int, dict[str, Any]]] = []
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                pipe = self._status.pop(pid, None)
                if pipe is not None:
                    _kill_group(pid)
                    ended.append((pipe, {"code": os.waitstatus_to_exitcode(status), "time": time.time()}))
        if not self._status:
            for orphan in _children():  # one that left its worker's group; whose it was, nobody knows
                _kill(orphan)
        for pipe, message in ended:
            _tell(pipe, message)
            _close(pipe)

    def _kill_all(self) -> None:
        for pid in self._status:
            _kill_group(pid)
        while left := {*self._status, *_children()}:  # a descendant becomes a child when its parent has ended
            for pid in left:
                _kill(pid)
            self._status.pop(os.waitpid(-1, 0)[0], None)


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


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


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
        _close(done, finish)


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
