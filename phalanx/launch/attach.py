"""The attaching launcher: the ranks of a group that torchrun, Slurm, MPI or a container started become a worker group.

Every rank runs the same job. Rank 0 leads: it keeps the job's record and supervises as for any other launcher; each of the
others follows it (`launch.following`) and runs the worker of its own rank. Workers are started again within the group as long
as all its processes are there; the group itself only by whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

from .. import environment
from ..contracts import Event, Exit, Member, WorkerSpec
from ..errors import AlgorithmError, GroupLost, PlatformError, UserError, from_record
from ..groups import Group
from .following import FollowingThread
from .local import LOOPBACK
from .meeting import Meeting, Peer, machine, open_listener
from .stopping import StopRequest
from .warm import acquire_server
from .wire import Connection, Log, Lost, Message

_START_SECONDS = 300.0  # in which a rank starts its worker; libraries are loaded from busy file systems
_CLOSE_SECONDS = 15.0
_POLL_SECONDS = 0.1


@final
class AttachLauncher:
    """`contracts.Launcher` for a group that somebody else started.

    Args:
        group: the group; default: the one that this process's environment describes.
        timeout_s: how long to wait for all ranks to come.
    """

    def __init__(self, group: Group | None = None, *, timeout_s: float = 600.0) -> None:
        self._given = group
        self.timeout_s = timeout_s
        self._lead: Lead | None = None

    @property
    def group(self) -> Group:
        """The group.

        Raises:
            UserError: nobody started one.
        """
        found = self._given or environment.group()
        if found is None:
            raise UserError(
                "launcher 'attach' joins a group that somebody started, and this process is in none: start the same command "
                "with torchrun, srun or mpirun, as `torchrun --nproc-per-node 2 --no-python phalanx train …`, or choose "
                "another launcher"
            )
        return found

    def prepare(self, preload: Sequence[str]) -> None:
        """Start a warm server that loads these modules, unless one has; returns at once."""
        acquire_server(preload, fork=True).release()

    def lead(self, lead: Lead) -> None:
        """Have groups started through these ranks."""
        self._lead = lead

    def start(self, spec: WorkerSpec) -> AttachedWorkers:
        """Start a worker on every rank; may be called again as long as no rank is lost.

        Raises:
            AlgorithmError: the payload is no JSON.
            UserError: not exactly one of target and command, or another number of workers than the group has.
            GroupLost: a rank is gone.
            PlatformError: a worker cannot be started.
        """
        if self._lead is None:
            raise UserError("an attached group is started by TrainingJob.run() on every rank")
        if (spec.target is None) == (spec.command is None):
            raise UserError("a worker group needs a target or a command, and not both")
        if spec.workers != self._lead.size:
            raise UserError(f"workers={spec.workers} are asked for, and the group has {self._lead.size}")
        try:
            json.dumps(spec.payload)
        except (TypeError, ValueError) as error:
            raise AlgorithmError(f"the workers' payload must be JSON values: {error}") from None
        return self._lead.start(spec)


@final
class Lead:
    """What rank 0 holds of the group once all have come.

    Args:
        meeting: of all ranks; its connections are used, and not closed.
        stop: is asked where a rank is.
    """

    def __init__(self, meeting: Meeting, stop: StopRequest) -> None:
        self.size = meeting.group.size
        self._stop = stop
        self._store: socket.socket | None = None
        ours, theirs = socket.socketpair()
        self._own = FollowingThread(Connection(theirs), self.size, self._take_store)
        here = machine()
        self.peers = [Peer(0, Connection(ours), here), *(meeting.peers[rank] for rank in range(1, self.size))]
        self._places = _places(self.peers)
        self._is_local = len({peer.machine for peer in self.peers}) == 1
        self._prepared = False
        self._asked: frozenset[int] = frozenset()

    @property
    def is_local(self) -> bool:
        """Whether all ranks are on this machine."""
        return self._is_local

    @property
    def densest(self) -> int:
        """Ranks on the machine that has most of them."""
        return max(place.local_size for place in self._places)

    def start(self, spec: WorkerSpec) -> AttachedWorkers:
        """See `AttachLauncher.start`."""
        for peer in self.peers:
            self._need(peer)
        spec.log_folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            try:
                logs = [undo.enter_context((spec.log_folder / f"rank-{rank}.log").open("ab", 0)) for rank in range(self.size)]
                self._store = open_listener(0, self.size, is_local=self._is_local)
            except OSError as error:
                raise PlatformError(f"the worker group cannot be started: {error}") from error
            undo.callback(self._drop_store)
            port = int(self._store.getsockname()[1])
            self._prepare(str(spec.scratch or ""))
            self._own.spec = spec
            workers = AttachedWorkers(self, spec.attempt, logs)
            undo.callback(workers.close)
            for peer in self.peers:
                self._send(peer, self._word(peer, spec, port))
            workers.await_started()
            undo.pop_all()
            self._drop_store()
            return workers

    def all_see(self, folder: Path) -> bool:
        """Return whether the ranks of all machines see a folder of this one."""
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".seen-{secrets.token_hex(8)}"
        probe.touch()
        try:
            far = [peer for peer in self.peers if peer.machine != self.peers[0].machine]
            for peer in far:
                self._send(peer, {"do": "look", "path": str(probe.absolute())})
            answers = [self._answer(peer, "seen")["there"] for peer in far]
            return all(answers)
        finally:
            probe.unlink()

    def asked(self, rank: int, message: Message) -> None:
        """Pass on that a rank was asked to stop. The first word of a rank is no second request where another's came before."""
        known, self._asked = rank in self._asked, self._asked | {rank}
        if not known and self._stop.requested():
            return
        self._stop.request(str(message.get("why")), int(message.get("code", 143)))

    def close(self) -> None:
        """End this rank's own follower; the others learn it from the meeting. Safe to call twice."""
        self.peers[0].connection.close()
        self._own.join()

    def _word(self, peer: Peer, spec: WorkerSpec, port: int) -> dict[str, Any]:
        place = self._places[peer.rank]
        return {
            "do": "start",
            "attempt": spec.attempt,
            "threads": spec.threads,
            "address": LOOPBACK if self._is_local else self._address(),
            "own_address": self._address() if peer.machine == self.peers[0].machine and not self._is_local else "",
            "port": port,
            "local_rank": place.local_rank,
            "local_size": place.local_size,
            "scratch": place.machine.scratch,
            "variables": dict(spec.environment or {}),
        }

    def _address(self) -> str:
        """Return the address of this machine that ranks on others have reached."""
        far = next(peer for peer in self.peers if peer.machine != self.peers[0].machine)
        return far.connection.own_address.removeprefix("::ffff:")

    def _prepare(self, scratch: str) -> None:
        """Have one rank of every machine make its scratch folder of the job ready; this machine's is."""
        if self._prepared:
            return
        self._places[0].machine.scratch = scratch
        first = [peer for peer in self.peers if self._places[peer.rank].local_rank == 0 and peer.rank > 0]
        for peer in first:
            self._send(peer, {"do": "prepare"})
        for peer in first:
            answer = self._answer(peer, "ready")
            if "error" in answer:
                raise _told_by(peer, answer["error"])
            self._places[peer.rank].machine.scratch = str(answer["scratch"])
        self._prepared = True

    def _answer(self, peer: Peer, what: str) -> Message:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for message in self._heard(peer, _POLL_SECONDS):
                if not isinstance(message, Log) and message.get("do") == what:
                    return message
                if not isinstance(message, Log) and message.get("do") == "stop":
                    self.asked(peer.rank, message)
        raise PlatformError(f"{peer.name()} did not answer within {_START_SECONDS:g} s")

    def _heard(self, peer: Peer, timeout_s: float) -> Sequence[Message | Log]:
        try:
            return peer.connection.receive(timeout_s)
        except Lost as error:
            peer.lost = str(error)
            self._need(peer)
            return []

    def _send(self, peer: Peer, message: Mapping[str, Any]) -> None:
        try:
            peer.connection.send({k: v for k, v in message.items() if k != "variables"} | _shown(message))
        except Lost as error:
            peer.lost = str(error)
            self._need(peer)

    def _need(self, peer: Peer) -> None:
        if peer.lost is not None:
            raise GroupLost(lost_words(peer))

    def _take_store(self) -> socket.socket | None:
        store, self._store = self._store, None
        return store

    def _drop_store(self) -> None:
        store = self._take_store()
        if store is not None:
            store.close()


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a message that are sent: what the job is given otherwise stays on the rank that was given it."""
    if "variables" not in message:
        return {}
    kept = (environment.OBSERVE, environment.HEARTBEAT)
    return {"variables": {k: v for k, v in message["variables"].items() if k in kept}}


def lost_words(peer: Peer) -> str:
    """Return how people are told that a rank is gone."""
    return f"{peer.name()} was lost, its process or its machine: {peer.lost}"


def _told_by(peer: Peer, record: Mapping[str, Any]) -> Exception:
    return from_record({**record, "message": f"{record['message']} ({peer.name()})"})


@dataclass(slots=True)
class _Machine:
    """A machine of the group."""

    ranks: list[int] = field(default_factory=list)
    scratch: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    machine: _Machine
    local_rank: int

    @property
    def local_size(self) -> int:
        return len(self.machine.ranks)


def _places(peers: Sequence[Peer]) -> list[_Place]:
    machines: dict[str, _Machine] = {}
    for peer in peers:
        machines.setdefault(peer.machine, _Machine()).ranks.append(peer.rank)
    return [_Place(machines[peer.machine], machines[peer.machine].ranks.index(peer.rank)) for peer in peers]


@final
class AttachedWorkers:
    """`contracts.Workers` on the ranks of an attached group."""

    def __init__(self, lead: Lead, attempt: int, logs: Sequence[BinaryIO]) -> None:
        self._lead = lead
        self._attempt = attempt
        self._logs = logs
        self._pids: dict[int, int] = {}
        self._left = {peer.rank for peer in lead.peers}
        self._pending: deque[Event | Exit] = deque()
        self._closing: set[int] = set()
        self._refused: Exception | None = None
        self._closed = False
        self._selector = selectors.DefaultSelector()
        for peer in lead.peers:
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)

    @property
    def members(self) -> Sequence[Member]:
        """The workers by rank."""
        return [Member(peer.rank, self._pids.get(peer.rank, 0), peer.host) for peer in self._lead.peers]

    def await_started(self) -> None:
        """Wait until every rank has a worker.

        Raises:
            PhalanxError: what a rank said in place of that.
            GroupLost: a rank is gone.
        """
        deadline = time.monotonic() + _START_SECONDS
        while len(self._pids) < len(self._lead.peers):
            self._collect(_POLL_SECONDS)
            lost = next((peer for peer in self._lead.peers if peer.lost is not None), None)
            if lost is not None:
                raise GroupLost(lost_words(lost))
            if self._refused is not None:
                raise self._refused
            if time.monotonic() >= deadline:
                silent = next(peer for peer in self._lead.peers if peer.rank not in self._pids)
                raise PlatformError(f"{silent.name()} did not start its worker within {_START_SECONDS:g} s")

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """Return what happened, waiting at most `timeout_s` for something."""
        deadline = time.monotonic() + timeout_s
        while not self._pending and self._left:
            left = deadline - time.monotonic()
            self._collect(max(0.0, left))
            if left <= 0:
                break
        result = list(self._pending)
        self._pending.clear()
        return result

    def stop(self, grace_s: float) -> None:
        """Ask all living workers to end; their ranks kill those that live on after `grace_s`. 0 kills at once."""
        for rank in sorted(self._left):
            self._send(self._lead.peers[rank], {"do": "stop", "grace_s": grace_s})

    def dump(self, rank: int) -> None:
        """Ask one worker for its stacks."""
        if rank in self._left:
            self._send(self._lead.peers[rank], {"do": "dump"})

    def close(self) -> None:
        """Kill what still lives; give back files. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for peer in self._lead.peers:
            if peer.lost is None:
                self._closing.add(peer.rank)
                self._send(peer, {"do": "close", "attempt": self._attempt})
        deadline = time.monotonic() + _CLOSE_SECONDS
        while any(self._lead.peers[rank].lost is None for rank in self._closing) and time.monotonic() < deadline:
            self._collect(_POLL_SECONDS)
        self._selector.close()
        for log in self._logs:
            log.close()

    def _send(self, peer: Peer, message: Mapping[str, Any]) -> None:
        if peer.lost is None:
            try:
                peer.connection.send(message)
            except Lost as error:
                self._lost(peer, error)

    def _collect(self, timeout_s: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            peer: Peer = key.data
            try:
                heard = peer.connection.receive()
            except Lost as error:
                self._lost(peer, error)
                continue
            for message in heard:
                self._take(peer, message)

    def _take(self, peer: Peer, message: Message | Log) -> None:
        if isinstance(message, Log):
            if message.attempt == self._attempt:
                self._logs[peer.rank].write(message.text)
            return
        what = message.get("do")
        if what == "stop":
            self._lead.asked(peer.rank, message)
        elif message.get("attempt") != self._attempt:
            return
        elif what == "event":
            self._pending.append(Event(peer.rank, float(message["time"]), dict(message["body"])))
        elif what == "started":
            self._pids[peer.rank] = int(message["pid"])
        elif what == "refused":
            self._refused = _told_by(peer, message["error"])
        elif what == "closed":
            self._closing.discard(peer.rank)
        elif what == "exit" and peer.rank in self._left:
            self._left.discard(peer.rank)
            self._pending.append(Exit(peer.rank, int(message["code"]), float(message["time"])))

    def _lost(self, peer: Peer, error: Lost) -> None:
        peer.lost = peer.lost or str(error)
        self._selector.unregister(peer.connection)
        if peer.rank in self._left:
            self._left.discard(peer.rank)
            self._pending.append(Exit(peer.rank, -9, time.time(), lost_words(peer)))
