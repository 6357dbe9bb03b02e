"""Loops of the linear learner over sparse rows, each in O(nnz · M), and over the rows of requests.

Sums over rows add numbers on a common grid (`phalanx.algorithms.fixed_point`), which is exact in any order; so no fast-math
flag that reorders. The kernels have explicit signatures: they are compiled, or loaded from numba's cache, on import.

Legend of shapes: N rows, D columns, M score columns (candidates times outputs).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from numba import njit


@njit("void(i8[::1], i8[::1], f4[::1], f8[:, ::1], f8[:, ::1])", nogil=True, cache=True)
def sparse_scores(indptr, indices, values, weights, out):
    """Write the products of sparse rows with `weights` (D, M), added to what `out` (N, M) holds, into `out`."""
    for i in range(out.shape[0]):
        if out.shape[1] == 1:
            total = out[i, 0]
            for place in range(indptr[i], indptr[i + 1]):
                total += values[place] * weights[indices[place], 0]
            out[i, 0] = total
        else:
            for place in range(indptr[i], indptr[i + 1]):
                value = values[place]
                j = indices[place]
                for m in range(out.shape[1]):
                    out[i, m] += value * weights[j, m]


@njit("void(f4[:, ::1], f8[:, ::1], f8[:, ::1])", nogil=True, cache=True)
def dense_scores(rows, weights, out):
    """As `sparse_scores`, of dense rows (N, D); zeros change nothing, so both answer alike."""
    for i in range(out.shape[0]):
        for j in range(rows.shape[1]):
            value = rows[i, j]
            for m in range(out.shape[1]):
                out[i, m] += value * weights[j, m]


@njit("void(i8[::1], i8[::1], f4[::1], f8[:, ::1], f8[::1], f8[::1], f8[:, ::1])", nogil=True, cache=True)
def sparse_gradient(indptr, indices, values, slopes, of_column, of_score, out):
    """Add `rowsᵀ · slopes` (D, M) to `out`, every product rounded to the grid of anchor `of_column[j] * of_score[m]`."""
    for i in range(slopes.shape[0]):
        for place in range(indptr[i], indptr[i + 1]):
            value = values[place]
            j = indices[place]
            for m in range(slopes.shape[1]):
                anchor = of_column[j] * of_score[m]
                out[j, m] += (value * slopes[i, m] + anchor) - anchor


@njit("void(f8[:, ::1], f8[::1], f8[::1])", nogil=True, cache=True)
def sizes(weights, largest, sums):
    """Add the magnitudes of weights (D, M), times bounds of the features (D,), to `sums` (M,)."""
    for j in range(weights.shape[0]):
        for m in range(weights.shape[1]):
            sums[m] += largest[j] * abs(weights[j, m])


@njit("void(i8[::1], f4[::1], f8[::1], f8[::1], f8[:, ::1])", nogil=True, cache=True)
def sparse_moments(indices, values, anchors, square_anchors, out):
    """Add values (row 0) and squares (row 1) of sparse rows by column to `out` (2, D), on the grids of the anchors (D,)."""
    for place in range(values.shape[0]):
        j = indices[place]
        value = float(values[place])
        out[0, j] += (value + anchors[j]) - anchors[j]
        out[1, j] += (value * value + square_anchors[j]) - square_anchors[j]


@njit("void(i8[::1], i8[::1], f4[::1], f8[::1], f8[::1], f8, f8[:, ::1])", nogil=True, cache=True)
def sparse_products(indptr, indices, values, anchors, of_column, anchor, out):
    """Add products of columns (D, D), the upper half of them, and in the last row sums of columns to `out` (D + 1, D).

    Products are rounded to the grid of `of_column[j] * of_column[k] * anchor`, columns to those of `anchors` (D,).
    """
    last = out.shape[0] - 1
    for i in range(indptr.shape[0] - 1):
        for one in range(indptr[i], indptr[i + 1]):
            j = indices[one]
            value = float(values[one])
            out[last, j] += (value + anchors[j]) - anchors[j]
            scale = of_column[j] * anchor
            for other in range(one, indptr[i + 1]):
                k = indices[other]
                grid = scale * of_column[k]
                out[j, k] += (value * float(values[other]) + grid) - grid


@njit("void(i8[::1], i8[::1], f4[::1], i8, i8, f8[::1], f8[:, ::1])", nogil=True, cache=True)
def sparse_gram(indptr, indices, values, start, stop, room, out):
    """Write the products of the sparse rows [start, stop) with all rows before them, and with themselves, to `out` (N, N).

    `room` (D,) holds zeros, before and after.
    """
    for i in range(start, stop):
        for place in range(indptr[i], indptr[i + 1]):
            room[indices[place]] += values[place]
        for other in range(i + 1):
            total = 0.0
            for place in range(indptr[other], indptr[other + 1]):
                total += float(values[place]) * room[indices[place]]
            out[i, other] = total
        for place in range(indptr[i], indptr[i + 1]):
            room[indices[place]] = 0.0
