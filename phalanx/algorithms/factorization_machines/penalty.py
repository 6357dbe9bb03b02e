"""How strong solver=auto's penalty on factors is where rows are few: as strong as held-out rows say.

A prior of 30/rows suits wide one-hot rows, of which a pair occurs now and then. On some hundred dense rows it may leave
nothing of the pairs, and a weak one may fit noise. So some of the rows are left out, by turns, and the strength with the
lowest loss on them is taken: a weaker one where it clearly gains, and where none does, a stronger one that clearly gains. A
row is left out by what it holds, so every number of workers leaves out the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ...contracts import Array, Collective
from ...errors import UserError
from .data import Piece
from .tables import SUMS, Tables, measured, raw_scores, summed

STRENGTHS = (30.0, 3.0, 0.3)  # over the rows; the first is what many rows get
STRONGER = (300.0, 3000.0)  # tried where no weaker one gains: the last leaves hardly more than a linear model
FEWEST_ROWS, MOST_ROWS = 50, 8192  # of a channel that the strength is chosen for
_FOLDS = 3
_ALL_FOLDS = 1000  # rows up to which every row is left out once; of more, a third is enough
_GAIN = 0.99  # of the loss: another strength must do better than that
_SLOWEST = 0.01  # share of its first step size that solver=auto ends with


def speed_at(done: float) -> float:
    """Return the step sizes of solver=auto over the first ones, after a share of all steps."""
    return _SLOWEST + (1 - _SLOWEST) * (1 + float(np.cos(np.pi * done))) / 2


def strength_by_held_out_rows(
    world: Collective,
    pieces: Sequence[Piece],
    rows: int,
    begin: Callable[[float], Tables],
    epochs: int,
    copies: int,
    *,
    classifies: bool,
) -> float:
    """Collective. Return the strength of the penalty on factors that answers held-out rows best.

    Args:
        world: the ranks.
        pieces: this rank's rows of the batches of an epoch, scaled.
        rows: of the channel.
        begin: returns tables to begin with, for a strength.
        epochs: of a training.
        copies: how many ranks have each row.
        classifies: whether labels are classes.
    """
    folds = [_folds(piece) for piece in pieces]
    steps = epochs * len(pieces)

    def loss_of(strength: float, fold: int) -> float:
        tables, total = begin(strength), np.zeros(len(SUMS))
        learnt = [replace(p, weight=p.weight * (of != fold)) for p, of in zip(pieces, folds, strict=True)]
        for number in range(1, steps + 1):
            tables.step(world, learnt[(number - 1) % len(learnt)], number, speed_at((number - 1) / steps), copies)
        for piece, of in zip(pieces, folds, strict=True):
            left = replace(piece, weight=piece.weight * (of == fold))
            found = measured(raw_scores(left, tables.table)[0], left, classifies=classifies)
            total += summed(world, found, left.batch, copies)
        return float(total[1] / max(total[0], 1e-300))

    def all_of(strength: float) -> float:
        try:
            return sum(loss_of(strength, fold) for fold in range(_FOLDS if rows <= _ALL_FOLDS else 1))
        except UserError:  # on every rank: it diverges, which the training itself will say where this is the best
            return np.inf

    first = best = STRENGTHS[0]
    least = all_of(first)
    for others in (STRENGTHS[1:], STRONGER):
        for strength in others if best == first else ():
            loss = all_of(strength)
            if not loss < least * _GAIN:
                break
            best, least = strength, loss
    return best


def _folds(piece: Piece) -> Array:
    """Return by what turn each row is left out, (N,)."""
    found = np.empty(len(piece), dtype=np.int64)
    for i in range(len(piece)):
        part = slice(piece.indptr[i], piece.indptr[i + 1])
        what = zlib.crc32(piece.values[part].tobytes(), zlib.crc32(piece.indices[part].tobytes()))
        found[i] = what % _FOLDS
    return found
