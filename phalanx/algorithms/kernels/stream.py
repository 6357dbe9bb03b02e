"""The K centres that a stream of batches moves, over all ranks; and their reduction to k.

Legend of shapes: N rows of this rank's part of a batch, D columns, K centres of the stream, k of the model.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ...contracts import Array, Collective, Csr, Shard
from ...errors import UserError
from ..fixed_point import grid, snap
from ..reading import NumericBatches, Part, copies
from . import kmeans as loops
from .lloyd import Init, Reduction, choose, random_stream, trial
from .nearest import Assigner, Centers, dense_rows


@final
class Stream:
    """The centres of a stream and what each weighs; the same on every rank.

    Args:
        centers: (K, D) float64.
        weights: (K,) float64, rows that each centre stands for, old ones discounted.
    """

    def __init__(self, centers: Array, weights: Array) -> None:
        self.centers = np.array(centers, dtype=np.float64)
        self.weights = np.array(weights, dtype=np.float64)

    def step(self, world: Collective, assigner: Assigner, part: Part, batch_rows: int, half_life: int) -> float:
        """Collective. Move the centres by one batch.

        Args:
            world: the ranks.
            assigner: finds nearest centres.
            part: of the batch.
            batch_rows: most rows of a batch over all ranks.
            half_life: rows after which a row weighs half; 0: never.

        Returns:
            The mean squared distance of the batch's rows, as they weigh, to the centres before they moved.
        """
        batch, rows, largest, heaviest, _ = part
        centers = Centers(self.centers)
        row_weights = None if batch.weight is None else batch.weight.astype(np.float64)
        anchors = grid(np.append(np.append(largest, centers.farthest(largest)) * heaviest, heaviest), batch_rows)
        if row_weights is None:
            anchors = anchors[:-1]
        _, distances, sums = assigner.assign_and_sum(rows, centers, anchors, row_weights)
        sums.flat = world.all_reduce(sums.flat)
        total = float(sums.counts.sum())
        if half_life:
            self.weights *= 0.5 ** (total / half_life)
        loops.move(self.centers, self.weights, sums.rows, sums.counts)
        self._revive(world, batch.first_row, rows, distances if row_weights is None else distances * (row_weights > 0))
        return float(sums.flat[-1]) / (total or 1.0)

    def forget(self) -> None:
        """Let every centre weigh no more than one row: the next batches make it anew."""
        self.weights = np.minimum(self.weights, 1.0)

    def _revive(self, world: Collective, first_row: int, rows: Array | Csr, distances: Array) -> None:
        """Collective. Put idle centres (that repeated others) where the batch's farthest rows are."""
        idle = np.flatnonzero(self.weights == 0)
        if len(idle) == 0:
            return
        most = 4 * len(idle) + 64  # some rows will be equal
        own = np.argsort(-distances, kind="stable")[:most]
        own = own[distances[own] > 0]
        mine = np.concatenate([np.zeros((0, self.centers.shape[1]), np.float32), *(dense_rows(rows, i, i + 1) for i in own)])
        numbers = np.concatenate(world.all_gather(first_row + own.astype(np.int64)))
        lengths = np.concatenate(world.all_gather(distances[own]))
        vectors = np.concatenate(world.all_gather(mine))
        order = np.lexsort((numbers, -lengths))[:most]
        picked = order[first_of_equals(vectors[order])][: len(idle)]
        self.centers[idle[: len(picked)]] = vectors[picked]
        self.weights[idle[: len(picked)]] = 1


