"""A worker group on a Ray cluster, seen from the supervisor: slots are asked for events, logs and exits, and may be lost."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, final

import ray
from ray.exceptions import RayError

from .. import environment
from ..contracts import Event, Exit, Member, WorkerSpec
from ..errors import Interruption, PhalanxError, PlatformError, UserError, from_record, to_record
from . import carrying
from .local import LOOPBACK
from .ray_placing import Room
from .ray_slot import ASK_SECONDS, LEASE_SECONDS, Site, Start

_START_SECONDS = 120.0  # for an actor's answer where modules are loaded or files are written meanwhile
_PIECE_SECONDS = 30.0
_SILENT_SECONDS = 10.0  # an answer takes 2 s at most: a slot that gives none is lost
_SILENT_KILLED_SECONDS = 4.0  # the same of a group that is being killed
_SLACK_SECONDS = 1.0  # of one look: after a longer pause it was this process that did not run
_CLOSE_SECONDS = 15.0
_PROBE_SECONDS = 1.0
_SHOWN = 200  # characters


@dataclass(frozen=True, slots=True)
class Group:
    """Slots by rank, and the room that they have."""

    room: Room
    slots: Sequence[Any]
    direct: bool  # this process reaches the nodes' own ports
    ships: bool  # the nodes got folders of this machine
    start_timeout_s: float  # for actors' processes, what Ray installs for them included


@final
class RayWorkers:
    """`contracts.Workers` on a Ray cluster.

    Args:
        group: where they are.
        logs: open log files by rank.
        lost: is told the id of a node that is taken to be lost.
    """

    def __init__(self, group: Group, logs: Sequence[BinaryIO], lost: Callable[[str], None] = lambda node: None) -> None:
        self._group = group
        self._slots = group.slots
        self._logs = logs
        self._tell_lost = lost
        self._members: list[Member] = []
        self._sites: list[Site] = []
        self._leaders: dict[str, int] = {}  # machine that got the scratch folder -> the first rank there
        self._machines: list[str] = []  # of every rank
        self._spec: WorkerSpec | None = None
        self._asked: dict[Any, int] = {}  # the slot's answer that is awaited -> its rank
        self._waited_s: dict[int, float] = {}  # for that answer
        self._gone: set[int] = set()  # ranks whose slot is lost
        self._ended: set[int] = set()
        self._kept_at = time.monotonic()
        self._killed = False
        self._closed = False

    @property
    def members(self) -> Sequence[Member]:
        """The workers by rank."""
        return self._members

    def begin(self, spec: WorkerSpec) -> None:
        """Start a worker in every slot.

        Raises:
            PhalanxError: what a slot raised; a node does not see what it must.
            RayError: a slot was lost.
        """
        spec = self._spec = replace(spec, workers=len(self._slots))
        marker = spec.log_folder if spec.scratch is None else spec.scratch
        calls = [slot.site.remote(str(marker.absolute()), list(spec.shared)) for slot in self._slots]
        self._sites = ray.get(calls, timeout=max(_START_SECONDS, self._group.start_timeout_s))
        far = self._check_sites(spec)
        self._machines = [site.node if not site.sees else site.ip for site in self._sites]
        if far:
            self._carry(spec)
        one = len({site.ip for site in self._sites}) == 1  # a job on one machine listens on loopback only
        address = LOOPBACK if one else self._sites[0].ip
        port = ray.get(self._slots[0].listen.remote(address, spec.workers + 8), timeout=_START_SECONDS)
        calls = []
        for rank, site in enumerate(self._sites):
            given = Start(
                rank=rank,
                spec=spec if not site.sees or self._group.ships else replace(spec, folder=spec.folder or _here()),
                base={k: v for k, v in environment.snapshot().items() if not k.startswith("RAY_")},
                place=self._place(rank, address, port),
                extra=self._extra(rank),
                interface=None if one else site.ip,
                executable=sys.executable,
                own=not site.sees or self._group.ships,
            )
            calls.append(self._slots[rank].start.remote(given))
        for rank, answer in enumerate(ray.get(calls, timeout=_START_SECONDS)):
            if "error" in answer:
                raise from_record(answer["error"])
            self._members.append(Member(rank, answer["pid"], self._sites[rank].name))
        for rank in range(len(self._slots)):
            self._ask(rank)

    def raise_lost(self, error: Exception) -> None:
        """After an error of `begin`: name the node whose loss it was, if it was one.

        Raises:
            Interruption: a node is gone.
        """
        lost = [site for site in self._sites if self._is_lost(site)]
        for site in lost:
            self._tell_lost(site.node)
        if lost:
            raise Interruption(f"node {lost[0].name} ({lost[0].ip}) was lost while the worker group was started") from error

    def _check_sites(self, spec: WorkerSpec) -> bool:
        """Return whether a node does not see this machine's files."""
        for site in self._sites:
            if site.python != platform.python_version():
                raise UserError(
                    f"{site.name} has Python {site.python}, and this machine {platform.python_version()}: Ray needs "
                    "the same one everywhere"
                )
            if site.hidden:
                raise UserError(
                    f"{site.name} ({site.ip}) does not see {', '.join(site.hidden)}: give the job's data, output and "
                    "checkpoints as URLs of a storage that all nodes reach, as s3://…, or mount the same folders everywhere"
                )
        unseen = [site for site in self._sites if not site.sees]
        if unseen and spec.scratch is None:
            raise PlatformError(
                f"{unseen[0].name} ({unseen[0].ip}) does not share this machine's files, and the group needs them"
            )
        return bool(unseen)

    def _carry(self, spec: WorkerSpec) -> None:
        """Bring the scratch folder to every machine that does not see it."""
        scratch = spec.scratch or Path()
        parcel = carrying.pack(scratch)
        for rank, site in enumerate(self._sites):
            if not site.sees:
                self._leaders.setdefault(self._machines[rank], rank)
        data = ray.put(parcel.data)
        mirrored = [name for name in spec.brings if "{attempt}" not in name]  # what outlives an attempt
        ray.get(
            [self._slots[rank].receive.remote(data, str(scratch), mirrored) for rank in self._leaders.values()],
            timeout=_START_SECONDS,
        )
        if parcel.files:
            self._note(f"{parcel.files} files ({parcel.size:,} bytes) of the job went to {len(self._leaders)} nodes")

    def _note(self, text: str) -> None:
        self._logs[0].write(f"launcher: {text}\n".encode())

    def _place(self, rank: int, address: str, port: int) -> environment.Placement:
        """Return where a rank is."""
        here = self._machines[rank]
        local = self._machines[:rank].count(here)
        return environment.Placement(rank, len(self._slots), local, address, port, self._machines.count(here))

    def _extra(self, rank: int) -> dict[str, str]:
        """Return what torchrun's variables say of the machines, and their addresses."""
        machines = list(dict.fromkeys(self._machines))
        return {
            "GROUP_RANK": str(machines.index(self._machines[rank])),
            "GROUP_WORLD_SIZE": str(len(machines)),
            **environment.host_variables([site.ip for site in self._sites]),
        }

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """Return what happened, waiting at most `timeout_s` for something."""
        deadline = time.monotonic() + timeout_s
        found: list[Event | Exit] = []
        self._keep(self._ended)
        while self._asked:
            begun = time.monotonic()
            ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=max(0.0, deadline - begun))
            for answer in ready:
                found += self._take(answer)
            if not ready:
                found += self._silent(min(time.monotonic() - begun, _SLACK_SECONDS))
            if found or time.monotonic() >= deadline:
                break
        return found

    def _keep(self, ranks: Iterable[int]) -> None:
        """Now and then: tell slots that are asked for nothing that their supervisor lives."""
        if time.monotonic() - self._kept_at > LEASE_SECONDS / 4:
            self._kept_at = time.monotonic()
            for rank in set(ranks) - self._gone:
                self._slots[rank].keep.remote()

    def stop(self, grace_s: float) -> None:
        """Ask all living workers to end; their slots kill those that live on after `grace_s`. 0 kills at once."""
        self._killed = self._killed or grace_s <= 0
        for rank in set(self._asked.values()):
            self._slots[rank].stop.remote(grace_s)

    def dump(self, rank: int) -> None:
        """Ask one worker for its stacks."""
        if rank in self._asked.values():
            self._slots[rank].dump.remote()

    def close(self) -> None:
        """Kill what still lives; give back slots, room and logs. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RayError):
            calls = [slot.close.remote() for rank, slot in enumerate(self._slots) if rank not in self._gone]
            if calls:
                ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_SECONDS)
        for slot in self._slots:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(slot)
        with contextlib.suppress(RayError):
            self._group.room.give_back()
        self._asked.clear()
        for log in self._logs:
            log.close()

    def _ask(self, rank: int) -> None:
        self._asked[self._slots[rank].poll.remote(ASK_SECONDS)] = rank
        self._waited_s[rank] = 0.0

    def _take(self, answer: Any) -> list[Event | Exit]:
        rank = self._asked.pop(answer)
        try:
            happened, text, changes = ray.get(answer)
        except RayError as error:  # the actor's process, its raylet or its node is gone
            return self._lose(rank, error)
        self._logs[rank].write(text)
        if changes and self._spec is not None and self._spec.scratch is not None:
            carrying.put_mirrored(self._spec.scratch, changes)
        if not any(isinstance(h, Exit) for h in happened):
            self._ask(rank)
            return list(happened)
        self._ended.add(rank)
        try:
            self._bring_back(rank)
        except (RayError, TimeoutError) as error:
            return [*(h for h in happened if isinstance(h, Event)), *self._lose(rank, error)]
        return list(happened)

    def _silent(self, waited_s: float) -> list[Event | Exit]:
        """Nobody answered for so long: return the loss of those that should have."""
        found: list[Event | Exit] = []
        patience_s = _SILENT_KILLED_SECONDS if self._killed else _SILENT_SECONDS
        for answer, rank in list(self._asked.items()):
            self._waited_s[rank] += waited_s
            if self._waited_s[rank] >= patience_s:
                del self._asked[answer]
                found += self._lose(rank, None)
        return found

    def _lose(self, rank: int, error: Exception | None) -> list[Event | Exit]:
        """Return what a lost slot means: its node was lost, or only its process."""
        self._gone.add(rank)
        site, now = self._sites[rank], time.time()
        named = f"worker {rank}: node {site.name} ({site.ip}, {site.node[:8]})"
        cause: PhalanxError
        if error is None:
            cause = Interruption(f"{named} did not answer for {self._waited_s[rank]:.0f} s and is taken to be lost")
        elif self._is_lost(site):
            cause = Interruption(f"{named} was lost")
        else:
            cause = PlatformError(f"{named}: the worker's Ray actor has died: {_first_words(error)}")
        if isinstance(cause, Interruption):
            self._tell_lost(site.node)
        cause.details = "" if error is None else str(error)
        self._logs[rank].write(f"launcher: {cause.message}\n".encode())
        return [Event(rank, now, {"kind": "failure", "error": to_record(cause)}), Exit(rank, -9, now)]

    def _is_lost(self, site: Site) -> bool:
        """Return whether a node is gone, which Ray may not know yet."""
        found = [node for node in ray.nodes() if node["NodeID"] == site.node]
        if not found or not found[0]["Alive"]:
            return True
        if not self._group.direct:
            return False
        try:
            socket.create_connection((site.ip, int(found[0]["NodeManagerPort"])), _PROBE_SECONDS).close()
        except OSError:
            return True
        return False

    def _bring_back(self, rank: int) -> None:
        """When the last rank of a machine that has a scratch folder of its own has ended: bring what is in it."""
        leader = self._leaders.get(self._machines[rank])
        spec = self._spec
        there = {r for r, machine in enumerate(self._machines) if machine == self._machines[rank]}
        if leader is None or spec is None or spec.scratch is None or not there <= self._ended or leader in self._gone:
            return
        slot, names = self._slots[leader], [name.format(attempt=spec.attempt) for name in spec.brings]
        size = ray.get(slot.results.remote(names), timeout=_START_SECONDS)
        with tempfile.TemporaryFile() as packed:
            while packed.tell() < size:
                self._keep(range(len(self._slots)))  # a model may be large
                packed.write(ray.get(slot.piece.remote(packed.tell()), timeout=_PIECE_SECONDS))
            packed.seek(0)
            if size:
                carrying.unpack(packed, spec.scratch)


def _first_words(error: Exception) -> str:
    """Return what Ray says of an actor's death, without its advice."""
    lines = str(error).strip().splitlines()
    told = lines[-1] if lines else type(error).__name__
    return told.partition("Some common causes")[0].partition("Worker exit type")[0].strip() or told[:_SHOWN]


def _here() -> Path | None:
    try:
        return Path(os.getcwd())
    except OSError:
        return None
