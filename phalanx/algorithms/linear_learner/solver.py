"""L-BFGS of all candidates at once: every pass over the rows evaluates each candidate's own trial point.

A candidate whose trial is good enough moves there and takes a new direction; one whose trial is not shortens its step and is
evaluated again in the next pass. So none waits for another, and no pass is lost. Weak L2 penalties may be come to by stronger
ones: from zeros the first steps of weights that few rows know would be far too long. L1 penalties by orthants, after Andrew and
Gao, "Scalable training of L1-regularized log-linear models" (2007). Steps start from the curvature of the features
(`linear_learner_curvature`).

Legend of shapes: D columns, P candidates, A of them active, K outputs; weights are (D + 1, P, K), the last row is the bias.
Within, an array of weights is (D + 1, A * K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from ...contracts import Array, Entry, State
from ..kernels import quasi_newton as loops
from .curvature import Curvature
from .objective import Crew

LASTING_MEMORY = 8  # pairs of a solver that goes on to the end
_ENOUGH = 1e-4  # Armijo's constant
_NOISE = 1e-7  # of the objective, relative: dense products are float32
_WINDOW = 5
_NO_GAIN = 0.1  # of the tolerance: a candidate that can gain no more has converged
_SHORTEST = 2.0**-20
_LEAST_SHARE = 0.03  # of a trial that failed, in the next one
LASTING_STAGE = 10  # passes with a penalty on the way to a weaker one
_FAINTEST = 1e-4  # of the first penalty of that way: the last before a still weaker one


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


@final
class Solver:
    """The state of the iteration. Of a candidate that has converged its weights are kept, nothing else.

    Args:
        columns: D.
        penalty: of the candidates.
        outputs: K.
        curvature: of the features, by which steps are measured.
        crew: of threads.
        start: weights to begin with; None: zeros.
        memory: pairs of steps and changes that are kept.
        gentle: L2 penalty that every candidate begins with; a weaker one is come to by tenths.
        stage: passes of each of them, at most.
    """

    def __init__(
        self,
        columns: int,
        penalty: Penalty,
        outputs: int,
        curvature: Curvature,
        crew: Crew,
        start: Array | None = None,
        *,
        memory: int = LASTING_MEMORY,
        gentle: float = 0.0,
        stage: int = LASTING_STAGE,
    ) -> None:
        count = len(penalty.wd)
        shape = (columns + 1, count * outputs)
        self._penalty = penalty
        self._outputs = outputs
        self._memory = memory
        self._curvature = curvature
        self._crew = crew
        self.value = np.full(count, np.inf)  # objective at the weights
        self.loss = np.full(count, np.inf)  # its loss alone
        self.done = np.zeros(count, dtype=bool)
        self._ended: dict[int, Array] = {}  # (D + 1, K) weights of those that ended before others
        self._held = np.arange(count)  # (A,) numbers of the candidates that what follows is of
        self._trial = np.zeros(shape) if start is None else start.reshape(shape).copy()
        self._at: Array = np.zeros(shape)
        self._gradient: Array = np.zeros(shape)
        self._direction: Array = np.zeros(shape)
        self._gentle, self._stage = gentle, stage
        self._wd = np.maximum(penalty.wd, gentle)  # now
        self._passes = np.zeros(count, dtype=np.int64)  # with it
        self._length = np.ones(count)
        self._pairs: list[tuple[Array, Array]] = []  # steps and changes, float32
        self._products: list[Array] = []  # of each pair, (A,)
        self._past = np.full((_WINDOW, count), np.inf)
        self._scale = np.ones(count)  # of the inverse curvature, by the newest pair

    @property
    def active(self) -> Array:
        """Numbers of the candidates that go on."""
        return np.flatnonzero(~self.done)

    @property
    def trial(self) -> Array:
        """(D + 1, A, K) where the active candidates are to be evaluated."""
        return self._trial.reshape(len(self._trial), -1, self._outputs)

    @property
    def weights(self) -> Array:
        """(D + 1, P, K) of all candidates."""
        return self.weights_of(np.arange(len(self.done)))

    def weights_of(self, numbers: Array) -> Array:
        """Return weights (D + 1, len(numbers), K) of some candidates."""
        now = self._at.reshape(len(self._at), -1, self._outputs)
        if np.array_equal(numbers, self._held):
            return now
        found = np.empty((len(now), len(numbers), self._outputs))
        for place, number in enumerate(numbers.tolist()):
            ended = self._ended.get(number)
            found[:, place] = now[:, np.searchsorted(self._held, number)] if ended is None else ended
        return found

    def advance(self, losses: Array, gradients: Array, tolerance: float) -> None:
        """Take in mean losses (A,) and gradients (D + 1, A, K) at the trials of the active candidates; set the next trials.

        The gradients belong to the solver from then on.
        """
        held = self._held
        gradient = gradients.reshape(self._trial.shape)
        value = losses + self._penalised(gradient)
        before, l1 = self.value[held], self._each(self._penalty.l1[held])
        at, old, trial = self._at, self._gradient, self._trial
        (slope,) = self._sums(lambda a, b, sums: loops.slope_along(at[a:b], old[a:b], trial[a:b], l1, b == len(at), sums[0]))
        first = ~np.isfinite(before)
        with np.errstate(invalid="ignore"):
            enough = value <= before + _ENOUGH * np.minimum(slope, 0) + _NOISE * np.abs(before)
        shorter = _shorter(value - before, slope)
        accepted = np.isfinite(value) & (first | enough)
        self._remember(accepted & ~first, gradient)
        self._at, self._trial = self._moved(accepted, trial, at)
        self._gradient, _ = self._moved(accepted, gradient, old)
        self.value[held] = value = np.where(accepted, value, before)
        self.loss[held] = np.where(accepted, losses, self.loss[held])
        self._length = np.where(accepted, 1.0, self._length * shorter)
        self._past = np.where(accepted, np.vstack([self._past[1:], value]), self._past)
        with np.errstate(invalid="ignore"):
            stalled = self._past[0] - value <= tolerance * np.abs(value)
        stalled = (accepted & stalled) | (self._length < _SHORTEST)
        self._passes += 1
        last = self._wd <= self._penalty.wd[held]
        weaker = ~last & (stalled | (self._passes >= self._stage))
        if weaker.any():
            self._weaken(weaker)
        slope, square = self._turn(accepted | weaker, l1)
        small = -slope / 2 <= _NO_GAIN * tolerance * np.abs(value)  # gain of a full step, by the estimate of the curvature
        self._leave(last & (stalled | (accepted & ~first & small) | (np.sqrt(square) <= 1e-12)))
        if not self.done.all():
            self._try()

    def end(self, numbers: Array) -> None:
        """Let candidates go no further."""
        self._leave(np.isin(self._held, numbers) & ~self.done[self._held])

    def _penalised(self, gradient: Array) -> Array:
        """Add the L2 penalty's slope to the gradients at the trials; return both penalties (A,)."""
        penalty, held, trial = self._penalty, self._held, self._trial
        wd, l1, bias = self._each(self._wd), self._each(penalty.l1[held]), (penalty.bias_wd, penalty.use_bias)
        squares, sizes = self._sums(
            lambda a, b, sums: loops.penalise(trial[a:b], gradient[a:b], wd, l1, *bias, b == len(trial), sums), 2
        )
        return np.asarray(squares + sizes)

    def _remember(self, valid: Array, gradient: Array) -> None:
        """Keep a pair of each candidate that moved along positive curvature; of others a pair that does nothing."""
        if not valid.any():
            return
        step, change = (np.empty(gradient.shape, dtype=np.float32) for _ in range(2))
        if len(self._pairs) == self._memory:
            step, change = self._pairs.pop(0)
            del self._products[0]
        at, trial, old = self._at, self._trial, self._gradient
        product, moved, changed = self._sums(
            lambda a, b, sums: loops.pair(at[a:b], trial[a:b], old[a:b], gradient[a:b], step[a:b], change[a:b], sums), 3
        )
        valid = valid & (product > 1e-10 * np.sqrt(moved * changed))
        if not valid.all():
            product = np.where(valid, product, 0.0)
            for array in (step, change):
                array[:, self._each(~valid)] = 0
        self._pairs.append((step, change))
        self._products.append(product)
        solved = change.astype(np.float64)
        self._solve(solved, np.ones(len(valid)))
        (solved_product,) = self._dot(change, solved)
        self._scale = np.divide(product, solved_product, out=self._scale, where=valid & (solved_product > 0))

    def _weaken(self, which: Array) -> None:
        """Give candidates (A,) a tenth of their L2 penalty, or at last their own; they begin anew from where they are.

        What a stronger penalty taught of the curvature would lead to the same place in fewer passes, by a way whose ends before
        that answer new rows less well.
        """
        held, at, gradient = self._held, self._at, self._gradient
        tenth, wanted = self._wd / 10, self._penalty.wd[held]
        wd = np.where(which, np.where(tenth > np.maximum(wanted, _FAINTEST * self._gentle), tenth, wanted), self._wd)
        fall, l1, bias = self._each(wd - self._wd), np.zeros(at.shape[1]), (self._penalty.bias_wd, self._penalty.use_bias)
        less, _ = self._sums(lambda a, b, sums: loops.penalise(at[a:b], gradient[a:b], fall, l1, *bias, b == len(at), sums), 2)
        self.value[held] += less
        self._wd = wd
        for pair in self._pairs:
            for array in pair:
                array[:, self._each(which)] = 0
        self._products = [np.where(which, 0.0, product) for product in self._products]
        self._scale, self._length = np.where(which, 1.0, self._scale), np.where(which, 1.0, self._length)
        self._past, self._passes = np.where(which, np.inf, self._past), np.where(which, 0, self._passes)

    def _turn(self, accepted: Array, l1: Array) -> tuple[Array, Array]:
        """Give those that moved a new direction; return its slopes (A,) and the gradients' squares (A,)."""
        at, gradient = self._at, self._gradient
        direction = self._direction if accepted.all() else np.empty_like(self._direction)
        self._over(lambda a, b: loops.steepest(at[a:b], gradient[a:b], l1, b == len(at), direction[a:b]))
        self._times_inverse(direction)
        slope, square = self._sums(
            lambda a, b, sums: loops.turn_down(direction[a:b], at[a:b], gradient[a:b], l1, b == len(at), sums), 2
        )
        astray = ~(slope < 0)
        if astray.any():
            straight = np.empty_like(direction)
            self._over(lambda a, b: loops.steepest(at[a:b], gradient[a:b], l1, b == len(at), straight[a:b]))
            chosen = self._each(astray)
            direction[:, chosen] = -straight[:, chosen]
            slope = np.where(astray, -square, slope)
        self._direction, _ = self._moved(accepted, direction, self._direction)
        return slope, square

    def _times_inverse(self, rest: Array) -> None:
        """Multiply with the inverse Hessian's estimate, in place, by the two loops over the pairs."""
        shares: list[Array] = []
        for (step, change), product in zip(reversed(self._pairs), reversed(self._products), strict=True):
            shares.append(_over(self._dot(step, rest)[0], product))
            self._add(rest, -shares[-1], change)
        self._solve(rest, self._scale)
        for (step, change), product, share in zip(self._pairs, self._products, reversed(shares), strict=True):
            self._add(rest, share - _over(self._dot(change, rest)[0], product), step)

    def _solve(self, vector: Array, scale: Array) -> None:
        sharp = self._penalty.l1[self._held] > 0
        self._curvature.solve(vector, self._each(self._wd), self._each(sharp), self._each(scale), self._crew)

    def _leave(self, done: Array) -> None:
        """Put away what those that are done no longer need."""
        if not done.any():
            return
        held = self._held
        self.done[held[done]] = True
        if done.all():
            return
        now = self._at.reshape(len(self._at), -1, self._outputs)
        self._ended |= {int(held[at]): now[:, at].copy() for at in np.flatnonzero(done)}
        stay, columns = ~done, np.flatnonzero(self._each(~done))
        self._held, self._length, self._past = held[stay], self._length[stay], self._past[:, stay]
        self._wd, self._passes = self._wd[stay], self._passes[stay]
        self._scale, self._products = self._scale[stay], [product[stay] for product in self._products]
        for number, pair in enumerate(self._pairs):
            self._pairs[number] = (_columns(pair[0], columns), _columns(pair[1], columns))
        self._at, self._gradient = _columns(self._at, columns), _columns(self._gradient, columns)
        self._direction, self._trial = _columns(self._direction, columns), np.empty_like(self._at)

    def _try(self) -> None:
        """Set the next trials."""
        at, gradient, direction, trial = self._at, self._gradient, self._direction, self._trial
        length, l1 = self._each(self._length), self._each(self._penalty.l1[self._held])
        self._over(lambda a, b: loops.go(at[a:b], gradient[a:b], direction[a:b], length, l1, b == len(at), trial[a:b]))

    def _moved(self, where: Array, source: Array, target: Array) -> tuple[Array, Array]:
        """Return the columns of `source` for the candidates `where` (A,) says so, and else of `target`; and what is left."""
        if where.all():
            return source, target
        chosen = self._each(where)
        self._over(lambda a, b: loops.take(chosen, source[a:b], target[a:b]))
        return target, source

    def _dot(self, narrow: Array, vector: Array) -> Array:
        return self._sums(lambda a, b, sums: loops.dots(narrow[a:b], vector[a:b], sums[0]))

    def _add(self, vector: Array, factor: Array, narrow: Array) -> None:
        factors = self._each(factor)
        self._over(lambda a, b: loops.add(vector[a:b], factors, narrow[a:b]))

    def _over(self, work: Callable[[int, int], None]) -> None:
        self._crew.over(work, *self._at.shape)

    def _sums(self, work: Callable[[int, int, Array], None], count: int = 1) -> Array:
        """Return sums over all weights of each candidate, (count, A), of which `work` adds up (count, A * K)."""
        rows, width = self._at.shape
        found = self._crew.sums(work, rows, width, (count, width))
        return np.asarray(found.reshape(count, -1, self._outputs).sum(axis=2))

    def _each(self, values: Array) -> Array:
        """Return values (A,) of candidates as those of their outputs (A * K,)."""
        return values if self._outputs == 1 else np.repeat(values, self._outputs)

    def state_dict(self) -> State:
        """Return everything that the next pass depends on."""
        names = {"trial": self._trial, "at": self._at, "gradient": self._gradient, "direction": self._direction}
        pairs = np.array(self._pairs, dtype=np.float32).reshape(len(self._pairs), 2, *self._at.shape)
        return {
            **{name: Entry(value.copy()) for name, value in names.items()},
            "ended": Entry(np.array([self._ended[number] for number in sorted(self._ended)])),
            "held": Entry(self._held),
            "value": Entry(self.value.copy()),
            "loss": Entry(self.loss.copy()),
            "done": Entry(self.done.copy()),
            "wd": Entry(self._wd),
            "passes": Entry(self._passes.copy()),
            "length": Entry(self._length),
            "pairs": Entry(pairs),
            "products": Entry(np.array(self._products).reshape(len(self._products), len(self._held))),
            "past": Entry(self._past),
            "scale": Entry(self._scale.copy()),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave."""
        of = {name: np.array(entry.value) for name, entry in state.items()}
        self._trial, self._at, self._gradient, self._direction = of["trial"], of["at"], of["gradient"], of["direction"]
        self._held, self.done = of["held"], of["done"].astype(bool)
        self._ended = dict(zip(np.setdiff1d(np.arange(len(self.done)), self._held).tolist(), of["ended"], strict=True))
        self.value, self.loss, self._length = of["value"], of["loss"], of["length"]
        self._pairs = [(pair[0], pair[1]) for pair in of["pairs"]]
        self._products, self._past, self._scale = list(of["products"]), of["past"], of["scale"]
        self._wd, self._passes = of["wd"], of["passes"]


def _over(one: Array, other: Array) -> Array:
    return np.divide(one, other, out=np.zeros_like(one), where=other > 0)


def _columns(array: Array, columns: Array) -> Array:
    return np.ascontiguousarray(array[:, columns])


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
