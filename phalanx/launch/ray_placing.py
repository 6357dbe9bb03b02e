"""Room for a worker group on a Ray cluster: a placement group for all workers or, of an elastic job, for as many as fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ..cluster import Cluster
from ..contracts import WorkerSpec
from ..errors import PlatformError, UserError
from .ray_joining import amounts, described, nodes

_NODE = "ray.io/node-id"
_QUIET_SECONDS = 5.0  # of waiting, before the user is told
_PROBE_SECONDS = 2.0  # for room that is there


@dataclass(frozen=True, slots=True)
class Room:
    """A placement group, and which of its bundles each rank has."""

    group: Any
    bundles: Sequence[int]

    def give_back(self) -> None:
        """Remove the group; what runs in it ends."""
        remove_placement_group(self.group)


def find_room(spec: WorkerSpec, cluster: Cluster, *, fixed: bool, avoid: Collection[str], tell: Callable[[str], None]) -> Room:
    """Return room for `spec.workers` workers, or for fewer, down to `spec.least_workers`.

    Args:
        spec: the group.
        cluster: what each worker gets, and how they are spread.
        fixed: no node comes by itself.
        avoid: ids of nodes that are taken to be lost.
        tell: takes a sentence for the user.

    Raises:
        UserError: the first attempt of a group that can never fit.
        PlatformError: there is no room in time.
    """
    each = cluster.workers_per_node if cluster.nodes is not None else 1
    least = spec.workers if spec.least_workers is None else spec.least_workers
    counts = range(spec.workers, least - 1, -each)
    bundle = cluster.bundle(spec.threads)
    deadline = time.monotonic() + cluster.start_timeout_s
    for count in counts:
        group = _Asked(count, each, bundle, cluster, avoid)
        last = count == counts[-1]
        if (fixed or count != counts[0]) and not group.can_fit():
            if not last:
                continue
            if fixed and spec.attempt == 0:
                raise UserError(f"the Ray cluster cannot hold {group}: {described()}; give it nodes, or ask for less")
        patience_s = _PROBE_SECONDS if count != counts[0] else cluster.fewer_after_s
        if last:
            patience_s = max(_PROBE_SECONDS, deadline - time.monotonic())
        room = group.wait(patience_s, tell)
        if room is not None:
            if count < spec.workers:
                tell(f"the Ray cluster has room for {count} of {spec.workers} workers: the job goes on with {count}")
            return room
    raise PlatformError(
        f"the Ray cluster had no room for {group} in {cluster.start_timeout_s:g} s: {described()}; add nodes, or ask for less"
    )


class _Asked:
    """Room that is asked for."""

    def __init__(self, count: int, each: int, bundle: Mapping[str, float], cluster: Cluster, avoid: Collection[str]) -> None:
        self._count = count
        self._each = each
        self._bundle = bundle
        self._by_node = cluster.nodes is not None
        self._strategy = "STRICT_SPREAD" if self._by_node else cluster.placement
        self._avoid = avoid

    def __str__(self) -> str:
        spread = f"{self._count // self._each} nodes" if self._by_node else self._strategy
        return f"{self._count} workers with {amounts(self._bundle)} each ({spread})"

    def can_fit(self) -> bool:
        """Return whether the nodes that are there could hold it if nothing else ran on them."""
        need = {name: amount * self._each for name, amount in self._bundle.items()}
        there = [node["Resources"] for node in nodes() if node["NodeID"] not in self._avoid]
        hold = [min((int(has.get(n, 0.0) / amount + 1e-9) for n, amount in need.items()), default=self._count) for has in there]
        wanted = self._count // self._each
        if self._strategy == "STRICT_SPREAD":
            return sum(1 for one in hold if one) >= wanted
        return max(hold, default=0) >= wanted if self._strategy == "STRICT_PACK" else sum(hold) >= wanted

    def wait(self, seconds: float, tell: Callable[[str], None]) -> Room | None:
        """Return the room if it is there in time."""
        one = {name: amount * self._each for name, amount in self._bundle.items()} or {"CPU": 0.001}
        number = self._count // self._each
        group = placement_group([one] * number, strategy=self._strategy, **self._away(number))
        try:
            quiet_s = min(seconds, _QUIET_SECONDS)
            if group.wait(quiet_s):
                return Room(group, [rank // self._each for rank in range(self._count)])
            if seconds > quiet_s:
                tell(f"waiting for room for {self} on the Ray cluster: {described()}")
                if group.wait(seconds - quiet_s):
                    return Room(group, [rank // self._each for rank in range(self._count)])
        except BaseException:
            remove_placement_group(group)
            raise
        remove_placement_group(group)
        return None

    def _away(self, number: int) -> dict[str, Any]:
        """Return what keeps a group away from nodes that are lost, while Ray does not know yet."""
        known = {node["NodeID"] for node in ray.nodes() if node["Alive"]} & set(self._avoid)
        return {"bundle_label_selector": [{_NODE: f"!in({','.join(sorted(known))})"}] * number} if known else {}
