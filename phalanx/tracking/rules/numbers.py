"""Rules on numbers that leave their range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

from .course import InARow
from .seen import Step, Tensors, goal_of, losses, parted

_GRADIENT = "train:grad_norm"
_IN_A_ROW = 10  # steps
_SAMPLES = 3  # of statistics in a row
_CONVERGED = 0.01  # of the first loss: gradients vanish where there is nothing left to learn
_EARLY = 10  # losses that say where it began


@final
@dataclass(slots=True)
class ExplodingTensor:
    """A loss, a gradient or a weight is no finite number, or a loss has grown beyond all measure.

    Args:
        only_nan: pass over infinity. A metric that is not finite counts either way: which of the two it was is not kept.
        factor: a loss so many times as large as where it began is on its way to infinity.
    """

    watches: ClassVar[str] = "a loss, gradient or weight is no finite number, or a loss is `factor` times what it began with"
    sees: ClassVar[tuple[type, ...]] = (Step, Tensors)
    only_nan: bool = False
    factor: float = 1e6
    _begin: dict[str, list[float]] = field(default_factory=dict, init=False)

    def see(self, seen: Step | Tensors) -> str | None:
        """See `Rule`."""
        if isinstance(seen, Tensors):
            return self._tensors(seen)
        for name, value in seen.metrics.items():
            if value is None and (name == _GRADIENT or goal_of(parted(name)[1], seen.goals) > 0):
                return f"{name} is no finite number"
        if self.only_nan:
            return None
        for name, value in losses(seen, "train").items():
            begin = self._begin.setdefault(name, [])
            if len(begin) < _EARLY:
                begin.append(abs(value))
            if abs(value) > self.factor * max(begin[0], 1e-3):
                return f"train:{name} has grown from {begin[0]:.3g} to {value:.3g}"
        return None

    def _tensors(self, seen: Tensors) -> str | None:
        for what, tensors in (("gradient", seen.gradients), ("weight", seen.weights)):
            for name, found in tensors.items():
                if found["nan"] or (found["inf"] and not self.only_nan):
                    return f"the {what} of {name} holds {found['nan']:.0f} nan and {found['inf']:.0f} infinite numbers"
        return None


@final
@dataclass(slots=True)
class VanishingGradient:
    """The mean size of a gradient is next to nothing, while the loss is not.

    Args:
        threshold: mean absolute value of a weight's gradient below which it is, for 3 looks in a row; or of the norm of the
            whole gradient (`train:grad_norm`, which a Trainer with `clip_norm` reports), for 10 steps in a row.
    """

    watches: ClassVar[str] = "the mean size of a weight's gradient is below `threshold` for 3 looks, or its norm for 10 steps"
    sees: ClassVar[tuple[type, ...]] = (Step, Tensors)
    threshold: float = 1e-7
    _low: InARow = field(default_factory=InARow, init=False)
    _first: dict[str, float] = field(default_factory=dict, init=False)
    _converged: bool = field(default=False, init=False)

    def see(self, seen: Step | Tensors) -> str | None:
        """See `Rule`."""
        if isinstance(seen, Tensors):
            return self._tensors(seen)
        found = losses(seen, "train")
        for name, value in found.items():
            first = self._first.setdefault(name, value)
            self._converged = value < first - (1 - _CONVERGED) * abs(first)
        norm = seen.metrics.get(_GRADIENT)
        if norm is None:
            return None
        low = self._low.count(_GRADIENT, norm < self.threshold and not self._converged)
        return f"{_GRADIENT} is {norm:.3g}, for {_IN_A_ROW} steps" if low >= _IN_A_ROW else None

    def _tensors(self, seen: Tensors) -> str | None:
        for name, found in seen.gradients.items():
            if found["axes"] < 2:
                continue
            low = found["mean_abs"] < self.threshold and not (self._converged or found["nan"] or found["inf"])
            if self._low.count(f"{seen.rank} {name}", low) >= _SAMPLES:
                return f"the gradient of {name} has a mean size of {found['mean_abs']:.3g}, {_SAMPLES} times in a row"
        return None