def start(world: Collective, batches: NumericBatches, count: int, batch_rows: int, init: Init, seed: int) -> Stream:
    """Collective. Return a stream whose `count` centres are rows from all over the channel, which may be sorted.

    Args:
        world: the ranks.
        batches: of the channel, with at least `count` rows over all ranks.
        count: K.
        batch_rows: of a batch, over all ranks.
        init: random: the first rows of a shuffled order; kmeans++: rows far apart among a batch or more of these.
        seed: of the job.
    """
    sample = count if init == "random" else max(count, batch_rows)
    batch, rows, largest, *_ = next(batches.epoch(sample, 0, shuffle=True))
    if not np.isfinite(largest).all():
        for _ in batches.epoch(batch_rows, 0):
            pass  # in order of rows the bad one is found, and named
    vectors = np.concatenate(world.all_gather(dense_rows(rows, 0, len(batch))))
    heavy = np.concatenate(world.all_gather(np.ones(len(batch)) if batch.weight is None else batch.weight.astype(np.float64)))
    if init == "kmeans++":
        generator = random_stream(seed, 2**32)
        chosen = choose(vectors, heavy, count, init, generator) if world.rank == 0 else np.zeros(0, np.int64)
        chosen = world.broadcast(chosen)
        vectors, heavy = vectors[chosen], heavy[chosen]
    centers = vectors[:count]
    weights = np.zeros(len(centers))
    weights[first_of_equals(centers)] = 1
    weights[heavy[:count] == 0] = 0  # the next batches put these elsewhere
    return Stream(centers, weights)


def first_of_equals(rows: Array) -> Array:
    """Return the numbers of the rows that equal no earlier one, ascending."""
    first: Array = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return first


def reduce_stream(world: Collective, assigner: Assigner, stream: Stream, reduction: Reduction, trials: int) -> Stream:
    """Collective. Return the k centres of the best of `trials`, which ranks and threads share out."""
    alive = stream.weights > 0
    points, weights = stream.centers[alive].astype(np.float32), stream.weights[alive]
    if not alive.any():  # no row weighs anything: any centres will do
        points, weights = stream.centers.astype(np.float32), np.ones(len(stream.centers))
    k, count = reduction.k, len(points)
    if count <= k:  # where they repeat, one of equals weighs nothing
        return Stream(points[np.arange(k) % count], np.where(np.arange(k) < count, 1.0, 0.0))
    mine = range(world.rank, trials, world.size)
    found = assigner.each(mine, lambda number: (*trial(points, weights, reduction, number), number))
    found.append((np.inf, np.zeros((0, 0), np.float32), trials))  # of a rank without trials
    error, centers, number = min(found, key=lambda result: (result[0], result[2]))
    offers = world.all_gather([error, number])
    centers = world.broadcast(centers, root=min(range(world.size), key=lambda rank: offers[rank]))
    return Stream(centers, np.ones(k))


def evaluate(
    world: Collective, assigner: Assigner, name: str, shard: Shard, centers: Array, batch_rows: int
) -> dict[str, float]:
    """Collective. Return `msd` and `ssd`, the mean and the sum of squared distances, as rows weigh, to their centres.

    Raises:
        UserError: the channel has another width than the centres, or numbers that are not finite.
    """
    if shard.columns != centers.shape[1]:
        raise UserError(f"channel '{name}' has {shard.columns} features where channel 'train' has {centers.shape[1]}")
    prepared = Centers(centers)
    total, cost = np.zeros(world.size), np.zeros(world.size)  # of each rank's rows: weights, weighted squared distances
    batches = NumericBatches(world, name, shard, assigner.largest, weights=True)
    for batch, rows, largest, heaviest, _ in batches.epoch(batch_rows, 0):
        _, distances = assigner.assign(rows, prepared)
        weights = np.ones(len(batch)) if batch.weight is None else batch.weight.astype(np.float64)
        costs = snap(distances * weights, grid(prepared.farthest(largest) * heaviest, batch_rows))
        parts = world.all_gather([float(snap(weights, grid(heaviest, batch_rows)).sum()), float(costs.sum())])
        total[:] += [part[0] for part in parts]
        cost[:] += [part[1] for part in parts]
    replicated = copies(world, shard) > 1  # then each rank saw every row, and the first is as good as any
    ssd, weight = (float(values[0] if replicated else values.sum()) for values in (cost, total))
    return {"msd": ssd / (weight or 1.0), "ssd": ssd}
