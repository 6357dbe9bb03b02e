"""The logistic loss of many candidates in one reading of the rows: scores, losses, slopes and gradient, chunk by chunk.

All that a chunk of rows needs stays in the first cache. Chunks begin where blocks of `phalanx.data.order` begin, and what is
added up over them lies on a common grid (`phalanx.algorithms.fixed_point`), so the bits do not depend on who takes which rows.

Legend of shapes: N rows, D columns, P candidates; weights and gradients are (D + 1, P), the bias last.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"

from __future__ import annotations

from typing import Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

CHUNK: Final = 32  # rows; no block is shorter, but the last of a channel
_FUSED = {"contract"}  # a product and a sum in one rounding: what lies on a grid stays on it
_SHIFT: Final = 1.5 * 2.0**52  # added to a number it leaves the nearest whole number in the low bits
_LOG2E: Final = 1.4426950408889634
_LN2_HIGH: Final = 0.6931471803691238
_LN2_LOW: Final = 1.9082149292705877e-10
_LOWEST: Final = -700.0


@intrinsic
def _times_power(typing_context, value, shifted):
    """Return `value` times 2 to the whole number in the low bits of `shifted`."""

    def generate(context, builder, signature, args):
        word = ir.IntType(64)
        bits = builder.shl(builder.bitcast(args[1], word), ir.Constant(word, 52))
        power = builder.bitcast(builder.add(bits, ir.Constant(word, 1023 << 52)), ir.DoubleType())
        return builder.fmul(args[0], power)

    return types.float64(value, shifted), generate


@njit(nogil=True, inline="always")
def _exp(x):
    """Return e to a number of at most 0, to some 1e-14 of it: a polynomial, which loops take many of at once."""
    x = max(x, _LOWEST)
    shifted = x * _LOG2E + _SHIFT
    whole = shifted - _SHIFT
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    p = 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return _times_power(p, shifted)


@njit(nogil=True, fastmath=_FUSED)
def _evaluate(z, label, factor, first, rows, width, loss_anchors, score_anchors, slopes, sums, loss, small):
    """Turn the scores `z` of a chunk into slopes; add the losses to `loss` (P,) and the slopes to `sums` (P,).

    Args:
        z: (rows · P,) scores.
        label: (N,) 0 or 1.
        factor: (N, P) of each row's loss; (0, P) where all are 1.
        first: the chunk's first row.
        rows: of the chunk.
        width: P.
        loss_anchors: (P,) of the grids of losses.
        score_anchors: (P,) of those of slopes.
        slopes: (rows · P,) written.
        sums: added to.
        loss: added to.
        small: (2, rows · P) room.
    """
    weighted = factor.shape[0] > 0
    for i in range(rows):
        sign = 1.0 - 2.0 * label[first + i]
        for m in range(i * width, (i + 1) * width):
            z[m] *= sign
            small[1, m] = sign
    for m in range(rows * width):
        small[0, m] = _exp(-abs(z[m]))
    for m in range(rows * width):
        slopes[m] = (1.0 if z[m] > 0.0 else small[0, m]) / (1.0 + small[0, m]) * small[1, m]
    if weighted:
        for i in range(rows):
            for m in range(width):
                at, much = i * width + m, factor[first + i, m]
                slopes[at] *= much
                cost = (max(z[at], 0.0) + np.log1p(small[0, at])) * much
                loss[m] += (cost + loss_anchors[m]) - loss_anchors[m]
    else:
        for m in range(width):
            # one logarithm a chunk: its product is at most 2 to the number of rows
            above, product = 0.0, 1.0
            for at in range(m, rows * width, width):
                above += max(z[at], 0.0)
                product *= 1.0 + small[0, at]
            loss[m] += ((above + np.log(product)) + loss_anchors[m]) - loss_anchors[m]
    for i in range(rows):
        for m in range(width):
            sums[m] += (slopes[i * width + m] + score_anchors[m]) - score_anchors[m]


@njit(
    "void(i8[::1], i8[::1], f4[::1], f8[::1], f8[:, ::1], f8[:, ::1], f8[::1], f8[::1], f8[::1], f8[::1], b1,"
    " f8[:, ::1], f8[::1])",
    nogil=True,
    cache=True,
    fastmath=_FUSED,
)
def sparse_logistic(
    indptr, indices, values, label, factor, weights, of_column, of_score, score_anchors, loss_anchors, gradients, out, loss
):
    """Add the logistic losses of sparse rows to `loss` (P,), and with `gradients` their gradients to `out` (D + 1, P).

    Args:
        indptr: of the rows, as the next two.
        indices: columns.
        values: numbers.
        label: (N,) 0 or 1.
        factor: (N, P) of each row's loss; (0, P) where all are 1.
        weights: (D + 1, P).
        of_column: (D,) a gradient's grid has the anchor `of_column[j] * of_score[m]`.
        of_score: (P,).
        score_anchors: (P,) of the grids of slopes.
        loss_anchors: (P,) of those of losses.
        gradients: whether they are wanted.
        out: added to.
        loss: added to.
    """
    last, width = weights.shape[0] - 1, weights.shape[1]
    z, slopes, small = np.empty(CHUNK * width), np.empty(CHUNK * width), np.empty((2, CHUNK * width))
    sums = np.zeros(width)
    for first in range(0, label.shape[0], CHUNK):
        rows = min(CHUNK, label.shape[0] - first)
        for i in range(rows):
            start, stop = np.uint64(indptr[first + i]), np.uint64(indptr[first + i + 1])
            if width == 1:
                total = weights[last, 0]
                for place in range(start, stop):
                    total += np.float64(values[place]) * weights[np.uint64(indices[place]), 0]
                z[i] = total
            else:
                row = z[i * width : (i + 1) * width]
                for m in range(width):
                    row[m] = weights[last, m]
                for place in range(start, stop):
                    value, j = np.float64(values[place]), np.uint64(indices[place])
                    for m in range(width):
                        row[m] += value * weights[j, m]
        _evaluate(z, label, factor, first, rows, width, loss_anchors, score_anchors, slopes, sums, loss, small)
        if not gradients:
            continue
        for i in range(rows):
            start, stop = np.uint64(indptr[first + i]), np.uint64(indptr[first + i + 1])
            if width == 1:
                slope, scale = slopes[i], of_score[0]
                for place in range(start, stop):
                    j = np.uint64(indices[place])
                    anchor = of_column[j] * scale
                    out[j, 0] += (np.float64(values[place]) * slope + anchor) - anchor
            else:
                row = slopes[i * width : (i + 1) * width]
                for place in range(start, stop):
                    value, j = np.float64(values[place]), np.uint64(indices[place])
                    size = of_column[j]
                    for m in range(width):
                        anchor = size * of_score[m]
                        out[j, m] += (value * row[m] + anchor) - anchor
    if gradients:
        for m in range(width):
            out[last, m] += sums[m]


@njit(
    "void(f4[:, ::1], f8[::1], f8[:, ::1], i8, f4[:, ::1], f8[::1], f8[::1], f8[::1], f8[::1], f8[::1], b1,"
    " f8[:, ::1], f8[::1])",
    nogil=True,
    cache=True,
    fastmath=_FUSED,
)
def dense_logistic(
    features, label, factor, block, weights, bias, of_column, of_score, score_anchors, loss_anchors, gradients, out, loss
):
    """As `sparse_logistic`, of dense rows (N, D), which BLAS multiplies in float32 in blocks.

    Args:
        features: rows.
        label: (N,) 0 or 1.
        factor: (N, P) of each row's loss; (0, P) where all are 1.
        block: rows of a block, a multiple of CHUNK.
        weights: (D, P).
        bias: (P,).
        of_column: (D,) a gradient's grid has the anchor `of_column[j] * of_score[m]`.
        of_score: (P,).
        score_anchors: (P,) of the grids of slopes.
        loss_anchors: (P,) of those of losses.
        gradients: whether they are wanted.
        out: added to.
        loss: added to.
    """
    columns, width = weights.shape
    single = np.ascontiguousarray(weights[:, 0])
    z, slopes, small = np.empty(CHUNK * width), np.empty(CHUNK * width), np.empty((2, CHUNK * width))
    sums = np.zeros(width)
    scores, narrow = np.empty((block, width), dtype=np.float32), np.empty((block, width), dtype=np.float32)
    gradient = np.empty((columns, width), dtype=np.float32)
    for begin in range(0, label.shape[0], block):
        count = min(block, label.shape[0] - begin)
        part, flat_scores, flat_slopes = features[begin : begin + count], scores[:count].ravel(), narrow[:count].ravel()
        if width == 1:
            np.dot(part, single, flat_scores)
        else:
            np.dot(part, weights, scores[:count])
        for first in range(0, count, CHUNK):
            rows, at = min(CHUNK, count - first), first * width
            for i in range(rows):
                for m in range(width):
                    z[i * width + m] = np.float64(flat_scores[at + i * width + m]) + bias[m]
            _evaluate(z, label, factor, begin + first, rows, width, loss_anchors, score_anchors, slopes, sums, loss, small)
            for m in range(rows * width):
                flat_slopes[at + m] = slopes[m]
        if not gradients:
            continue
        if width == 1:
            np.dot(part.T, flat_slopes, gradient.ravel())
        else:
            np.dot(part.T, narrow[:count], gradient)
        for j in range(columns):
            for m in range(width):
                anchor = of_column[j] * of_score[m]
                out[j, m] += (np.float64(gradient[j, m]) + anchor) - anchor
    if gradients:
        for m in range(width):
            out[columns, m] += sums[m]
