"""What an algorithm says of itself for sweeps: ranges worth searching, metrics to judge by, values to hold still.

An algorithm declares ranges with `hyper(…, tunable=…)`, and its metrics with a method of its hyperparameters,
`objectives(self) -> dict[str, str]`: metric (without the channel) -> "minimize" or "maximize", the one to take when none is
named first. `IN_SWEEP`, a mapping in the hyperparameters' class, holds what is set in a sweep unless the user sets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .. import registry
from ..errors import UserError, nearest
from ..hyperparameters import Hyperparameter, describe, parse, to_json
from .ranges import LOG_FROM, Categorical, Continuous, Integer, Range, Values, active, at, checked, contains

Direction = Literal["minimize", "maximize"]
DIRECTIONS: tuple[Direction, ...] = ("minimize", "maximize")
TUNING_METRIC = "tuning_objective_metric"
_CHANNELS = ("validation", "test", "train")  # where an objective is looked for, in this order
_LOG_DEPTH = 1e-6  # a declared range from 0 to a large value is searched on a log scale from this share of it
_INSIDE = 0.37  # a place of a range that is not an end


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric and which way is better."""

    metric: str
    direction: Direction

    @property
    def sign(self) -> float:
        """What a value is multiplied with so that larger is better."""
        return 1.0 if self.direction == "maximize" else -1.0


def static_values(algorithm: str, given: Mapping[str, Any], objective: str | None) -> dict[str, Any]:
    """Return the hyperparameters that all trials of an algorithm share: the user's, and what it sets in sweeps."""
    cls = registry.hyperparameters_of(algorithm)
    known = {h.name: h for h in describe(cls)}
    taken = _canonical(known.values(), given)
    values = dict(given)
    for name, value in getattr(cls, "IN_SWEEP", {}).items():
        if name not in taken:
            values[name] = value
    if objective is not None and TUNING_METRIC in known and TUNING_METRIC not in taken:
        channel, _, metric = objective.partition(":")
        if metric and channel in _CHANNELS and not _reported(cls, algorithm, values, metric):
            values[TUNING_METRIC] = metric
    return values


def default_ranges(algorithm: str, given: Mapping[str, Any]) -> dict[str, Range]:
    """Return the ranges an algorithm declares, but for hyperparameters that were given a value, or that do not go with these.

    Raises:
        UserError: it declares none that are left.
    """
    cls = registry.hyperparameters_of(algorithm)
    described = describe(cls)
    taken = _canonical(described, given)
    found: dict[str, Range] = {}
    for h in sorted(described, key=lambda h: not h.required):  # the others need those that are required beside them
        if h.tunable is None or h.name in taken:
            continue
        tried: dict[str, Range] = {**found, h.name: _declared(h)}
        try:
            _check_range(algorithm, given, tried, tried, h.name)
        except UserError:
            if not h.required:
                continue
        found = tried
    if not found:
        parse(cls, given, owner=algorithm)  # one that is missing may be why
        raise UserError(f"{algorithm} declares no ranges that are left to search: give ranges")
    return found


