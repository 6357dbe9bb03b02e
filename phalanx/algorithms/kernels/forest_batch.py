"""Scores of many rows by a random cut forest that is there: all rows of a batch meet a tree, those of a leaf together.

Finding the leaves: rows go down a tree together, parted at each cut (`score`); or, where there are many of few columns, a
row's place among all cuts of a column, found once for all trees, tells which leaves of a tree that column rules out, and the
first that is left after all columns is the row's (`score_many`; Lucchese et al., QuickScorer, SIGIR 2015).

From the leaf up: rows of at most `NARROW` stored columns go in lanes of vectors (`lanes`), others one by one. The width alone
decides, so a score does not depend on how many rows there are.

The arrays of trees are those of `forest`, whose legend they share. G: cuts of all trees given.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from . import lanes
from .forest import CUT, DIM, HEAD, LEFT, PARENT, ROOT, ROWS, SIZE, TREES, UNIT, outside

NARROW: Final = 8  # stored columns; of wider rows a few at one leaf, as small batches have, are faster one by one
MOST_LEAVES: Final = 64 * lanes.WORDS  # of a tree, for `score_many`
MOST_CUTS: Final = 65000  # of the trees that `score_many` takes at once: places are 16-bit numbers
_BLOCK = 64  # rows whose places are sought at once


@njit("f4[::1](i8)", nogil=True, cache=True)
def _at_a_line(size):
    """Return room for so many numbers that begins at a line of the cache (64 bytes): vectors then never lie across two."""
    room = np.zeros(size + 15, dtype=np.float32)
    first = (64 - room.ctypes.data % 64) % 64 // 4
    return room[first : first + size]


@njit(
    "void(f4[:, ::1], i8, i4[::1], i8, i8, f4[:, ::1], i4[:, ::1], f4[:, ::1], i8, i8, i8, f4[::1], f4, f8, f4[::1], f4[::1], "
    "i8[::1])",
    nogil=True,
    cache=True,
)
def _rise(rows, columns, order, first, last, words, ints, points, leaf, depth, parent, shares, equal, scale, x, found, units):
    """Add the scores of the narrow rows order[first:last], which arrive at one leaf, to `units` (N,).

    Args:
        rows: (N, P).
        columns: D.
        order: of the rows.
        first: of the leaf's.
        last: after the leaf's.
        words: of the tree.
        ints: of the tree.
        points: of the tree's leaves.
        leaf: its number.
        depth: nodes above it.
        parent: the lowest of them, -1 for none.
        shares: 1 / (depth + 1) by depth.
        equal: the score of rows that are the leaf's point.
        scale: of scores in `units`.
        x: (MANY * P,) room at a line.
        found: (MANY,) room at a line.
        units: (N,) added to.
    """
    stored, stride, wide = np.uint64(rows.shape[1]), np.uint64(ints.shape[1]), np.uint64(columns)
    here, end, at = np.uint64(first), np.uint64(last), np.uint64(leaf) * stored
    while here < end:
        few = end - here <= np.uint64(lanes.FEW)
        count = end - here if few else min(end - here, np.uint64(lanes.MANY))
        each, final = np.uint64(lanes.FEW if few else lanes.MANY), here + count - np.uint64(1)
        if few or wide <= np.uint64(2):
            for i in range(each):
                n = np.uint64(order[min(here + i, final)])
                for j in range(wide):
                    x[j * each + i] = rows[n, j]
        else:
            lanes.turn(rows, stored, order, here, final, x)
        level, node = np.uint64(depth), parent
        if few:
            on = lanes.begin_few(x, wide, points, at, equal, shares[level], found)
        else:
            on = lanes.begin_many(x, wide, points, at, equal, shares[level], found)
        while on and node >= 0:  # boxes grow: what is inside of one is inside of all above
            level -= np.uint64(1)
            box = np.uint64(node)
            low, size, share = box * stride + np.uint64(HEAD), words[box, np.uint64(SIZE)], shares[level]
            if few:
                on = lanes.rise_few(x, wide, words, low, low + stored, size, share, found)
            else:
                on = lanes.rise_many(x, wide, words, low, low + stored, size, share, found)
            node = np.int64(ints[box, np.uint64(PARENT)])
        for i in range(count):
            units[np.uint64(order[here + i])] += np.int64(scale * np.float64(found[i]))
        here += count


@njit("f8(i8, i8, i8)", nogil=True, cache=True)
def _of_equal(mass, rows, depth):
    """Return the score of a row that is the point of a leaf, which stands for `mass` of a tree's rows, without its factor."""
    return (1 - np.float64(mass) / (2 * np.float64(rows))) / (depth + np.log2(np.float64(mass) + 1))


