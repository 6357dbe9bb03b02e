"""The warm server: a process that has loaded the heavy modules once and forks workers from them in milliseconds.

Why not the standard library's: it imports the user's `__main__` again, speaks pickle, and lives as long as any child does. This
one speaks JSON over a socket to the process that started it. When that process ends, even by SIGKILL, the socket closes and the
server kills every worker's process group and ends; when the server itself is killed, its workers get SIGKILL from the kernel.

The server is single-threaded: it reads requests, forks, and reports each worker's pid and exit through that worker's own pipe.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, final

from .child import ChildRequest, run_child

_HEADER = struct.Struct("<Q")
_MAX_FDS = 4
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class SpawnFds:
    """What a worker is given: its log, the pipe for its events, the pipe for its pid and exit, rank 0's listening socket."""

    log: int
    events: int
    status: int
    store: int | None


def send_request(sock: socket.socket, request: dict[str, Any], fds: SpawnFds) -> None:
    """Ask the server behind `sock` for a worker."""
    body = json.dumps(request).encode()
    given = [fds.log, fds.events, fds.status] + ([] if fds.store is None else [fds.store])
    socket.send_fds(sock, [_HEADER.pack(len(body))], given)
    sock.sendall(body)


def receive_request(sock: socket.socket) -> tuple[dict[str, Any], SpawnFds] | None:
    """Return the next request, None when the other side is gone."""
    ancillary = socket.CMSG_LEN(_MAX_FDS * array.array("i").itemsize)
    header, messages, _, _ = sock.recvmsg(_HEADER.size, ancillary)
    fds = array.array("i")
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not header:
        return None
    header += _read_exactly(sock, _HEADER.size - len(header))
    body = _read_exactly(sock, _HEADER.unpack(header)[0])
    return json.loads(body), SpawnFds(fds[0], fds[1], fds[2], fds[3] if len(fds) > 3 else None)


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
    """The server's side: one loop over requests and ended workers."""

    def __init__(self, sock: socket.socket, *, fork: bool) -> None:
        self._sock = sock
        self._fork = fork
        self._status: dict[int, int] = {}  # pid -> the worker's status pipe
        self._woken, self._waker = socket.socketpair()
        self._pid = os.getpid()

    def serve(self) -> None:
        """Serve until the other side of the socket is gone, then kill what is left."""
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    with contextlib.suppress(BlockingIOError):
                        while self._woken.recv(4096):
                            pass
                self._reap()
                if self._sock in ready:
                    try:
                        request = receive_request(self._sock)
                    except (EOFError, OSError):
                        request = None
                    if request is None:
                        break
                    self._spawn(*request, selector.fileno() if hasattr(selector, "fileno") else None)
        self._kill_all()

    def _spawn(self, request: dict[str, Any], fds: SpawnFds, selector_fd: int | None) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_worker(request, fds, selector_fd)
        os.close(fds.log)
        os.close(fds.events)
        if fds.store is not None:
            os.close(fds.store)
        self._status[pid] = fds.status
        self._tell(fds.status, {"pid": pid})

    def _become_worker(self, request: dict[str, Any], fds: SpawnFds, selector_fd: int | None) -> None:
        """Never returns: the forked side runs its target or becomes its command."""
        code = 1
        try:
            os.setsid()
            die_with_parent(self._pid)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            ours = [self._sock.fileno(), self._woken.fileno(), self._waker.fileno(), fds.status, *self._status.values()]
            for fd in ours + ([] if selector_fd is None else [selector_fd]):
                os.close(fd)
            child = ChildRequest.of(request)
            if child.target is not None and not self._fork:
                _exec_fresh(request, fds)
            code = run_child(child, log=fds.log, events=fds.events, store=fds.store)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._status:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            pipe = self._status.pop(pid, None)
            _kill_group(pid)  # descendants that the worker left behind
            if pipe is not None:
                self._tell(pipe, {"code": os.waitstatus_to_exitcode(status)})
                os.close(pipe)

    def _kill_all(self) -> None:
        for pid in self._status:
            _kill_group(pid)
        for pid in self._status:
            os.waitpid(pid, 0)

    @staticmethod
    def _tell(pipe: int, message: dict[str, int]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(pipe, json.dumps(message).encode() + b"\n")


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends (Linux); end now if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _exec_fresh(request: dict[str, Any], fds: SpawnFds) -> None:
    """Become a fresh interpreter that runs the target, where a forked one is not safe."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps({"request": request, "path": sys.path}).encode())
        file.seek(0)
        kept = [file.fileno(), fds.log, fds.events, *([] if fds.store is None else [fds.store])]
        for fd in kept:
            os.set_inheritable(fd, True)
        places = json.dumps([file.fileno(), fds.log, fds.events, fds.store])
        os.execv(sys.executable, [sys.executable, "-c", _FRESH, places])


_FRESH = """
import json, os, sys
file, log, events, store = json.loads(sys.argv[1])
with os.fdopen(file) as f:
    given = json.load(f)
sys.path[:] = given["path"]
from phalanx.launch.child import ChildRequest, run_child
os._exit(run_child(ChildRequest.of(given["request"]), log=log, events=events, store=store))
"""


def main(arguments: list[str]) -> None:
    """Run the server: socket fd, whether to fork, sys.path and modules to preload come as JSON."""
    given = json.loads(arguments[0])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for module in given["preload"]:
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            loaded = importlib.import_module(module)
            if "warm_up" in vars(loaded):  # compiles, or loads what was compiled, once for all workers
                loaded.warm_up()
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the workers
    ForkServer(socket.socket(fileno=given["socket"]), fork=given["fork"]).serve()
