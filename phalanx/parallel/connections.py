"""The connections of process groups, so that a rank that fails can cut them and no other waits for it.

torch has no call that closes a gloo group which a wrapper, a mesh or an engine still holds: `abort` and `shutdown` leave
its sockets open. So those opened while groups were made are noted, and shut down when the rank has failed. Linux only;
elsewhere the others wait until the failed process has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

_FOLDER = "/proc/self/fd"
_noted: dict[int, str] = {}  # file descriptor -> what it is, which tells a descriptor that was used anew


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Within: sockets that are opened belong to process groups."""
    before = _sockets()
    try:
        yield
    finally:
        _noted.update({fd: what for fd, what in _sockets().items() if before.get(fd) != what})


def cut(keep_port: int) -> None:
    """Shut down all noted connections but those from or to `keep_port`, which is the store's."""
    now = _sockets()
    for fd, what in _noted.items():
        if now.get(fd) != what:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if keep_port not in (connection.getsockname()[1], connection.getpeername()[1]):
                connection.shutdown(socket.SHUT_RDWR)
    _noted.clear()


def _sockets() -> dict[int, str]:
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(_FOLDER):
            with contextlib.suppress(OSError):
                what = os.readlink(f"{_FOLDER}/{name}")
                if what.startswith("socket:"):
                    found[int(name)] = what
    return found
