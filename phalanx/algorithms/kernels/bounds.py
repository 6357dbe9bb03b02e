"""Loops of Lloyd's algorithm that leave out rows whose nearest centre cannot have changed.

After Hamerly, "Making k-means even faster" (2010): of every row a lower bound of the distance to all centres but its own is
kept, and lowered by how far these have moved since. A row nearer to its own centre than that keeps it. Bounds allow for every
rounding of what they come from, so they change the time and never a label: see `kernels.kmeans`.

The kernels have explicit signatures: they are compiled, or loaded from numba's cache, when this module is imported.

Legend of shapes: M rows, D columns, K centres, T rows that must be compared with all centres.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import numpy as np
from numba import njit

from .kmeans import squared_distance

_ROUNDING = 6.0e-8  # just above 2^-24, the relative error of a float32 operation
_TOO_LARGE = 1.0e36  # products of such norms may overflow float32
_BELOW, _ABOVE = 1.0 - 2.0e-7, 1.0 + 1.0e-9


@njit("i8(f4[:, ::1], f4[:, ::1], i4[::1], f4[::1], f8, f8, i8, f8[::1], i4[::1])", nogil=True, cache=True)
def to_compare(rows, centers, labels, lower, most, next_most, fastest, distances, todo):
    """Write the rows that may have another nearest centre now into `todo` (M,); return how many.

    Args:
        rows: (M, D).
        centers: (K, D), moved.
        labels: (M,) nearest centre before; -1: not known.
        lower: (M,) bounds of the distances to all other centres before; lowered.
        most: the farthest that a centre moved.
        next_most: the farthest that one of the others moved.
        fastest: the centre that moved farthest.
        distances: (M,) written: |row - its centre|², where it has one.
        todo: (M,) written.
    """
    count = 0
    for i in range(rows.shape[0]):
        own = labels[i]
        if own >= 0:
            moved = next_most if own == fastest else most
            low = (np.float64(lower[i]) - moved) * _BELOW
            distances[i] = squared_distance(rows[i], centers[own])
            if low > 0.0:
                lower[i] = np.float32(low)
                if np.sqrt(distances[i]) * _ABOVE < low * _BELOW:
                    continue
            else:
                lower[i] = np.float32(0.0)
        todo[count] = i
        count += 1
    return count


@njit("void(f4[:, ::1], i4[::1], f4[::1], f4[:, ::1], f4[::1])", nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def shift_some(rows, todo, offset, shifted, norms):
    """Write rows `todo` (T,) less `offset` into `shifted` (T, D) and their norms into `norms` (T,), roughly."""
    for t in range(todo.shape[0]):
        row = rows[todo[t]]
        total = np.float32(0)
        for j in range(row.shape[0]):
            moved = row[j] - offset[j]
            shifted[t, j] = moved
            total += moved * moved
        norms[t] = np.sqrt(total)


@njit(
    "void(f4[:, ::1], i4[::1], f4[::1], f4[:, ::1], f4[:, ::1], f4[::1], f8, f8, i4[::1], f4[::1], f8[::1])",
    nogil=True,
    cache=True,
    fastmath={"nnan", "nsz"},  # lets minima be taken in vectors; allows no reordering of sums
)
def nearest_of_some(rows, todo, norms, products, centers, half_squares, largest_norm, largest_half, labels, lower, distances):
    """As `kernels.kmeans.nearest` for rows `todo` (T,), with a bound of the distance to all other centres.

    Args:
        rows: (M, D), as they are.
        todo: (T,) rows to compare.
        norms: (T,) norms of the shifted rows.
        products: (T, K) float32 products of shifted rows and shifted centres; destroyed.
        centers: (K, D), as they are.
        half_squares: (K,) |c|² / 2 of the shifted centres.
        largest_norm: the largest |c|.
        largest_half: the largest |c|² / 2.
        labels: (M,) before, -1: not known; written.
        lower: (M,) written.
        distances: (M,) of the centres that `labels` names; written.
    """
    count = centers.shape[0]
    terms = 1.1 * rows.shape[1] + 16.0
    for t in range(todo.shape[0]):
        i = todo[t]
        norm = np.float64(norms[t])
        scale = norm * (1.001 + _ROUNDING * terms) * largest_norm
        scores = products[t]
        best = np.int64(-1)
        limit = np.float32(np.inf)
        low = 0.0
        if scale < _TOO_LARGE and largest_half < _TOO_LARGE and norm * norm < _TOO_LARGE:
            least = np.float32(np.inf)
            for k in range(count):
                score = half_squares[k] - scores[k]
                scores[k] = score
                least = score if score < least else least
            slack = _ROUNDING * (terms * scale + 8.0 * largest_half) + 1e-36
            limit = np.float32(np.float64(least) + 2.0 * slack)
            close = np.int32(0)
            position = np.int32(0)
            runner_up = np.float32(np.inf)
            for k in range(count):
                within = np.int32(scores[k] <= limit)
                close += within
                position += within * np.int32(k)
                beyond = np.float32(np.inf) if scores[k] <= limit else scores[k]
                runner_up = beyond if beyond < runner_up else runner_up
            if close == 1:
                best = np.int64(position)
                squared = 2.0 * (np.float64(runner_up) - slack) + norm * norm * (1.0 - 4.0 * _ROUNDING * terms)
                low = min(np.sqrt(squared) * _BELOW, 1.0e30) if squared > 0.0 else 0.0
        if best >= 0:
            if best != labels[i]:
                distances[i] = squared_distance(rows[i], centers[best])
        else:
            shortest = np.inf
            for k in range(count):
                if limit == np.inf or scores[k] <= limit:
                    distance = squared_distance(rows[i], centers[k])
                    if best < 0 or distance < shortest:
                        best, shortest = k, distance
            distances[i] = shortest
        labels[i] = np.int32(best)
        lower[i] = np.float32(low * _BELOW)


@njit("i8(f4[:, ::1], f8[::1], i4[::1], i4[::1], f8[::1], f8[:, ::1], f8[::1])", nogil=True, cache=True)
def exchange(rows, weights, before, now, anchors, sums, totals):
    """Take every row that has another label now from the sum of its old one and add it to that of its new one; return how many.

    Args:
        rows: (M, D).
        weights: (M,), or (0,) where every row weighs 1.
        before: (M,) labels; -1: none.
        now: (M,) labels.
        anchors: (D + 1,) of the grids on which columns and weights are added.
        sums: (K, D) of weight · row.
        totals: (K,) of weights.
    """
    columns = rows.shape[1]
    weighted = weights.shape[0] > 0
    changed = 0
    for i in range(rows.shape[0]):
        old, new = before[i], now[i]
        if old == new:
            continue
        changed += 1
        weight = weights[i] if weighted else 1.0
        rounded = (weight + anchors[columns]) - anchors[columns] if weighted else 1.0
        totals[new] += rounded
        if old >= 0:
            totals[old] -= rounded
        for j in range(columns):
            value = weight * np.float64(rows[i, j]) if weighted else np.float64(rows[i, j])
            value = (value + anchors[j]) - anchors[j]
            sums[new, j] += value
            if old >= 0:
                sums[old, j] -= value
    return changed
