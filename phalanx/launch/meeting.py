"""How the ranks of an attached group find each other: rank 0 listens where its starter's variables say, the others come.

Rank 0 takes the first free one of a few ports that all ranks derive alike. Whoever answers there must prove that it is of the
same group, so that a port taken by somebody else only sends the ranks on to the next. On one machine it listens on loopback.
"""

from __future__ import annotations

import os
import resource
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

from .. import environment
from ..contracts import Json
from ..errors import PlatformError, UserError
from ..groups import Group
from .local import LOOPBACK
from .wire import STRANGER_MOST, Connection, Log, Lost, Message, proof, proves

PORT, SECRET = "PHALANX_PORT", "PHALANX_GROUP_SECRET"
_TRIED = 8  # ports
_FILES_A_RANK = 4  # of rank 0: the connection and the log, and as much again
_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.1
_STRANGERS = 256
_turns: dict[tuple[object, ...], int] = {}
_counting = threading.Lock()


@dataclass(slots=True)
class Peer:
    """A rank as rank 0 knows it."""

    rank: int
    connection: Connection
    hello: Message = field(default_factory=dict)
    lost: str | None = None  # why it is

    @property
    def machine(self) -> str:
        """What tells its machine, or its container, from others."""
        return str(self.hello.get("machine"))

    @property
    def host(self) -> str:
        """Its machine's name."""
        return str(self.hello.get("host", "a machine that did not say its name"))

    def name(self) -> str:
        """What people call it."""
        return f"worker {self.rank} on {self.host}"


def machine() -> dict[str, Json]:
    """Return what a rank says of its machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    return {"host": socket.gethostname(), "machine": f"{socket.gethostname()} {boot}", "pid": os.getpid()}


def turn_of(group: Group) -> int:
    """Return how many jobs of the group this rank has run before; counts the one that asks."""
    key = (group.starter, group.run, group.address, group.port, group.rank, group.restarts)
    with _counting:
        _turns[key] = _turns.get(key, -1) + 1
        return _turns[key]


def _address(group: Group) -> str:
    if group.is_local:
        return LOOPBACK
    if group.address is None:
        raise UserError(
            f"{group.starter} does not say on which machine rank 0 is: set MASTER_ADDR to its name or address on all ranks "
            "(mpirun -x MASTER_ADDR=host)"
        )
    return group.address


def _ports(group: Group) -> list[int]:
    given = environment.get(PORT)
    if given is None:
        first = group.meeting_port("meeting")
    elif given.isdigit() and 0 < int(given) <= 65535 - _TRIED:
        first = int(given)
    else:
        raise UserError(f"{PORT}={given} is not allowed: it is a port of rank 0's machine that all ranks can reach")
    return list(range(first, first + _TRIED))


def _known(group: Group, turn: int) -> str:
    """Return what all ranks of a group know and others do not, as long as they do not look."""
    return f"phalanx attach 1, {group.starter} {group.run} {group.restarts} {group.size} {turn}"


@final
class Meeting:
    """Rank 0's side.

    Args:
        group: whose ranks are to come.
        turn: see `turn_of`.
        welcome: what each is told when it has come.

    Raises:
        PlatformError: none of the ports is free.
    """

    def __init__(self, group: Group, turn: int, welcome: Mapping[str, Json]) -> None:
        self.group = group
        self.peers: dict[int, Peer] = {}
        _allow_files(_FILES_A_RANK * group.size)
        self._known = _known(group, turn)
        self._secret = environment.get(SECRET) or ""
        self._welcome = dict(welcome)
        self._strangers: dict[Connection, str] = {}  # and the number that each is asked to prove
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(group) if group.size > 1 else None
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ)

    def gather(self, timeout_s: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until all ranks have come and said their hello; nobody can come later.

        Args:
            timeout_s: longest wait.
            is_enough: asked often; stops the wait.

        Raises:
            PlatformError: some did not come in time, or left.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while len(self.peers) < self.group.size - 1 or not all(peer.hello for peer in self.peers.values()):
                if is_enough():
                    return
                if time.monotonic() >= deadline:
                    raise PlatformError(f"{self._missing()} did not come within {timeout_s:g} s")
                self._look()
        finally:
            self._stop_listening()

    def tell(self, message: Mapping[str, Json]) -> None:
        """Tell all that are there; who is gone is passed over."""
        for peer in self.peers.values():
            try:
                peer.connection.send(message)
            except Lost as error:
                peer.lost = peer.lost or str(error)

    def close(self) -> None:
        """End all connections. Safe to call twice."""
        self._stop_listening()
        for peer in self.peers.values():
            peer.connection.close()

    def _missing(self) -> str:
        silent = [rank for rank in range(1, self.group.size) if rank not in self.peers or not self.peers[rank].hello]
        shown = ", ".join(map(str, silent[:10])) + (", …" if len(silent) > 10 else "")
        return f"{len(silent)} of {self.group.size} ranks of the group that {self.group.starter} started ({shown})"

    def _look(self) -> None:
        for key, _ in self._selector.select(_POLL_SECONDS):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, Connection):
                self._hear(key.fileobj)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
            connection = Connection(sock, STRANGER_MOST)
            if len(self._strangers) >= _STRANGERS:
                connection.close()
                return
            nonce = secrets.token_hex(16)
            connection.send({"phalanx": 1, "nonce": nonce})
        except (OSError, Lost):
            return
        self._strangers[connection] = nonce
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: Connection) -> None:
        peer = next((peer for peer in self.peers.values() if peer.connection is connection), None)
        try:
            for message in connection.receive():
                if peer is None:
                    peer = self._introduced(connection, message)
                elif not isinstance(message, Log) and message.get("do") == "hello":
                    peer.hello = message
        except Lost as error:
            self._selector.unregister(connection)
            self._strangers.pop(connection, None)
            if peer is None:
                connection.close()
                return
            raise PlatformError(f"worker {peer.rank} left before the job began: {error}") from None

    def _introduced(self, connection: Connection, message: Message | Log) -> Peer:
        rank = None if isinstance(message, Log) else message.get("rank")
        if isinstance(message, Log) or not isinstance(rank, int) or not 0 < rank < self.group.size or rank in self.peers:
            raise Lost("it is no rank of the group")
        if not proves(message.get("proof"), proof(self._secret, self._known, self._strangers.pop(connection), rank)):
            connection.send({"error": "it does not belong to this group"})
            raise Lost("it does not belong to the group")
        connection.trust()
        answer = proof(self._secret, self._known, message.get("nonce"), "welcome")
        connection.send({"proof": answer, "welcome": self._welcome})
        self.peers[rank] = Peer(rank, connection)
        return self.peers[rank]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self._strangers:
            connection.close()
        self._strangers.clear()
        self._selector.close()


def _allow_files(count: int) -> None:
    """Let this process have so many files open, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listen(group: Group) -> socket.socket:
    ports = _ports(group)
    for port in ports:
        try:
            return open_listener(port, group.size, is_local=group.is_local)
        except OSError as error:
            why = error
    raise PlatformError(
        f"rank 0 cannot listen at any of the ports {ports[0]} to {ports[-1]}: {why}; set {PORT} to another one on all ranks"
    )


