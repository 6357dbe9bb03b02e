"""The course of what rules see: has a noisy loss risen, has it come down at all, how often in a row was something found?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

_IN_A_ROW = 2  # windows above the first
_ERRORS = 3.0  # standard errors that make a difference


@final
@dataclass(slots=True)
class Course:
    """Means of windows of a loss, and how much its steps scatter in them."""

    steps: int  # in a window
    means: list[float] = field(default_factory=list)
    first: float | None = None  # the first step's value
    _window: list[float] = field(default_factory=list)
    _scatter: float = 0.0  # sum over windows of their variance about a straight line

    def add(self, value: float) -> bool:
        """Take a step's value; return whether a window is full."""
        if self.first is None:
            self.first = value
        self._window.append(value)
        if len(self._window) < self.steps:
            return False
        self.means.append(sum(self._window) / self.steps)
        self._scatter += _variance_about_a_line(self._window)
        self._window.clear()
        return True

    @property
    def error(self) -> float:
        """Standard error of the difference of two windows' means."""
        return math.sqrt(2 * self._scatter / max(1, len(self.means)) / self.steps)

    def risen(self, percent: float) -> float | None:
        """Return by how many percent the two newest windows are above the first, None unless both are, beyond their noise."""
        begin = self.means[0]
        newest = self.means[1:][-_IN_A_ROW:]
        rise = [mean - begin for mean in newest]
        if len(rise) < _IN_A_ROW or min(rise) <= _ERRORS * self.error:
            return None
        scale = max(abs(begin), abs(self.first or 0.0), 1e-12)
        return 100 * rise[-1] / scale if 100 * min(rise) / scale > percent else None

    def fallen(self, percent: float) -> bool | None:
        """Return whether the last half of the windows is lower by `percent` than the first, or than the first step.

        None: it may be either, for all that is known beyond the noise.
        """
        half = max(1, len(self.means) // 2)
        begin, end = sum(self.means[:half]) / half, sum(self.means[-half:]) / half
        noise, enough = _ERRORS * self.error / math.sqrt(half), percent / 100 * abs(begin)
        first = begin if self.first is None else self.first
        noise_of_one = _ERRORS * self.error * math.sqrt(self.steps / 2)
        if begin - end > max(enough, noise) or first - end > max(enough, noise_of_one):
            return True
        return False if begin - end + noise < enough else None

    def stands(self, percent: float) -> bool:
        """Return whether no window is lower than the first one, or the first step, by `percent`."""
        begin = max(self.means[0], self.first if self.first is not None else self.means[0])
        return 100 * (begin - min(self.means)) / max(abs(begin), 1e-12) < percent


def _variance_about_a_line(values: Sequence[float]) -> float:
    """Return the variance of values about their straight line; 0 for fewer than three."""
    n = len(values)
    if n < 3:
        return 0.0
    middle, mean = (n - 1) / 2, sum(values) / n
    slope = sum((i - middle) * value for i, value in enumerate(values)) / sum((i - middle) ** 2 for i in range(n))
    return sum((value - mean - slope * (i - middle)) ** 2 for i, value in enumerate(values)) / (n - 2)


@final
@dataclass(slots=True)
class Means:
    """Means of metrics since each was last asked for, as between two evaluations."""

    _sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Take a step's values, by name."""
        for name, value in values.items():
            total, number = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, number + 1

    def take(self, name: str) -> float | None:
        """Return a metric's mean and begin anew; None where there was no value."""
        total, number = self._sums.pop(name, (0.0, 0))
        return total / number if number else None


@final
@dataclass(slots=True)
class InARow:
    """Counts how often in a row something was found, for each name."""

    _counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, found: bool) -> int:
        """Take what was found of a name; return how often in a row by now."""
        self._counts[name] = self._counts.get(name, 0) + 1 if found else 0
        return self._counts[name]


@final
@dataclass(slots=True)
class Noise:
    """How much a smooth curve's points scatter: by their second differences, whose variance is six times that of the points."""

    _recent: list[float] = field(default_factory=list)
    _squares: float = 0.0
    _number: int = 0

    def add(self, value: float) -> float:
        """Take a value; return what counts as a change, beyond all scatter so far."""
        self._recent = [*self._recent[-2:], value]
        if len(self._recent) == 3:
            first, second, third = self._recent
            self._squares += (first - 2 * second + third) ** 2 / 6
            self._number += 1
        return _ERRORS * math.sqrt(self._squares / self._number) if self._number else 0.0
