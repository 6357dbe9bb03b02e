"""Mini-batch descent of all candidates at once: sgd, adam, rmsprop; early stopping of each.

Legend of shapes: D columns, P candidates, K outputs; weights are (D + 1, P, K), the last row is the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from ...contracts import Array, Entry, State
from .early_stopping import Best
from .solver import Penalty

_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Schedule:
    """Step sizes: `rates` (P,) at first, times `factor` every `every` steps, never below `lowest`."""

    rates: Array
    every: int
    factor: float
    lowest: float

    def at(self, step: int) -> Array:
        """Return the step sizes (P,) of step `step`, counted from 1."""
        fallen = self.rates * self.factor ** ((step - 1) // self.every)
        return np.maximum(fallen, np.minimum(self.lowest, self.rates))


@final
class Descent:
    """Weights of all candidates and what the optimizer remembers.

    Args:
        weights: (D + 1, P, K) to begin with.
        penalty: of the candidates.
        schedule: of step sizes.
        method: sgd, adam or rmsprop.
        momentum: of sgd.
        betas: of adam; rmsprop uses the second.
        bias_rate: step size of the bias over the weights'.
        stopping: tolerance and patience of early stopping.
    """

    def __init__(
        self,
        weights: Array,
        penalty: Penalty,
        schedule: Schedule,
        method: Literal["sgd", "adam", "rmsprop"],
        momentum: float,
        betas: tuple[float, float],
        bias_rate: float,
        stopping: tuple[float, int],
    ) -> None:
        self.weights = weights
        self._penalty = penalty
        self._schedule = schedule
        self._method = method
        self._momentum = momentum
        self._betas = betas
        self._bias_rate = bias_rate
        self._mean = np.zeros_like(weights)
        self._square = np.zeros_like(weights) if method != "sgd" else np.zeros(0)
        self.step = 0
        count = weights.shape[1]
        self.done = np.zeros(count, dtype=bool)
        self.best = Best(weights, *stopping)
        self.epoch_loss = np.zeros(count)  # sums over the rows of this epoch
        self.epoch_weight = 0.0

    @property
    def active(self) -> Array:
        """Numbers of the candidates that go on."""
        return np.flatnonzero(~self.done)

    def advance(self, gradients: Array) -> None:
        """Take one step along mean gradients (D + 1, A, K) of the active candidates."""
        self.step += 1
        active, penalty = self.active, self._penalty
        weights = self.weights[:, active]
        strength = np.broadcast_to(penalty.wd[active][None, :, None], (len(weights), len(active), 1)).copy()
        strength[-1] *= penalty.bias_wd
        gradient = gradients + strength * weights
        rate = np.broadcast_to(self._schedule.at(self.step)[active][None, :, None], strength.shape).copy()
        weights = weights - self._move(gradient, active) * _with_bias(rate, self._bias_rate if penalty.use_bias else 0.0)
        shrink = rate[:-1] * penalty.l1[active][None, :, None]
        weights[:-1] = np.sign(weights[:-1]) * np.maximum(np.abs(weights[:-1]) - shrink, 0)
        self.weights[:, active] = weights

    def judge(self, values: Array) -> None:
        """Take in the losses (P,) after an epoch: keep each candidate's best weights, end those without gain."""
        self.done |= self.best.judge(values, self.weights, self.active)

    def _move(self, gradient: Array, active: Array) -> Array:
        if self._method == "sgd":
            self._mean[:, active] = moved = self._momentum * self._mean[:, active] + gradient
            return moved
        first, second = self._betas
        self._square[:, active] = square = second * self._square[:, active] + (1 - second) * gradient**2
        square = square / (1 - second**self.step)
        if self._method == "rmsprop":
            return gradient / (np.sqrt(square) + _TINY)
        self._mean[:, active] = mean = first * self._mean[:, active] + (1 - first) * gradient
        return mean / (1 - first**self.step) / (np.sqrt(square) + _TINY)

    def state_dict(self) -> State:
        """Return everything that the next step depends on."""
        return {
            "weights": Entry(self.weights),
            "mean": Entry(self._mean),
            "square": Entry(self._square),
            "step": Entry(self.step),
            "done": Entry(self.done),
            **self.best.state_dict(),
            "epoch_loss": Entry(self.epoch_loss),
            "epoch_weight": Entry(self.epoch_weight),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave."""
        self.weights, self._mean = np.array(state["weights"].value), np.array(state["mean"].value)
        self._square, self.step = np.array(state["square"].value), int(state["step"].value)
        self.done = np.array(state["done"].value, dtype=bool)
        self.best.load_state_dict(state)
        self.epoch_loss, self.epoch_weight = np.array(state["epoch_loss"].value), float(state["epoch_weight"].value)


def _with_bias(rate: Array, bias_rate: float) -> Array:
    scaled = rate.copy()
    scaled[-1] *= bias_rate
    return scaled
