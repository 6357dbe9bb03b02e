"""The best value that each metric of a job has had, as far as it is known which way is better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, final

from .rules.seen import goal_of, parted

# Metrics that a training makes larger, by the end of their name in small letters.
_RISES = re.compile(
    r"(^|[:_/.-])(acc|accuracy|auc|auroc|aucpr|f1|f_beta|f_score|precision|recall|r2|bleu|ndcg|map|dice|iou|miou|win_rate|reward)$"
)
_CHANNELS = ("validation:", "test:", "train:")


@final
class Best:
    """Follows metrics.

    Args:
        goals: metric (without its channel) -> "minimize" or "maximize", as the algorithm declares them.
        earlier: what `read` returned in a job that this one goes on with.
    """

    def __init__(self, goals: Mapping[str, str], earlier: Mapping[str, Any]) -> None:
        self._goals = goals
        self._order = {name: place for place, name in enumerate(goals)}
        self._signs: dict[str, float] = {}
        self._best: dict[str, tuple[float, int]] = {name: (found["value"], found["step"]) for name, found in earlier.items()}

    def add(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Take a step's metrics."""
        for name, value in metrics.items():
            sign = self._signs.get(name)
            if sign is None:
                sign = self._signs[name] = self._sign(name)
            if sign and value is not None:
                before = self._best.get(name)
                if before is None or sign * value < sign * before[0]:
                    self._best[name] = (value, step)

    def read(self) -> dict[str, dict[str, float | int]]:
        """Return metric -> value and step; first the one to judge a job by: of validation rather than training, as declared."""
        names = sorted(self._best, key=self._rank)
        return {name: {"value": self._best[name][0], "step": self._best[name][1]} for name in names}

    def _rank(self, name: str) -> tuple[int, int]:
        channel = next((place for place, prefix in enumerate(_CHANNELS) if name.startswith(prefix)), len(_CHANNELS))
        return channel, self._order.get(name.partition(":")[2].partition("@")[0], len(self._order))

    def _sign(self, name: str) -> float:
        """Return 1 for a metric that should fall, -1 for one that should rise, 0 where nobody knows."""
        short = name.removeprefix("test:") if name.startswith("test:") else parted(name)[1]
        if name.startswith("train:seconds"):
            return 0.0
        return goal_of(short, self._goals) or (-1.0 if _RISES.search(short.lower()) else 0.0)
