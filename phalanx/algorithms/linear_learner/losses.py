"""The losses: value, slope and bounds for all candidates at once.

Legend of shapes: N rows, P candidates, K outputs of a row (classes; otherwise 1).
"""

from __future__ import annotations

from typing import Protocol, final

import numpy as np

from ...contracts import Array
from .hyperparameters import LinearLearnerHyperparameters


class Loss(Protocol):
    """A loss of scores `z` (N, P, K) against labels `y` (N,)."""

    def evaluate(self, z: Array, y: Array) -> tuple[Array, Array]:
        """Return the losses (N, P) and their slopes with respect to `z` (N, P, K)."""
        ...

    def largest_slope(self, gap: Array) -> Array:
        """Return bounds of the slopes' magnitudes where |z| + |y| is at most `gap`."""
        ...


@final
class Logistic:
    """log(1 + exp(-z)) for label 1, log(1 + exp(z)) for label 0; `kernels.logistic` evaluates it."""

    def largest_slope(self, gap: Array) -> Array:
        """See `Loss`."""
        return np.ones_like(gap)


@final
class Hinge:
    """max(0, margin - z) for label 1, max(0, margin + z) for label 0.

    Args:
        margin: from where on a row costs nothing.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin

    def evaluate(self, z: Array, y: Array) -> tuple[Array, Array]:
        sign = (1 - 2 * y)[:, None, None]
        loss = np.maximum(self._margin + z * sign, 0)
        return loss[:, :, 0], np.where(loss > 0, sign, 0.0)

    def largest_slope(self, gap: Array) -> Array:
        return np.ones_like(gap)


@final
class Softmax:
    """Cross entropy of the softmax over K classes; `y` is the class."""

    def evaluate(self, z: Array, y: Array) -> tuple[Array, Array]:
        at = y.astype(np.int64)[:, None, None]
        shifted = (z - z.max(axis=2, keepdims=True)).astype(np.float32)
        own = np.take_along_axis(shifted, at, axis=2)
        np.exp(shifted, out=shifted)
        total = shifted.sum(axis=2, keepdims=True)
        loss = (np.log(total) - own)[:, :, 0]
        shifted /= total
        np.put_along_axis(shifted, at, np.take_along_axis(shifted, at, axis=2) - 1, axis=2)
        return loss, shifted

    def largest_slope(self, gap: Array) -> Array:
        return np.ones_like(gap)


@final
class Regression:
    """A loss of e = z - y.

    Args:
        name: as the hyperparameter `loss`.
        insensitivity: ε.
        quantile: of quantile_loss.
        delta: δ of huber_loss.
    """

    def __init__(self, name: str, insensitivity: float, quantile: float, delta: float) -> None:
        self._name = name
        self._epsilon = insensitivity
        self._quantile = quantile
        self._delta = delta

    def evaluate(self, z: Array, y: Array) -> tuple[Array, Array]:
        e = z - y[:, None, None]
        loss, slope = self._of_error(e)
        return loss[:, :, 0], slope

    def largest_slope(self, gap: Array) -> Array:
        if self._name in ("squared_loss", "eps_insensitive_squared_loss"):
            return 2 * gap
        return np.full_like(gap, self._delta if self._name == "huber_loss" else 1.0)

    def _of_error(self, e: Array) -> tuple[Array, Array]:
        size = np.abs(e)
        match self._name:
            case "squared_loss":
                return e * e, 2 * e
            case "absolute_loss":
                return size, np.sign(e)
            case "eps_insensitive_squared_loss":
                outside = size > self._epsilon
                return np.where(outside, e * e - self._epsilon**2, 0.0), np.where(outside, 2 * e, 0.0)
            case "eps_insensitive_absolute_loss":
                outside = size > self._epsilon
                return np.where(outside, size - self._epsilon, 0.0), np.where(outside, np.sign(e), 0.0)
            case "quantile_loss":
                below = self._quantile  # a prediction that is too low by 1 costs this much
                return np.where(e < 0, -below * e, (1 - below) * e), np.where(e < 0, -below, np.where(e > 0, 1 - below, 0.0))
            case _:
                near = size < self._delta
                loss = np.where(near, e * e / 2, self._delta * size - self._delta**2 / 2)
                return loss, np.clip(e, -self._delta, self._delta)


def loss_of(wanted: LinearLearnerHyperparameters) -> Loss | Logistic:
    """Return the loss that the hyperparameters ask for."""
    match wanted.loss_name:
        case "logistic":
            return Logistic()
        case "hinge_loss":
            return Hinge(wanted.margin)
        case "softmax_loss":
            return Softmax()
        case name:
            return Regression(name, wanted.loss_insensitivity, wanted.quantile, wanted.huber_delta)


def slope_change(wanted: LinearLearnerHyperparameters) -> float:
    """Return the second derivative of a row's smooth loss at score zero."""
    match wanted.loss_name:
        case "logistic":
            return 0.25
        case "softmax_loss":
            return 1 / wanted.outputs
        case "squared_loss":
            return 2.0
        case _:
            return 1.0
