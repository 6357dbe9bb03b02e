"""Loops of random cut forests: keys of rows, building trees, scores and their shares by feature, streams.

Trees know nothing of each other, so every loop takes a run of trees and is done with one before it begins the next: a tree
fits the fastest cache. What trees add up is whole numbers of `UNIT`, whose sum is the same in any order: neither threads nor
workers nor company change a score.

A tree is a row of each of these arrays. An inner node is a number from 0, a leaf is ~number; equal points share a leaf.

    words        f4 (T, V, W)   inner nodes; `ints` is the same memory as i4. Words: cut, dim, left, right, parent, size of
                                the box, two that are free, then the box's low (P) and high corner (P)
    points       f4 (T, M, P)   of the leaves
    leaves       i4 (T, M, 2)   how many rows a leaf stands for (0: it is free), its parent (-1: it is the root)
    places       i4 (T, M)      the leaf of each row of the sample
    heads        i4 (T, 4)      root, rows of the sample, free inner nodes, free leaves
    spare        i4 (T, 2, M)   the free inner nodes, the free leaves

Legend of shapes: N rows, D columns, P columns rounded up to a multiple of 8 (zeros), T trees, M rows of a tree's sample,
V = max(M - 1, 1), W = 8 + 2 P.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

UNIT = 2.0**-40  # of scores: below the rounding of what they are made of; 2^23 of them at most, in 63 bits
HEAD = 8  # words of an inner node before its box
_LANES = 8
_LOOSE = {"reassoc", "contract", "nsz"}  # sums within a row may be taken eight at a time
CUT, DIM, LEFT, PARENT, SIZE = 0, 1, 2, 4, 5
ROOT, ROWS, FREE_NODES, FREE_LEAVES = 0, 1, 2, 3
TREES = "f4[:, :, ::1], i4[:, :, ::1], f4[:, :, ::1], i4[:, :, ::1], i4[:, ::1]"


@njit("u8(u8)", nogil=True, cache=True)
def mix(x):
    """Return a well mixed 64-bit number (the finaliser of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit("f8(u8)", nogil=True, cache=True)
def share_of(x):
    """Return a number in (0, 1) from 64 random bits."""
    return (np.float64(x >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit("void(u8, u8[::1], u8[::1])", nogil=True, cache=True)
def keys_of(seed, numbers, keys):
    """Write the sampling keys (N,) of rows with these global numbers (N,)."""
    start = mix(seed)
    for i in range(numbers.shape[0]):
        keys[i] = mix(start ^ mix(numbers[i]))


@njit("f4(f4[:, ::1], u8, f4[:, ::1], u8, u8, u8)", nogil=True, cache=True, fastmath=_LOOSE)
def outside(rows, n, boxes, box, low, high):
    """Return how far row n of (N, P) lies outside of a box, summed over its sides; its corners begin at words `low`, `high`.

    Numbers without a sign spare the loops numba's turning round of negative ones: only so they become vector instructions.
    """
    total = np.float32(0)
    for k in range(np.uint64(rows.shape[1])):
        x = rows[n, k]
        below, above = boxes[box, low + k] - x, x - boxes[box, high + k]
        out = below if below > above else above
        total += out if out > np.float32(0) else np.float32(0)
    return total


@njit("f4(f4[:], f4[:])", nogil=True, cache=True, fastmath=_LOOSE)
def size_of(low, high):
    """Return the sum of a box's sides."""
    total = np.float32(0)
    for j in range(low.shape[0]):
        total += high[j] - low[j]
    return total


@njit("void(f4[:, ::1], u8, f4[:, ::1], i4[:, ::1], f4[:, ::1], i4[:, ::1], i4[::1], i4[::1], i4[:, ::1])",
      nogil=True, cache=True)  # fmt: skip
def build(rows, seed, words, ints, points, leaves, places, heads, spare):
    """Build a tree of rows (M', P), M' <= M, into the arrays of one tree."""
    count, width = rows.shape
    most = places.shape[0]
    order = np.arange(count)
    first, last = np.zeros(2 * most, dtype=np.int64), np.zeros(2 * most, dtype=np.int64)
    above = np.zeros(2 * most, dtype=np.int64)  # 2 * parent + side
    low, high = np.zeros(width, dtype=np.float32), np.zeros(width, dtype=np.float32)
    state = mix(seed)
    last[0], above[0] = count, -1
    waiting, done, nodes, ends = 1, 0, 0, 0
    leaves[:, 0] = 0
    while done < waiting and count > 0:
        a, b, parent = first[done], last[done], above[done]
        done += 1
        total = 0.0
        low[:], high[:] = rows[order[a]], rows[order[a]]
        for i in range(a + 1, b):
            for j in range(width):
                low[j] = min(low[j], rows[order[i], j])
                high[j] = max(high[j], rows[order[i], j])
        for j in range(width):
            total += np.float64(high[j]) - np.float64(low[j])
        if total > 0:
            here = nodes
            nodes += 1
            state = mix(state)
            left = total * share_of(state)
            chosen, cut = -1, np.float32(0)
            for j in range(width):
                side = np.float64(high[j]) - np.float64(low[j])
                if side > 0 and (left >= 0 or chosen < 0):
                    chosen = j
                    cut = np.float32(np.float64(low[j]) + min(max(left, 0.0), side))
                    if cut >= high[j]:
                        cut = low[j]
                    left -= side
                    if left < 0:
                        break
            middle = a
            for i in range(a, b):
                if rows[order[i], chosen] <= cut:
                    order[i], order[middle] = order[middle], order[i]
                    middle += 1
            words[here, CUT], ints[here, DIM], ints[here, PARENT] = cut, chosen, parent // 2
            words[here, HEAD : HEAD + width], words[here, HEAD + width :] = low, high
            words[here, SIZE] = size_of(low, high)
            first[waiting], last[waiting], above[waiting] = a, middle, 2 * here
            first[waiting + 1], last[waiting + 1], above[waiting + 1] = middle, b, 2 * here + 1
            waiting += 2
        else:
            here = ~ends
            points[ends] = low
            leaves[ends, 0], leaves[ends, 1] = b - a, parent // 2
            for i in range(a, b):
                places[order[i]] = ends
            ends += 1
        if parent >= 0:
            ints[parent // 2, LEFT + parent % 2] = here
        else:
            heads[ROOT] = here
    heads[ROWS], heads[FREE_NODES], heads[FREE_LEAVES] = count, words.shape[0] - nodes, most - ends
    for i in range(words.shape[0] - nodes):
        spare[0, i] = words.shape[0] - 1 - i
    for i in range(most - ends):
        spare[1, i] = most - 1 - i


@njit("i8(f4[:, ::1], i8, f4[:, ::1], i4[:, ::1], i8, i4[::1])", nogil=True, cache=True)
def descend(rows, n, words, ints, root, path):
    """Write the inner nodes from the root to the leaf of row n; return how many. After the last comes the leaf's number."""
    node, depth = root, 0
    while node >= 0:
        path[depth] = node
        depth += 1
        node = np.int64(ints[node, LEFT + np.int64(rows[n, ints[node, DIM]] > words[node, CUT])])
    path[depth] = ~node
    return depth


@njit("i8(f4[:, ::1], i8, f4[:, ::1], i4[:, ::1], i8)", nogil=True, cache=True)
def _below(rows, n, words, ints, node):
    """Return the child that row n goes on to; of a leaf itself."""
    inner = np.uint64(node if node >= 0 else 0)
    right = rows[n, np.uint64(ints[inner, DIM])] > words[inner, CUT]
    child = np.int64(ints[inner, np.uint64(LEFT) + np.uint64(right)])
    return child if node >= 0 else node


@njit("void(f4[:, ::1], i8, f4[:, ::1], i4[:, ::1], i8, i4[:, ::1], i8[::1])", nogil=True, cache=True)
def _descend_four(rows, n, cuts, links, root, paths, depths):
    """`descend` of the rows n to n + 3 at once: while one waits for memory the others go on."""
    a, b, c, d, level = root, root, root, root, 0
    depths[:] = 0
    while (a & b & c & d) >= 0:
        paths[0, level], paths[1, level], paths[2, level], paths[3, level] = a, b, c, d
        level += 1
        depths[0] += a >= 0
        depths[1] += b >= 0
        depths[2] += c >= 0
        depths[3] += d >= 0
        a, b = _below(rows, n, cuts, links, a), _below(rows, n + 1, cuts, links, b)
        c, d = _below(rows, n + 2, cuts, links, c), _below(rows, n + 3, cuts, links, d)
    paths[0, depths[0]], paths[1, depths[1]], paths[2, depths[2]], paths[3, depths[3]] = ~a, ~b, ~c, ~d


@njit("f8(f4[:, ::1], i8, i8, f4[:, ::1], f4[:, ::1], i4[:, ::1], i4[::1], i4[:, ::1], i8)", nogil=True, cache=True)
def _climb(rows, n, depth, words, points, leaves, heads, paths, lane):
    """Return the score of row n, whose path is known; the factor log2(rows of the tree + 1) is the caller's."""
    leaf, width = paths[lane, depth], rows.shape[1]
    if outside(rows, n, points, leaf, 0, 0) == 0:
        mass = np.float64(leaves[leaf, 0])
        return (1 - mass / (2 * np.float64(heads[ROWS]))) / (depth + np.log2(mass + 1))
    found = 1.0 / (depth + 1)
    for level in range(depth - 1, -1, -1):
        node = paths[lane, level]
        out = np.float64(outside(rows, n, words, node, HEAD, HEAD + width))
        if out == 0:
            break
        p = out / (out + np.float64(words[node, SIZE]))
        found += p * (1.0 / (level + 1) - found)
    return found


@njit(
    "void(f4[:, ::1], i8, i8, f4[:, ::1], i4[:, ::1], f4[:, ::1], f4[:, ::1], i4[:, ::1], i4[::1], i4[:, ::1], i8[::1], "
    "i8[::1])",
    nogil=True,
    cache=True,
)
def score_run(rows, first, last, cuts, links, words, points, leaves, heads, paths, depths, units):
    """Add the scores of the rows [first, last) in one tree to `units` (N,).

    `cuts` and `links`: `words` and `ints` of the tree, or their first words. Scratch: `paths` (4, M + 1), `depths` (4,).
    """
    if heads[ROWS] == 0:
        return
    scale, root = np.log2(heads[ROWS] + 1.0) / UNIT, heads[ROOT]
    n = first
    while n < last:
        lanes = 4 if n + 4 <= last else 1
        if lanes == 4:
            _descend_four(rows, n, cuts, links, root, paths, depths)
        else:
            depths[0] = descend(rows, n, cuts, links, root, paths[0])
        for lane in range(lanes):
            found = _climb(rows, n + lane, depths[lane], words, points, leaves, heads, paths, lane)
            units[n + lane] += np.int64(scale * found)
        n += lanes


@njit("void(f4[:, ::1], i8, f4[:, ::1], i8, i8, i8, f8, f8, f8[::1])", nogil=True, cache=True)
def _blend(rows, n, boxes, box, low, high, p, weight, shares):
    """Make of shares (D,) their part below a node and the node's own, by how far each feature lies outside of its box."""
    out = 0.0
    for j in range(shares.shape[0]):
        x = np.float64(rows[n, j])
        out += max(np.float64(boxes[box, low + j]) - x, x - np.float64(boxes[box, high + j]), 0.0)
    for j in range(shares.shape[0]):
        x = np.float64(rows[n, j])
        own = max(np.float64(boxes[box, low + j]) - x, x - np.float64(boxes[box, high + j]), 0.0)
        shares[j] = (1 - p) * shares[j] + p * (own / out) * weight


@njit("void(f4[:, ::1], i8, f4[:, ::1], i4[:, ::1], f4[:, ::1], i4[:, ::1], i4[::1], i4[::1], f8[::1])", nogil=True, cache=True)
def explain_one(rows, n, words, ints, points, leaves, heads, path, shares):
    """Write what each feature adds to the score of row n in a tree that is not empty, (D,); as `score_one`."""
    depth = descend(rows, n, words, ints, heads[ROOT], path)
    leaf, width = path[depth], rows.shape[1]
    shares[:] = 0
    if outside(rows, n, points, leaf, 0, 0) == 0:
        mass = np.float64(leaves[leaf, 0])
        shares[:] = (1 - mass / (2 * np.float64(heads[ROWS]))) / (depth + np.log2(mass + 1)) / shares.shape[0]
        return
    _blend(rows, n, points, leaf, 0, 0, 1.0, 1.0 / (depth + 1), shares)
    for level in range(depth - 1, -1, -1):
        node = path[level]
        out = np.float64(outside(rows, n, words, node, HEAD, HEAD + width))
        if out == 0:
            return
        p = out / (out + np.float64(words[node, SIZE]))
        _blend(rows, n, words, node, HEAD, HEAD + width, p, 1.0 / (level + 1), shares)


@njit(f"void(f4[:, ::1], {TREES}, i8[:, ::1])", nogil=True, cache=True)
def explain(rows, words, ints, points, leaves, heads, units):
    """Add what each feature adds to the scores of rows (N, P) in all trees given to `units` (N, D)."""
    path, shares = np.empty(points.shape[1] + 1, dtype=np.int32), np.empty(units.shape[1])
    for t in range(words.shape[0]):
        if heads[t, ROWS] > 0:
            scale = np.log2(heads[t, ROWS] + 1.0) / UNIT
            for n in range(rows.shape[0]):
                explain_one(rows, n, words[t], ints[t], points[t], leaves[t], heads[t], path, shares)
                for j in range(shares.shape[0]):
                    units[n, j] += np.int64(scale * shares[j])


@njit(
    "b1(f4[:, :, ::1], i4[:, :, ::1], f4[:, :, ::1], i4[:, :, ::1], i4[:, ::1], i4[:, ::1], i4[:, :, ::1])",
    nogil=True,
    cache=True,
)
def complete(words, ints, points, leaves, heads, places, spare):
    """Make the boxes of trees whose nodes and points are there; return whether these are trees at all."""
    count, nodes, width = words.shape[0], words.shape[1], points.shape[2]
    most = points.shape[1]
    for t in range(count):
        rows, root = heads[t, ROWS], heads[t, ROOT]
        inner, ends = nodes - heads[t, FREE_NODES], most - heads[t, FREE_LEAVES]
        if not (0 <= rows <= most and 0 <= inner <= nodes and 0 <= ends <= rows and inner == max(ends - 1, 0)):
            return False
        words[t, :, HEAD : HEAD + width], words[t, :, HEAD + width :] = np.inf, -np.inf
        for kind in range(2):
            for i in range(nodes - inner if kind == 0 else most - ends):
                if not 0 <= spare[t, kind, i] < (nodes if kind == 0 else most):
                    return False
        seen, total = 0, 0
        for leaf in range(most):
            if not 0 <= places[t, leaf] < most:
                return False
            if leaves[t, leaf, 0] <= 0:
                continue
            seen, total = seen + 1, total + leaves[t, leaf, 0]
            child, parent, steps = ~leaf, leaves[t, leaf, 1], 0
            while parent >= 0:
                steps += 1
                if parent >= nodes or steps > nodes or not 0 <= ints[t, parent, DIM] < width:
                    return False
                if ints[t, parent, LEFT] != child and ints[t, parent, LEFT + 1] != child:
                    return False
                for j in range(width):
                    low, high, x = HEAD + j, HEAD + width + j, points[t, leaf, j]
                    words[t, parent, low], words[t, parent, high] = (
                        min(words[t, parent, low], x),
                        max(words[t, parent, high], x),
                    )
                child, parent = parent, ints[t, parent, PARENT]
            if child != root:
                return False
        if seen != ends or total != rows:
            return False
        for node in range(nodes):
            low, high = words[t, node, HEAD : HEAD + width], words[t, node, HEAD + width :]
            if low[0] <= high[0]:
                words[t, node, SIZE] = size_of(low, high)
                for side in range(2):
                    child = ints[t, node, LEFT + side]
                    if child >= nodes or ~child >= most or (child < 0 and leaves[t, ~child, 0] <= 0):
                        return False
            else:
                low[:], high[:] = 0, 0
    return True


def warm_up() -> None:
    """Nothing is left to do: explicit signatures compile, or load from the cache, on import."""
