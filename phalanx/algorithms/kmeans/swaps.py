"""Swaps of k-means: two clusters that are nearly one become one, and a cluster that is really two becomes two.

Lloyd's iterations never move a centre across a gap: k-means++ puts too many centres here, too few there, and there they stay.
Every cluster is tried as two (a few iterations of 2-means within it); the cheapest mergers of neighbours (Ward's cost) are
paired with the greatest gains of a split, and done where they gain: the loss falls by each of them.

After Fritzke, "The k-means-u* algorithm" (2017), with exact gains in place of estimates. All sums are exact (`fixed_point`), so
the swaps are the same for every number of workers and threads.

Legend of shapes: n rows of this rank, D columns, k centres, S clusters of a slab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...contracts import Array, Collective, Csr
from ...parallel.collective import together
from ..fixed_point import grid
from ..kernels import swaps as loops
from ..kernels.nearest import Assigner, Centers, Known, dense_rows, spans_of

_ROUNDS = 2  # of 2-means within a cluster
_SLAB_BYTES = 32 << 20  # of sums of halves
_PAIRS = 1 << 22  # distances between centres held at once
_WHAT = "clustering the rows of channel 'train'"
_LARGEST = float(np.finfo(np.float32).max)
_MARGIN = 1.02  # a swap gains at least this many times its cost

Part = tuple[int, Array | Csr, Array]  # number of the first row, rows of this rank, their weights ((0,): all 1)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a descent after an iteration.

    Attributes:
        world: the ranks.
        assigner: whose threads do the work.
        read: yields this rank's rows, in the order of `known`.
        known: labels and distances, one for each part that `read` yields.
        largest: (D,) largest magnitudes of columns over all ranks.
        heaviest: the largest weight over all ranks.
        anchors: (D + 1,) of the grids for columns and weights.
        addends: most rows over all ranks.
        counts: whether this rank's rows count.
    """

    world: Collective
    assigner: Assigner
    read: Callable[[], Iterator[Part]]
    known: Sequence[Known]
    largest: Array
    heaviest: float
    anchors: Array
    addends: int
    counts: bool


def swap(rows: Rows, centers: Array, weights: Array, key: int) -> tuple[Array, int]:
    """Collective. Return the centres (k, D) float32 after all swaps that lower the loss, and how many these were.

    Args:
        rows: of the descent.
        centers: (k, D) float32, means of the rows that have their label.
        weights: (k,) of these rows.
        key: of the random numbers.
    """
    halves, gains = _splits(rows, centers, key)
    found = _mergers(centers, weights) if rows.world.rank == 0 else np.zeros((2, 0))
    partners, costs = rows.world.broadcast(found)
    chosen = matched(gains, partners.astype(np.int64), costs)
    moved = centers.copy()
    for split, gone, kept in chosen:
        total = weights[gone] + weights[kept]
        if total > 0:
            mean = (weights[gone] * centers[gone].astype(np.float64) + weights[kept] * centers[kept]) / total
            moved[kept] = mean.astype(np.float32)
        moved[gone], moved[split] = halves[split]
    return moved, len(chosen)


def matched(gains: Array, partners: Array, costs: Array) -> list[tuple[int, int, int]]:
    """Return the swaps worth doing: which cluster is split, and which is merged into which; each takes part in one.

    Args:
        gains: (k,) that splitting a cluster lowers the loss by.
        partners: (k,) with which each cluster is merged most cheaply.
        costs: (k,) of that.
    """
    chosen: list[tuple[int, int, int]] = []
    taken = np.zeros(len(gains), dtype=bool)
    splits = iter(np.argsort(-gains, kind="stable").tolist())
    split = next(splits)
    for gone in np.argsort(costs, kind="stable").tolist():
        kept = int(partners[gone])
        if taken[gone] or taken[kept]:
            continue
        while taken[split] or split in (gone, kept):
            split = next(splits, -1)
            if split < 0:
                return chosen
        if gains[split] <= costs[gone] * _MARGIN:
            return chosen
        chosen.append((split, gone, kept))
        taken[[split, gone, kept]] = True
    return chosen


