"""A sweep after validation: everything resolved, and written as sweep.json beside the table of its trials."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import environment, storage
from ..contracts import Json
from ..errors import UserError
from ..job import TrainingJob
from .declared import Objective
from .options import Completion
from .placing import Room
from .ranges import Range, Values, to_json
from .search import Known, Strategy
from .stopping import Rule
from .trial import Trial

SWEEP = "sweep.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What the driver is to do; nothing in it can be wrong in a way that could have been seen without starting."""

    name: str
    folder: str
    job: TrainingJob
    static: Mapping[str, Any]  # hyperparameters that all trials share
    ranges: Mapping[str, Range]
    objectives: Sequence[Objective]
    constraints: Mapping[str, tuple[float | None, float | None]]  # metric -> smallest, largest
    strategy: Strategy
    why: str  # this strategy, and the number of trials that run at once
    max_jobs: int
    room: Room
    rule: Rule
    stopping: str
    seed: int
    lag: int | None  # deterministic: a proposal knows the results of trials at least so much older, and waits for them
    completion: Completion
    storage: str | None
    max_retries: int
    first: Sequence[Values]
    observed: Sequence[tuple[Values, Known]]
    parents: Sequence[str]
    data: Mapping[str, str]  # channel -> fingerprint
    overall: Mapping[str, Json] | None  # best of the parents of identical data


def described(plan: Plan) -> dict[str, Json]:
    """Return the part of sweep.json that does not change while the sweep runs."""
    job = plan.job
    return {
        "version": VERSION,
        "name": plan.name,
        "algorithm": job.algorithm or job.script,
        "objectives": [{"metric": o.metric, "direction": o.direction} for o in plan.objectives],
        "constraints": {name: list(ends) for name, ends in plan.constraints.items()},
        "ranges": {name: to_json(found) for name, found in plan.ranges.items()},
        "hyperparameters": environment.masked_hyperparameters(dict(plan.static)) if job.script else dict(plan.static),
        "strategy": plan.strategy,
        "why": plan.why,
        "early_stopping": plan.stopping,
        "max_jobs": plan.max_jobs,
        "max_parallel_jobs": plan.room.slots,
        "threads_per_worker": plan.room.threads,
        "workers": job.workers,
        "seed": plan.seed,
        "deterministic": plan.lag is not None,
        "storage": None if plan.storage is None else storage.redact(plan.storage),
        "warm_start": list(plan.parents),
        "data": dict(plan.data),
    }


def write(plan: Plan, head: Mapping[str, Json], trials: Sequence[Trial], state: Mapping[str, Json]) -> None:
    """Write sweep.json; a reader sees the old one or the whole new one."""
    fields = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in {**head, **state, "updated": time.time()}.items()]
    table = ",\n".join("  " + json.dumps(trial.to_json()) for trial in trials)  # a line a trial: `indent` is slow
    text = ",\n".join([*fields, f' "trials": [\n{table}\n ]'])
    storage.put_bytes(storage.join(plan.folder, SWEEP), f"{{\n{text}\n}}\n".encode())


def read(folder: str) -> dict[str, Any] | None:
    """Return sweep.json of a folder, None where there is none."""
    found = storage.read_json(storage.join(folder, SWEEP))
    return found if isinstance(found, dict) and "trials" in found else None


def check_same(plan: Plan, earlier: Mapping[str, Any]) -> None:
    """See to it that a sweep is gone on with as it was begun; what only says how long or how fast may change.

    Raises:
        UserError: something else does.
    """
    now = json.loads(json.dumps(described(plan)))
    for key in ("algorithm", "objectives", "constraints", "ranges", "hyperparameters", "strategy", "seed", "deterministic"):
        if now[key] != earlier.get(key):
            raise UserError(
                f"the sweep '{plan.name}' was begun with other {key}: {json.dumps(earlier.get(key))} then, "
                f"{json.dumps(now[key])} now; resume it as it was, or give the new sweep another name"
            )
