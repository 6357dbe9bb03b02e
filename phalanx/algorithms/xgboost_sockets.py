"""The connections between XGBoost's workers, so that a rank that fails frees its peers at once and safely.

A peer that waits for a rank must learn that it is gone. Closing the connection is not safe: the library tells of the end of a
stream in two steps, and a peer that comes between them takes the step for done, sends the next one to a thread that has ended,
and waits for ever, where nothing of Python's reaches it. A connection that is reset is told of in one step. Linux only;
elsewhere connections are closed, and a peer that waits for ever is ended with its group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
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
        """Within: sockets that are opened connect the workers."""
        before = _sockets()
        yield
        self._noted = {fd: what for fd, what in _sockets().items() if before.get(fd) != what}

    def reset(self, keep_port: int) -> bool:
        """Reset the connections but those from and to `keep_port`, the tracker's; return whether there were any."""
        now = _sockets()
        done = [_reset(fd, keep_port) for fd, what in self._noted.items() if now.get(fd) == what]
        return any(done)


def _reset(fd: int, keep_port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        inet = connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM
        # a listening socket has no peer: that is an OSError
        if inet and keep_port not in (connection.getsockname()[1], connection.getpeername()[1]):
            return bool(ctypes.CDLL(None).connect(connection.fileno(), _NO_ADDRESS, len(_NO_ADDRESS)) == 0)
    return False


def _sockets() -> dict[int, str]:
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(_FOLDER):
            with contextlib.suppress(OSError):
                what = os.readlink(f"{_FOLDER}/{name}")
                if what.startswith("socket:"):
                    found[int(name)] = what
    return found