def _mergers(centers: Array, weights: Array) -> Array:
    """Return with which other cluster each is merged most cheaply, and what that adds to the loss: (2, k) float64."""
    values = centers.astype(np.float64)
    values -= values.mean(axis=0)
    squares = np.einsum("kd,kd->k", values, values)
    count = len(values)
    partners, costs = np.zeros(count), np.full(count, np.inf)
    step = max(_PAIRS // count, 1)
    for start in range(0, count if count > 1 else 0, step):
        stop = min(start + step, count)
        distances = squares[start:stop, None] + squares - 2 * (values[start:stop] @ values.T)
        shares = weights[start:stop, None] * weights / np.maximum(weights[start:stop, None] + weights, 1e-300)
        price = shares * np.maximum(distances, 0.0)
        price[np.arange(stop - start), np.arange(start, stop)] = np.inf
        partners[start:stop] = price.argmin(axis=1)
        costs[start:stop] = price.min(axis=1)
    return np.stack([partners, costs])


def _splits(rows: Rows, centers: Array, key: int) -> tuple[Array, Array]:
    """Collective. Return the centres of every cluster's halves (k, 2, D) float32, and what each split gains (k,)."""
    towards = _directions(rows, centers, key)
    count, columns = centers.shape
    halves = np.empty((count, 2, columns), dtype=np.float32)
    gains = np.zeros(count)
    slab = max(_SLAB_BYTES // (16 * columns), 1)
    for first in range(0, count, slab):
        to = slice(first, min(first + slab, count))
        middles, way = centers[to].astype(np.float64), towards[to]
        pairs = np.stack([middles + way, middles - way], axis=1)
        pairs = np.clip(pairs, -_LARGEST, _LARGEST).astype(np.float32)
        for _ in range(_ROUNDS):
            sums, totals = _halved(rows, first, pairs)
            means = sums / np.where(totals > 0, totals, 1.0)[:, :, None]
            pairs = np.where((totals > 0)[:, :, None], means, pairs).astype(np.float32)
        halves[to], gains[to] = pairs, _gained(rows, first, pairs, centers[to])
    return halves, gains


def _directions(rows: Rows, centers: Array, key: int) -> Array:
    """Collective. Return half the way from every centre to one of its rows (k, D) float32; far rows are likelier."""
    world, count = rows.world, len(centers)
    least, drawn = np.full(count, np.inf), np.full(count, np.iinfo(np.int64).max)

    def race() -> None:
        for known, (first_row, _, weights) in zip(rows.known, rows.read(), strict=False):
            loops.draw(first_row, np.uint64(key), known.labels, known.distances, weights, least, drawn)

    together(world, _WHAT, race)
    best = world.all_reduce(least, "min")
    drawn[least > best] = np.iinfo(np.int64).max
    drawn = world.all_reduce(drawn, "min")
    found = np.zeros(centers.shape)

    def fetch() -> None:
        for first_row, features, _ in rows.read():
            for k in np.flatnonzero((drawn >= first_row) & (drawn < first_row + len(features))):
                place = int(drawn[k]) - first_row
                found[k] = dense_rows(features, place, place + 1)[0].astype(np.float64) - centers[k]

    together(world, _WHAT, fetch)
    towards: Array = (world.all_reduce(found * float(rows.counts)) * 0.5).astype(np.float32)
    return towards


def _halved(rows: Rows, first: int, halves: Array) -> tuple[Array, Array]:
    """Collective. Return sums (S, 2, D) and weights (S, 2) of the rows by the halves (S, 2, D) of their clusters."""
    sums_size = halves.size

    def work(features: Array, weights: Array, labels: Array, into: Array) -> None:
        sums, totals = into[:sums_size].reshape(halves.shape), into[sums_size:].reshape(-1, 2)
        loops.halve(features, weights, labels, first, halves, rows.anchors, sums, totals)

    both = _summed(rows, sums_size + 2 * len(halves), work)
    return both[:sums_size].reshape(halves.shape), both[sums_size:].reshape(-1, 2)


def _gained(rows: Rows, first: int, halves: Array, wholes: Array) -> Array:
    """Collective. Return by how much the loss falls where clusters with centres `wholes` (S, D) become `halves` (S, 2, D)."""
    reach = max(Centers(centers).farthest(rows.largest) for centers in (halves.reshape(-1, halves.shape[2]), wholes))
    anchor = grid(reach * rows.heaviest, rows.addends)

    def work(features: Array, weights: Array, labels: Array, into: Array) -> None:
        loops.weigh(features, weights, labels, first, halves, wholes, anchor, into.reshape(-1, 2))

    costs = _summed(rows, 2 * len(halves), work).reshape(-1, 2)
    gained: Array = costs[:, 1] - costs[:, 0]
    return gained


def _summed(rows: Rows, size: int, work: Callable[[Array, Array, Array, Array], None]) -> Array:
    """Collective. Return the sum (size,) over all ranks of what `work(rows, weights, labels, into)` adds to `into`."""

    def of_part(item: tuple[Array | Csr, Array, Array, int, int]) -> Array:
        features, weights, labels, start, stop = item
        total = np.zeros(size)
        for to in spans_of(start, stop, rows.largest.shape[0]):
            work(dense_rows(features, to.start, to.stop), weights[to] if len(weights) else weights, labels[to], total)
        return total

    def sweep() -> Array:
        total = np.zeros(size)
        for known, (_, features, weights) in zip(rows.known, rows.read(), strict=False):
            parts = rows.assigner.split(len(features))
            for more in rows.assigner.each([(features, weights, known.labels, *part) for part in parts], of_part):
                total += more
        return total

    return rows.world.all_reduce(together(rows.world, _WHAT, sweep) * float(rows.counts))
