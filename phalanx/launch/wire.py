"""Messages between the processes of an attached group: JSON and log bytes in frames, over one connection a rank.

A connection begins with a proof in both directions that the other belongs to the group and, where `PHALANX_GROUP_SECRET` is set
on all ranks, that it knows the secret. Nothing that runs code is ever sent: each rank builds its worker from its own request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import select
import socket
import struct
from collections.abc import Mapping
from typing import Any, final

from ..contracts import Json

_HEAD = struct.Struct("!IB")  # length of what follows, kind
_JSON, _LOG = 0, 1
_ATTEMPT = struct.Struct("!I")
_READ = 1 << 18
_MOST = 1 << 28  # bytes of a frame
STRANGER_MOST = 1 << 16  # of one whose other end has proved nothing yet
_SEND_SECONDS = 60.0
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


@final
class Lost(Exception):
    """The other end is gone, cannot be reached, or does not speak this protocol."""


@final
class Log:
    """A piece of a worker's log."""

    def __init__(self, attempt: int, text: bytes) -> None:
        self.attempt = attempt
        self.text = text


Message = Mapping[str, Any]


@final
class Connection:
    """One end; for one thread at a time. A machine that vanishes is noticed within half a minute, by the kernel's own signs.

    Args:
        sock: connected; taken over.
        most: bytes of a frame that are accepted.
    """

    def __init__(self, sock: socket.socket, most: int = _MOST) -> None:
        self._socket = sock
        self._most = most
        self._tail = bytearray()
        sock.settimeout(_SEND_SECONDS)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for name, value in _KEEP_ALIVE.items():
                if name in dir(socket):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        """Return the socket's number, for selectors."""
        return self._socket.fileno()

    def trust(self) -> None:
        """The other end has proved who it is."""
        self._most = _MOST

    @property
    def own_address(self) -> str:
        """Address of this machine on the way to the other."""
        return str(self._socket.getsockname()[0]) if self._socket.family != socket.AF_UNIX else ""

    def send(self, message: Mapping[str, Json]) -> None:
        """Send a message.

        Raises:
            Lost: nobody takes it.
        """
        self._send(_JSON, json.dumps(message).encode())

    def send_log(self, attempt: int, text: bytes) -> None:
        """Send a piece of a log.

        Raises:
            Lost: nobody takes it.
        """
        self._send(_LOG, _ATTEMPT.pack(attempt) + text)

    def receive(self, timeout_s: float = 0.0) -> list[Message | Log]:
        """Return what has come, waiting at most so long for something.

        Raises:
            Lost: the other end is gone, or sends what is no frame.
        """
        try:
            waiting = select.poll()  # not select: rank 0 of a large group has more files than that can take
            waiting.register(self._socket, select.POLLIN)
            if not waiting.poll(timeout_s * 1e3):
                return []
            data = self._socket.recv(_READ)
        except (OSError, ValueError) as error:
            raise Lost(str(error)) from error
        if not data:
            raise Lost("it ended the connection")
        self._tail += data
        return self._frames()

    def close(self) -> None:
        """End the connection. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, kind: int, data: bytes) -> None:
        try:
            self._socket.sendall(_HEAD.pack(len(data), kind) + data)
        except (OSError, ValueError) as error:
            raise Lost(str(error)) from error

    def _frames(self) -> list[Message | Log]:
        found: list[Message | Log] = []
        at = 0
        while len(self._tail) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._tail, at)
            if length > self._most or kind not in (_JSON, _LOG):
                raise Lost("it sends what is no message")
            if len(self._tail) - at - _HEAD.size < length:
                break
            body = bytes(self._tail[at + _HEAD.size : at + _HEAD.size + length])
            at += _HEAD.size + length
            found.append(_message(body) if kind == _JSON else Log(_ATTEMPT.unpack_from(body)[0], body[_ATTEMPT.size :]))
        del self._tail[:at]
        return found


def proof(secret: str, *parts: object) -> str:
    """Return what only those can say who know the secret and the parts."""
    return hmac.new(secret.encode(), json.dumps([str(part) for part in parts]).encode(), hashlib.sha256).hexdigest()


def proves(said: object, expected: str) -> bool:
    """Return whether somebody said what was expected."""
    return isinstance(said, str) and hmac.compare_digest(said.encode(), expected.encode())


def _message(body: bytes) -> Message:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Lost("it sends what is no message") from error
    if not isinstance(value, dict):
        raise Lost("it sends what is no message")
    return value
