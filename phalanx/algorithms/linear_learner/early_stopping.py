"""Early stopping of each candidate: its best weights are kept, and those that no longer gain end.

Legend of shapes: D columns, P candidates, K outputs; weights are (D + 1, P, K), the last row is the bias.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ...contracts import Array, Entry, State


@final
class Best:
    """The best weights of each candidate so far.

    Args:
        weights: (D + 1, P, K) to begin with.
        tolerance: relative fall of the loss that counts as a gain.
        patience: times without a gain after which a candidate ends.
    """

    def __init__(self, weights: Array, tolerance: float, patience: int) -> None:
        self.weights = weights.copy()
        self.value = np.full(weights.shape[1], np.inf)
        self._waited = np.zeros(weights.shape[1], dtype=np.int64)
        self._tolerance = tolerance
        self._patience = patience

    def judge(self, values: Array, weights: Array, active: Array) -> Array:
        """Take in the losses (P,) and weights of the candidates `active`; return who ends (P,), those without a loss too."""
        values = np.where(np.isfinite(values), values, np.inf)
        known = np.where(np.isfinite(self.value), np.abs(self.value), 0)
        with np.errstate(invalid="ignore"):
            gained = values < self.value - self._tolerance * known
        better = np.zeros(len(values), dtype=bool)
        better[active] = values[active] < self.value[active]
        self.weights[:, better] = weights[:, better]
        self.value = np.where(better, values, self.value)
        self._waited = np.where(gained, 0, self._waited + 1)
        return np.asarray((self._waited >= self._patience) | ~np.isfinite(values))

    def state_dict(self) -> State:
        """Return what was seen."""
        return {
            "best": Entry(self.weights.copy()),
            "best_value": Entry(self.value),
            "waited": Entry(self._waited),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave."""
        self.weights, self.value = np.array(state["best"].value), np.array(state["best_value"].value)
        self._waited = np.array(state["waited"].value)