def check_ranges(algorithm: str, given: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """See to it that every end of every range is allowed, so that no trial fails for it.

    Raises:
        UserError: a range of an unknown hyperparameter, of one that has a value, or one that leaves what is allowed.
    """
    described = describe(registry.hyperparameters_of(algorithm))
    names = {alias: h.name for h in described for alias in (h.name, *h.aliases)}
    taken = _canonical(described, given)
    seen: dict[str, str] = {}
    for name in ranges:
        if name not in names:
            raise UserError(f"ranges.{name}: {algorithm} has no hyperparameter '{name}'; {nearest(name, names)}")
        if names[name] in taken:
            raise UserError(f"{name} has both a value and a range: leave one of them out")
        if names[name] in seen:
            raise UserError(f"ranges.{name} and ranges.{seen[names[name]]} are the same hyperparameter: give one of them")
        seen[names[name]] = name
    for name in ranges:
        _check_range(algorithm, given, ranges, ranges, name)


def defaults_point(algorithm: str, given: Mapping[str, Any], ranges: Mapping[str, Range]) -> Values:
    """Return the point of the space nearest to the algorithm's defaults; the middle of a range that holds no default."""
    described = describe(registry.hyperparameters_of(algorithm))
    defaults = {alias: h.default for h in described for alias in (h.name, *h.aliases) if not h.required}
    middle = _centre(ranges)
    values: Values = {}
    for name, found in ranges.items():
        if active(found, values):
            default = defaults.get(name)
            values[name] = default if contains(found, default) else middle[name]
    return values


def default_objective(algorithm: str, values: Mapping[str, Any], channels: Mapping[str, Any]) -> Objective:
    """Return what a sweep of an algorithm looks at when nothing is said.

    Raises:
        UserError: the algorithm does not say.
    """
    metrics = objectives_of(algorithm, values)
    if not metrics:
        raise UserError(f"{algorithm} does not declare its metrics: give objective and direction, as validation:auc, maximize")
    channel = next(name for name in _CHANNELS if name in channels or name == "train")
    metric = next(iter(metrics))
    return Objective(f"{channel}:{metric}", metrics[metric])


def objectives_of(algorithm: str, values: Mapping[str, Any]) -> dict[str, Direction]:
    """Return metric (without the channel) -> direction, the first one the default; empty where nothing is declared."""
    cls = registry.hyperparameters_of(algorithm)
    told: Callable[[Any], dict[str, Direction]] | None = getattr(cls, "objectives", None)
    return {} if told is None else told(parse(cls, values, owner=algorithm))


def resolved(metric: str, direction: str | None, declared: Mapping[str, Direction]) -> Objective:
    """Return an objective whose direction was given, or is known.

    Raises:
        UserError: it is neither.
    """
    if direction is None:
        known = declared.get(metric.partition(":")[2].partition("@")[0])
        if known is None:
            raise UserError(f"which way is better for '{metric}'? give direction: minimize or maximize")
        return Objective(metric, known)
    for allowed in DIRECTIONS:
        if direction.lower() == allowed:
            return Objective(metric, allowed)
    raise UserError(f"direction='{direction}' is not allowed: minimize or maximize")


def sample_values(given: Mapping[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    """Return the hyperparameters of a trial inside the space, not in its middle: that may be a default, which sets nothing."""
    return {**given, **_centre(ranges, _INSIDE)}


def settings(algorithm: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all hyperparameters of a trial, defaults included."""
    return to_json(parse(registry.hyperparameters_of(algorithm), values, owner=algorithm))


def _centre(ranges: Mapping[str, Range], place: float = 0.5) -> Values:
    return at(ranges, [0.0 if isinstance(found, Categorical) else place for found in ranges.values()])


def _canonical(described: Any, given: Mapping[str, Any]) -> set[str]:
    names = {alias: h.name for h in described for alias in (h.name, *h.aliases)}
    return {names.get(str(name), str(name)) for name in given}


def _reported(cls: type, algorithm: str, values: Mapping[str, Any], metric: str) -> bool:
    """Return whether the metric is among those the user asked for."""
    wanted = values.get("eval_metric") or []
    wanted = wanted.split(",") if isinstance(wanted, str) else wanted
    return metric in [str(name).strip() for name in wanted]


def _declared(h: Hyperparameter) -> Range:
    tunable = h.tunable or ()
    if isinstance(tunable[0], str):
        return Categorical([_category(str(value), h.type) for value in tunable])
    low, high = (float(end) for end in tunable)
    if h.type.startswith("int"):
        return Integer(int(low), int(high))
    if low == 0 and high >= LOG_FROM:
        return Continuous(high * _LOG_DEPTH, high, "log")
    return Continuous(low, high)


def _category(text: str, type: str) -> Any:
    return text == "true" if type == "bool" else text


def _check_range(
    algorithm: str, given: Mapping[str, Any], judged: Mapping[str, Range], ranges: Mapping[str, Range], name: str
) -> None:
    """Parse a point of the space with every telling value of one range in turn."""
    cls = registry.hyperparameters_of(algorithm)
    found = judged[name]
    ordered = checked(ranges)
    for value in _telling(found):
        fixed = {**ordered, name: Categorical([value], only_if=found.only_if)}
        for other, wanted in found.only_if.items():  # so that it is active
            accepted = wanted[0] if isinstance(wanted, (list, tuple)) else wanted
            fixed[other] = Categorical([accepted], only_if=ordered[other].only_if)
        try:
            parse(cls, {**given, **_centre(fixed)}, owner=algorithm)
        except UserError as error:
            raise UserError(f"ranges.{name}: {error}") from None


def _telling(found: Range) -> list[Any]:
    if isinstance(found, Categorical):
        return list(found.values)
    if isinstance(found, Integer):
        return [found.low, found.high]
    return [found.low, found.low + _INSIDE * (found.high - found.low), found.high]
