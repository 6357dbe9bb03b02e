"""The launcher's side of warm servers: one for this process, renewed when a job needs more modules or the server was killed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, final

from ..errors import PlatformError
from .forkserver import SpawnFds, send_request

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])["path"]
from phalanx.launch.forkserver import main
main(sys.argv[1:])
"""


@final
class WarmServer:
    """A running server; `acquire` and `release` count the groups that use it, and a retired one ends with its last group."""

    def __init__(self, preload: Sequence[str], *, fork: bool) -> None:
        self.modules = frozenset(preload)
        self.owner = os.getpid()
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            given = {
                "socket": theirs.fileno(),
                "fork": fork,
                "preload": list(preload),
                "path": [p or os.getcwd() for p in sys.path],
            }
            self._socket = ours
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(given)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for this process, which then stops the workers in order
            )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Return whether the server still runs and is this process's own."""
        return self.owner == os.getpid() and self._process.poll() is None

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
        """Ask for one worker; its pid and exit come through its status pipe."""
        with self._lock:
            try:
                send_request(self._socket, request, fds)
            except OSError as error:
                raise PlatformError(f"the warm server (pid {self.pid}) is gone: {error}") from error

    def close(self) -> None:
        """End the server and every worker it has."""
        if self.owner != os.getpid():
            return  # a forked copy of this process must not end its parent's server
        self._socket.close()
        try:
            self._process.wait(5 if self._users else 0)
        except subprocess.TimeoutExpired:  # without workers there is nothing to end in order; it may still be loading modules
            self._process.kill()
            self._process.wait()


_lock = threading.Lock()
_current: dict[bool, WarmServer] = {}


def acquire_server(preload: Sequence[str], *, fork: bool) -> WarmServer:
    """Return a living server that has loaded at least `preload`, counted as used once more."""
    with _lock:
        server = _current.get(fork)
        if server is not None and not server.alive():
            _discard(server)
            server = None
        wanted = list(preload) if fork else []
        if server is None or not server.modules.issuperset(wanted):
            union = list(dict.fromkeys([*(sorted(server.modules) if server else []), *wanted]))
            fresh = WarmServer(union, fork=fork)
            if server is not None:
                server.retire()
            _current[fork] = server = fresh
        server.acquire()
        return server


def close_servers() -> None:
    """End all servers of this process; a later job starts new ones."""
    with _lock:
        servers = list(_current.values())
        _current.clear()
    for server in servers:
        server.close()


def _discard(server: WarmServer) -> None:
    with contextlib.suppress(OSError):
        server.close()


atexit.register(close_servers)
