"""Rules on what the layers of a `phalanx.Trainer`'s module put out. They need its statistics (`phalanx.trainer.statistics`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from .seen import Tensors


@final
@dataclass(slots=True)
class DeadRelu:
    """Too many units of a ReLU layer put out nothing but 0.

    Deep layers of a net that has just been made may see nearly the same in all rows, so that half of their units are idle by
    chance: what chance may do must last.

    Args:
        threshold_inactivity: percent of the rows: a unit that is at work in fewer is dead.
        threshold_layer: percent of a layer's units that may be dead.
        patience: steps that it must last where every other unit being idle, give or take three standard errors, is enough.
    """

    watches: ClassVar[str] = (
        "more than `threshold_layer` % of a ReLU layer's units are at work in fewer than `threshold_inactivity` % of the rows; "
        "for `patience` steps where chance may make as many idle at the start"
    )
    sees: ClassVar[tuple[type, ...]] = (Tensors,)
    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0
    patience: int = 100
    _since: dict[str, int] = field(default_factory=dict, init=False)  # layer -> step of the first look

    def see(self, seen: Tensors) -> str | None:
        """See `Rule`."""
        for name, found in seen.activations.items():
            if found["kind"] != "relu":
                continue
            idle, layer = idle_percent(found["active"], self.threshold_inactivity), f"{seen.rank} {name}"
            if idle <= self.threshold_layer:
                self._since.pop(layer, None)
                continue
            lasts = seen.step - self._since.setdefault(layer, seen.step) >= self.patience
            if lasts or idle > _by_chance(found["units"]):
                return f"{idle:.0f} % of the units of {name} put out 0 in nearly all rows"
        return None


@final
@dataclass(slots=True)
class SaturatedActivation:
    """Too many units of a tanh or sigmoid layer are where their slope is next to 0.

    Args:
        threshold_tanh_min: inputs of tanh below it count as saturated.
        threshold_tanh_max: inputs of tanh above it count as saturated.
        threshold_sigmoid_min: as for tanh.
        threshold_sigmoid_max: as for tanh.
        threshold_inactivity: percent of the rows: a unit that is between the two in fewer is saturated.
        threshold_layer: percent of a layer's units that may be.
    """

    watches: ClassVar[str] = (
        "more than `threshold_layer` % of a tanh or sigmoid layer's units get inputs outside of these bounds in nearly all rows"
    )
    sees: ClassVar[tuple[type, ...]] = (Tensors,)
    threshold_tanh_min: float = -9.4999
    threshold_tanh_max: float = 9.4999
    threshold_sigmoid_min: float = -23.0
    threshold_sigmoid_max: float = 16.99999
    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0

    def measured_with(self) -> Mapping[str, Any]:
        """Return what the worker must know to measure it."""
        return {
            "tanh": [self.threshold_tanh_min, self.threshold_tanh_max],
            "sigmoid": [self.threshold_sigmoid_min, self.threshold_sigmoid_max],
        }

    def see(self, seen: Tensors) -> str | None:
        """See `Rule`."""
        for name, found in seen.activations.items():
            if found["kind"] != "relu":
                idle = idle_percent(found["active"], self.threshold_inactivity)
                if idle > self.threshold_layer:
                    return f"{idle:.0f} % of the units of {name} ({found['kind']}) are saturated in nearly all rows"
        return None


def _by_chance(units: int) -> float:
    """Return the percent of a layer's units that may be idle where each is so by the toss of a coin: three standard errors."""
    return min(50 + 150 / math.sqrt(units), 99.0) if units >= 8 else 100.0


def idle_percent(active: Sequence[float], threshold: float) -> float:
    """Return the percent of units that are at work in fewer than `threshold` percent of the rows.

    Args:
        active: quantiles over the units (evenly spaced from the least to the greatest) of the share of rows, 0 to 1.
        threshold: percent.
    """
    return 100 * sum(share * 100 < threshold for share in active) / max(1, len(active))
