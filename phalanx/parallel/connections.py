"""The connections between ranks, so that a rank that fails can cut them and no other waits for it.

torch has no call that closes a gloo group which a wrapper, a mesh or an engine still holds: `abort` and `shutdown` leave
its sockets open. So those opened while groups were made are noted, and shut down when the rank has failed. Linux only;
elsewhere the others wait until the failed process has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from typing import final

_FOLDER = "/proc/self/fd"
_NO_ADDRESS = b"\0" * 16  # a sockaddr of AF_UNSPEC: to connect there resets a connection and leaves the descriptor open


@final
class Connections:
    """The sockets that were opened while a rank joined.

    Ranks that are threads of one process note those of their peers too; all of them end together.
    """

    def __init__(self) -> None:
        self._noted: dict[int, str] = {}  # descriptor -> what it is, which tells a descriptor that was used anew

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within: sockets that are opened connect the ranks."""
        before = _sockets()
        try:
            yield
        finally:
            self._noted.update({fd: what for fd, what in _sockets().items() if before.get(fd) != what})

    def cut(self, keep_port: int) -> None:
        """Shut down the connections but those from and to `keep_port`: peers read the end of a stream."""
        self._end(keep_port, lambda connection: connection.shutdown(socket.SHUT_RDWR))

    def reset(self, keep_port: int) -> bool:
        """Reset the connections but those from and to `keep_port`; return whether there were any.

        For XGBoost, whose peers take the end of a stream in two steps: one that comes between them takes its step for done,
        sends the next to a thread that has ended, and waits for ever. A reset is told of in one step.
        """
        return self._end(keep_port, _reset)

    def _end(self, keep_port: int, end: Callable[[socket.socket], None]) -> bool:
        now, ended = _sockets(), False
        for fd, what in self._noted.items():
            if now.get(fd) != what:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
                inet = connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM
                # a listening socket has no peer: that is an OSError
                if inet and keep_port not in (connection.getsockname()[1], connection.getpeername()[1]):
                    end(connection)
                    ended = True
        self._noted.clear()
        return ended


groups = Connections()  # of this process's torch process groups, and of what is built on them


def _reset(connection: socket.socket) -> None:
    if ctypes.CDLL(None).connect(connection.fileno(), _NO_ADDRESS, len(_NO_ADDRESS)) != 0:
        raise OSError("the connection cannot be reset")


def _sockets() -> dict[int, str]:
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(_FOLDER):
            with contextlib.suppress(OSError):
                what = os.readlink(f"{_FOLDER}/{name}")
                if what.startswith("socket:"):
                    found[int(name)] = what
    return found
