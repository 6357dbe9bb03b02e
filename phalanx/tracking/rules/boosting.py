"""Rules on boosted trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

from .seen import Step, Trees, losses

_LEAST_SPLITS = 100
_ROUNDS = 10  # in which a validation loss that has its best is still improving


@final
@dataclass(slots=True)
class FeatureImportanceOverweight:
    """Nearly all splits of the trees are made on a few of many features.

    Args:
        threshold: share of the splits.
        nfeatures: that have it together. Where there are fewer than three times as many features in all, it is no wonder.
    """

    watches: ClassVar[str] = "the `nfeatures` most used of many features make over `threshold` of the splits"
    sees: ClassVar[tuple[type, ...]] = (Trees,)
    threshold: float = 0.8
    nfeatures: int = 3

    def see(self, seen: Trees) -> str | None:
        """See `Rule`."""
        total = sum(seen.importance.values())
        if seen.columns < 3 * self.nfeatures or total < _LEAST_SPLITS:
            return None
        first = sorted(seen.importance, key=lambda name: -seen.importance[name])[: self.nfeatures]
        share = sum(seen.importance[name] for name in first) / total
        if share > self.threshold:
            return f"{100 * share:.3g} % of the splits are on {', '.join(first)}, of {seen.columns} features"
        return None


@final
@dataclass(slots=True)
class TreeDepth:
    """Trees are deep, and so finely cut that they learn rows by heart; a validation loss that improves says that they do not.

    Args:
        depth: that they exceed.
        rows_per_leaf: that they fall below, on average; 0: the depth alone decides.
    """

    watches: ClassVar[str] = (
        "trees are deeper than `depth`, and their leaves hold fewer than `rows_per_leaf` rows on average, while no validation "
        "loss has improved for ten rounds"
    )
    sees: ClassVar[tuple[type, ...]] = (Trees, Step)
    depth: int = 4
    rows_per_leaf: float = 6.0
    _best: dict[str, tuple[float, int]] = field(default_factory=dict, init=False)  # of a validation loss, and its round

    def see(self, seen: Trees | Step) -> str | None:
        """See `Rule`."""
        if isinstance(seen, Step):
            for name, value in losses(seen, "validation").items():
                best, _ = self._best.get(name, (value, 0))
                if value < best or name not in self._best:
                    self._best[name] = value, seen.step
            return None
        if self._best and seen.step - max(round for _, round in self._best.values()) <= _ROUNDS:
            return None
        rows = seen.rows / max(1.0, seen.leaves)
        if seen.depth > self.depth and (self.rows_per_leaf == 0 or rows < self.rows_per_leaf):
            return f"the newest trees are {seen.depth} deep, with {rows:.3g} rows in a leaf"
        return None
