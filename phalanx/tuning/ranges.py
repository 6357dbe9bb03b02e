"""What a sweep searches: ranges of hyperparameters, their scales, and how a range is written in YAML or on the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, cast, final

from ..contracts import Json
from ..errors import UserError, nearest

Scaling = Literal["auto", "linear", "log", "reverse-log"]
MAX_RANGES, MAX_CATEGORIES = 30, 30
LOG_FROM = 100.0  # with scaling auto a range whose ends differ by this factor or more is searched on a log scale
_SCALINGS: dict[str, Scaling] = {
    "auto": "auto",
    "linear": "linear",
    "log": "log",
    "logarithmic": "log",
    "reverse-log": "reverse-log",
    "reverse_log": "reverse-log",
    "reverselogarithmic": "reverse-log",
}


@final
@dataclass(frozen=True)
class Continuous:
    """Real values between two ends, both included.

    Args:
        low: smallest value.
        high: largest value, above `low`.
        scaling: "linear"; "log" (low > 0); "reverse-log" (0 <= low, high < 1: fine steps near 1); "auto": log where the ends
            differ by a factor of 100 or more, otherwise linear.
        only_if: hyperparameter -> value (or list of values): the range is searched only in trials that have it.

    Raises:
        UserError: the range is empty, or the scale does not go with its ends.
    """

    low: float
    high: float
    scaling: str = "auto"
    only_if: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_only_if(self.only_if)
        _check_ends(self.low, self.high, whole=False)
        scaling = _scaling(self.scaling, ("auto", "linear", "log", "reverse-log"))
        _check_log(scaling, self.low)
        if scaling == "reverse-log" and not (self.low >= 0 and self.high < 1):
            raise UserError(
                f"Continuous({self.low:g}, {self.high:g}) cannot have scaling reverse-log: its ends must be in [0, 1)"
            )
        object.__setattr__(self, "scaling", scaling)

    @property
    def scale(self) -> Scaling:
        """The scaling, `auto` resolved."""
        return _resolved(self.scaling, self.low, self.high)


@final
@dataclass(frozen=True)
class Integer:
    """Whole numbers between two ends, both included.

    Args:
        low: smallest value.
        high: largest value, not below `low`.
        scaling: "linear", "log" (low >= 1), or "auto": log where the ends differ by a factor of 100 or more.
        only_if: as for `Continuous`.

    Raises:
        UserError: the range is empty, or the scale does not go with its ends.
    """

    low: int
    high: int
    scaling: str = "auto"
    only_if: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_only_if(self.only_if)
        _check_ends(self.low, self.high, whole=True)
        scaling = _scaling(self.scaling, ("auto", "linear", "log"))
        _check_log(scaling, self.low)
        object.__setattr__(self, "scaling", scaling)

    @property
    def scale(self) -> Scaling:
        """The scaling, `auto` resolved."""
        return _resolved(self.scaling, self.low, self.high)


@final
@dataclass(frozen=True)
class Categorical:
    """One of some values.

    Args:
        values: 1 to 30 texts, numbers or truth values, each once.
        only_if: as for `Continuous`.

    Raises:
        UserError: no values, too many, or one that cannot be a hyperparameter.
    """

    values: Sequence[Any]
    only_if: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_only_if(self.only_if)
        if isinstance(self.values, str) or not isinstance(self.values, Sequence) or not self.values:
            raise UserError(f"Categorical({self.values!r}) is empty: give a list of values, as Categorical(['gbtree', 'dart'])")
        if len(self.values) > MAX_CATEGORIES:
            raise UserError(f"Categorical has {len(self.values)} values: at most {MAX_CATEGORIES} are allowed")
        for value in self.values:
            if not (value is None or isinstance(value, (str, bool, int, float))) or value != value:
                raise UserError(f"Categorical cannot hold {value!r}: its values are texts, numbers and truth values")
        if len({(type(value), value) for value in self.values}) < len(self.values):
            raise UserError(f"Categorical({list(self.values)}) has a value twice")
        object.__setattr__(self, "values", tuple(self.values))


Range = Continuous | Integer | Categorical
Values = dict[str, Any]


def checked(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return `ranges` with every condition after what it depends on.

    Raises:
        UserError: none or too many, one that is no range, or a condition on what is no range or can never hold.
    """
    if not ranges:
        raise UserError("ranges is empty: a sweep needs at least one, as {'eta': phalanx.Continuous(0.01, 0.5)}")
    if len(ranges) > MAX_RANGES:
        raise UserError(f"{len(ranges)} ranges were given: a sweep may search {MAX_RANGES} hyperparameters")
    for name, found in ranges.items():
        if not isinstance(found, (Continuous, Integer, Categorical)):
            raise UserError(f"ranges.{name}={found!r} is no range: use phalanx.Continuous, Integer or Categorical")
        for other, wanted in found.only_if.items():
            _check_condition(name, other, wanted, ranges)
    ordered: dict[str, Range] = {}
    left = dict(ranges)
    while left:
        ready = [name for name, found in left.items() if all(other in ordered for other in found.only_if)]
        if not ready:
            raise UserError(f"the conditions only_if of {', '.join(left)} depend on each other in a circle")
        for name in ready:
            ordered[name] = left.pop(name)
    return ordered


