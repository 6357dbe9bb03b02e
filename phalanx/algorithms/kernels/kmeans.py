"""Loops of k-means: extent of a batch, nearest centres, sums by centre, k-means++.

Nothing here depends on who computes a row or in which company. The matrix product, whose rounding may differ with its shape,
its threads and the CPU, only narrows the choice: centres whose scores lie within its rigorous error bound are compared again
by `squared_distance`, whose operations have a fixed order. Sums add numbers that lie on a common grid
(`phalanx.algorithms.fixed_point`), which is exact in any order. So neither may have a fast-math flag that reorders.

The kernels have explicit signatures: they are compiled, or loaded from numba's cache, when this module is imported.

Legend of shapes: M rows, D columns, K centres.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import numpy as np
from numba import njit

_ROUNDING = 6.0e-8  # just above 2^-24, the relative error of a float32 operation
_TOO_LARGE = 1.0e36  # products of such norms may overflow float32
_MAGNITUDE = np.int32(0x7FFFFFFF)  # float32 without its sign; such integers compare as the numbers do, NaN above infinity


@njit("void(i4[:, ::1], i4[::1])", nogil=True, cache=True)
def raise_to_largest(rows, largest):
    """Raise `largest` (D,) to the largest magnitude in each column of `rows` (M, D); both are float32 seen as int32."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            largest[j] = max(largest[j], rows[i, j] & _MAGNITUDE)


@njit("f8(f4[::1], f4[::1])", nogil=True, cache=True)
def squared_distance(a, b):
    """Return |a - b|² of two rows (D,), summed in float64 in eight lanes and one fixed order."""
    n = a.shape[0]
    even = n - n % 8
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for j in range(0, even, 8):
        d0 = np.float64(a[j]) - np.float64(b[j])
        d1 = np.float64(a[j + 1]) - np.float64(b[j + 1])
        d2 = np.float64(a[j + 2]) - np.float64(b[j + 2])
        d3 = np.float64(a[j + 3]) - np.float64(b[j + 3])
        d4 = np.float64(a[j + 4]) - np.float64(b[j + 4])
        d5 = np.float64(a[j + 5]) - np.float64(b[j + 5])
        d6 = np.float64(a[j + 6]) - np.float64(b[j + 6])
        d7 = np.float64(a[j + 7]) - np.float64(b[j + 7])
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
        s4 += d4 * d4
        s5 += d5 * d5
        s6 += d6 * d6
        s7 += d7 * d7
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for j in range(even, n):
        d = np.float64(a[j]) - np.float64(b[j])
        total += d * d
    return total


