"""Loops of random cut forests that follow a stream: each row is scored, then may take the place of an older one.

Insertion and removal keep every tree distributed as one built afresh from its sample (Guha et al., ICML 2016). The arrays
are those of `forest`, whose legend they share; and in `keys` f8 (T, M) each row of the sample has its key.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

from .forest import (
    CUT,
    DIM,
    FREE_LEAVES,
    FREE_NODES,
    HEAD,
    LEFT,
    PARENT,
    ROOT,
    ROWS,
    SIZE,
    TREES,
    UNIT,
    descend,
    explain_one,
    mix,
    outside,
    score_run,
    share_of,
    size_of,
)

_TREE = "f4[:, ::1], i4[:, ::1], f4[:, ::1], i4[:, ::1], i4[::1], i4[::1], i4[:, ::1]"  # of one tree


@njit(f"void(i4, i4, {_TREE})", nogil=True, cache=True)
def _hang(parent, child, words, ints, points, leaves, places, heads, spare):
    """Let `child` know its parent."""
    if child >= 0:
        ints[child, PARENT] = parent
    else:
        leaves[~child, 1] = parent


@njit(f"b1(i4, {_TREE})", nogil=True, cache=True)
def _shrink(node, words, ints, points, leaves, places, heads, spare):
    """Make a node's box that of its children; return whether it changed."""
    width = points.shape[1]
    one, two = ints[node, LEFT], ints[node, LEFT + 1]
    one_low = words[one, HEAD : HEAD + width] if one >= 0 else points[~one, :]
    one_high = words[one, HEAD + width :] if one >= 0 else points[~one, :]
    two_low = words[two, HEAD : HEAD + width] if two >= 0 else points[~two, :]
    two_high = words[two, HEAD + width :] if two >= 0 else points[~two, :]
    low, high = words[node, HEAD : HEAD + width], words[node, HEAD + width :]
    changed = False
    for j in range(width):
        below, over = min(one_low[j], two_low[j]), max(one_high[j], two_high[j])
        changed |= below != low[j] or over != high[j]
        low[j], high[j] = below, over
    if changed:
        words[node, SIZE] = size_of(low, high)
    return changed


@njit(f"void(i4, {_TREE})", nogil=True, cache=True)
def _remove(slot, words, ints, points, leaves, places, heads, spare):
    """Take the row of a sample's place out of the tree."""
    leaf = places[slot]
    leaves[leaf, 0] -= 1
    heads[ROWS] -= 1
    if leaves[leaf, 0] > 0:
        return
    spare[1, heads[FREE_LEAVES]] = leaf
    heads[FREE_LEAVES] += 1
    parent = leaves[leaf, 1]
    if parent < 0:
        return
    side = 0 if ints[parent, LEFT] == ~leaf else 1
    sibling, upper = ints[parent, LEFT + 1 - side], ints[parent, PARENT]
    spare[0, heads[FREE_NODES]] = parent
    heads[FREE_NODES] += 1
    _hang(upper, sibling, words, ints, points, leaves, places, heads, spare)
    if upper < 0:
        heads[ROOT] = sibling
        return
    ints[upper, LEFT + np.int64(ints[upper, LEFT] != parent)] = sibling
    while upper >= 0 and _shrink(upper, words, ints, points, leaves, places, heads, spare):
        upper = ints[upper, PARENT]


@njit("i4(f4[::1], f4[:], f4[:], u8)", nogil=True, cache=True)
def _part(row, low, high, bits):
    """Return a feature at random, in proportion to how far a row lies outside of a box; it does so in some."""
    total, chosen = 0.0, 0
    for j in range(row.shape[0]):
        total += max(np.float64(low[j]) - np.float64(row[j]), np.float64(row[j]) - np.float64(high[j]), 0.0)
    left = total * share_of(bits)
    for j in range(row.shape[0]):
        out = max(np.float64(low[j]) - np.float64(row[j]), np.float64(row[j]) - np.float64(high[j]), 0.0)
        if out > 0:
            chosen = j
            left -= out
            if left < 0:
                break
    return chosen


