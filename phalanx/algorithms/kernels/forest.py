"""Loops of random cut forests: keys of rows, building trees, scores with their shares by feature.

Every operation has a fixed order, so that a row's score depends on neither threads nor company.

Legend of shapes: N rows, D columns, T trees, M points of a tree, V = 2 M - 1 nodes of a tree.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit


@njit("u8(u8)", nogil=True, cache=True)
def mix(x):
    """Return a well mixed 64-bit number (the finaliser of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit("void(u8, u8[::1], u8[::1])", nogil=True, cache=True)
def keys_of(seed, numbers, keys):
    """Write the sampling keys (N,) of rows with these global numbers (N,)."""
    start = mix(seed)
    for i in range(numbers.shape[0]):
        keys[i] = mix(start ^ mix(numbers[i]))


@njit("void(f4[:, ::1], u8, i4[::1], f4[::1], i4[:, ::1], i4[::1], f4[:, ::1], f4[:, ::1])", nogil=True, cache=True)
def build(points, seed, dims, cuts, children, mass, low, high):
    """Build a tree of points (M, D) into arrays of V nodes; a leaf, of equal points, has `dims` -1."""
    count, columns = points.shape
    order = np.arange(count)
    first = np.zeros(2 * count, dtype=np.int64)
    state = mix(seed)
    mass[0] = count
    made = 1
    node = 0
    while node < made:
        a, b = first[node], first[node] + mass[node]
        total = 0.0
        for j in range(columns):
            low[node, j] = high[node, j] = points[order[a], j]
            for i in range(a + 1, b):
                low[node, j] = min(low[node, j], points[order[i], j])
                high[node, j] = max(high[node, j], points[order[i], j])
            total += np.float64(high[node, j]) - np.float64(low[node, j])
        dims[node] = -1
        if total > 0:
            state = mix(state)
            left = total * (np.float64(state >> np.uint64(11)) / 9007199254740992.0)
            chosen, cut = -1, np.float32(0)
            for j in range(columns):
                side = np.float64(high[node, j]) - np.float64(low[node, j])
                if side > 0 and (left >= 0 or chosen < 0):
                    chosen = j
                    cut = np.float32(np.float64(low[node, j]) + min(max(left, 0.0), side))
                    if cut >= high[node, j]:
                        cut = low[node, j]
                    left -= side
                    if left < 0:
                        break
            middle = a
            for i in range(a, b):
                if points[order[i], chosen] <= cut:
                    order[i], order[middle] = order[middle], order[i]
                    middle += 1
            dims[node], cuts[node] = chosen, cut
            children[node, 0], children[node, 1] = made, made + 1
            first[made], mass[made] = a, middle - a
            first[made + 1], mass[made + 1] = middle, b - middle
            made += 2
        node += 1


@njit(
    "void(f4[:, ::1], i4[:, ::1], f4[:, ::1], i4[:, :, ::1], i4[:, ::1], f4[:, :, ::1], f4[:, :, ::1], f8[:, ::1])",
    nogil=True,
    cache=True,
)
def attribute(rows, dims, cuts, children, mass, low, high, shares):
    """Write the shares (N, D) of the features in the scores of rows (N, D): a row's score is the sum of its shares."""
    trees, columns = dims.shape[0], rows.shape[1]
    path = np.zeros(dims.shape[1], dtype=np.int64)
    own = np.zeros(columns)
    out = np.zeros(columns)
    for n in range(rows.shape[0]):
        shares[n, :] = 0
        for t in range(trees):
            depth, node = 0, 0
            while dims[t, node] >= 0:
                path[depth] = node
                depth += 1
                node = children[t, node, 0 if rows[n, dims[t, node]] <= cuts[t, node] else 1]
            path[depth] = node
            for level in range(depth, -1, -1):
                node = path[level]
                outside, size = 0.0, 0.0
                for j in range(columns):
                    x, a, b = np.float64(rows[n, j]), np.float64(low[t, node, j]), np.float64(high[t, node, j])
                    out[j] = max(a - x, 0.0) + max(x - b, 0.0)
                    outside += out[j]
                    size += b - a
                if outside == 0:
                    if level < depth:
                        break
                    seen = 1 / (depth + np.log2(mass[t, node] + 1.0))
                    own[:] = (1 - mass[t, node] / (2 * mass[t, 0])) * seen / columns
                    continue
                p = outside / (outside + size)
                for j in range(columns):
                    old = 0.0 if level == depth else (1 - p) * own[j]
                    own[j] = old + p * (out[j] / outside) / (level + 1)
            shares[n] += own * np.log2(mass[t, 0] + 1.0)
        shares[n] /= trees


def warm_up() -> None:
    """Nothing is left to do: explicit signatures compile, or load from the cache, on import."""
