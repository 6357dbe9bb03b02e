"""`Cluster`: where on a Ray cluster a job's workers run and what each gets; and numbers of workers as users give them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import UserError, nearest

PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_RANGE = re.compile(r"(\d+):(\d+)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where on a Ray cluster a job's workers run, and what each of them gets.

    Args:
        address: "auto" (a cluster that runs on this machine), "host:port" or "ray://host:port"; None: the one that this process
            has joined, that RAY_ADDRESS names or that `phalanx cluster up` started; without any, a private one is started here.
        nodes: that the workers are spread over, each with `workers_per_node`; or a range as "2:4". None: as `placement` says.
        workers_per_node: on each of `nodes`.
        cpus: of each worker; None: its threads.
        gpus: of each worker.
        memory: of each worker, in bytes or as "4GiB"; None: not asked for.
        resources: custom ones of each worker, by name.
        placement: how workers are spread over nodes, as Ray names it: "PACK" on few nodes, "SPREAD" over many; the strict ones
            wait until that can be had to the letter: one node, or one for each worker.
        start_timeout_s: how long to wait for nodes that have room.
        fewer_after_s: how long an elastic job waits for all of its workers, before it goes on with fewer.
        ship: folders that the nodes get from this machine: packages, and at most one other folder, the workers' working
            directory; what .gitignore leaves out stays here.
        packages: requirements that Ray installs for the workers, as pip takes them.

    Raises:
        UserError: a value is not allowed.
    """

    address: str | None = None
    nodes: int | str | None = None
    workers_per_node: int = 1
    cpus: float | None = None
    gpus: float = 0.0
    memory: int | str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    placement: str = "PACK"
    start_timeout_s: float = 300.0
    fewer_after_s: float = 30.0
    ship: Sequence[str] = ()
    packages: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise UserError(f"there is no placement '{self.placement}'; {nearest(self.placement, PLACEMENTS)}")
        if self.address is not None and not _is_address(self.address):
            raise UserError(
                f"cluster.address={self.address!r} is not allowed: it is auto, host:port as 10.0.0.1:6379, or ray://host:port"
            )
        if self.nodes is not None:
            count_of("cluster.nodes", self.nodes)
        elif self.workers_per_node != 1:
            raise UserError("cluster.workers_per_node goes with cluster.nodes: give both, or the number of workers")
        _whole("cluster.workers_per_node", self.workers_per_node)
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus), *self.resources.items()):
            if value is not None and not _is_number(value):
                raise UserError(f"cluster.{name}={value!r} is not allowed: it must be a number of at least 0")
        for name, value in (("start_timeout_s", self.start_timeout_s), ("fewer_after_s", self.fewer_after_s)):
            if not _is_number(value) or not value > 0:
                raise UserError(f"cluster.{name}={value!r} is not allowed: it must be a number of seconds above 0")
        for name, texts in (("ship", self.ship), ("packages", self.packages)):
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"cluster.{name}={texts!r} is not allowed: it must be a list of texts")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """What `memory` comes to, in bytes."""
        if self.memory is None:
            return None
        found = _BYTES.fullmatch(str(self.memory).strip())
        if found is None or isinstance(self.memory, bool):
            raise UserError(f"cluster.memory={self.memory!r} is not allowed: it is a number of bytes, or as 512MiB, 4GiB")
        return round(float(found[1]) * _UNITS[(found[2] or "").lower()])

    def workers(self, given: int | str) -> Count:
        """Return how many workers that is: as `nodes` says, else as given.

        Raises:
            UserError: both say something else.
        """
        count = count_of("workers", given)
        if self.nodes is None:
            return count
        nodes = count_of("cluster.nodes", self.nodes)
        told = Count(nodes.least * self.workers_per_node, nodes.most * self.workers_per_node)
        if count not in (Count(1, 1), told):
            raise UserError(
                f"workers={given}, but {self.nodes} nodes with {self.workers_per_node} workers each make {told}: give one"
            )
        return told

    def bundle(self, threads: int) -> dict[str, float]:
        """Return the resources of one worker with so many threads, as Ray names them."""
        wanted = {"CPU": float(threads if self.cpus is None else self.cpus), "GPU": float(self.gpus)}
        wanted |= {name: float(amount) for name, amount in self.resources.items()}
        memory = self.memory_bytes
        if memory is not None:
            wanted["memory"] = float(memory)
        return {name: amount for name, amount in wanted.items() if amount}

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in job.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Count:
    """How many workers a job has: a range, most of the time of one number."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least}:{self.most}"


def count_of(what: str, given: int | str) -> Count:
    """Return the range that a user gave: 4, "4" or "2:4".

    Raises:
        UserError: it is none.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return Count(given, given)
    if isinstance(given, str):
        text = given.strip()
        found = _RANGE.fullmatch(text)
        if found and 1 <= int(found[1]) <= int(found[2]):
            return Count(int(found[1]), int(found[2]))
        if text.isdecimal() and int(text) >= 1:
            return Count(int(text), int(text))
    raise UserError(f"{what}={given!r} is not allowed: it must be a whole number of at least 1, or a range as 2:4")


def _is_address(text: str) -> bool:
    _, _, port = text.removeprefix("ray://").rpartition(":")
    return text == "auto" or (port.isdecimal() and 0 < int(port) < 1 << 16 and " " not in text)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _whole(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{what}={value!r} is not allowed: it must be a whole number of at least 1")