@njit("f4(f4[::1], f4[:], f4[:], i4, u8)", nogil=True, cache=True)
def _between(row, low, high, dim, bits):
    """Return a cut at random that parts a row from a box in feature `dim`: what is at most the cut goes left."""
    a, b = (high[dim], row[dim]) if row[dim] > high[dim] else (row[dim], low[dim])
    cut = np.float32(np.float64(a) + share_of(bits) * (np.float64(b) - np.float64(a)))
    return cut if a <= cut < b else a


@njit(f"void(f4[:, ::1], i8, i4, u8, i4[::1], {_TREE})", nogil=True, cache=True)
def _insert(rows, n, slot, state, path, words, ints, points, leaves, places, heads, spare):
    """Put row n of (N, P) into the tree and a place of its sample (Guha et al. 2016, algorithm 2, from the leaf up)."""
    row, width = rows[n], rows.shape[1]
    heads[ROWS] += 1
    if heads[ROWS] == 1:
        heads[FREE_LEAVES] -= 1
        leaf = spare[1, heads[FREE_LEAVES]]
        points[leaf, :] = row
        leaves[leaf, 0], leaves[leaf, 1] = 1, -1
        heads[ROOT], places[slot] = ~leaf, leaf
        return
    depth = descend(rows, n, words, ints, heads[ROOT], path)
    found = path[depth]
    if outside(rows, n, points, found, 0, 0) == 0:
        leaves[found, 0] += 1
        places[slot] = found
        return
    # every box on the path that the row enlarges is cut at random; of the cuts that part row and box the highest counts
    dim, cut, at = _part(row, points[found], points[found], mix(state)), np.float32(0), depth
    cut = _between(row, points[found], points[found], dim, mix(state + np.uint64(1)))
    top = depth  # the highest node whose box the row enlarges
    for level in range(depth - 1, -1, -1):
        node = path[level]
        out = np.float64(outside(rows, n, words, node, HEAD, HEAD + width))
        if out == 0:
            break
        top = level
        state = mix(state + np.uint64(2))
        if share_of(state) * (out + np.float64(words[node, SIZE])) < out:
            at = level
            low, high = words[node, HEAD : HEAD + width], words[node, HEAD + width :]
            dim = _part(row, low, high, mix(state))
            cut = _between(row, low, high, dim, mix(state + np.uint64(1)))
    heads[FREE_LEAVES] -= 1
    leaf = spare[1, heads[FREE_LEAVES]]
    heads[FREE_NODES] -= 1
    fresh = spare[0, heads[FREE_NODES]]
    points[leaf, :] = row
    leaves[leaf, 0], leaves[leaf, 1] = 1, fresh
    places[slot] = leaf
    below = path[at] if at < depth else ~found
    upper = path[at - 1] if at > 0 else -1
    right = np.int64(row[dim] > cut)
    words[fresh, CUT], ints[fresh, DIM], ints[fresh, PARENT] = cut, dim, upper
    ints[fresh, LEFT + right], ints[fresh, LEFT + 1 - right] = ~leaf, below
    _hang(fresh, below, words, ints, points, leaves, places, heads, spare)
    if upper < 0:
        heads[ROOT] = fresh
    else:
        ints[upper, LEFT + np.int64(ints[upper, LEFT] != below)] = fresh
    _shrink(fresh, words, ints, points, leaves, places, heads, spare)
    for level in range(top, at):
        node = path[level]
        low, high = words[node, HEAD : HEAD + width], words[node, HEAD + width :]
        for j in range(width):
            low[j], high[j] = min(low[j], row[j]), max(high[j], row[j])
        words[node, SIZE] = size_of(low, high)


@njit("i4(f8[::1])", nogil=True, cache=True)
def _last(keys):
    """Return the place of the largest key."""
    found = 0
    for i in range(1, keys.shape[0]):
        if keys[i] > keys[found]:
            found = i
    return found