def open_listener(port: int, backlog: int, *, is_local: bool) -> socket.socket:
    """Listen at a port (0: any that is free), on loopback only where all of the group is on this machine.

    Raises:
        OSError: it is taken.
    """
    backlog = min(backlog + 8, 4096)
    if is_local:
        return socket.create_server((LOOPBACK, port), backlog=backlog)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=backlog)


def join(group: Group, turn: int, timeout_s: float, is_enough: Callable[[], bool]) -> tuple[Connection, Message] | None:
    """Find rank 0 from another rank; return the connection and its welcome, None when it was `is_enough` before.

    Raises:
        PlatformError: nobody of the group answers in time.
        UserError: it is not said where rank 0 is.
    """
    address, ports = _address(group), _ports(group)
    deadline = time.monotonic() + timeout_s
    why, pause_s = "nobody listens there yet", _POLL_SECONDS
    while time.monotonic() < deadline:
        for port in ports:
            if is_enough():
                return None
            try:
                return _introduce(group, turn, address, port)
            except ConnectionRefusedError:
                continue
            except (OSError, Lost) as error:
                why = str(error)
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.5)
    raise PlatformError(
        f"rank {group.rank} did not find rank 0 at {address}, ports {ports[0]} to {ports[-1]}, within {timeout_s:g} s: {why}"
    )


def _introduce(group: Group, turn: int, address: str, port: int) -> tuple[Connection, Message]:
    secret, known, nonce = environment.get(SECRET) or "", _known(group, turn), secrets.token_hex(16)
    connection = Connection(socket.create_connection((address, port), timeout=_ANSWER_SECONDS), STRANGER_MOST)
    try:
        asked = _answer(connection)
        said = proof(secret, known, asked.get("nonce"), group.rank)
        connection.send({"rank": group.rank, "proof": said, "nonce": nonce})
        answer = _answer(connection)
        if "error" in answer:
            raise Lost("another group meets there, or the ranks were given different secrets")
        if not proves(answer.get("proof"), proof(secret, known, nonce, "welcome")):
            raise Lost("who listens there is not of this group")
    except BaseException:
        connection.close()
        raise
    connection.trust()
    welcome = answer.get("welcome")
    return connection, welcome if isinstance(welcome, dict) else {}


def _answer(connection: Connection) -> Message:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        for message in connection.receive(_POLL_SECONDS):
            if not isinstance(message, Log):
                return message
    raise Lost("it does not answer")