def active(found: Range, values: Mapping[str, Any]) -> bool:
    """Return whether a range's condition holds among the values before it."""
    return all(name in values and values[name] in allowed(wanted) for name, wanted in found.only_if.items())


def allowed(wanted: Any) -> list[Any]:
    """Return the values that a condition accepts."""
    return list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]


def contains(found: Range, value: Any) -> bool:
    """Return whether `value` lies in a range."""
    if isinstance(found, Categorical):
        return value in found.values
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return found.low <= value <= found.high and (isinstance(found, Continuous) or float(value).is_integer())


def size(ranges: Mapping[str, Range]) -> int | None:
    """Return an upper bound of the number of different points; None where there is no end to them."""
    total = 1
    for found in ranges.values():
        if isinstance(found, Continuous):
            return None
        total *= len(found.values) if isinstance(found, Categorical) else found.high - found.low + 1
    return total


def grid(ranges: Mapping[str, Range]) -> list[Values]:
    """Return every combination, the last range moving fastest; what a condition leaves out is no difference.

    Raises:
        UserError: a range has no end of values.
    """
    endless = [name for name, found in ranges.items() if isinstance(found, Continuous)]
    if endless:
        raise UserError(f"strategy grid needs ranges that can be counted: make {', '.join(endless)} a Categorical")
    axes = [list(r.values if isinstance(r, Categorical) else range(int(r.low), int(r.high) + 1)) for r in ranges.values()]
    points: dict[str, Values] = {}
    for combination in product(*axes):
        values: Values = {}
        for (name, found), value in zip(ranges.items(), combination, strict=True):
            if active(found, values):
                values[name] = value
        points.setdefault(repr(values), values)
    return list(points.values())


def at(ranges: Mapping[str, Range], unit: Sequence[float]) -> Values:
    """Return the point at a place of the unit cube, one coordinate in [0, 1) a range, by each range's scale."""
    values: Values = {}
    for (name, found), u in zip(ranges.items(), unit, strict=True):
        if active(found, values):
            values[name] = _at(found, float(u))
    return values


def _at(found: Range, u: float) -> Any:
    if isinstance(found, Categorical):
        return found.values[min(int(u * len(found.values)), len(found.values) - 1)]
    low, high = (found.low, found.high) if isinstance(found, Continuous) else (found.low - 0.5, found.high + 0.5)
    match found.scale:
        case "log":
            value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        case "reverse-log":
            value = 1 - math.exp(math.log(1 - low) + u * (math.log(1 - high) - math.log(1 - low)))
        case _:
            value = low + u * (high - low)
    value = min(max(value, found.low), found.high)
    return value if isinstance(found, Continuous) else round(value)


def to_json(found: Range) -> dict[str, Json]:
    """Return a range as it stands in sweep.json; `from_json` reads it."""
    only_if: dict[str, Json] = {"only_if": dict(found.only_if)} if found.only_if else {}
    if isinstance(found, Categorical):
        return {"type": "categorical", "values": list(found.values), **only_if}
    kind = "continuous" if isinstance(found, Continuous) else "integer"
    return {"type": kind, "low": found.low, "high": found.high, "scaling": found.scale, **only_if}