@njit("i8(f4[:, ::1], i8, f4, i8, i8, i4[::1], i4[::1])", nogil=True, cache=True)
def _part(columns, dim, cut, first, last, order, spare):
    """Put those of the rows order[first:last] that go left of a cut before the others; return where these begin."""
    here = np.uint64(dim)
    lefts, rights = np.uint64(first), np.uint64(0)
    for i in range(np.uint64(first), np.uint64(last)):
        n = order[i]
        right = np.uint64(columns[here, np.uint64(n)] > cut)
        order[lefts], spare[rights] = n, n
        lefts += np.uint64(1) - right
        rights += right
    for i in range(rights):
        order[lefts + i] = spare[i]
    return np.int64(lefts)


@njit("void(f4[:, ::1], f4[:, ::1], f4[:, ::1], f8, f8, i8, i8, i8, i4[::1], f8[::1], i4[::1], i8[::1])",
      nogil=True, cache=True)  # fmt: skip
def _climb_together(rows, words, points, scale, equal, leaf, depth, count, path, shares, order, units):
    """Add the scores of rows order[:count], which arrive at one leaf, to `units`; as `_climb`, with what they share at hand."""
    width, start, low = np.uint64(rows.shape[1]), np.uint64(0), np.uint64(HEAD)
    end = np.uint64(leaf)
    for i in range(np.uint64(count)):
        n = np.uint64(order[i])
        found = equal
        if outside(rows, n, points, end, start, start) != np.float32(0):
            found = shares[np.uint64(depth)]
            for up in range(np.uint64(depth)):
                level = np.uint64(depth) - np.uint64(1) - up
                node = np.uint64(path[level])
                out = np.float64(outside(rows, n, words, node, low, low + width))
                if out == 0:
                    break
                p = out / (out + np.float64(words[node, np.uint64(SIZE)]))
                found += p * (shares[level] - found)
        units[n] += np.int64(scale * found)


@njit(f"void(f4[:, ::1], f4[:, ::1], i8, {TREES}, i8[::1])", nogil=True, cache=True)
def score(rows, turned, columns, words, ints, points, leaves, heads, units):
    """Add the scores of rows (N, P) in all trees given to `units` (N,).

    The rows go down a tree together, those on one side of a cut before those on the other, and those of one leaf climb
    together: what a node says is loaded once, and no row waits for another.

    Args:
        rows: (N, P).
        turned: (P, N) the same, transposed.
        columns: D.
        words: of the trees, as are the next four.
        ints: the same memory.
        points: of the leaves.
        leaves: how many rows each stands for, and its parent.
        heads: of the trees.
        units: (N,) added to.
    """
    count, most = rows.shape[0], points.shape[1]
    order, spare = np.empty(count + 1, dtype=np.int32), np.empty(count + 1, dtype=np.int32)
    path, shares = np.empty(most + 1, dtype=np.int32), 1.0 / np.arange(1.0, most + 2.0)
    narrow, low_shares = rows.shape[1] <= NARROW, shares.astype(np.float32)
    x, found = _at_a_line(lanes.MANY * min(rows.shape[1], NARROW)), _at_a_line(lanes.MANY)
    waiting = np.empty((most + 2, 4), dtype=np.int64)  # a node, how many lie above it, its rows
    for t in range(words.shape[0]):
        if heads[t, ROWS] == 0:
            continue
        scale = np.log2(heads[t, ROWS] + 1.0) / UNIT
        words_t, ints_t, points_t = words[t], ints[t], points[t]
        for n in range(count):
            order[n] = n
        waiting[0, 0], waiting[0, 1], waiting[0, 2], waiting[0, 3] = heads[t, ROOT], 0, 0, count
        top = 1
        while top > 0:
            top -= 1
            node, depth, first, last = waiting[top, 0], waiting[top, 1], waiting[top, 2], waiting[top, 3]
            while node >= 0 and first < last:
                middle = _part(turned, ints_t[node, DIM], words_t[node, CUT], first, last, order, spare)
                path[depth] = node
                depth += 1
                if middle < last:
                    waiting[top, 0], waiting[top, 1] = ints[t, node, LEFT + 1], depth
                    waiting[top, 2], waiting[top, 3] = middle, last
                    top += 1
                node, last = np.int64(ints[t, node, LEFT]), middle
            if first < last:
                equal = _of_equal(leaves[t, ~node, 0], heads[t, ROWS], depth)
                if narrow:
                    _rise(
                        rows, columns, order, first, last, words_t, ints_t, points_t, ~node, depth, leaves[t, ~node, 1],
                        low_shares, np.float32(equal), scale, x, found, units,
                    )  # fmt: skip
                else:
                    _climb_together(
                        rows, words_t, points_t, scale, equal, ~node, depth, last - first, path, shares, order[first:], units
                    )


