"""Choosing rows at random so that the number of ranks does not matter: by a hash of seed and global row number."""

from __future__ import annotations

import numpy as np

from ..contracts import Array, Collective


def row_hashes(seed: int, rows: Array) -> Array:
    """Return a number for every global row number, (N,) uint64: a bijection of 64 bits (SplitMix64) that depends on `seed`."""
    x = rows.astype(np.uint64) ^ _mix(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    return _mix(x)


def sample_rows(world: Collective, hashes: Array, rows: Array, count: int) -> Array:
    """Collective. Return the `count` rows with the smallest hashes over all ranks, (≤ count, D), in the order of their hashes.

    Args:
        world: the ranks.
        hashes: (N,) uint64 of this rank's rows; a row that several ranks hold counts once.
        rows: (N, D) float32.
        count: how many; fewer are returned where there are fewer.
    """
    own = np.argsort(hashes)[:count]
    smallest = np.unique(np.concatenate(world.all_gather(hashes[own])))[:count]
    own = own[np.isin(hashes[own], smallest)]
    everyone = np.concatenate(world.all_gather(hashes[own]))
    vectors = np.concatenate(world.all_gather(np.ascontiguousarray(rows[own])))
    _, first = np.unique(everyone, return_index=True)
    return vectors[first]


def _mix(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
