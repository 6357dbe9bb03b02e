"""DeepAR's test: the ends of series are withheld and forecast, in one window or several that follow one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...contracts import Array, Session
from .forecast import Forecaster, summarised
from .hyperparameters import DeepARHyperparameters
from .lstm import Runner
from .series import Series

_HISTORY = 3  # prediction lengths before a forecast that are written beside it
_FORECASTS = "forecasts.jsonl"


@dataclass(slots=True)
class Errors:
    """Sums over forecasts from which the measures of a test follow."""

    squared: float = 0.0
    magnitude: float = 0.0
    values: float = 0.0
    pinball: Array | None = None  # (Q,)
    below: Array | None = None  # (Q,) values at most as large as the quantile

    def add(self, truth: Array, mean: Array, of: Array, quantiles: Array) -> None:
        """Take in forecasts: truth (N, T), NaN where it is not known, mean (N, T), and quantiles (N, Q, T)."""
        known = ~np.isnan(truth)
        y = np.nan_to_num(truth).astype(np.float64)
        gap = (y[:, None] - of) * known[:, None]
        share = quantiles[:, None]
        pinball = np.maximum(share * gap, (share - 1) * gap).sum(axis=(0, 2))
        below = ((gap <= 0) & known[:, None]).sum(axis=(0, 2))
        self.squared += float((((y - mean) ** 2) * known).sum())
        self.magnitude += float(np.abs(y[known]).sum())
        self.values += float(known.sum())
        self.pinball = pinball if self.pinball is None else self.pinball + pinball
        self.below = below if self.below is None else self.below + below

    def sums(self, quantiles: int) -> Array:
        """Return all of them in one array."""
        zero = np.zeros(quantiles)
        parts = [[self.squared, self.magnitude, self.values], zero if self.pinball is None else self.pinball]
        return np.concatenate([*parts, zero if self.below is None else self.below]).astype(np.float64)


def measures(sums: Array, quantiles: Sequence[float]) -> dict[str, float]:
    """Return RMSE, the weighted quantile losses, their mean, and the share of values below each quantile."""
    count = len(quantiles)
    squared, magnitude, values = sums[:3].tolist()
    losses = 2 * sums[3 : 3 + count] / max(magnitude, 1e-12)
    coverage = sums[3 + count :] / max(values, 1.0)
    found = {"test:RMSE": float(np.sqrt(squared / max(values, 1.0))), "test:mean_wQuantileLoss": float(losses.mean())}
    found |= {f"test:wQuantileLoss[{q:g}]": float(loss) for q, loss in zip(quantiles, losses, strict=True)}
    return found | {f"test:coverage[{q:g}]": float(share) for q, share in zip(quantiles, coverage, strict=True)}


def backtest(
    session: Session, wanted: DeepARHyperparameters, forecaster: Forecaster, test: list[Series], runner: Runner
) -> dict[str, float]:
    """Collective. Forecast the withheld ends of series; return the measures, none without such series.

    With `test_windows` above 1 the last so many runs of `prediction_length` values are forecast one after another, each from
    what lies before it; measures are over all of them, and those of each window have its number behind their name, 1 the first.
    Every rank's forecasts are written beside the artifact.
    """
    world, ahead, quantiles = session.world, wanted.prediction_length, np.array(wanted.quantiles)
    if not any(len(one.target) > ahead for one in test):
        return {}
    session.output_data.mkdir(parents=True, exist_ok=True)
    total = np.zeros(3 + 2 * len(quantiles))
    found: dict[str, float] = {}
    with (session.output_data / f"{world.rank}-{_FORECASTS}").open("w", encoding="utf-8") as file:
        for window in range(1, wanted.test_windows + 1):
            back = ahead * (wanted.test_windows + 1 - window)
            long = [number for number, one in enumerate(test) if len(one.target) > back]
            errors = Errors()
            own = long[world.rank :: world.size]
            if own:
                mine = [test[number] for number in own]
                begin = [len(one.target) - back for one in mine]
                seeds = [(number ^ session.seed) + window - 1 for number in own]
                paths = forecaster.samples(mine, begin, wanted.num_eval_samples, seeds, runner)
                truth = np.stack([one.target[first : first + ahead] for one, first in zip(mine, begin, strict=True)])
                mean, of = summarised(paths, wanted.quantiles, runner)
                errors.add(truth, mean, of, quantiles)
                for row, number in enumerate(own):
                    record = {"series": number, "window": window, **_record(mine[row], begin[row], truth[row])}
                    record["mean"] = mean[row].tolist()
                    record["quantiles"] = {f"{q:g}": of[row, k].tolist() for k, q in enumerate(wanted.quantiles)}
                    file.write(json.dumps(record) + "\n")
            sums = world.all_reduce(errors.sums(len(quantiles)))
            total += sums
            if wanted.test_windows > 1:
                of_window = measures(sums, wanted.quantiles)
                found |= {f"{name}:window{window}": of_window[name] for name in ("test:RMSE", "test:mean_wQuantileLoss")}
    return measures(total, wanted.quantiles) | found


def _record(series: Series, begin: int, truth: Array) -> dict[str, object]:
    history = series.target[max(0, begin - _HISTORY * len(truth)) : begin]
    return {
        "start": str(series.start).replace("T", " "),
        "begin": begin,
        "cat": series.cat.tolist(),
        "history": _plain(history),
        "actual": _plain(truth),
    }


def _plain(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
