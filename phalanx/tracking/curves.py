"""Metrics as curves: read fast from metrics.jsonl, and thinned for the eye without losing a peak."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from ..contracts import Array

_BLOCK = 4 << 20  # bytes that arrow parses at once


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over a job's life.

    Attributes:
        steps: (N,) the job's steps.
        times: (N,) seconds since 1970.
        values: (N,) NaN where a value was not finite.
    """

    steps: Array
    times: Array
    values: Array

    def thinned(self, points: int) -> Curve:
        """Return at most `points` of them: the least and the largest value of every bucket of equal length, in order."""
        count = len(self.steps)
        if count <= points:
            return self
        edges = np.linspace(0, count, max(1, points // 2) + 1).astype(np.int64)[:-1]
        low, high = np.minimum.reduceat, np.maximum.reduceat
        finite = np.where(np.isfinite(self.values), self.values, np.inf)
        bucket = np.searchsorted(edges, np.arange(count), side="right") - 1
        rows = np.arange(count)
        least = low(np.where(finite == low(finite, edges)[bucket], rows, count), edges)
        finite = np.where(np.isfinite(self.values), self.values, -np.inf)
        most = low(np.where(finite == high(finite, edges)[bucket], rows, count), edges)
        kept = np.unique(np.concatenate([least, most]))
        return Curve(self.steps[kept], self.times[kept], self.values[kept])


def curves_of(data: bytes) -> dict[str, Curve]:
    """Return the metrics in the bytes of a metrics.jsonl, by name; lines that are broken count for nothing."""
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return {}
    try:
        return _by_arrow(data)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):
        return _line_by_line(data)


def _by_arrow(data: bytes) -> dict[str, Curve]:
    schema = pa.schema([("step", pa.int64()), ("time", pa.float64())])
    table = arrow_json.read_json(
        io.BytesIO(data),
        read_options=arrow_json.ReadOptions(block_size=_BLOCK),
        parse_options=arrow_json.ParseOptions(explicit_schema=schema),
    )
    if table["step"].null_count or table["time"].null_count:
        raise pa.ArrowInvalid("a line without step or time")
    steps, times = table["step"].to_numpy(), table["time"].to_numpy()
    found = {}
    for name in table.column_names:
        if name in ("step", "time"):
            continue
        column = table[name]
        if pa.types.is_null(column.type):  # never a finite value, or none at all
            found[name] = Curve(steps, times, np.full(len(steps), np.nan))
            continue
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            continue
        values = column.cast(pa.float64()).to_numpy()
        there = ~np.isnan(values)
        whole = there.all()
        found[name] = Curve(steps, times, values) if whole else Curve(steps[there], times[there], values[there])
    return found


def _line_by_line(data: bytes) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float, float]]] = {}
    for line in data.splitlines():
        try:
            given: dict[str, Any] = json.loads(line)
            step, when = int(given.pop("step")), float(given.pop("time"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        for name, value in given.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                points.setdefault(name, []).append((step, when, float(value)))
    return {name: _curve(found) for name, found in points.items()}


def _curve(points: list[tuple[int, float, float]]) -> Curve:
    steps, times, values = zip(*points, strict=True)
    return Curve(np.array(steps, dtype=np.int64), np.array(times), np.array(values, dtype=np.float64))
