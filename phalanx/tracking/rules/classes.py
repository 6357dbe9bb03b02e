"""Rules on what a classifier makes of its classes: rows counted by label and prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

from .seen import Labels

_BLOCKS = 5  # that are compared with as many before
_BETTER = 0.01  # share of the rows
_LEAST_ROWS = 20  # of a class, before something is said of how it is taken


@final
@dataclass(slots=True)
class ClassImbalance:
    """One class has far fewer rows than another, or the rarest one is hardly ever recognised.

    Args:
        threshold_imbalance: largest class / smallest class, beyond what the number of rows looked at leaves open.
        threshold_misprediction: share of the rarest class's rows that are taken for another.
        samples: rows to look at before anything is said.
    """

    watches: ClassVar[str] = (
        "the largest class has over `threshold_imbalance` times the rows of the smallest, or that one is mistaken "
        "more often than `threshold_misprediction`"
    )
    sees: ClassVar[tuple[type, ...]] = (Labels,)
    threshold_imbalance: float = 10.0
    threshold_misprediction: float = 0.7
    samples: int = 500
    _counted: Counts = field(init=False)

    def __post_init__(self) -> None:
        self._counted = Counts(self.samples)

    def see(self, seen: Labels) -> str | None:
        """See `Rule`."""
        counts = self._counted
        if not counts.add(seen):
            return None
        sizes = {name: sum(row) for name, row in zip(counts.classes, counts.confusion, strict=True) if sum(row)}
        if len(sizes) < 2:
            return None
        rare, often = min(sizes, key=lambda name: sizes[name]), max(sizes, key=lambda name: sizes[name])
        least, most = sizes[rare], sizes[often]
        if most - 2 * math.sqrt(most) > self.threshold_imbalance * (least + 2 * math.sqrt(least) + 1):
            return f"class {often} has {most / least:.3g} times the rows of class {rare}"
        place = counts.classes.index(rare)
        missed = 1 - counts.confusion[place][place] / least
        if counts.settled(seen) and least >= _LEAST_ROWS and 2 * least < most and missed > self.threshold_misprediction:
            return f"{100 * missed:.3g} % of the rows of class {rare}, the rarest, are taken for another"
        return None


@final
@dataclass(slots=True)
class Confusion:
    """A class is taken for another one more often than it is recognised.

    Args:
        min_diag: share of a class's rows that are recognised, of which there must be less.
        max_off_diag: share of its rows that one other class gets, of which there must be more.
        dominance: how many times as many rows as it keeps that other class must get; 0: the two shares alone decide.
        category_no: classes; 0: those that are seen.
        samples: rows to look at before anything is said.
    """

    watches: ClassVar[str] = (
        "fewer than `min_diag` of a class's rows are recognised, over `max_off_diag` go to one other class, and "
        "that gets `dominance` times what the class keeps"
    )
    sees: ClassVar[tuple[type, ...]] = (Labels,)
    min_diag: float = 0.9
    max_off_diag: float = 0.1
    dominance: float = 1.0
    category_no: int = 0
    samples: int = 500
    _counted: Counts = field(init=False)

    def __post_init__(self) -> None:
        self._counted = Counts(self.samples)

    def see(self, seen: Labels) -> str | None:
        """See `Rule`."""
        counts = self._counted
        if not counts.add(seen) or not counts.settled(seen):
            return None
        number = self.category_no or len(counts.classes)
        for place, row in enumerate(counts.confusion[:number]):
            size = sum(row)
            if size < _LEAST_ROWS:
                continue
            kept = row[place] / size
            taken, other = max(
                ((count / size, number) for number, count in enumerate(row) if number != place), default=(0.0, 0)
            )
            if kept < self.min_diag and taken > self.max_off_diag and taken >= self.dominance * kept:
                names = counts.classes[place], counts.classes[other]
                return (
                    f"{100 * kept:.3g} % of class {names[0]} are recognised, {100 * taken:.3g} % are taken for class {names[1]}"
                )
        return None


@final
class Counts:
    """Counts rows in blocks. How classes are taken is judged when learning does not make it better any more.

    Args:
        samples: rows of a block.
    """

    def __init__(self, samples: int) -> None:
        self.classes: list[str] = []
        self.confusion: list[list[int]] = []  # of the block under way, or of the one that is full
        self.rows = 0
        self._samples = samples
        self._right: list[float] = []  # share of each block

    def add(self, seen: Labels) -> bool:
        """Take what was seen; return whether a block is full."""
        if self.rows >= self._samples:
            self.confusion, self.rows = [[0] * len(self.classes) for _ in self.classes], 0
        for name in seen.classes:
            if name not in self.classes:
                self.classes.append(name)
        size = len(self.classes)
        self.confusion = [[*row, *[0] * (size - len(row))] for row in self.confusion]
        self.confusion += [[0] * size for _ in range(size - len(self.confusion))]
        places = [self.classes.index(name) for name in seen.classes]
        for label, row in zip(places, seen.confusion, strict=True):
            for place, count in zip(places, row, strict=True):
                self.confusion[label][place] += count
                self.rows += count
        full = self.rows >= self._samples
        if full:
            self._right.append(sum(row[place] for place, row in enumerate(self.confusion)) / self.rows)
        return full

    def settled(self, seen: Labels) -> bool:
        """Return whether the newest blocks are no better than those before: what is wrong by now stays wrong."""
        if seen.final:
            return True
        newest, before = self._right[-_BLOCKS:], self._right[-2 * _BLOCKS : -_BLOCKS]
        return len(before) == _BLOCKS and sum(newest) <= sum(before) + _BETTER * _BLOCKS
