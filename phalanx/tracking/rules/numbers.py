"""Rules on numbers that leave their range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

_GRADIENT = "train:grad_norm"
_IN_A_ROW = 10


@final
@dataclass(slots=True)
class ExplodingTensor:
    """A loss or the norm of the gradient is no finite number."""

    def see(self, step: int, metrics: Mapping[str, float | None]) -> str | None:
        """See `Rule`."""
        for name, value in metrics.items():
            if value is None and (name.endswith("loss") or name == _GRADIENT):
                return f"{name} is no finite number"
        return None


@final
@dataclass(slots=True)
class VanishingGradient:
    """The norm of the gradient, which a Trainer with `clip_norm` reports, is next to nothing for 10 steps in a row.

    Args:
        threshold: below which it is.
    """

    threshold: float = 1e-7
    _count: int = field(default=0, init=False)

    def see(self, step: int, metrics: Mapping[str, float | None]) -> str | None:
        """See `Rule`."""
        norm = metrics.get(_GRADIENT)
        if norm is None:
            return None
        self._count = self._count + 1 if norm < self.threshold else 0
        return f"{_GRADIENT} is {norm:.3g}, for {_IN_A_ROW} steps" if self._count >= _IN_A_ROW else None
