"""How a worker is asked for: a request in JSON and its files, over a socket."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct("<Q")
_MAX_FDS = 4


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
        close_all(*fds)
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


def close_all(*fds: int) -> None:
    """Close files."""
    for fd in fds:
        os.close(fd)
