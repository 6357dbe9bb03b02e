"""What a new sweep takes from earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import storage
from ..contracts import Json
from ..errors import UserError
from .declared import Objective
from .options import WarmStart
from .plan import SWEEP, read
from .ranges import Range, Values, active, contains
from .search import Known
from .table import best_of, objectives_of, trials_of
from .trial import Trial

_MOST_CHANGED = 10  # hyperparameters that move between fixed and searched
_MOST_FIRST = 5  # best points of other data to try first


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What parents leave."""

    first: Sequence[Values] = ()
    observed: Sequence[tuple[Values, Known]] = ()
    overall: Mapping[str, Json] | None = None


def inherit(
    warm_start: WarmStart,
    *,
    algorithm: str,
    objectives: Sequence[Objective],
    ranges: Mapping[str, Range],
    static: Mapping[str, Any],
    data: Mapping[str, str],
    max_jobs: int,
) -> Inheritance:
    """Return what the parents of a sweep leave it.

    Raises:
        UserError: a parent is no sweep, has not ended, or does not fit.
    """
    identical = warm_start.kind == "identical_data_and_algorithm"
    found: list[tuple[float, Values, Trial, str]] = []
    for parent in warm_start.parents:
        sweep = read(parent)
        if sweep is None:
            raise UserError(f"warm_start: there is no sweep at {storage.redact(parent)}: its folder must hold {SWEEP}")
        _check(parent, sweep, algorithm=algorithm, objectives=objectives, ranges=ranges, data=data if identical else None)
        for trial in trials_of(sweep):
            values = _translated(trial, sweep, ranges, static)
            if trial.status == "Completed" and trial.objective and trial.feasible and values is not None:
                found.append((objectives[0].sign * trial.objective[0], values, trial, parent))
    found.sort(key=lambda entry: -entry[0])
    if not identical:
        return Inheritance(first=[values for _, values, _, _ in found[: min(_MOST_FIRST, max(1, max_jobs // 4))]])
    observed = [(values, Known("Completed", tuple(trial.objective or ()), trial.step)) for _, values, trial, _ in found]
    best = [(parent, best_of(trials_of(read(parent) or {"trials": []}), objectives)) for parent in warm_start.parents]
    told = [(parent, trial) for parent, trial in best if trial is not None and trial.objective]
    if not told:
        return Inheritance(observed=observed)
    place, champion = max(told, key=lambda entry: objectives[0].sign * (entry[1].objective or [0.0])[0])
    overall = {"sweep": place, "job": champion.job, "objective": champion.objective, "values": champion.values}
    return Inheritance(observed=observed, overall={**overall, "artifact": champion.artifact})


def _check(
    parent: str,
    sweep: Mapping[str, Any],
    *,
    algorithm: str,
    objectives: Sequence[Objective],
    ranges: Mapping[str, Range],
    data: Mapping[str, str] | None,
) -> None:
    place = storage.redact(parent)
    if sweep.get("status") == "InProgress":
        raise UserError(f"warm_start: the sweep {place} has not ended: wait for it, or resume it")
    theirs = objectives_of(sweep)
    if theirs != list(objectives):
        told = ", ".join(f"{o.direction} {o.metric}" for o in theirs)
        mine = ", ".join(f"{o.direction} {o.metric}" for o in objectives)
        raise UserError(f"warm_start: the sweep {place} has the objective {told}, this one {mine}; they must be the same")
    changed = set(ranges) ^ set(sweep["ranges"])
    if len(changed) > _MOST_CHANGED:
        raise UserError(
            f"warm_start: {len(changed)} hyperparameters are searched in only one of {place} and this sweep: at most "
            f"{_MOST_CHANGED} may be"
        )
    if data is None:
        return
    if sweep["algorithm"] != algorithm:
        raise UserError(
            f"warm_start: the sweep {place} trained {sweep['algorithm']}, this one {algorithm}; kind "
            "transfer_learning allows that"
        )
    if sweep.get("data") != dict(data):
        raise UserError(f"warm_start: the sweep {place} had other data; kind transfer_learning allows that")


def _translated(
    trial: Trial, sweep: Mapping[str, Any], ranges: Mapping[str, Range], static: Mapping[str, Any]
) -> Values | None:
    """Return a parent's point in the new space, None where it is not in there."""
    theirs = {**sweep["hyperparameters"], **trial.values}
    values: Values = {}
    for name, found in ranges.items():
        if not active(found, values):
            continue
        if name not in theirs or not contains(found, theirs[name]):
            return None
        values[name] = theirs[name]
    moved = [name for name in trial.values if name not in ranges and name in static and static[name] != trial.values[name]]
    return None if moved else values
