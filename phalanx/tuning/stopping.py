"""Early stopping: whether a trial goes on, from its curve and those of the others. Nobody waits for anybody.

Median rule: Golovin et al., "Google Vizier" (2017). Successive halving without waiting, with promotion: Li et al., "A System
for Massively Parallel Hyperparameter Tuning" (2020). Extrapolated curves: Domhan et al., "Speeding Up Automatic Hyperparameter
Optimization of Deep Neural Networks by Extrapolation of Learning Curves" (2015), here by one power law. Values are such that
larger is better; the caller turns the sign.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol, final

_CHECKS = 50  # of a trial whose length is known
_LEAST_SEEN = 4  # steps before anything is said of later ones
_MOST_RATIO, _UNKNOWN_RATIO = 1.0, 0.5  # of a doubling's gain and the gain before
_CREDIT = 0.6  # of the gain that is still to come
_FEWEST = 3  # trials at a rung before any is stopped that cannot be promoted
_FIRST_RUNG = 16  # of `Halving`: one in so many of a whole trial's steps
_SHARES = (
    (3 / 32, 0.7),
    (3 / 16, 0.6),
    (3 / 8, 0.4),
    (1.0, 0.2),
)  # of those at a rung that lies before such a part of a whole trial
_UNKNOWN_SHARE = 0.4  # where the length of a whole trial is not known


@final
@dataclass(slots=True)
class Curve:
    """The objective of one trial over its steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    of: int | None = None  # steps that it will take
    ended: bool = False  # it came to its own end
    _sums: list[float] = field(default_factory=list)
    _bests: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """Add a step; one that was there already (done again after a restart) is passed over."""
        if (self.steps and step <= self.steps[-1]) or not math.isfinite(value):
            return
        self._sums.append((self._sums[-1] if self._sums else 0.0) + value)
        self._bests.append(max(self._bests[-1], value) if self._bests else value)
        self.values.append(value)
        self.steps.append(step)  # last: threads of other trials read by it, and must find the rest there

    def reaches(self, step: int) -> bool:
        """Return whether it has a value at that step, or ended before."""
        return bool(self.steps) and (self.steps[-1] >= step or self.ended)

    def value_at(self, step: int) -> float:
        """Return the newest value up to a step."""
        return self.values[max(0, bisect_right(self.steps, step) - 1)]

    def mean_to(self, step: int) -> float:
        """Return the mean of the values up to a step."""
        count = max(1, bisect_right(self.steps, step))
        return self._sums[count - 1] / count

    def expected(self, step: int, most: int) -> float:
        """Return what step `most` is expected to bring, by the values up to `step`: each doubling gains a share of the last.

        Slow learners would look poor beside fast ones that have little left to gain. Losses fall by shares of themselves, and
        are looked at by their logarithm. Three fifths of the gain to come are counted, for it is not certain. No gain is
        expected where the last doubling has brought none; less than four steps say nothing, and their value itself is returned.
        """
        value = self._level(step)
        if step < _LEAST_SEEN:
            return value
        seen = [self._level(step // 4), self._level(step // 2), value]
        if max(seen) >= 0:
            return _gone_on(seen, most / step)
        return -math.exp(-_gone_on([-math.log(-each) for each in seen], most / step))

    def _level(self, step: int) -> float:
        """Return the mean of the last eighth of the values up to a step, for they may be noisy."""
        end = max(1, bisect_right(self.steps, step))
        begin = min(end - 1, bisect_right(self.steps, step - max(1, step // 8)))
        return (self._sums[end - 1] - (self._sums[begin - 1] if begin else 0.0)) / (end - begin)

    def best_to(self, step: int) -> float:
        """Return the best value up to a step."""
        return self._bests[max(0, bisect_right(self.steps, step) - 1)]


def _gone_on(seen: Sequence[float], factor: float) -> float:
    """Return a value `factor` times as far as the last of three that are a doubling of the steps apart each."""
    quarter, half, value = seen
    gain, before = value - half, half - quarter
    if gain <= 0:
        return value
    ratio = min(gain / before, _MOST_RATIO) if before > 0 else _UNKNOWN_RATIO
    left = math.log2(max(factor, 1.0))
    gain *= _CREDIT
    while left > 0:
        gain *= ratio
        value += gain * min(1.0, left)
        left -= 1
    return value


class Rule(Protocol):
    """A way to stop trials early."""

    @property
    def promotes(self) -> bool:
        """Whether a stopped trial may be gone on with later."""
        ...

    def due(self, number: int, step: int, of: int | None) -> bool:
        """Return whether trial `number` is judged at this step."""
        ...

    def stops(self, number: int, step: int, curves: Mapping[int, Curve]) -> bool:
        """Return whether trial `number` is to be stopped; `curves` has its own too."""
        ...

    def promoted(self, stopped: Iterable[int], curves: Mapping[int, Curve]) -> int | None:
        """Return the stopped trial that has earned to go on, if any."""
        ...


@final
class Never:
    """Every trial runs to its end."""

    promotes = False

    def due(self, number: int, step: int, of: int | None) -> bool:
        """See `Rule`."""
        return False

    def stops(self, number: int, step: int, curves: Mapping[int, Curve]) -> bool:
        """See `Rule`."""
        return False

    def promoted(self, stopped: Iterable[int], curves: Mapping[int, Curve]) -> int | None:
        """See `Rule`."""
        return None


@final
class MedianRule:
    """Stop a trial whose best value so far is worse than the median of the other trials' means up to the same step.

    Args:
        fewest: trials to compare with before anything is stopped.
    """

    promotes = False

    def __init__(self, fewest: int = 3) -> None:
        self._fewest = fewest

    def due(self, number: int, step: int, of: int | None) -> bool:
        """See `Rule`."""
        if of is not None:
            return step % max(1, of // _CHECKS) == 0 and step * 10 >= of
        return step > 1 and step % max(1, 1 << max(0, step.bit_length() - 4)) == 0

    def stops(self, number: int, step: int, curves: Mapping[int, Curve]) -> bool:
        """See `Rule`."""
        others = [curve.mean_to(step) for other, curve in curves.items() if other != number and curve.reaches(step)]
        return len(others) >= self._fewest and curves[number].best_to(step) < median(others)

    def promoted(self, stopped: Iterable[int], curves: Mapping[int, Curve]) -> int | None:
        """See `Rule`."""
        return None


@final
class Halving:
    """Asynchronous successive halving: at every rung the best share of those that got there goes on.

    The best are those of whose whole trials the most is expected (`Curve.expected`). Early curves say little, so that seven
    tenths go past a rung at a sixteenth of a whole trial, six past an eighth, four past a quarter, two past a half; four past
    any where the length is not known. A trial that is stopped at a rung may be among the best there later, when more have come:
    then it is promoted.

    Args:
        least: steps of the first rung, the others are twice as far each; None: a sixteenth of a whole trial, 4 where that is
            not known.
        most: steps of a whole trial; None: as trials say.
        brackets: 1; more: trial n begins at rung n % brackets, as in Hyperband, in case early values mislead.
    """

    def __init__(self, *, least: int | None = None, most: int | None = None, brackets: int = 1, promotes: bool = True) -> None:
        self.promotes = promotes
        self._least = least
        self._most = most
        self._brackets = brackets

    def rungs(self, number: int, of: int | None) -> list[int]:
        """Return the steps at which trial `number` is judged."""
        most = self._most or of
        least = self._least or (_LEAST_SEEN if most is None else _first_rung(most))
        rungs, step = [], least * 2 ** (number % self._brackets)
        while step <= (1 << 20 if most is None else most // 2):  # a rung near the end saves nothing
            rungs.append(step)
            step *= 2
        return rungs

    def due(self, number: int, step: int, of: int | None) -> bool:
        """See `Rule`."""
        return step in self.rungs(number, of)

    def stops(self, number: int, step: int, curves: Mapping[int, Curve]) -> bool:
        """See `Rule`."""
        return not self._among_best(number, step, curves)

    def promoted(self, stopped: Iterable[int], curves: Mapping[int, Curve]) -> int | None:
        """See `Rule`."""
        if not self.promotes:
            return None
        waiting = [(curves[number].steps[-1], number) for number in stopped if curves[number].steps]
        for last, number in sorted(waiting, reverse=True):
            passed = [rung for rung in self.rungs(number, curves[number].of) if rung <= last]
            if passed and self._among_best(number, passed[-1], curves):
                return number
        return None

    def _among_best(self, number: int, step: int, curves: Mapping[int, Curve]) -> bool:
        length = self._most or curves[number].of
        most = length or step * 2
        there = {n: curve for n, curve in curves.items() if self._same(number, n) and curve.reaches(step)}
        if len(there) < _FEWEST and not self.promotes:
            return True
        own = (curves[number].expected(step, most), -number)  # of equals the one that came first
        kept = max(1, int(len(there) * _kept(step, length)))
        return sum((curve.expected(step, most), -n) > own for n, curve in there.items()) < kept

    def _same(self, number: int, other: int) -> bool:
        return number % self._brackets == other % self._brackets


def _first_rung(most: int) -> int:
    """Return the first rung of trials of a known length: so early only where there are steps enough to say something."""
    return max(round(most / _FIRST_RUNG), min(_LEAST_SEEN, max(1, round(2 * most / _FIRST_RUNG))))


def _kept(step: int, length: int | None) -> float:
    """Return the share of trials that goes on past a rung."""
    if length is None:
        return _UNKNOWN_SHARE
    return next(share for part, share in _SHARES if step <= part * length)


def improved_at(values: Sequence[float]) -> int:
    """Return the place of the best value in a sequence; -1 where it is empty."""
    return max(range(len(values)), key=lambda place: (values[place], -place), default=-1)