def from_json(name: str, given: Any) -> Range:
    """Return the range that YAML describes: a list of values, or a mapping with low and high, or with values.

    Raises:
        UserError: it describes none.
    """
    if isinstance(given, (Continuous, Integer, Categorical)):
        return given
    try:
        if isinstance(given, list):
            return Categorical(given)
        if not isinstance(given, Mapping):
            raise UserError(f"{given!r} is no range: write a list of values, or low, high and scaling")
        known = ("type", "low", "high", "scaling", "values", "only_if")
        for key in given:
            if key not in known:
                raise UserError(f"a range has no field '{key}'; {nearest(str(key), known)}")
        return _from_mapping(given)
    except UserError as error:
        raise UserError(f"ranges.{name}: {error}") from None


def from_text(name: str, text: str) -> Range:
    """Return the range that a command line gives: LOW:HIGH, LOW:HIGH:SCALING, or A,B,C.

    Raises:
        UserError: it is none.
    """
    try:
        parts = text.split(":")
        if len(parts) in (2, 3) and _number(parts[0]) is not None and _number(parts[1]) is not None:
            scaling = parts[2] if len(parts) == 3 else "auto"
            low, high = _number(parts[0]), _number(parts[1])
            if isinstance(low, int) and isinstance(high, int):
                return Integer(low, high, scaling)
            return Continuous(float(low or 0), float(high or 0), scaling)
        return Categorical([_word(item.strip()) for item in text.split(",") if item.strip()])
    except UserError as error:
        raise UserError(f"--range {name}={text}: {error}") from None


def _from_mapping(given: Mapping[str, Any]) -> Range:
    condition = given.get("only_if") or {}
    _check_only_if(condition)
    kind = given.get("type")
    if kind not in (None, "continuous", "integer", "categorical"):
        raise UserError(f"type={kind!r} is not allowed: continuous, integer or categorical")
    if "values" in given or kind == "categorical":
        return Categorical(given.get("values", []), only_if=condition)
    if "low" not in given or "high" not in given:
        raise UserError("it needs low and high, or values")
    ends: list[Any] = [given["low"], given["high"]]
    low, high = [_number(end, end) if isinstance(end, str) else end for end in ends]  # YAML reads 1e-4 as a text
    scaling = str(given.get("scaling", "auto"))
    if kind == "integer" or (kind is None and isinstance(low, int) and isinstance(high, int)):
        return Integer(cast(int, low), cast(int, high), scaling, only_if=condition)
    return Continuous(cast(float, low), cast(float, high), scaling, only_if=condition)


def _check_only_if(given: Any) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"only_if={given!r} must be a mapping of a hyperparameter to its value")


def _check_ends(low: Any, high: Any, *, whole: bool) -> None:
    kind = "Integer" if whole else "Continuous"
    for end in (low, high):
        number = isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end)
        if not number or (whole and not isinstance(end, int)):
            raise UserError(f"{kind}({low!r}, {high!r}): {end!r} is no {'whole' if whole else 'finite'} number")
    if low > high or (low == high and not whole):
        raise UserError(f"{kind}({low:g}, {high:g}) is empty: low must be below high")


def _check_log(scaling: str, low: float) -> None:
    if scaling == "log" and low <= 0:
        raise UserError(f"a log scale cannot begin at {low:g}: give a low above 0, or scaling linear")


def _scaling(given: str, known: Sequence[str]) -> Scaling:
    found = _SCALINGS.get(str(given).lower())
    if found is None or found not in known:
        raise UserError(f"scaling='{given}' is not allowed; {nearest(str(given), known)}")
    return found


def _resolved(scaling: str, low: float, high: float) -> Scaling:
    if scaling == "auto":
        return "log" if low > 0 and high / low >= LOG_FROM else "linear"
    return _SCALINGS[scaling]


def _check_condition(name: str, other: str, wanted: Any, ranges: Mapping[str, Range]) -> None:
    if other not in ranges:
        raise UserError(f"ranges.{name} is searched only if {other}={wanted!r}, and {other} has no range: give it one")
    for value in allowed(wanted):
        if not contains(ranges[other], value):
            raise UserError(f"ranges.{name} is searched only if {other}={value!r}, which is not in the range of {other}")


def _number(text: str, otherwise: Any = None) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return otherwise


def _word(text: str) -> Any:
    """Return a category as typed: a number, true, false, or a text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    number = _number(text)
    return text if number is None else number
