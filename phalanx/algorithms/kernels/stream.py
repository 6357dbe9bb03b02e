"""The K centres that a stream of batches moves, over all ranks; and their reduction to k.

Legend of shapes: N rows of this rank's part of a batch, D columns, K centres of the stream, k of the model.
"""

from __future__ import annotations

from itertools import islice
from typing import final

import numpy as np

from ...contracts import Array, Batch, Collective, Csr, Shard
from ...errors import UserError
from ..fixed_point import grid, snap
from ..reading import NumericBatches
from ..sampling import row_hashes, sample_rows
from . import kmeans as loops
from .lloyd import Init, Reduction, choose, trial
from .nearest import Assigner, Centers, dense_rows

Part = tuple[Batch, Array | Csr, Array]  # of a batch: this rank's part, its features, largest magnitudes over all ranks


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

    def step(self, world: Collective, assigner: Assigner, part: Part, batch_rows: int, half_life: int) -> tuple[float, int]:
        """Collective. Move the centres by one batch.

        Args:
            world: the ranks.
            assigner: finds nearest centres.
            part: of the batch.
            batch_rows: most rows of a batch over all ranks.
            half_life: rows after which a row weighs half; 0: never.

        Returns:
            The mean squared distance of the batch to the centres before they moved, and its rows.
        """
        batch, rows, largest = part
        centers = Centers(self.centers)
        anchors = grid(np.append(largest, centers.farthest(largest)), batch_rows)
        _, distances, sums = assigner.assign_and_sum(rows, centers, anchors)
        sums.flat = world.all_reduce(sums.flat)
        count = int(sums.counts.sum())
        if half_life:
            self.weights *= 0.5 ** (count / half_life)
        loops.move(self.centers, self.weights, sums.rows, sums.counts)
        self._revive(world, batch.first_row, rows, distances)
        return float(sums.flat[-1]) / max(count, 1), count

    def forget(self) -> None:
        """Let every centre weigh no more than one row: the next batches make it anew."""
        self.weights = np.minimum(self.weights, 1.0)

    def _revive(self, world: Collective, first_row: int, rows: Array | Csr, distances: Array) -> None:
        """Collective. Put centres that never got a row (duplicates of others) where the batch's farthest rows are."""
        dead = np.flatnonzero(self.weights == 0)
        if len(dead) == 0:
            return
        own = np.argsort(-distances, kind="stable")[: len(dead)]
        own = own[distances[own] > 0]
        numbers = np.concatenate(world.all_gather(first_row + own.astype(np.int64)))
        lengths = np.concatenate(world.all_gather(distances[own]))
        mine = np.concatenate([np.zeros((0, self.centers.shape[1]), np.float32), *(dense_rows(rows, i, i + 1) for i in own)])
        vectors = np.concatenate(world.all_gather(mine))
        order = np.lexsort((numbers, -lengths))
        _, first = np.unique(vectors[order], axis=0, return_index=True)
        picked = order[np.sort(first)][: len(dead)]
        self.centers[dead[: len(picked)]] = vectors[picked]
        self.weights[dead[: len(picked)]] = 1


def start(world: Collective, batches: NumericBatches, count: int, batch_rows: int, init: Init, seed: int) -> Stream:
    """Collective. Return a stream whose `count` centres are rows of the first batches.

    Args:
        world: the ranks.
        batches: of the channel, with at least `count` rows over all ranks.
        count: K.
        batch_rows: of a batch, over all ranks.
        init: random: rows by a hash of their number; kmeans++: far apart, among all rows of those batches.
        seed: of the job.
    """
    first = list(islice(batches.epoch(batch_rows, 0), -(-count // batch_rows)))  # no larger than the centres and a batch
    hashes = np.concatenate([row_hashes(seed, batch.first_row + np.arange(len(batch))) for batch, _, _ in first])
    vectors = np.concatenate([dense_rows(rows, 0, len(batch)) for batch, rows, _ in first])
    if init == "random":
        centers = sample_rows(world, hashes, vectors, count)
    else:
        candidates = sample_rows(world, hashes, vectors, len(first) * batch_rows)
        generator = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), 2**32]))
        chosen = choose(candidates, np.ones(len(candidates)), count, init, generator) if world.rank == 0 else None
        centers = candidates[world.broadcast(chosen)]
    return Stream(centers, np.zeros(len(centers)))


def reduce_stream(world: Collective, assigner: Assigner, stream: Stream, reduction: Reduction, trials: int) -> Stream:
    """Collective. Return the k centres of the best of `trials`, which ranks and threads share out."""
    alive = stream.weights > 0
    points, weights = stream.centers[alive].astype(np.float32), stream.weights[alive]
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
    """Collective. Return `msd` and `ssd`, the mean and the sum of squared distances of a channel's rows to their centres.

    Raises:
        UserError: the channel has another width than the centres, or numbers that are not finite.
    """
    if shard.columns != centers.shape[1]:
        raise UserError(f"channel '{name}' has {shard.columns} features where channel 'train' has {centers.shape[1]}")
    prepared = Centers(centers)
    rows_of_all, sum_of_all, sum_of_first = 0.0, 0.0, 0.0
    for batch, rows, largest in NumericBatches(world, name, shard, assigner.largest).epoch(batch_rows, 0):
        _, distances = assigner.assign(rows, prepared)
        part_sum = float(snap(distances, grid(prepared.farthest(largest), batch_rows)).sum())
        parts = world.all_gather([len(batch), part_sum])
        rows_of_all += sum(count for count, _ in parts)
        sum_of_all += sum(value for _, value in parts)
        sum_of_first += parts[0][1]
    replicated = rows_of_all > shard.rows  # then each rank saw every row, and the first is as good as any
    ssd = sum_of_first if replicated else sum_of_all
    return {"msd": ssd / max(shard.rows, 1), "ssd": ssd}
