"""How ranks that learnt from different lines come to one model: rows of a matrix move by the mean of what moved them."""

from __future__ import annotations

import numpy as np

from ..contracts import Array, Collective

_CHUNK = 1 << 15  # rows that are reduced at once


def combine(world: Collective, matrix: Array, before: Array) -> None:
    """Collective. Move rows of `matrix` (R, S) from `before`, the same on all ranks, by the mean of what ranks moved them.

    The mean is over the ranks that moved a row: a rare word that one rank met keeps all it learnt. Where few rows moved, only
    those are exchanged.
    """
    moved = np.array([_moved(matrix[at : at + _CHUNK], before[at : at + _CHUNK]).sum() for at in range(0, len(matrix), _CHUNK)])
    if int(world.all_reduce(moved.sum(dtype=np.int64).reshape(1))[0]) * 2 < len(matrix):
        keys = np.flatnonzero(_moved(matrix, before))
        keys, sums = world.sparse_sum(keys.astype(np.int64), _with_count(matrix[keys], before[keys]))
        matrix[keys] = before[keys] + sums[:, :-1] / sums[:, -1:]
        return
    for at in range(0, len(matrix), _CHUNK):
        part, base = matrix[at : at + _CHUNK], before[at : at + _CHUNK]
        sums = world.all_reduce(_with_count(part, base))
        part[:] = base + sums[:, :-1] / np.maximum(sums[:, -1:], 1)


def _moved(matrix: Array, before: Array) -> Array:
    moved: Array = (matrix != before).any(axis=1)
    return moved


def _with_count(matrix: Array, before: Array) -> Array:
    """Return moves (n, S + 1), the last column 1 where a row moved."""
    return np.hstack([matrix - before, _moved(matrix, before)[:, None]]).astype(np.float32)