@njit("void(f4[:, ::1], f4[::1], f4[:, ::1], f4[::1])", nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def shift(rows, offset, shifted, norms):
    """Write `rows - offset` (M, D) into `shifted` and the norms of its rows into `norms` (M,), roughly: they serve a bound."""
    for i in range(rows.shape[0]):
        total = np.float32(0)
        for j in range(rows.shape[1]):
            moved = rows[i, j] - offset[j]
            shifted[i, j] = moved
            total += moved * moved
        norms[i] = np.sqrt(total)


@njit(
    "void(f4[:, ::1], f4[::1], f4[:, ::1], f4[:, ::1], f4[::1], f8, f8, i4[::1], f8[::1])",
    nogil=True,
    cache=True,
    fastmath={"nnan", "nsz"},  # lets the minimum be taken in vectors; allows no reordering of sums
)
def nearest(rows, norms, products, centers, half_squares, largest_norm, largest_half, labels, distances):
    """Write the nearest centre of every row into `labels` (M,), the first of equals, and its |row - centre|² into `distances`.

    With x and c shifted by the same offset, |x - c|² / 2 - |x|² / 2 = |c|² / 2 - x·c: the score of a centre. Its float32 value
    is off by at most `slack`, so the nearest centre is among those whose score is at most 2 * slack above the smallest.

    Args:
        rows: (M, D), as they are.
        norms: (M,) norms of the shifted rows.
        products: (M, K) float32 products of shifted rows and shifted centres.
        centers: (K, D), as they are.
        half_squares: (K,) |c|² / 2 of the shifted centres.
        largest_norm: the largest |c|.
        largest_half: the largest |c|² / 2.
        labels: (M,) written.
        distances: (M,) written.
    """
    count = centers.shape[0]
    terms = 1.1 * rows.shape[1] + 16.0  # roundings: of the product, of shifting, of the score and its limit
    for i in range(rows.shape[0]):
        scale = np.float64(norms[i]) * (1.001 + _ROUNDING * terms) * largest_norm
        best = np.int64(-1)
        limit = np.float32(np.inf)
        if scale < _TOO_LARGE and largest_half < _TOO_LARGE:
            least = np.float32(np.inf)
            for k in range(count):
                score = half_squares[k] - products[i, k]
                least = score if score < least else least
            slack = _ROUNDING * (terms * scale + 8.0 * largest_half) + 1e-36
            limit = np.float32(np.float64(least) + 2.0 * slack)
            close = np.int32(0)
            position = np.int32(0)
            for k in range(count):
                within = np.int32(half_squares[k] - products[i, k] <= limit)
                close += within
                position += within * np.int32(k)
            if close == 1:
                best = np.int64(position)
        if best >= 0:
            distances[i] = squared_distance(rows[i], centers[best])
        else:
            shortest = np.inf
            for k in range(count):
                if limit == np.inf or half_squares[k] - products[i, k] <= limit:
                    distance = squared_distance(rows[i], centers[k])
                    if best < 0 or distance < shortest:
                        best, shortest = k, distance
            distances[i] = shortest
        labels[i] = best


@njit("void(f4[:, ::1], i4[::1], f8[::1], f8[:, ::1], f8[::1])", nogil=True, cache=True)
def add_by_label(rows, labels, anchors, sums, counts):
    """Add every row, rounded to the grids of `anchors` (D,), to the row of `sums` (K, D) that its label names; count it."""
    for i in range(rows.shape[0]):
        k = labels[i]
        counts[k] += 1.0
        for j in range(rows.shape[1]):
            sums[k, j] += (np.float64(rows[i, j]) + anchors[j]) - anchors[j]


@njit("void(f4[:, ::1], f8[::1], i4[::1], f8[:, ::1], f8[::1])", nogil=True, cache=True)
def add_weighted(rows, weights, labels, sums, totals):
    """Add weight · row to the row of `sums` (K, D) that its label names, and the weight to `totals` (K,); in row order."""
    for i in range(rows.shape[0]):
        k = labels[i]
        totals[k] += weights[i]
        for j in range(rows.shape[1]):
            sums[k, j] += weights[i] * np.float64(rows[i, j])


@njit("void(f8[:, ::1], f8[::1], f8[:, ::1], f8[::1])", nogil=True, cache=True)
def move(centers, weights, sums, counts):
    """Move every centre (K, D) that got rows to the mean of what it weighed before (`weights`) and of its new rows."""
    for k in range(centers.shape[0]):
        if counts[k] > 0:
            share = counts[k] / (weights[k] + counts[k])
            weights[k] += counts[k]
            for j in range(centers.shape[1]):
                centers[k, j] += share * (sums[k, j] / counts[k] - centers[k, j])


@njit("f4(f4[::1], f4[::1])", nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _rough_squared_distance(a, b):
    total = np.float32(0)
    for j in range(a.shape[0]):
        d = a[j] - b[j]
        total += d * d
    return total


@njit("void(f4[:, ::1], f8[::1], f8[:, ::1], i8[::1])", nogil=True, cache=True)
def plus_plus(points, weights, draws, chosen):
    """Choose rows of `points` (M, D) by greedy k-means++ (Arthur and Vassilvitskii, 2007).

    Candidates are drawn with odds weight · squared distance to the nearest chosen row; the one that leaves the least cost is
    chosen. Distances are rough, so this must run on one rank for all.

    Args:
        points: (M, D) to choose from.
        weights: (M,) at least one above 0.
        draws: (K, L) uniform in [0, 1): L candidates for each choice; the first choice has one.
        chosen: (K,) row numbers, written. Some repeat where there are fewer distinct points than K.
    """
    count = points.shape[0]
    closest = np.ones(count, dtype=np.float64)  # squared distance to the nearest chosen; equal before there is one
    odds = np.empty(count, dtype=np.float64)
    trial = np.empty(count, dtype=np.float64)
    best = np.empty(count, dtype=np.float64)
    for c in range(chosen.shape[0]):
        total = 0.0
        for i in range(count):
            total += weights[i] * closest[i]
            odds[i] = total
        least = np.inf
        for candidate in range(draws.shape[1] if c > 0 else 1):
            draw = draws[c, candidate]
            if total > 0.0 and np.isfinite(total):
                pick = min(np.searchsorted(odds, draw * total, side="right"), count - 1)
            else:
                pick = min(np.int64(draw * count), count - 1)
            cost = 0.0
            for i in range(count):
                distance = np.float64(_rough_squared_distance(points[i], points[pick]))
                trial[i] = distance if c == 0 or distance < closest[i] else closest[i]
                cost += weights[i] * trial[i]
            if candidate == 0 or cost < least:
                least = cost
                chosen[c] = pick
                trial, best = best, trial
        closest, best = best, closest
