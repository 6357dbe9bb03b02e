"""What a fit came to, epoch by epoch and step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from ..errors import UserError


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Stop when a metric has not improved for a while.

    Args:
        metric: as it is reported, e.g. "validation:loss".
        mode: whether smaller or larger is better.
        patience: evaluations in a row that may bring nothing.
        min_delta: least change that counts.
    """

    metric: str = "validation:loss"
    mode: Literal["min", "max"] = "min"
    patience: int = 3
    min_delta: float = 0.0


@final
@dataclass(slots=True)
class History:
    """Metrics of a fit.

    Attributes:
        losses: training loss of every step.
        evaluations: at every evaluation, and at the end of every epoch without one: step, epoch and metrics.
        best: the evaluation with the best value of the watched metric; None before the first.
        stopped_early: whether early stopping ended the fit.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "losses": self.losses,
            "evaluations": self.evaluations,
            "best": self.best,
            "stopped_early": self.stopped_early,
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> History:
        """Return what `to_json` wrote."""
        return cls(list(given["losses"]), list(given["evaluations"]), given["best"], bool(given["stopped_early"]))


@final
class Watch:
    """Follows a metric over evaluations: is it the best so far, and is it time to stop?"""

    def __init__(self, rule: EarlyStopping | None, metric: str, mode: Literal["min", "max"]) -> None:
        self._rule = rule
        self.metric = rule.metric if rule else metric
        self._sign = 1.0 if (rule.mode if rule else mode) == "min" else -1.0
        self.best: float | None = None
        self.waited = 0

    def see(self, metrics: Mapping[str, float]) -> bool:
        """Take an evaluation; return whether it is the best so far.

        Raises:
            UserError: the watched metric is not among them.
        """
        if self.metric not in metrics:
            if self._rule is None:
                return False
            raise UserError(f"early stopping watches '{self.metric}', which is not reported; there are {', '.join(metrics)}")
        value = float(metrics[self.metric])
        least = self._rule.min_delta if self._rule else 0.0
        if self.best is None or self._sign * value < self._sign * self.best - least:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self._rule is not None and self.waited >= self._rule.patience