@njit("i8(f4[:, :, ::1], i4[:, :, ::1], i4[:, ::1], i8[::1])", nogil=True, cache=True)
def keys_of_cuts(words, ints, heads, keys):
    """Write a key of every cut, which sorts them by column, then by size; return how many there are.

    A key holds the column, 32 bits that sort as the cut does, and 16 for tree * V + node: `cut_of` and `owned` read them.
    """
    nodes, count = words.shape[1], 0
    waiting = np.empty(nodes + 1, dtype=np.int64)
    for t in range(words.shape[0]):
        if heads[t, ROWS] == 0 or heads[t, ROOT] < 0:
            continue
        waiting[0], top = heads[t, ROOT], 1
        while top > 0:
            top -= 1
            node = waiting[top]
            bits = np.int64(np.float32(words[t, node, CUT] + np.float32(0)).view(np.int32))  # the two zeros are one
            bits = bits ^ 0x7FFFFFFF if bits < 0 else bits
            keys[count] = (np.int64(ints[t, node, DIM]) << 48) | ((bits + 0x80000000) << 16) | (t * nodes + node)
            count += 1
            for side in range(2):
                child = ints[t, node, LEFT + side]
                if child >= 0:
                    waiting[top] = child
                    top += 1
    return count


@njit("void(i8[::1], f4[::1])", nogil=True, cache=True)
def cuts_of(keys, cuts):
    """Write the cuts (G,) that keys (G,) hold."""
    for i in range(keys.shape[0]):
        bits = ((keys[i] >> 16) & 0xFFFFFFFF) - 0x80000000
        cuts[i] = np.int32(bits ^ 0x7FFFFFFF if bits < 0 else bits).view(np.float32)


@njit("void(f4[:, ::1], f4[::1], i8[::1], u2[:, ::1])", nogil=True, cache=True)
def place_all(rows, cuts, begins, places):
    """Write for each row and column how many of the column's sorted cuts lie below, and the column's begin in the tables.

    Args:
        rows: (N, P).
        cuts: (G,).
        begins: (D + 1,) of the columns' cuts.
        places: (N, D) written; a column's table has one number more than it has cuts.
    """
    count, at, x = np.uint64(rows.shape[0]), np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.float32)
    for j in range(np.uint64(places.shape[1])):
        begin, size = np.uint64(begins[j]), np.uint64(begins[j + np.uint64(1)] - begins[j])
        for first in range(np.uint64(0), count, np.uint64(_BLOCK)):
            some = min(np.uint64(_BLOCK), count - first)
            for i in range(some):
                at[i], x[i] = begin, rows[first + i, j]
            left = size
            while left > np.uint64(1):  # all rows halve what is left alike, so no step waits for the one before
                half = left >> np.uint64(1)
                for i in range(some):
                    at[i] += half * np.uint64(cuts[at[i] + half - np.uint64(1)] < x[i])
                left -= half
            for i in range(some):
                last = np.uint64(cuts[at[i]] < x[i]) if left > np.uint64(0) else np.uint64(0)
                places[first + i, j] = at[i] + last + j


@njit("i8(i8, i4[:, ::1], i8[::1], i8[:, ::1], i8[::1], i8[:, ::1])", nogil=True, cache=True)
def _in_order(root, ints, leaves, spans, depths, waiting):
    """Number the leaves of a tree from left to right: which leaf, how deep, and which lie left below each node.

    Args:
        root: of the tree.
        ints: of the tree.
        leaves: (M,) written: the leaf of each number.
        spans: (V, 2) written: first and end of the leaves left below a node.
        depths: (M,) written: nodes above.
        waiting: (V + 1, 2) room.

    Returns:
        how many there are.
    """
    node, depth, top, count = root, 0, 0, 0
    while True:
        while node >= 0:
            spans[node, 0], waiting[top, 0], waiting[top, 1] = count, node, depth
            node, depth, top = np.int64(ints[node, LEFT]), depth + 1, top + 1
        leaves[count], depths[count] = ~node, depth
        count += 1
        if top == 0:
            return count
        top -= 1
        node, depth = waiting[top, 0], waiting[top, 1] + 1
        spans[node, 1] = count
        node = np.int64(ints[node, LEFT + 1])


