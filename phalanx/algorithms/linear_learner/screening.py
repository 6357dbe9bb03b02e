"""Screening of many candidates: all learn from some of the rows, and the best of them go on with all.

The rows are fixed blocks spread evenly over the channel, so every number of workers screens by the same. A penalty of the
mean loss weighs as much against few rows as a larger one: penalties grow as the rows are fewer. Of wide sparse rows only the
columns that occur in the sample are learnt: the weights of others would stay zero. Where even those are many more than the
rows, candidates without L1 are learnt in the rows' own coordinates (`rotation`).

Legend of shapes: D columns, S of them in the sample, P candidates, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from ...contracts import Array, Collective, Csr
from .data import READ_ROWS, Piece, rows_of
from .objective import Objective
from .solver import Solver

_PASSES, _PASSES_OF_WIDE = 30, 20  # over the sample at most
STAGE_PASSES = 4  # with a penalty on the way to a weaker one
LOOSER = 10.0  # than the last passes: it is only to tell candidates apart
KEPT = 2  # candidates that go on
_FEWEST_CANDIDATES = 8
_SHARE = 32  # of the rows: one in so many
_FEWEST_ROWS, _MOST_ROWS = 4096, 65536
_FEWEST_OF_WIDE = 1024  # where a candidate has more weights than the channel has rows: steps cost more than rows
_WIDE = 4096  # columns from which on those of the sample are looked for
MEMORY = 3  # pairs of the solver: many candidates are held at once


@dataclass(frozen=True, slots=True)
class Heat:
    """Candidates that are solved together."""

    members: Array  # (P,) their numbers
    solver: Solver
    objective: Objective
    pieces: Callable[[], Iterable[Piece]]  # this rank's rows, of every pass
    back: Callable[[Array], Array] | None = None  # weights from the coordinates that are solved in

    def advance(self, tolerance: float) -> None:
        """Collective. Go over the rows once more."""
        solver = self.solver
        if not len(solver.active):
            return
        losses, gradients, weight = self.objective.sums(solver.trial, self.members[solver.active], self.pieces())
        weight = max(weight, 1e-300)
        gradients /= weight
        solver.advance(losses / weight, gradients, tolerance)

    def weights_of(self, numbers: Array) -> Array:
        """Return weights (S + 1, len(numbers), K) of some of the candidates."""
        found = self.solver.weights_of(np.searchsorted(self.members, numbers))
        return found if self.back is None else self.back(found)


@dataclass(frozen=True, slots=True)
class Sample:
    """One rank's rows to screen by."""

    pieces: list[Piece]
    columns: Array | None  # (S,) that the rows name by their place among these; None: all
    places: Array | None = None  # (D,) of columns among these, -1 for others

    def cut(self, piece: Piece) -> Piece:
        """Return other rows of the channel's columns, or another's, as rows of the sample's."""
        return piece if self.columns is None or self.places is None else _renamed(piece, self.places, len(self.columns))

    def widened(self, weights: Array, columns: int) -> Array:
        """Return weights (S + 1, P, K), the bias last, as those of all columns (D + 1, P, K)."""
        if self.columns is None:
            return weights
        wide = np.zeros((columns + 1, *weights.shape[1:]))
        wide[self.columns], wide[-1] = weights[:-1], weights[-1]
        return wide


@dataclass(frozen=True, slots=True)
class Screening:
    """Which rows candidates are screened by."""

    every: int  # one block in so many
    rows: int  # of the channel, roughly
    passes: int  # over the sample at most

    @property
    def sharper(self) -> float:
        """What penalties are multiplied with."""
        return float(self.every)

    def of(self, world: Collective, pieces: Iterable[Piece], columns: int) -> Sample:
        """Collective. Return this rank's share of the rows, of `columns` columns."""
        found = []
        for piece in pieces:
            block = piece.block
            first = (piece.batch * READ_ROWS + piece.offset) // block  # number of the piece's first block in the channel
            starts = range(-first % self.every * block, len(piece), self.every * block)
            parts = [rows_of(piece, start, min(start + block, len(piece))) for start in starts]
            if parts:
                found.append(_joined(parts))
        if columns < _WIDE:
            return Sample(found, None)
        occurs = np.zeros(columns, dtype=np.int8)
        for piece in found:
            if isinstance(piece.features, Csr):
                occurs[piece.features.indices] = 1
            else:
                occurs[:] = 1
        occurs = world.all_reduce(occurs, "max")
        chosen = np.flatnonzero(occurs)
        if len(chosen) in (0, columns):
            return Sample(found, None)
        places = np.where(occurs, np.cumsum(occurs, dtype=np.int64) - 1, -1)
        return Sample([_renamed(piece, places, len(chosen)) for piece in found], chosen, places)


def screening(candidates: int, rows: int, weights: int) -> Screening | None:
    """Return how to screen so many candidates of so many weights each on a channel of `rows`; None where it does not pay."""
    fewest, passes = (_FEWEST_ROWS, _PASSES) if weights <= rows else (_FEWEST_OF_WIDE, _PASSES_OF_WIDE)
    every = rows // min(max(rows // _SHARE, fewest), _MOST_ROWS)
    return Screening(every, rows, passes) if candidates >= _FEWEST_CANDIDATES and every >= 4 else None


def _joined(parts: list[Piece]) -> Piece:
    first = parts[0]
    label, weight = np.concatenate([p.label for p in parts]), np.concatenate([p.weight for p in parts])
    sparse = [p.features for p in parts if isinstance(p.features, Csr)]
    if sparse:
        counts = np.concatenate([np.diff(p.indptr) for p in sparse])
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        indices, values = np.concatenate([p.indices for p in sparse]), np.concatenate([p.values for p in sparse])
        return replace(first, features=Csr(indptr, indices, values, sparse[0].columns), label=label, weight=weight)
    dense = np.concatenate([np.asarray(p.features) for p in parts])
    return replace(first, features=dense, label=label, weight=weight)


def _renamed(piece: Piece, places: Array, columns: int) -> Piece:
    features = piece.features
    if not isinstance(features, Csr):
        return piece
    found = places[features.indices]
    known = found >= 0
    indptr = np.concatenate([[0], np.cumsum(known, dtype=np.int64)])[features.indptr]
    return replace(piece, features=Csr(indptr, found[known], features.values[known], columns))
