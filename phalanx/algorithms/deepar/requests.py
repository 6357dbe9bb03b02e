"""What requests for forecasts ask for beside the series: samples, quantiles, kinds of answers."""

from __future__ import annotations

import zlib
from typing import Any

from ...contracts import Json, Records
from ...errors import UserError, nearest
from .hyperparameters import DeepARHyperparameters
from .series import Series

OUTPUTS = ("mean", "quantiles", "samples")
_SAMPLES = 100  # of a request that does not say
_MOST_SAMPLES = 100_000


def seed_of(series: Series, seed: int) -> int:
    """Return the seed of a series' random numbers, which follows from what the series holds and the model's own."""
    found = zlib.crc32(str(series.start).encode())
    for part in (series.target, series.cat, series.dynamic_feat):
        found = zlib.crc32(part.tobytes(), found)
    return found ^ (seed & 0xFFFFFFFF)


def asked(requests: Records, wanted: DeepARHyperparameters) -> tuple[list[int], list[float], set[str]]:
    """Return the samples that each request asks for, and the quantiles and outputs that all do together."""
    samples, quantiles, outputs = [], set(), set()
    for row, item in enumerate(requests.items, 1):
        given: Any = item.get("configuration") or {}
        if not isinstance(given, dict):
            raise UserError(f"request {row}: configuration must be an object")
        number = given.get("num_samples", _SAMPLES)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _MOST_SAMPLES:
            allowed = f"a whole number from 1 to {_MOST_SAMPLES}"
            raise UserError(f"request {row}: num_samples={number!r:.40} is not allowed: it must be {allowed}")
        samples.append(number)
        for text in _list(given, "quantiles", wanted.quantiles, row):
            quantiles.add(_quantile(text, row))
        for output in _list(given, "output_types", ["mean", "quantiles"], row):
            if output not in OUTPUTS:
                raise UserError(f"request {row}: output_types knows no {output!r:.40}; {nearest(str(output), OUTPUTS)}")
            outputs.add(output)
    if not requests.items:
        return [], wanted.quantiles, {"mean", "quantiles"}
    return samples, sorted(quantiles), outputs


def _list(given: dict[str, Json], name: str, default: list[Any], row: int) -> list[Any]:
    found = given.get(name, default)
    if not isinstance(found, list):
        raise UserError(f"request {row}: {name} must be a list, not {found!r:.40}")
    return found


def _quantile(given: Json, row: int) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value < 1:
        raise UserError(f"request {row}: the quantile {given!r:.40} is not allowed: it must be above 0 and below 1")
    return value
