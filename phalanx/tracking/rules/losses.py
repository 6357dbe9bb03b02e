"""Rules on the course of losses. Names and thresholds are those of SageMaker Debugger.

They are meant to stay silent on a run that goes well, also one that has converged: a loss that stands still after it has come
down is none of their business, as is a validation loss that is merely higher than that of the training data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from .seen import losses

_WINDOWS = 5  # in which a loss must have come down at all
_IN_A_ROW = 2  # windows above the first


@final
@dataclass(slots=True)
class LossNotDecreasing:
    """The training loss rises above where it began, or does not come down in 5 windows.

    Args:
        num_steps: a window, whose mean is judged.
        diff_percent: by which it must have come down.
        increase_threshold_percent: above the first window, in two windows in a row.
    """

    num_steps: int = 10
    diff_percent: float = 0.1
    increase_threshold_percent: float = 5.0
    _sums: dict[str, list[float]] = field(default_factory=dict, init=False)
    _means: dict[str, list[float]] = field(default_factory=dict, init=False)

    def see(self, step: int, metrics: Mapping[str, float | None]) -> str | None:
        """See `Rule`."""
        for name, value in losses(metrics, "train").items():
            window = self._sums.setdefault(name, [])
            window.append(value)
            if len(window) < self.num_steps:
                continue
            means = self._means.setdefault(name, [])
            means.append(sum(window) / len(window))
            window.clear()
            found = self._judged(means)
            if found is not None:
                return f"train:{name} {found}"
        return None

    def _judged(self, means: list[float]) -> str | None:
        first, scale = means[0], max(abs(means[0]), 1e-12)
        above = [100 * (mean - first) / scale for mean in means[1:]][-_IN_A_ROW:]
        if len(above) == _IN_A_ROW and min(above) > self.increase_threshold_percent:
            return f"rose by {above[-1]:.3g} %, from {first:.6g} to {means[-1]:.6g}"
        if len(means) == _WINDOWS and 100 * (first - min(means)) / scale < self.diff_percent:
            return f"has not come down by {self.diff_percent} % in {_WINDOWS * self.num_steps} steps: it is {means[-1]:.6g}"
        return None


@final
@dataclass(slots=True)
class Overfit:
    """The validation loss rises from its best while the training loss goes on falling.

    Args:
        start_step: before which nothing is judged.
        patience: evaluations in a row before it is said.
        ratio_threshold: by which the validation loss is above its best and above the training loss.
    """

    start_step: int = 0
    patience: int = 1
    ratio_threshold: float = 0.1
    _train: dict[str, float] = field(default_factory=dict, init=False)
    _best: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)  # validation loss, training loss then
    _waited: dict[str, int] = field(default_factory=dict, init=False)

    def see(self, step: int, metrics: Mapping[str, float | None]) -> str | None:
        """See `Rule`."""
        self._train |= losses(metrics, "train")
        for name, value in losses(metrics, "validation").items():
            train = self._train.get(name)
            if train is None or step < self.start_step:
                continue
            best, then = self._best.get(name, (value, train))
            if value <= best:
                best, then = value, train
            self._best[name] = best, then
            room = self.ratio_threshold
            rises = value - best > room * max(abs(best), 1e-12) and value - train > room * max(abs(train), 1e-12)
            self._waited[name] = self._waited.get(name, 0) + 1 if rises and train < then else 0
            if self._waited[name] > self.patience:
                return f"validation:{name} rose from {best:.6g} to {value:.6g} while train:{name} fell to {train:.6g}"
        return None


@final
@dataclass(slots=True)
class Overtraining:
    """The validation loss has been worse than its best for long, and the training goes on.

    Args:
        patience_validation: evaluations without an improvement.
        delta: by which, as a share of the best, all of these are worse than the best.
    """

    patience_validation: int = 10
    delta: float = 0.01
    _best: dict[str, float] = field(default_factory=dict, init=False)
    _since: dict[str, deque[float]] = field(default_factory=dict, init=False)

    def see(self, step: int, metrics: Mapping[str, float | None]) -> str | None:
        """See `Rule`."""
        for name, value in losses(metrics, "validation").items():
            best = self._best.get(name, value)
            since = self._since.setdefault(name, deque(maxlen=self.patience_validation))
            if value <= best:
                self._best[name] = value
                since.clear()
                continue
            since.append(value)
            full = len(since) == self.patience_validation
            if full and min(since) - best > self.delta * max(abs(best), 1e-12):
                return f"validation:{name} has been above its best, {best:.6g}, for {len(since)} evaluations: it is {value:.6g}"
        return None
