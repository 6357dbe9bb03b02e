"""How ranks that learn from different lines keep one model: they exchange what moved their rows, common rows far more often.

Rows that see few updates between two exchanges move by the sum of what moved them on all ranks, as if one rank had done all
updates: a mean would be as if most of the text had not been read. Rows that see many have settled on every rank: there the sum
would overshoot, by as many times as there are ranks, and the mean is right. Between the two, a row that moves towards its goal
by a factor 1 - a on every rank is to move by 1 - a^W for W ranks. Common rows go round more often than rare ones: after Ji et
al., "Parallelizing Word2Vec in Shared and Distributed Memory", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import numpy as np

from ..contracts import Array, Collective

_COMMON, _KNOWN = (32, 2048), (4, 16384)  # one row in so many, at most so many rows, is exchanged every turn; every eighth
_KNOWN_EVERY = 8
_CHUNK = 1 << 14  # rows that are exchanged at once
_SETTLING = 0.2  # how much nearer to its goal an update brings a row, over its rate; chosen on Wikipedia text
_LARGEST = 60_000.0  # move that travels: in 16 bits


@final
class Exchange:
    """Matrices that all ranks change, the same on all of them after every step.

    Args:
        world: the ranks.
        matrices: (R, S) float32 each, the same on all ranks now.
        updates: for every matrix the updates that a unit of work (a word or a line, on one rank) brings each row, (R,).
        dimension: numbers of a row that are exchanged.
    """

    def __init__(self, world: Collective, matrices: Sequence[Array], updates: Sequence[Array], dimension: int) -> None:
        self._world, self._matrices, self._dimension = world, matrices, dimension
        self._base = [matrix.copy() for matrix in matrices]
        self._updates = [np.asarray(one, np.float32) for one in updates]
        self._order = [np.argsort(-one, kind="stable") for one in self._updates]
        self._level = [_levels(order) for order in self._order]
        self._work = np.zeros(3)  # times its rate, since rows of each level were exchanged

    def turn(self, number: int, work: float, rate: float) -> None:
        """Collective. Exchange the commonest rows, with every eighth turn of a step more of them.

        Args:
            number: of the turn within its step, from 1.
            work: units of work that a rank did in this turn, the mean over ranks.
            rate: learning rate.
        """
        self._work += work * rate
        self._exchange(0, [order[level == 0] for order, level in zip(self._order, self._level, strict=True)])
        if number % _KNOWN_EVERY == 0:
            self._exchange(1, [order[level == 1] for order, level in zip(self._order, self._level, strict=True)])

    def end_step(self, work: float, rate: float, moved: Sequence[Array | None]) -> None:
        """Collective. Exchange all rows that any rank has moved; `moved` says which this rank may have (None: all)."""
        self._work += work * rate
        wanted = []
        for matrix, rows in zip(self._matrices, moved, strict=True):
            marks = np.full(len(matrix), rows is None, np.uint8)
            if rows is not None:
                marks[rows] = 1
            wanted.append(marks if rows is None else self._world.all_reduce(marks, "max"))
        for level in range(3):
            pairs = zip(self._order, self._level, wanted, strict=True)
            self._exchange(level, [order[(levels == level) & (marks[order] > 0)] for order, levels, marks in pairs])

    def _exchange(self, level: int, rows: Sequence[Array]) -> None:
        """Collective. Exchange rows of all matrices; all ranks name the same."""
        work, self._work[level] = float(self._work[level]), 0.0
        for at in range(0, max(map(len, rows)), _CHUNK):
            self._add_up(work, [part[at : at + _CHUNK] for part in rows])

    def _add_up(self, work: float, rows: Sequence[Array]) -> None:
        """Collective. Every rank adds up a part of the rows, and hands its sums to the others."""
        world, columns = self._world, slice(self._dimension)
        pairs = list(zip(self._matrices, self._base, rows, strict=True))
        moves = np.concatenate([matrix[at, columns] - base[at, columns] for matrix, base, at in pairs])
        sent = np.clip(moves, -_LARGEST, _LARGEST).astype(np.float16)
        shares = np.concatenate([_share(one[at] * work, world.size) for one, at in zip(self._updates, rows, strict=True)])
        cuts = [len(sent) * rank // world.size for rank in range(world.size + 1)]
        got = world.all_to_all([sent[first:last].ravel() for first, last in pairwise(cuts)])
        total = np.sum([part.astype(np.float32) for part in got], axis=0).reshape(-1, self._dimension)
        total *= shares[cuts[world.rank] : cuts[world.rank + 1], None]
        summed = np.clip(total, -_LARGEST, _LARGEST).astype(np.float16)
        whole = np.concatenate(world.all_gather(summed))
        for (matrix, base, at), part in zip(pairs, np.split(whole, np.cumsum([len(at) for at in rows])[:-1]), strict=True):
            base[at, columns] += part
            matrix[at, columns] = base[at, columns]


def _levels(order: Array) -> Array:
    """Return for every place in the order of rows how often it goes round: 0 every turn, 1 every eighth, 2 once a step."""
    level = np.full(len(order), 2, np.int8)
    for number, (share, most) in ((1, _KNOWN), (0, _COMMON)):
        level[: min(-(-len(order) // share), most)] = number
    return level


def _share(work: Array, ranks: int) -> Array:
    """Return by how much of the sum of all moves a row is to move: 1 if it saw few updates, one in `ranks` if it saw many."""
    left = np.exp(-_SETTLING * work)
    share: Array = np.sum([left**power for power in range(ranks)], axis=0) / ranks
    return share.astype(np.float32)
