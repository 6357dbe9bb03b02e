"""What moved rows of a matrix since they were last the same on all ranks, as numbers of 16 bits: the upper half of a float.

Legend: R rows of S floats in `matrix` and `base`, n rows exchanged, D floats of each.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

_MATRICES = "f4[:, ::1], f4[:, ::1], i8[::1]"


@njit("u2(u4)", inline="always", nogil=True, cache=True)
def _half(bits):
    """Return the upper half of a float's bits, rounded to the nearest."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(f"void({_MATRICES}, u2[:, ::1])", nogil=True, cache=True)
def take_moves(matrix, base, rows, out):
    """Write matrix - base of `rows` (n,) to `out` (n, D)."""
    size = out.shape[1]
    row = np.empty(size, np.float32)
    bits = row.view(np.uint32)
    for i in range(rows.shape[0]):
        at = np.uint64(rows[i])
        for d in range(size):
            row[d] = matrix[at, d] - base[at, d]
        for d in range(size):
            out[i, d] = _half(bits[d])


@njit("void(u2[:, ::1], f4[::1], i8, u2[:, ::1])", nogil=True, cache=True)
def add_moves(moves, shares, ranks, out):
    """Write the sums of moves (ranks * n, D), n of each rank, times shares (n,), to `out` (n, D)."""
    size, count = out.shape[1], out.shape[0]
    row, total = np.empty(size, np.float32), np.empty(size, np.float32)
    bits, total_bits = row.view(np.uint32), total.view(np.uint32)
    for i in range(count):
        total[:] = np.float32(0)
        for rank in range(ranks):
            at = np.uint64(rank * count + i)
            for d in range(size):
                bits[d] = np.uint32(moves[at, d]) << np.uint32(16)
            for d in range(size):
                total[d] += row[d] * shares[i]
        for d in range(size):
            out[i, d] = _half(total_bits[d])


@njit(f"void({_MATRICES}, u2[:, ::1], f4[::1])", nogil=True, cache=True)
def put_moves(matrix, base, rows, moves, shares):
    """Move `rows` (n,) of `base` by shares (n,) of `moves` (n, D), and those of `matrix` to where they are then."""
    size = moves.shape[1]
    row = np.empty(size, np.float32)
    bits = row.view(np.uint32)
    for i in range(rows.shape[0]):
        at = np.uint64(rows[i])
        for d in range(size):
            bits[d] = np.uint32(moves[i, d]) << np.uint32(16)
        for d in range(size):
            base[at, d] += row[d] * shares[i]
            matrix[at, d] = base[at, d]
