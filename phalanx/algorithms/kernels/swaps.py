"""Loops that try every cluster of k-means as two, and draw the row that points from the one half to the other.

Sums add numbers that lie on common grids (`phalanx.algorithms.fixed_point`), distances have a fixed order of operations:
results do not depend on who computes a row. Signatures are explicit: kernels are compiled, or loaded, when this module is
imported.

Legend of shapes: M rows, D columns, S clusters.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import numpy as np
from numba import njit

from .kmeans import squared_distance


@njit("void(i8, u8, i4[::1], f8[::1], f8[::1], f8[::1], i8[::1])", nogil=True, cache=True)
def draw(first_row, key, labels, distances, weights, least, drawn):
    """Draw a row of every cluster, far ones rather than near ones: a race, so that parts of the rows can be drawn from alone.

    Args:
        first_row: number of the first row among those of all ranks.
        key: of the random numbers, of which every row has its own.
        labels: (M,) cluster of each row.
        distances: (M,) squared, to its centre.
        weights: (M,), or (0,) where every row weighs 1.
        least: (S,) the best time so far; lowered.
        drawn: (S,) number of the row that has it; written.
    """
    for i in range(labels.shape[0]):
        cost = distances[i] * weights[i] if weights.shape[0] > 0 else distances[i]
        if cost <= 0.0:
            continue
        x = np.uint64(first_row + i) * np.uint64(0x9E3779B97F4A7C15) + key  # splitmix64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
        time = (np.float64(x >> np.uint64(11)) + 1.0) / cost
        k = labels[i]
        if time < least[k]:
            least[k], drawn[k] = time, first_row + i


@njit("void(f4[:, ::1], f8[::1], i4[::1], i8, f4[:, :, ::1], f8[::1], f8[:, :, ::1], f8[:, ::1])", nogil=True, cache=True)
def halve(rows, weights, labels, first, halves, anchors, sums, totals):
    """Add every row to the nearer one of its cluster's two halves.

    Args:
        rows: (M, D).
        weights: (M,), or (0,) where every row weighs 1.
        labels: (M,) cluster of each row; rows of others than [first, first + S) are left out.
        first: the first cluster.
        halves: (S, 2, D) centres.
        anchors: (D + 1,) of the grids for columns and weights.
        sums: (S, 2, D) of weight · row; added to.
        totals: (S, 2) of weights; added to.
    """
    columns = rows.shape[1]
    weighted = weights.shape[0] > 0
    for i in range(rows.shape[0]):
        s = np.int64(labels[i]) - first
        if s < 0 or s >= halves.shape[0]:
            continue
        weight = weights[i] if weighted else 1.0
        half = 0 if squared_distance(rows[i], halves[s, 0]) <= squared_distance(rows[i], halves[s, 1]) else 1
        totals[s, half] += (weight + anchors[columns]) - anchors[columns] if weighted else 1.0
        for j in range(columns):
            value = weight * np.float64(rows[i, j]) if weighted else np.float64(rows[i, j])
            sums[s, half, j] += (value + anchors[j]) - anchors[j]


@njit("void(f4[:, ::1], f8[::1], i4[::1], i8, f4[:, :, ::1], f4[:, ::1], f8, f8[:, ::1])", nogil=True, cache=True)
def weigh(rows, weights, labels, first, halves, wholes, anchor, costs):
    """Add every row's squared distance to the nearer half of its cluster, and to its whole, to `costs` (S, 2).

    Args:
        rows: (M, D).
        weights: (M,), or (0,) where every row weighs 1.
        labels: (M,) cluster of each row.
        first: the first cluster.
        halves: (S, 2, D) centres.
        wholes: (S, D) centres of the clusters.
        anchor: of the grid for weighted squared distances.
        costs: added to.
    """
    for i in range(rows.shape[0]):
        s = np.int64(labels[i]) - first
        if s < 0 or s >= halves.shape[0]:
            continue
        weight = weights[i] if weights.shape[0] > 0 else 1.0
        least = min(squared_distance(rows[i], halves[s, 0]), squared_distance(rows[i], halves[s, 1]))
        costs[s, 0] += (weight * least + anchor) - anchor
        costs[s, 1] += (weight * squared_distance(rows[i], wholes[s]) + anchor) - anchor
