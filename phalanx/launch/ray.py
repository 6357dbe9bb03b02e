"""The Ray launcher: a placement group with one actor a rank, each of which runs its worker as `launch.local` would.

Supervisor  --Launcher.start-->  placement group  --one bundle a rank or node-->  Slot  -->  warm server  -->  worker

A slot streams events, log and exit of its worker to the supervisor, which waits, judges and restarts as for a local group. A
node that does not see the supervisor's files gets the job's folder through Ray, and what workers leave in it comes back.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..cluster import Cluster
from ..contracts import WorkerSpec
from ..errors import AlgorithmError, PlatformError, UserError
from . import ray_shipping
from .ray_joining import join, say
from .ray_placing import Room, find_room
from .ray_slot import Slot
from .ray_workers import Group, RayWorkers

_AVOID_SECONDS = 120.0  # a node that did not answer: by then Ray knows it to be lost, or it is back
_CALLS_AT_ONCE = 4  # of a slot


@final
class RayLauncher:
    """`contracts.Launcher` for a Ray cluster.

    Args:
        cluster: which one, and what workers get there.
        tell: takes sentences for the person who runs the job; default: standard error.
    """

    def __init__(self, cluster: Cluster | None = None, tell: Callable[[str], None] = say) -> None:
        self._cluster = cluster or Cluster()
        self._tell = tell
        self._lost: dict[str, float] = {}  # id of a node -> when it was taken to be lost
        self._shipped: dict[str, Any] | None = None

    def prepare(self, preload: Sequence[str]) -> None:
        """Nothing: the nodes are not known before the group is placed."""

    def start(self, spec: WorkerSpec) -> RayWorkers:
        """Place a group and start its workers; fewer than asked for where `spec.least_workers` allows it.

        Raises:
            AlgorithmError: the payload is no JSON.
            UserError: not exactly one of target and command; no cluster at the address; nodes that do not see what they must.
            PlatformError: the cluster cannot be joined, has no room in time, or a worker cannot be started.
        """
        if (spec.target is None) == (spec.command is None):
            raise UserError("a worker group needs a target or a command, and not both")
        try:
            json.dumps(spec.payload)
        except (TypeError, ValueError) as error:
            raise AlgorithmError(f"the workers' payload must be JSON values: {error}") from None
        with contextlib.ExitStack() as undo:
            try:
                spec.log_folder.mkdir(parents=True, exist_ok=True)
                logs = [undo.enter_context((spec.log_folder / f"rank-{r}.log").open("ab", 0)) for r in range(spec.workers)]
            except OSError as error:
                raise PlatformError(f"the worker group cannot be started: {error}") from error
            try:
                cpus = spec.workers * self._cluster.bundle(spec.threads).get("CPU", 0.0)
                fixed = join(self._cluster.address, cpus, self._tell)
                if self._shipped is None:
                    self._shipped = ray_shipping.runtime_env(self._cluster, self._tell)
                room = find_room(spec, self._cluster, fixed=fixed, avoid=self._avoided(), tell=self._tell)
                workers = RayWorkers(self._filled(spec, room), logs, self._note_lost)
                undo.callback(workers.close)
                try:
                    workers.begin(spec)
                except (RayError, TimeoutError) as error:
                    workers.raise_lost(error)
                    raise
            except (RayError, TimeoutError) as error:
                raise PlatformError(f"the worker group cannot be started on Ray: {_reason(error)}") from error
            undo.pop_all()
            return workers

    def _filled(self, spec: WorkerSpec, room: Room) -> Group:
        """Return a slot for every rank."""
        bundle = self._cluster.bundle(spec.threads)
        try:
            actor = ray.remote(Slot)
            options = {
                "num_cpus": bundle.get("CPU", 0),
                "num_gpus": bundle.get("GPU", 0),
                "memory": bundle.get("memory"),
                "resources": {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")},
                "max_concurrency": _CALLS_AT_ONCE,
                "max_restarts": 0,
                "runtime_env": self._shipped or None,
            }
            slots = [
                actor.options(
                    **{name: value for name, value in options.items() if value is not None},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(room.group, placement_group_bundle_index=number),
                ).remote()
                for number in room.bundles
            ]
        except BaseException:
            room.give_back()
            raise
        direct = not ray.util.client.ray.is_connected()
        return Group(room, slots, direct=direct, ships=bool(self._shipped), start_timeout_s=self._cluster.start_timeout_s)

    def _note_lost(self, node: str) -> None:
        self._lost[node] = time.monotonic()

    def _avoided(self) -> list[str]:
        now = time.monotonic()
        return [node for node, when in self._lost.items() if now - when < _AVOID_SECONDS]


def _reason(error: Exception) -> str:
    """Return what Ray says, without its tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line for line in lines if line.startswith("ModuleNotFoundError")]
    if missing and "phalanx" in missing[0]:
        return f"{missing[0]}: a node has no Phalanx: install it there, or ship this one with ship=['phalanx'] (--ship phalanx)"
    return lines[-1] if lines else type(error).__name__