@njit("void(i8[:, ::1], i8, i8[:, ::1], i8[::1], u1[::1], u8[::1], u8[:, ::1])", nogil=True, cache=True)
def _tables(own, count, spans, begins, table, starts, sets):
    """Fill a tree's tables for `lanes.first_left`.

    Args:
        own: (V, 2) of the tree's cuts in order: the place among all, the node.
        count: of them.
        spans: (V, 2) of the leaves left below each node.
        begins: (D + 1,) of the columns' cuts.
        table: (G + D,) written.
        starts: (D,) written.
        sets: (V + D, WORDS) written.
    """
    done, row = 0, 0
    for j in range(starts.shape[0]):
        starts[j], below = row, np.uint8(0)
        sets[row, :] = ~np.uint64(0)
        at = np.uint64(begins[j] + j)
        while done < count and own[done, 0] < begins[j + 1]:
            for place in range(at, np.uint64(own[done, 0] + j + 1)):
                table[place] = below
            at, below = np.uint64(own[done, 0] + j + 1), np.uint8(below + 1)
            first, end = spans[own[done, 1], 0], spans[own[done, 1], 1]
            for word in range(lanes.WORDS):
                low, high = max(first - 64 * word, 0), min(end - 64 * word, 64)
                gone = np.uint64(0)
                if low < high:
                    gone = (~np.uint64(0) >> np.uint64(64 - high + low)) << np.uint64(low)
                sets[row + 1, word] = sets[row, word] & ~gone
            row, done = row + 1, done + 1
        for place in range(at, np.uint64(begins[j + 1] + j + 1)):
            table[place] = below
        row += 1


@njit("void(u2[:, ::1], u1[::1], u8[::1], u8[:, ::1], u1[::1], i8[::1], i4[::1])", nogil=True, cache=True)
def _by_leaf(places, table, starts, sets, arrived, ends, order):
    """Put rows in the order of their leaves; write where those of each end.

    Args:
        places: (N, D).
        table: of the tree, as are the next two.
        starts: (D,).
        sets: (V + D, WORDS).
        arrived: (N,) room.
        ends: (MOST_LEAVES + 1,) written: of the leaves' rows.
        order: (N,) written.
    """
    ends[:] = 0
    for n in range(np.uint64(places.shape[0])):
        leaf = lanes.first_left(places, n, np.uint64(places.shape[1]), table, starts, sets)
        arrived[n] = leaf
        ends[leaf + np.uint64(1)] += 1
    for leaf in range(ends.shape[0] - 1):
        ends[leaf + 1] += ends[leaf]
    for n in range(np.uint64(places.shape[0])):
        leaf = np.uint64(arrived[n])
        order[ends[leaf]] = n
        ends[leaf] += 1


@njit(f"void(f4[:, ::1], u2[:, ::1], i8[::1], i8[::1], {TREES}, i8[::1])", nogil=True, cache=True)
def score_many(rows, places, keys, begins, words, ints, points, leaves, heads, units):
    """Add the scores of narrow rows (N, P) in all trees given, of at most MOST_LEAVES leaves, to `units` (N,).

    Args:
        rows: (N, P).
        places: (N, D) from `place_all`.
        keys: (G,) of all cuts of these trees, sorted.
        begins: (D + 1,) of the columns' cuts.
        words: of the trees, as are the next four.
        ints: the same memory.
        points: of the leaves.
        leaves: how many rows each stands for, and its parent.
        heads: of the trees.
        units: (N,) added to.
    """
    count, columns = places.shape
    trees, nodes, most, width = words.shape[0], words.shape[1], points.shape[1], rows.shape[1]
    own, owned = np.empty((trees, nodes, 2), np.int64), np.zeros(trees, np.int64)
    for place in range(keys.shape[0]):
        t, node = divmod(keys[place] & 0xFFFF, nodes)
        own[t, owned[t], 0], own[t, owned[t], 1] = place, node
        owned[t] += 1
    spans, waiting = np.empty((nodes, 2), np.int64), np.empty((nodes + 1, 2), np.int64)
    numbers, depths = np.empty(most, np.int64), np.empty(most, np.int64)
    table, starts = np.empty(keys.shape[0] + columns, np.uint8), np.empty(columns, np.uint64)
    sets = np.empty((nodes + columns, lanes.WORDS), np.uint64)
    arrived, order, ends = np.empty(count, np.uint8), np.empty(count, np.int32), np.empty(MOST_LEAVES + 1, np.int64)
    x, found = _at_a_line(lanes.MANY * width), _at_a_line(lanes.MANY)
    shares = (1.0 / np.arange(1.0, most + 2.0)).astype(np.float32)
    for t in range(trees):
        if heads[t, ROWS] == 0:
            continue
        ends_here = _in_order(heads[t, ROOT], ints[t], numbers, spans, depths, waiting)
        _tables(own[t], owned[t], spans, begins, table, starts, sets)
        _by_leaf(places, table, starts, sets, arrived, ends, order)
        scale, first = np.log2(heads[t, ROWS] + 1.0) / UNIT, 0
        words_t, ints_t, points_t = words[t], ints[t], points[t]
        for number in range(ends_here):
            leaf, depth, last = numbers[number], depths[number], ends[number]
            if first < last:
                equal = _of_equal(leaves[t, leaf, 0], heads[t, ROWS], depth)
                _rise(
                    rows, columns, order, first, last, words_t, ints_t, points_t, leaf, depth, leaves[t, leaf, 1], shares,
                    np.float32(equal), scale, x, found, units,
                )  # fmt: skip
            first = last
