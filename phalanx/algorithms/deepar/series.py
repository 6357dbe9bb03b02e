"""One series of DeepAR's channels and requests, read from its JSON record and checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...contracts import Array, Json
from ...errors import UserError
from .calendar import start_of

_OTHERS = "cardinality=[…] in training allows values that do not occur in channel 'train'"


@dataclass(frozen=True, slots=True)
class Series:
    """A series: T values from `start` on, C categories, F features that change with time."""

    start: np.datetime64
    target: Array  # (T,) float32; NaN: missing
    cat: Array  # (C,) int64
    dynamic_feat: Array  # (F, T + ahead) float32


def series_of(record: Json, where: str, *, ahead: int = 0, cardinality: list[int] | None = None) -> Series:
    """Return the series that a record holds.

    Args:
        record: `start`, `target`, and perhaps `cat` and `dynamic_feat`.
        where: file and line, for errors.
        ahead: values that `dynamic_feat` has beyond the target: 0 in training, the prediction length in requests.
        cardinality: how many values each category has; None: not known yet.

    Raises:
        UserError: something is missing or does not fit; names `where`.
    """
    if not isinstance(record, dict) or "start" not in record or "target" not in record:
        raise UserError(f"{where}: a series is a JSON object with start and target")
    start = start_of(record["start"], where)
    target = _numbers(record["target"], f"{where}: target", missing=True)
    cat = _categories(record.get("cat"), where, cardinality)
    rows = record.get("dynamic_feat")
    rows = [] if rows is None else rows
    if not isinstance(rows, list):
        raise UserError(f"{where}: dynamic_feat must be a list of lists of numbers")
    features = np.zeros((len(rows), len(target) + ahead), dtype=np.float32)
    for number, row in enumerate(rows):
        values = _numbers(row, f"{where}: dynamic_feat {number + 1}", missing=False)
        if len(values) != features.shape[1]:
            raise UserError(f"{where}: dynamic_feat {number + 1} has {len(values)} values where {features.shape[1]} are needed")
        features[number] = values
    return Series(start, target, cat, features)


def _numbers(values: Json, what: str, *, missing: bool) -> Array:
    """Return a list as float32; null and "NaN" are NaN where values may be missing."""
    if not isinstance(values, list):
        raise UserError(f"{what} must be a list of numbers")
    if not set(map(type, values)) <= {float, int}:  # the common case is checked without a loop of Python's
        for number, value in enumerate(values):
            gap = value is None or value == "NaN"
            if not gap and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UserError(f"{what}: value {number + 1} is {value!r:.40}, no number")
        values = [np.nan if value is None or value == "NaN" else value for value in values]
    try:
        found = np.array(values, dtype=np.float64)
    except OverflowError:
        raise UserError(f"{what} holds a number that is too large") from None
    with np.errstate(over="ignore"):
        small = found.astype(np.float32)
    allowed = np.isfinite(small) | (np.isnan(found) if missing else False)
    if not allowed.all():
        place = int(np.flatnonzero(~allowed)[0])
        raise UserError(f"{what}: value {place + 1} is {found[place]}; {'a finite number or null' if missing else 'no gaps'}")
    return small


def _categories(given: Json, where: str, cardinality: list[int] | None) -> Array:
    cat = [] if given is None else given
    if not isinstance(cat, list) or any(isinstance(c, bool) or not isinstance(c, int) or c < 0 or c >= 1 << 31 for c in cat):
        raise UserError(f"{where}: cat must be a list of whole numbers of at least 0")
    if cardinality is not None and len(cat) != len(cardinality):
        raise UserError(f"{where}: cat has {len(cat)} values where {len(cardinality)} are needed")
    for number, (value, count) in enumerate(zip(cat, cardinality or [], strict=False)):
        if value >= count:
            raise UserError(
                f"{where}: cat {number + 1} is {value}; its cardinality of {count} allows 0 to {count - 1}; {_OTHERS}"
            )
    return np.array(cat, dtype=np.int64)
