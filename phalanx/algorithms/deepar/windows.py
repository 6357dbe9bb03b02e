"""Series as flat arrays, and windows cut from all of them at once by strided gathers.

Legend of shapes: B windows, T = context_length + prediction_length steps, L lags, F calendar features, V dynamic features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from ...contracts import Array
from ..kernels.series import cut
from .calendar import Frequency
from .series import Series


@dataclass(frozen=True, slots=True)
class Windows:
    """Pieces of series, ready for the network; all float32 but `cat`."""

    inputs: Array  # (T, B, I) lags, calendar, age, dynamic features
    static: Array  # (B, 1) the logarithm of the scale
    target: Array  # (T, B) not scaled; 0 where it is missing
    observed: Array  # (T, B) 1 where a value is known
    scale: Array  # (B,) mean magnitude of what is known in the context
    cat: Array  # (B, C) int64

    def still(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what does not change with time, for the network: static inputs and categories."""
        return torch.from_numpy(self.static), torch.from_numpy(self.cat)


@final
class Prepared:
    """Series one after another, each with room before it for lags and context, and after it for a forecast.

    Args:
        series: them.
        frequency: of all.
        context: context_length.
        ahead: prediction_length.
        since: (N,) value of each series before which no forecast of a window begins; None: any. It saves time.
    """

    def __init__(
        self, series: Sequence[Series], frequency: Frequency, context: int, ahead: int, since: Sequence[int] | None = None
    ) -> None:
        self.context, self.ahead = context, ahead
        self.lags = np.array(frequency.lags(), dtype=np.int64)
        self._before = int(self.lags.max()) + context
        self.lengths = np.array([len(one.target) for one in series], dtype=np.int64)
        sizes = self._before + self.lengths + ahead
        ends = np.cumsum(sizes)
        self._starts = ends - sizes + self._before  # place of each series' first value
        total = int(ends[-1]) if len(series) else 0
        features = len(series[0].dynamic_feat) if series else 0
        self._values = np.full(total, np.nan, dtype=np.float32)
        calendar = frequency.features(np.zeros(1, "datetime64[m]")).shape[1]
        self._features = np.zeros((total, calendar + 1 + features), dtype=np.float32)
        self.cat = np.stack([one.cat for one in series]) if series else np.zeros((0, 0), dtype=np.int64)
        age = (np.log10(2.0 + np.arange(int(self.lengths.max(initial=0)) + ahead)) / 3).astype(np.float32)
        for number, (one, place) in enumerate(zip(series, self._starts.tolist(), strict=True)):
            length = len(one.target)
            self._values[place : place + length] = one.target
            first = 0 if since is None else max(0, since[number] - context)
            rows = self._features[place + first : place + length + ahead]
            rows[:, :calendar] = frequency.features(frequency.times(one.start, length + ahead)[first:])
            rows[:, calendar] = age[first : length + ahead]
            rows[: one.dynamic_feat.shape[1] - first, calendar + 1 :] = one.dynamic_feat[:, first:].T
        self._known = np.concatenate([[0], np.cumsum(~np.isnan(self._values))])  # values before each place that are known

    @property
    def width(self) -> int:
        """Inputs of a step."""
        return len(self.lags) + int(self._features.shape[1])

    def windows(self, series: Array, begin: Array) -> Windows:
        """Return windows whose forecast begins at value `begin` (B,) of series `series` (B,).

        Args:
            series: numbers of series.
            begin: from 1 to the series' length.
        """
        steps, count = self.context + self.ahead, len(series)
        inputs = np.empty((steps, count, self.width), dtype=np.float32)
        target, observed = np.empty((steps, count), dtype=np.float32), np.empty((steps, count), dtype=np.float32)
        scale = np.empty(count, dtype=np.float32)
        places = self._starts[series] + begin - self.context
        cut(self._values, self._features, self.lags, places, self.context, inputs, target, observed, scale)
        return Windows(inputs, np.log(scale)[:, None] / 10, target, observed, scale, self.cat[series])

    def known(self, series: Array, begin: Array) -> Array:
        """Return how many values of windows, as `windows` cuts them, are known: (B,)."""
        places = self._starts[series] + begin
        found: Array = self._known[places + self.ahead] - self._known[places - self.context]
        return found

    def truth(self, series: Array, begin: Array) -> Array:
        """Return the prediction_length values (B, …) of series from value `begin` on, NaN where one is not known."""
        found: Array = self._values[(self._starts[series] + begin)[:, None] + np.arange(self.ahead)]
        return found
