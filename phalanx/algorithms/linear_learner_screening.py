"""Screening of many candidates: all learn from some of the rows, and the best of them go on with all.

The rows are fixed blocks spread evenly over the channel, so every number of workers screens by the same. A penalty of the
mean loss weighs as much against few rows as a larger one: penalties grow as the rows are fewer.

Legend of shapes: P candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..contracts import Csr
from .linear_learner_data import READ_ROWS, Piece, rows_of

PASSES = 30  # over the sample at most
LOOSER = 10.0  # than the last passes: it is only to tell candidates apart
KEPT = 2  # candidates that go on
_FEWEST_CANDIDATES = 8
_SHARE = 32  # of the rows: one in so many
_FEWEST_ROWS, _MOST_ROWS = 4096, 65536


@dataclass(frozen=True, slots=True)
class Screening:
    """Which rows candidates are screened by."""

    every: int  # one block in so many
    rows: int  # of the channel, roughly

    @property
    def sharper(self) -> float:
        """What penalties are multiplied with."""
        return float(self.every)

    def of(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Return this rank's share of the rows."""
        found = []
        for piece in pieces:
            block = piece.block
            first = (piece.batch * READ_ROWS + piece.offset) // block  # number of the piece's first block in the channel
            places = range(-first % self.every * block, len(piece), self.every * block)
            parts = [rows_of(piece, start, min(start + block, len(piece))) for start in places]
            if parts:
                found.append(_joined(parts))
        return found


def screening(candidates: int, rows: int) -> Screening | None:
    """Return how to screen so many candidates on a channel of so many rows; None where it does not pay."""
    every = rows // min(max(rows // _SHARE, _FEWEST_ROWS), _MOST_ROWS)
    return Screening(every, rows) if candidates >= _FEWEST_CANDIDATES and every >= 4 else None


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