@njit("i4(u8, f8, f8, f8[::1], i4[::1], f8[::1])", nogil=True, cache=True)
def _taken(bits, time, decay, keys, heads, worst):
    """Return the place of the sample that a row takes, -1 for none, and set its key.

    Keys are those of weighted sampling without replacement (Efraimidis and Spirakis, 2006): the log of an exponential
    variable less decay * time; the smallest stay. `worst` holds place and key of the largest, and how large a variable may be.
    """
    share = share_of(mix(bits))
    most, rows = keys.shape[0], heads[ROWS]
    if rows < most:
        keys[rows] = np.log(-np.log(share)) - decay * time
        worst[0] = -1
        return rows
    if worst[0] < 0:
        place = _last(keys)
        worst[0], worst[1] = place, keys[place]
        worst[2] = -1
    if worst[2] < 0 or time >= worst[3]:  # a bound that holds for the next rows spares the logs of most
        worst[3] = time + 64
        worst[2] = np.exp(min(worst[1] + decay * worst[3], 700.0))
    if 1 - share >= worst[2]:  # -log(share) is more
        return -1
    key = np.log(-np.log(share)) - decay * time
    if key >= worst[1]:
        return -1
    place = np.int32(worst[0])
    keys[place] = key
    worst[0] = -1
    return place


@njit(f"void(f4[:, ::1], {TREES}, i4[:, ::1], i4[:, :, ::1], f8[:, ::1], u8, i8, f8, i8, i8[::1], i8[:, ::1])",
      nogil=True, cache=True)  # fmt: skip
def follow(
    rows, words, ints, points, leaves, heads, places, spare, keys, seed, first, decay, first_tree, units, shares
):  # fmt: skip
    """Score each row (N, P) by what came before it, then let it into the samples: units (N,) and shares (N, D) are added to.

    `first` is the number of the first row in the stream; a row's weight is exp(decay * its number). What is drawn depends on
    the stream's seed, the tree's number (`first_tree` is that of the first given) and the row's. `shares` has no rows where
    they are not wanted.
    """
    paths, depths = np.empty((4, points.shape[1] + 1), dtype=np.int32), np.empty(4, dtype=np.int64)
    parts, worst = np.empty(shares.shape[1]), np.empty(4)
    for t in range(words.shape[0]):
        start = mix(mix(seed) ^ np.uint64(first_tree + t))
        worst[0] = -1
        words_t, ints_t, points_t, leaves_t, places_t = words[t], ints[t], points[t], leaves[t], places[t]
        heads_t, spare_t, keys_t = heads[t], spare[t], keys[t]
        begun = 0
        for n in range(rows.shape[0]):  # rows that the tree does not take are scored together with the next that it does
            bits = mix(start ^ mix(np.uint64(first + n)))
            slot = _taken(bits, np.float64(first + n), decay, keys_t, heads_t, worst)
            if slot < 0 and n + 1 < rows.shape[0]:
                continue
            score_run(rows, begun, n + 1, words_t, ints_t, words_t, points_t, leaves_t, heads_t, paths, depths, units)
            if shares.shape[0] > 0 and heads_t[ROWS] > 0:
                scale = np.log2(heads_t[ROWS] + 1.0) / UNIT
                for m in range(begun, n + 1):
                    explain_one(rows, m, words_t, ints_t, points_t, leaves_t, heads_t, paths[0], parts)
                    for j in range(parts.shape[0]):
                        shares[m, j] += np.int64(scale * parts[j])
            begun = n + 1
            if slot >= 0:
                if slot < heads_t[ROWS]:
                    _remove(slot, words_t, ints_t, points_t, leaves_t, places_t, heads_t, spare_t)
                state = mix(bits + np.uint64(2))
                _insert(rows, n, slot, state, paths[0], words_t, ints_t, points_t, leaves_t, places_t, heads_t, spare_t)


def warm_up() -> None:
    """Nothing is left to do: explicit signatures compile, or load from the cache, on import."""
