"""L-BFGS of all candidates at once: every pass over the rows evaluates each candidate's own trial point.

A candidate whose trial is good enough moves there and takes a new direction; one whose trial is not shortens its step and is
evaluated again in the next pass. So none waits for another, and no pass is lost. L1 penalties by orthants, after Andrew and
Gao, "Scalable training of L1-regularized log-linear models" (2007). Steps start from the curvature of the features
(`linear_learner_curvature`).

Legend of shapes: D columns, P candidates, K outputs; weights are (D + 1, P, K), the last row is the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ...contracts import Array, Entry, State
from ..kernels import linear as loops
from .curvature import Curvature

_MEMORY = 8
_ENOUGH = 1e-4  # Armijo's constant
_NOISE = 1e-7  # of the objective, relative: dense products are float32
_WINDOW = 5
_NO_GAIN = 0.1  # of the tolerance: a candidate that can gain no more has converged
_SHORTEST = 2.0**-20
_LEAST_SHARE = 0.03  # of a trial that failed, in the next one


@dataclass(frozen=True, slots=True)
class Penalty:
    """wd/2·|w|² + l1·|w| of each candidate."""

    wd: Array  # (P,)
    l1: Array  # (P,)
    bias_wd: float  # over wd
    use_bias: bool

    def of(self, members: Array, sharper: float = 1.0) -> Penalty:
        """Return the penalties of some candidates, times `sharper`."""
        return Penalty(self.wd[members] * sharper, self.l1[members] * sharper, self.bias_wd, self.use_bias)

    def smooth(self, weights: Array) -> tuple[Array, Array]:
        """Return the L2 part (P,) and its gradient, shaped as the weights."""
        strength = np.broadcast_to(self.wd[None, :, None], (len(weights), len(self.wd), 1)).copy()
        strength[-1] *= self.bias_wd
        gradient = strength * weights
        return 0.5 * _dot(gradient, weights), gradient

    def sharp(self, weights: Array) -> Array:
        """Return the L1 part (P,); biases are free."""
        size: Array = self.l1 * np.abs(weights[:-1]).sum(axis=(0, 2))
        return size


@final
class Solver:
    """The state of the iteration.

    Args:
        columns: D.
        penalty: of the candidates.
        outputs: K.
        curvature: of the features, by which steps are measured.
        start: weights to begin with; None: zeros.
        memory: pairs of steps and changes that are kept.
    """

    def __init__(
        self,
        columns: int,
        penalty: Penalty,
        outputs: int,
        curvature: Curvature,
        start: Array | None = None,
        *,
        memory: int = _MEMORY,
    ) -> None:
        shape = (columns + 1, len(penalty.wd), outputs)
        self._penalty = penalty
        self._memory = memory
        self._curvature = curvature
        self.trial = np.zeros(shape) if start is None else start.copy()
        self.weights = np.zeros(shape)
        self.value = np.full(shape[1], np.inf)  # objective at `weights`
        self.loss = np.full(shape[1], np.inf)  # its loss alone
        self.done = np.zeros(shape[1], dtype=bool)
        self._gradient = np.zeros(shape)
        self._direction = np.zeros(shape)
        self._length = np.ones(shape[1])
        self._steps: list[Array] = []
        self._changes: list[Array] = []
        self._past = np.full((_WINDOW, shape[1]), np.inf)
        self._scale = np.ones(shape[1])  # of the inverse curvature, by the newest pair

    @property
    def active(self) -> Array:
        """Numbers of the candidates that go on."""
        return np.flatnonzero(~self.done)

    def advance(self, losses: Array, gradients: Array, tolerance: float) -> None:
        """Take in mean losses (A,) and gradients (D + 1, A, K) at `trial` of the active candidates; set the next trials."""
        active = self.active
        loss, gradient = losses, gradients
        if len(active) < len(self.done):
            loss, gradient = np.full(len(self.done), np.inf), np.zeros_like(self.trial)
            loss[active], gradient[:, active] = losses, gradients
        smooth, smooth_gradient = self._penalty.smooth(self.trial)
        gradient += smooth_gradient
        if not self._penalty.use_bias:
            gradient[-1] = 0
        value = loss + smooth + self._penalty.sharp(self.trial)
        first = ~np.isfinite(self.value)
        moved = self.trial - self.weights
        slope = _dot(_pseudo(self.weights, self._gradient, self._penalty.l1), moved)
        with np.errstate(invalid="ignore"):
            enough = value <= self.value + _ENOUGH * np.minimum(slope, 0) + _NOISE * np.abs(self.value)
        shorter = _shorter(value - self.value, slope)
        accepted = ~self.done & np.isfinite(value) & (first | enough)
        self._remember(accepted & ~first, moved, gradient - self._gradient)
        self.weights = _chosen(accepted, self.trial, self.weights)
        self._gradient = _chosen(accepted, gradient, self._gradient)
        self.value, self.loss = np.where(accepted, value, self.value), np.where(accepted, loss, self.loss)
        self._length = np.where(accepted, 1.0, self._length * shorter)
        self._past = np.where(accepted, np.vstack([self._past[1:], self.value]), self._past)
        with np.errstate(invalid="ignore"):
            stalled = self._past[0] - self.value <= tolerance * np.abs(self.value)
        self.done |= (accepted & stalled) | (self._length < _SHORTEST)
        self._next(accepted, first, tolerance)

    def _remember(self, valid: Array, moved: Array, change: Array) -> None:
        """Keep a pair of each candidate that moved along positive curvature; of others a pair that does nothing."""
        valid = valid & (_dot(moved, change) > 1e-10 * np.sqrt(_dot(moved, moved) * _dot(change, change)))
        if not valid.any():
            return
        nothing = np.broadcast_to(0.0, moved.shape)
        self._steps.append(_chosen(valid, moved, nothing))
        self._changes.append(_chosen(valid, change, nothing))
        del self._steps[: -self._memory], self._changes[: -self._memory]
        solved = _dot(change, self._curvature.solve(self._changes[-1], self._penalty.wd, self._penalty.l1 > 0))
        self._scale = np.divide(_dot(moved, change), solved, out=self._scale, where=valid & (solved > 0))

    def _next(self, accepted: Array, first: Array, tolerance: float) -> None:
        pseudo = _pseudo(self.weights, self._gradient, self._penalty.l1)
        direction = self._times_inverse(pseudo)
        np.negative(direction, out=direction)
        sharp = self._penalty.l1 > 0
        if sharp.any():
            wrong = sharp[None, :, None] & (direction * pseudo >= 0)
            wrong[-1] = False
            direction[wrong] = 0
        downhill = _dot(direction, pseudo) < 0
        if not downhill.all():
            direction = _chosen(downhill, direction, -pseudo)
        self._direction = _chosen(accepted, direction, self._direction)
        size = np.sqrt(_dot(pseudo, pseudo))
        gain = -_dot(direction, pseudo) / 2  # of a full step, by the estimate of the curvature
        self.done |= accepted & ~first & (gain <= _NO_GAIN * tolerance * np.abs(self.value))
        self.done |= size <= 1e-12
        self.trial = self.weights + self._length[None, :, None] * self._direction
        if sharp.any():
            orthant = np.where(self.weights != 0, np.sign(self.weights), -np.sign(pseudo))
            crossed = sharp[None, :, None] & (self.trial * orthant <= 0)
            crossed[-1] = False
            self.trial[crossed] = 0
        self.trial[:, self.done] = self.weights[:, self.done]

    def _times_inverse(self, vector: Array) -> Array:
        """Return the inverse Hessian's estimate times a vector, by the two loops over the pairs."""
        rest = vector.copy()
        inner = [_dot(step, change) for step, change in zip(self._steps, self._changes, strict=True)]
        parts = []
        for step, change, product in reversed(list(zip(self._steps, self._changes, inner, strict=True))):
            part = np.divide(_dot(step, rest), product, out=np.zeros_like(product), where=product > 0)
            loops.add_scaled(rest, -part, change)
            parts.append(part)
        rest = self._curvature.solve(rest, self._penalty.wd, self._penalty.l1 > 0) * self._scale[None, :, None]
        for step, change, product, part in zip(self._steps, self._changes, inner, reversed(parts), strict=True):
            again = np.divide(_dot(change, rest), product, out=np.zeros_like(product), where=product > 0)
            loops.add_scaled(rest, part - again, step)
        return rest

    def state_dict(self) -> State:
        """Return everything that the next pass depends on."""
        shape = (0, *self.trial.shape)
        return {
            "trial": Entry(self.trial),
            "weights": Entry(self.weights),
            "value": Entry(self.value),
            "loss": Entry(self.loss),
            "done": Entry(self.done),
            "gradient": Entry(self._gradient),
            "direction": Entry(self._direction),
            "length": Entry(self._length),
            "steps": Entry(np.array(self._steps).reshape(shape if not self._steps else (-1, *self.trial.shape))),
            "changes": Entry(np.array(self._changes).reshape(shape if not self._changes else (-1, *self.trial.shape))),
            "past": Entry(self._past),
            "scale": Entry(self._scale),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave."""
        self.trial, self.weights = np.array(state["trial"].value), np.array(state["weights"].value)
        self.value, self.loss = np.array(state["value"].value), np.array(state["loss"].value)
        self.done = np.array(state["done"].value, dtype=bool)
        self._gradient, self._direction = np.array(state["gradient"].value), np.array(state["direction"].value)
        self._length, self._past = np.array(state["length"].value), np.array(state["past"].value)
        self._scale = np.array(state["scale"].value)
        self._steps, self._changes = list(np.array(state["steps"].value)), list(np.array(state["changes"].value))


def _shorter(rise: Array, slope: Array) -> Array:
    """Return by how much trials that failed are shortened (P,): to the lowest point of a parabola, at least by half.

    Args:
        rise: (P,) of the objective from the weights to the trial.
        slope: (P,) there would have been at the weights, times the way.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        lowest = -slope / (2 * (rise - slope))
    found: Array = np.clip(np.where(np.isfinite(lowest) & (slope < 0), lowest, 0.5), _LEAST_SHARE, 0.5)
    return found


def _pseudo(weights: Array, gradient: Array, l1: Array) -> Array:
    """Return the steepest subgradient of the objective with its L1 part."""
    if not (l1 > 0).any():
        return gradient
    strength = np.broadcast_to(l1[None, :, None], weights.shape).copy()
    strength[-1] = 0
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - strength, 0)
    return np.asarray(np.where(weights != 0, gradient + strength * np.sign(weights), at_zero))


def _chosen(where: Array, one: Array, other: Array) -> Array:
    """Return `one` for the candidates `where` (P,) says so, `other` for the rest; not copied where all are alike."""
    return one if where.all() else np.where(where[None, :, None], one, other)


def _dot(a: Array, b: Array) -> Array:
    """Return the products of each candidate's vectors, (P,)."""
    found = np.zeros(a.shape[1])
    loops.dots(np.ascontiguousarray(a), np.ascontiguousarray(b), found)
    return found
