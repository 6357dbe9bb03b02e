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

from ...contracts import Array, Collective, Entry, State
from ..kernels.moves import add_moves, put_moves, take_moves

_COMMON, _KNOWN = (32, 2048), (4, 16384)  # one row in so many, at most so many rows, is exchanged every turn; every eighth
_KNOWN_EVERY = 8
_FEWEST = 1024  # rows that go round every turn
_CHUNK = 1 << 14  # rows that are exchanged at once
_SETTLING = 0.2  # how much nearer to its goal an update brings a row, over its rate; chosen on Wikipedia text


@final
class Exchange:
    """Matrices that all ranks change; between exchanges of all rows each rank is ahead of the others in its own rare ones.

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
        parts = [_levels(np.argsort(-one, kind="stable")) for one in self._updates]
        self._rows = list(zip(*parts, strict=True))  # of all matrices, by how often they go round
        self._marks = [np.zeros(len(matrix), np.uint8) for matrix in matrices]  # rows moved since all were exchanged
        self._work = np.zeros(3)  # times its rate, since rows of each level were exchanged
        self._undone = 0.0  # work since all rows were exchanged

    def turn(self, number: int, work: float, rate: float) -> None:
        """Collective. Exchange the commonest rows, with every eighth turn of a step more of them.

        Args:
            number: of the turn within its step, from 1.
            work: units of work that a rank did in this turn, the mean over ranks.
            rate: learning rate.
        """
        self._work += work * rate
        self._undone += work
        self._exchange(0, self._rows[0])
        if number % _KNOWN_EVERY == 0:
            self._exchange(1, self._rows[1])

    def mark(self, moved: Sequence[Array | None]) -> None:
        """Note which rows of every matrix this rank may have moved in a step; None: any."""
        for marks, rows in zip(self._marks, moved, strict=True):
            marks[slice(None) if rows is None else rows] = 1

    def end_step(self, most: float, *, last: bool) -> None:
        """Collective. Exchange all rows that any rank moved, if that is due.

        Args:
            most: units of work of a rank after which it is due.
            last: it is due anyway.
        """
        if self._undone < most and not last:
            return
        self._undone = 0.0
        wanted = [self._world.all_reduce(marks, "max") > 0 for marks in self._marks]
        for level in range(3):
            self._exchange(level, [rows[marks[rows]] for rows, marks in zip(self._rows[level], wanted, strict=True)])
        for marks in self._marks:
            marks[:] = 0

    def state_dict(self) -> State:
        """Return the matrices that all ranks have, and the rows that this one alone has moved since."""
        state = {"work": Entry(np.append(self._work, self._undone))}
        for number, (matrix, base) in enumerate(zip(self._matrices, self._base, strict=True)):
            rows = np.flatnonzero((matrix != base).any(axis=1))
            state |= {f"common_{number}": Entry(base), f"own_rows_{number}": Entry(rows, "rank")}
            state |= {f"own_{number}": Entry(matrix[rows], "rank"), f"marks_{number}": Entry(self._marks[number], "rank")}
        return state

    def load_state_dict(self, state: State) -> None:
        """Put back what this rank alone had moved, on matrices that all ranks have; a rank that is new has moved nothing."""
        if "work" not in state:
            return
        self._work, self._undone = np.array(state["work"].value[:3]), float(state["work"].value[3])
        for number, matrix in enumerate(self._matrices):
            if f"own_{number}" in state:
                matrix[state[f"own_rows_{number}"].value] = state[f"own_{number}"].value
                self._marks[number][:] = state[f"marks_{number}"].value

    def _exchange(self, level: int, rows: Sequence[Array]) -> None:
        """Collective. Exchange rows of all matrices; all ranks name the same."""
        work, self._work[level] = float(self._work[level]), 0.0
        for at in range(0, max(map(len, rows)), _CHUNK):
            self._add_up(work, [part[at : at + _CHUNK] for part in rows])

    def _add_up(self, work: float, rows: Sequence[Array]) -> None:
        """Collective. Every rank adds up a part of the rows, and hands its sums to the others; of two each adds up all."""
        world = self._world
        pairs = list(zip(self._matrices, self._base, rows, strict=True))
        ends = np.cumsum([len(at) for at in rows])[:-1]
        moves = np.empty((sum(map(len, rows)), self._dimension), np.uint16)
        for (matrix, base, at), part in zip(pairs, np.split(moves, ends), strict=True):
            take_moves(matrix, base, at, part)
        shares = np.concatenate(
            [share(_SETTLING * one[at] * work, world.size) for one, at in zip(self._updates, rows, strict=True)]
        )
        if world.size == 2:  # each adds up all: as many bytes in half of the messages
            whole = np.empty_like(moves)
            add_moves(np.concatenate(world.all_gather(moves)), shares, world.size, whole)
        else:
            cuts = [len(moves) * rank // world.size for rank in range(world.size + 1)]
            got = world.all_to_all([moves[first:last].ravel() for first, last in pairwise(cuts)])
            mine = slice(cuts[world.rank], cuts[world.rank + 1])
            sums = np.empty((mine.stop - mine.start, self._dimension), np.uint16)
            add_moves(np.concatenate(got).reshape(-1, self._dimension), shares[mine], world.size, sums)
            whole = np.concatenate(world.all_gather(sums))
        for (matrix, base, at), part in zip(pairs, np.split(whole, ends), strict=True):
            put_moves(matrix, base, at, part, np.ones(len(at), np.float32))


def _levels(order: Array) -> list[Array]:
    """Cut the order of rows into those that go round every turn, every eighth, and with all rows."""
    cuts = [min(max(len(order) // share, _FEWEST), most) for share, most in (_COMMON, _KNOWN)]
    return np.split(order, cuts)


def share(settled: Array, ranks: int) -> Array:
    """Return by how much of the sum of all moves rows are to move: 1 where they saw few updates, one in `ranks` where many.

    Args:
        settled: (n,) how much nearer to their goals the updates of one rank bring rows: e^-settled of the way is left.
        ranks: that have moved them.
    """
    left = np.exp(-settled)
    found: Array = np.sum([left**power for power in range(ranks)], axis=0) / ranks
    return found.astype(np.float32)
