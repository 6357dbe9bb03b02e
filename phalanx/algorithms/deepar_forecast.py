"""Forecasts by ancestral sampling: all paths of many series advance together, one value at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..contracts import Array
from .deepar_hyperparameters import DeepARHyperparameters
from .deepar_network import Network, draw
from .deepar_windows import Prepared

_ROWS = 8192  # paths that advance together


@final
class Forecaster:
    """Draws paths, each series with random numbers of its own: what it is told does not depend on who is asked with it.

    Args:
        network: trained.
        wanted: hyperparameters.
    """

    def __init__(self, network: Network, wanted: DeepARHyperparameters) -> None:
        self._network = copy.deepcopy(network).double().eval()  # so that rounding by the number of rows stays far below float32
        self._wanted = wanted

    def samples(
        self, prepared: Prepared, series: Sequence[int], begin: Sequence[int], paths: int, seeds: Sequence[int]
    ) -> Array:
        """Return paths (N, paths, prediction_length) float32 from value `begin` of each series on.

        Args:
            prepared: the series.
            series: (N,) numbers of series in it.
            begin: (N,) where each forecast begins.
            paths: of each.
            seeds: (N,) of each one's random numbers.
        """
        wanted = self._wanted
        found = np.empty((len(series), paths, wanted.prediction_length), dtype=np.float32)
        block = max(1, _ROWS // paths)
        for first in range(0, len(series), block):
            part = slice(first, first + block)
            found[part] = self._block(prepared, np.array(series[part]), np.array(begin[part]), paths, seeds[part])
        return found

    def _block(self, prepared: Prepared, series: Array, begin: Array, paths: int, seeds: Sequence[int]) -> Array:
        wanted, context = self._wanted, prepared.context
        windows = prepared.windows(series, begin)
        lags = torch.from_numpy(prepared.lags)
        longest = int(lags.max())
        with torch.no_grad():
            embedded = self._network.embedded(torch.from_numpy(windows.cat))
            inputs = torch.from_numpy(windows.inputs).double()
            steps = inputs.shape[1]
            whole = torch.cat([inputs, embedded[:, None].expand(-1, steps, -1)], dim=2)
            _, state = self._network(whole[:, :context])
            state = [(h.repeat_interleave(paths, 1), c.repeat_interleave(paths, 1)) for h, c in state]
            scale = torch.from_numpy(windows.scale).double()
            past = np.stack([prepared.before(s, b, longest) for s, b in zip(series.tolist(), begin.tolist(), strict=True)])
            values = torch.zeros(len(series), paths, longest + wanted.prediction_length, dtype=torch.float64)
            values[:, :, :longest] = (torch.from_numpy(past).double() / scale[:, None])[:, None]
            noise = _Noise(seeds, paths, wanted)
            width = len(lags)
            for step in range(wanted.prediction_length):
                lagged = values[:, :, longest + step - lags]
                known = whole[:, context + step, width:][:, None].expand(-1, paths, -1)
                now = torch.cat([lagged, known], dim=2).reshape(len(series) * paths, 1, -1)
                parameters, state = self._network(now, state)
                drawn = draw(
                    wanted.likelihood, parameters.reshape(len(series), paths, -1), scale[:, None], noise.uniform, noise
                )
                values[:, :, longest + step] = drawn / scale[:, None]
            paths_of: Array = (values[:, :, longest:] * scale[:, None, None]).numpy()
        return paths_of


@final
class _Noise:
    """Random numbers of each series from a generator of its own."""

    def __init__(self, seeds: Sequence[int], paths: int, wanted: DeepARHyperparameters) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._paths = paths

    def uniform(self) -> Tensor:
        """Return (N, paths) numbers above 0 and below 1."""
        drawn = [torch.rand(self._paths, generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(drawn).clamp(1e-12, 1 - 1e-12)

    def standard(self, shape: Tensor) -> Tensor:
        """Return gamma draws with scale 1 for shapes (N, paths)."""
        rows = [torch._standard_gamma(row, generator=g) for row, g in zip(shape, self._generators, strict=True)]
        return torch.stack(rows)

    def poisson(self, rate: Tensor) -> Tensor:
        """Return counts for rates (N, paths)."""
        return torch.stack([torch.poisson(row, generator=g) for row, g in zip(rate, self._generators, strict=True)])


@dataclass(slots=True)
class Errors:
    """Sums over series from which the measures of a test follow."""

    squared: float = 0.0
    magnitude: float = 0.0
    values: float = 0.0
    pinball: Array | None = None  # (Q,)
    below: Array | None = None  # (Q,) values at most as large as the quantile

    def add(self, truth: Array, samples: Array, quantiles: Array) -> None:
        """Take in forecasts of N series: truth (N, T), NaN where it is not known, and samples (N, S, T)."""
        known = ~np.isnan(truth)
        y = np.nan_to_num(truth).astype(np.float64)
        of = np.quantile(samples, quantiles, axis=1)  # (Q, N, T)
        gap = (y - of) * known
        share = quantiles[:, None, None]
        pinball = np.maximum(share * gap, (share - 1) * gap).sum(axis=(1, 2))
        below = ((gap <= 0) & known).sum(axis=(1, 2))
        self.squared += float((((y - samples.mean(axis=1)) ** 2) * known).sum())
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
