"""The launcher's side of warm servers: one for this process, renewed when a job needs more modules or the server was killed."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, Protocol, final

from .. import environment
from ..errors import PlatformError
from .asking import SpawnFds, send_request

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])["path"]
from phalanx.launch.forkserver import main
main(sys.argv[1:])
"""
_END_SECONDS = 5.0
_LAST_WORDS = 2000


class Server(Protocol):
    """A process that forks workers."""

    def spawn(self, request: dict[str, Any], fds: SpawnFds) -> None:
        """Ask for one worker; its pid and exit come through its status pipe."""
        ...

    def lost(self, seen: str) -> PlatformError:
        """Return the error that the process has ended."""
        ...

    def release(self) -> None:
        """Note that a group has ended."""
        ...


@final
class WarmServer:
    """A running server; `acquire` and `release` count the groups that use it, and a retired one ends with its last group."""

    def __init__(self, preload: Sequence[str], *, fork: bool, apart: bool = False) -> None:
        self.modules = tuple(preload)
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - read when the server is found dead, closed by `close`
        ours, theirs = socket.socketpair()
        with theirs:
            given = {
                "parent": os.getpid(),
                "socket": theirs.fileno(),
                "fork": fork,
                "apart": apart,
                "preload": list(preload),
                "path": [p or os.getcwd() for p in sys.path],
            }
            self._socket = ours
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(given)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={**environment.snapshot(), **environment.idle_threads()},
                start_new_session=True,  # the terminal's Ctrl-C is for this process, which then stops the workers in order
            )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Return whether the server still runs."""
        return self._process.poll() is None

    def acquire(self) -> None:
        """Note one more group that uses the server."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Note that a group has ended."""
        with self._lock:
            self._users -= 1
            unused = self._retired and self._users == 0
        if unused:
            self.close()

    def retire(self) -> None:
        """End the server as soon as no group uses it."""
        with self._lock:
            self._retired = True
            unused = self._users == 0
        if unused:
            self.close()

    def spawn(self, request: dict[str, Any], fds: SpawnFds) -> None:
        """Ask for one worker; its pid and exit come through its status pipe.

        Raises:
            PlatformError: the server has ended.
        """
        with self._lock:
            try:
                send_request(self._socket, request, fds)
            except OSError as error:
                raise self.lost(str(error)) from error

    def lost(self, seen: str) -> PlatformError:
        """Return the error that the server has ended, with what it said last."""
        error = PlatformError(f"the warm server (pid {self.pid}), which starts the workers, has ended: {seen}")
        if not self._stderr.closed:
            # pread: the position in the file is shared with the server, which may still write
            size = os.fstat(self._stderr.fileno()).st_size
            error.details = os.pread(self._stderr.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode("utf-8", "replace")
        return error

    def close(self) -> None:
        """End the server and every worker it has."""
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS if self._users else 0)
        except subprocess.TimeoutExpired:  # without workers there is nothing to end in order; it may still be loading modules
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def forget(self) -> None:
        """In a forked copy of the process: let go of a server that is the parent's."""
        self._socket.close()
        self._stderr.close()
        self._process.returncode = 0  # never waited for here


@final
class _Servers:
    """The servers of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current: dict[bool, WarmServer] = {}
        self.all: set[WarmServer] = set()  # also retired ones that still have groups


_servers = _Servers()


def acquire_server(preload: Sequence[str], *, fork: bool, apart: bool = False) -> WarmServer:
    """Return a living server that has loaded at least `preload`, counted as used once more.

    Args:
        preload: modules.
        fork: whether it forks its workers or starts each as a fresh interpreter.
        apart: a new one is no child of this process, for processes whose children somebody kills.
    """
    servers = _servers
    with servers.lock:
        server = servers.current.get(fork)
        if server is not None and not server.alive():
            server.retire()
            server = None
        wanted = list(preload) if fork else []
        if server is None or not set(server.modules).issuperset(wanted):
            fresh = WarmServer(tuple(dict.fromkeys([*(server.modules if server else ()), *wanted])), fork=fork, apart=apart)
            if server is not None:
                server.retire()
            servers.current[fork] = server = fresh
            servers.all = {known for known in servers.all if known.alive()} | {fresh}
        server.acquire()
        return server


def close_servers() -> None:
    """End all servers of this process; a later job starts new ones."""
    with _servers.lock:
        ending = _servers.all
        _servers.current, _servers.all = {}, set()
    for server in ending:
        server.close()


def _forget_in_copy() -> None:
    """A forked copy of this process starts with no server: the lock may be held, and an open socket keeps a server alive."""
    global _servers
    inherited, _servers = _servers.all, _Servers()
    for server in inherited:
        server.forget()


os.register_at_fork(after_in_child=_forget_in_copy)
atexit.register(close_servers)
