"""Lloyd's algorithm on all rows: starts on a sample that grows while that pays, then passes over the channel to the end.

Good starts come from greedy k-means++ on a small sample, the best of several. The sample grows from stage to stage once its own
loss hardly falls, as in Newling and Fleuret, "Nested mini-batch k-means" (2016): most of the way is gone on few rows. Passes
compare only rows whose nearest centre may have changed (`kernels.bounds`), and move sums by the rows that changed.

All sums are exact (`fixed_point`) and every label is that of the nearest centre, so the model is the same, bit for bit, for
every number of workers and threads, and after a resume, which keeps the centres and nothing of the bounds.

Legend of shapes: n rows of this rank, D columns, k centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np

from ...contracts import Array, Collective, Csr, Entry, Shard, State
from ...parallel.collective import together
from ..fixed_point import grid
from ..kernels.lloyd import Init, Reduction, choose, random_stream
from ..kernels.nearest import Assigner, Centers, Known, Sums, dense_rows, packed
from ..kernels.stream import Stream, first_of_equals, reduce_stream
from ..reading import NumericBatches, numbers
from .swaps import Part, Rows, swap

_START_ROWS, _START_ROWS_EACH = 2048, 10  # of the sample that starts are tried on; for each centre
_START_BYTES = 64 << 20  # that every rank holds of it; two rows a centre it has at least
_START_ITERATIONS = 5
_GROWTH = 4  # of the sample from stage to stage
_SAMPLE_ROWS_EACH = 4  # for each centre, at least: centres fitted to fewer are no better for other rows
_SAMPLE_SHARE, _SAMPLE_BYTES = 4, 64 << 20  # the sample has at most a quarter of all rows, and so much over all ranks
_STAGE_TOLERANCE = 1e-2  # relative improvement below which the sample grows
_READ_BYTES, _FEWEST_READ = 8 << 20, 256  # of rows as float32 at once; of rows for each rank
_SLICE = 1024  # centres that are looked at in float64 at once
_STARTS, _START_COST = 3, 5 * 10**8
_CANDIDATES = 2  # of k-means++: swaps mend the rest
_SWAPS = 6  # most rounds of them
_SWAP_TOLERANCE = 2e-2  # relative improvement below which the next round comes
_FEW_SWAPS = 256  # a round that swaps fewer than one cluster in so many is the last


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted."""

    k: int
    init: Init
    starts: int | None  # None: 3, fewer where k is large
    iterations: int  # most passes over all rows
    tolerance: float  # relative improvement of a pass that ends it
    seed: int


@final
class Progress:
    """Where the descent is: what a checkpoint holds. The same on every rank."""

    def __init__(self) -> None:
        self.step = 0
        self.centers: Array | None = None  # (k, D) float32
        self.active = 0  # rows of the sample that take part; 0: all rows of the channel do
        self.swaps = 0  # rounds of swaps done
        self.passes = 0  # over all rows
        self.error = np.inf  # mean squared distance of the step before on the same rows
        self.done = False

    def state_dict(self) -> State:
        """Return everything."""
        error = self.error if np.isfinite(self.error) else -1.0
        numbers_ = [self.step, self.active, self.passes, error, int(self.done), self.swaps]
        return {"lloyd": Entry(numbers_), "centers": Entry(self.centers)} if self.step else {"step": Entry(0)}

    def load_state_dict(self, state: State) -> None:
        """Go back to a state."""
        if "lloyd" not in state:
            return
        step, active, passes, error, done, swaps = state["lloyd"].value
        self.step, self.active, self.passes, self.done, self.swaps = int(step), int(active), int(passes), bool(done), int(swaps)
        self.error = float(error) if error >= 0 else np.inf
        self.centers = np.asarray(state["centers"].value, dtype=np.float32)


@final
class Descent:
    """Lloyd's iterations over one set of rows.

    Args:
        world: the ranks.
        assigner: finds nearest centres.
        read: yields this rank's rows, the same ones in the same order every time; makes no collective call.
        largest: (D + 1,) largest magnitudes of columns and of weights over all ranks.
        addends: most rows over all ranks.
        counts: whether this rank's rows count; one rank's do where every rank reads all of them.
    """

    def __init__(
        self,
        world: Collective,
        assigner: Assigner,
        read: Callable[[], Iterator[Part]],
        largest: Array,
        addends: int,
        *,
        counts: bool = True,
    ) -> None:
        self._world = world
        self._assigner = assigner
        self._read = read
        self._largest, self._heaviest = largest[:-1].astype(np.float64), float(largest[-1])
        self._addends = addends
        self._counts = counts
        self._anchors = grid(np.append(self._largest * self._heaviest, self._heaviest), addends)
        self._known: list[Known] = []
        self._own: Sums | None = None  # of this rank's rows
        self._totals: Array | None = None  # (k,) weights of the clusters, over all ranks
        self._seen: Array | None = None  # the centres that rows were last compared with

    def iterate(self, values: Array) -> tuple[Array, float, int, bool]:
        """Collective. Give every row its nearest centre, and every centre the mean of its rows.

        Args:
            values: (k, D) float32 centres; the nearer to those of the call before, the fewer rows must be compared.

        Returns:
            The centres moved (k, D) float32; the mean squared distance before they moved; the rows that changed their
            centre; whether a centre without rows was put elsewhere.
        """
        drift = None if self._seen is None else _distances(values, self._seen)
        self._seen = values  # with many centres these and their sums are most of the memory: none stays longer than it must
        shape = (values.shape[0], values.shape[1])
        parts = self._assigner.sums(shape, self._own)
        changed = self._sweep(Centers(values), drift, parts)
        self._own = parts[0]
        for other in parts[1:]:
            self._own.flat += other.flat
        del parts
        found = self._own.flat if self._counts else np.zeros_like(self._own.flat)
        total = Sums(found if self._world.size == 1 else self._world.all_reduce(found), shape)
        changed = int(self._world.all_reduce(np.array([changed if self._counts else 0]))[0])
        counts = self._totals = total.counts.copy()
        idle = np.flatnonzero(counts <= 0)
        moved = np.empty(shape, np.float32)
        np.divide(total.rows, np.where(counts > 0, counts, 1.0)[:, None], out=moved, casting="same_kind")
        moved[idle] = values[idle]
        error = float(total.flat[-1])
        del found, total
        repaired = bool(len(idle)) and self._revive(idle, moved)
        return moved, error / max(float(counts.sum()), 1e-300), changed, repaired

    def _sweep(self, centers: Centers, drift: Array | None, parts: list[Sums]) -> int:
        """Collective. Bring the rows' labels and their sums, in `parts`, up to date; return how many rows changed."""
        anchor = grid(centers.farthest(self._largest) * self._heaviest, self._addends)

        def sweep() -> int:
            changed = 0
            for number, (_, rows, weights) in enumerate(self._read()):
                if number == len(self._known):
                    self._known.append(Known.nothing(len(rows)))
                known = self._known[number] = self._known[number].grown(len(rows))
                changed += self._assigner.update(rows, weights, known, centers, drift, self._anchors, anchor, parts)
            return changed

        return together(self._world, "clustering the rows of channel 'train'", sweep)

    def swap(self, values: Array, key: int) -> tuple[Array, int]:
        """Collective. Swap clusters where that lowers the loss: see `swaps`.

        Args:
            values: (k, D) float32 centres that `iterate` just returned, none of them put elsewhere.
            key: of the random numbers.

        Returns:
            The centres, and how many swaps were done.
        """
        assert self._totals is not None
        rows = Rows(
            self._world,
            self._assigner,
            self._read,
            self._known,
            self._largest,
            self._heaviest,
            self._anchors,
            self._addends,
            self._counts,
        )
        return swap(rows, values, self._totals, key)

    def _revive(self, idle: Array, centers: Array) -> bool:
        """Collective. Put centres without rows where the farthest rows are; return whether there were any."""
        most = 4 * len(idle) + 64  # some rows will be equal
        known = np.concatenate([np.zeros(0), *(one.distances for one in self._known)])
        own = np.argsort(-known, kind="stable")[:most]
        own = np.sort(own[known[own] > 0])

        def fetch() -> tuple[Array, Array, Array]:
            found, start = [(np.zeros((0, centers.shape[1]), np.float32), own[:0], own[:0])], 0
            for first_row, rows, weights in self._read():
                picked = own[(own >= start) & (own < start + len(rows))]
                picked = picked[weights[picked - start] > 0] if len(weights) else picked
                found += [
                    (dense_rows(rows, i, i + 1), np.array([i + start]), np.array([i + first_row])) for i in picked - start
                ]
                start += len(rows)
            vectors, places, row_numbers = (np.concatenate(column) for column in zip(*found, strict=True))
            return vectors, places, row_numbers

        vectors, places, row_numbers = together(self._world, "reading channel 'train'", fetch)
        lengths = np.concatenate(self._world.all_gather(known[places]))
        row_numbers = np.concatenate(self._world.all_gather(row_numbers))
        vectors = np.concatenate(self._world.all_gather(vectors))
        order = np.lexsort((row_numbers, -lengths))[:most]
        picked = order[first_of_equals(vectors[order])][: len(idle)]
        centers[idle[: len(picked)]] = vectors[picked]
        return len(picked) > 0


@final
class BatchKMeans:
    """The descent over sample and channel.

    Args:
        world: the ranks.
        assigner: finds nearest centres.
        shard: channel `train`.
        plan: what is wanted.
        progress: where to go on; kept up to date.
    """

    def __init__(self, world: Collective, assigner: Assigner, shard: Shard, plan: Plan, progress: Progress) -> None:
        self._world = world
        self._assigner = assigner
        self._shard = shard
        self._plan = plan
        self._progress = progress
        self._rows = max(_READ_BYTES // (4 * max(shard.columns or 1, 1)), _FEWEST_READ * world.size)
        self._counts = shard.parts > 1 or world.rank == 0

    def steps(self) -> Iterator[tuple[float, int]]:
        """Collective. Do one step after the other; yield the mean squared distance before it and the rows it looked at."""
        progress, plan, rows = self._progress, self._plan, self._shard.rows
        if progress.done:
            return
        if progress.step == 0 or progress.active:
            held = _START_BYTES // (4 * max(self._shard.columns or 1, 1))
            start_rows = min(max(_START_ROWS, min(_START_ROWS_EACH * plan.k, held), 2 * plan.k), rows)
            most = _SAMPLE_BYTES // (4 * max(self._shard.columns or 1, 1))
            sample = max(min(rows // _SAMPLE_SHARE, most), start_rows)
            yield from self._on_sample(sample, start_rows)
        largest = self._scan()
        descent = Descent(self._world, self._assigner, self._read, largest, rows, counts=self._counts)
        while not progress.done:
            error, changed, repaired = self._advance(descent)
            small = progress.error - error <= plan.tolerance * progress.error and np.isfinite(progress.error)
            progress.passes += 1
            progress.done = progress.passes >= plan.iterations or (not repaired and (small or changed == 0))
            progress.error = error
            yield error, rows

    def _advance(self, descent: Descent) -> tuple[float, int, bool]:
        assert self._progress.centers is not None
        self._progress.centers, error, changed, repaired = descent.iterate(self._progress.centers)
        self._progress.step += 1
        return error, changed, repaired

    def _on_sample(self, count: int, start_rows: int) -> Iterator[tuple[float, int]]:
        """Collective. Choose the first centres and improve them on more and more of the first `count` rows, shuffled."""
        progress = self._progress
        parts, largest = self._sample(count)
        if progress.step == 0:
            progress.centers = self._start(parts, start_rows)
            worth = count >= min(_SAMPLE_ROWS_EACH * self._plan.k, self._shard.rows)
            progress.active = min(start_rows * _GROWTH, count) if worth else 0

        def read() -> Iterator[Part]:
            for first_row, rows, weights in parts:
                stop = min(max(progress.active - first_row, 0), len(rows))
                yield first_row, head(rows, stop), weights[:stop]

        descent = Descent(self._world, self._assigner, read, largest, count, counts=self._counts)
        while progress.active:
            error, _, repaired = self._advance(descent)
            looked_at, before, progress.error = progress.active, progress.error, error
            if not repaired and np.isfinite(before):
                improved = (before - error) / (before or 1.0)
                if progress.swaps < _SWAPS and improved <= _SWAP_TOLERANCE:
                    self._swap(descent)
                elif improved <= _STAGE_TOLERANCE:
                    progress.active = 0 if progress.active * 2 > count else min(progress.active * _GROWTH, count)
                    progress.error = np.inf
            yield error, looked_at

    def _swap(self, descent: Descent) -> None:
        """Collective. Swap clusters of the sample."""
        progress, plan = self._progress, self._plan
        assert progress.centers is not None
        key = int(random_stream(plan.seed, 2**33 + progress.swaps).integers(2**63))
        progress.centers, swapped = descent.swap(progress.centers, key)
        progress.swaps = progress.swaps + 1 if swapped * _FEW_SWAPS >= plan.k and swapped else _SWAPS

    def _sample(self, count: int) -> tuple[list[Part], Array]:
        """Collective. Return this rank's parts of the first `count` rows, shuffled, and the largest magnitudes (D + 1,)."""
        largest, heaviest, parts = np.zeros(self._shard.columns or 1), 0.0, list[Part]()
        batches = NumericBatches(self._world, "train", self._shard, self._assigner.largest, weights=True)
        for batch, rows, magnitudes, most, _ in islice(batches.epoch(self._rows, 0, shuffle=True), -(-count // self._rows)):
            stop = min(max(count - batch.first_row, 0), len(batch))
            weights = np.zeros(0) if batch.weight is None else batch.weight[:stop].astype(np.float64)
            parts.append((batch.first_row, packed(head(rows, stop)), weights))
            np.maximum(largest, magnitudes, out=largest)
            heaviest = max(heaviest, most)
        return parts, np.append(largest, heaviest)

    def _start(self, parts: list[Part], stop: int) -> Array:
        """Collective. Return the best of several starts on the first rows of the sample."""
        plan = self._plan
        counts = [min(max(stop - first_row, 0), len(rows)) for first_row, rows, _ in parts]
        points = np.empty((sum(counts), self._shard.columns or 1), np.float32)
        heavy, numbers_, at = np.ones(len(points)), np.empty(len(points), np.int64), 0
        for (first_row, rows, weights), count in zip(parts, counts, strict=True):
            to = slice(at, at + count)
            points[to] = dense_rows(rows, 0, count)
            heavy[to] = weights[:count] if len(weights) else 1.0
            numbers_[to] = first_row + np.arange(count)
            at += count
        if self._world.size > 1:
            points, heavy, numbers_ = (np.concatenate(self._world.all_gather(column)) for column in (points, heavy, numbers_))
            order = np.unique(numbers_, return_index=True)[1]  # where a rank reads all rows, so do the others
            points, heavy = points[order], heavy[order]
        if not heavy.any():
            heavy = np.ones(len(heavy))
        cost = points.size * plan.k * _START_ITERATIONS
        starts = plan.starts or int(min(max(_START_COST // cost, 1), _STARTS))
        if starts == 1:
            generator = random_stream(plan.seed, 0)
            able = self._world.rank == 0 and np.count_nonzero(heavy) > plan.k
            chosen = choose(points, heavy, plan.k, plan.init, generator, _CANDIDATES) if able else np.zeros(0, np.int64)
            chosen = self._world.broadcast(chosen)
            if len(chosen):
                return points[chosen]
        reduction = Reduction(plan.k, plan.init, _START_ITERATIONS, 0.0, plan.seed)
        stream = reduce_stream(self._world, self._assigner, Stream(points, heavy), reduction, starts)
        return stream.centers.astype(np.float32)

    def _scan(self) -> Array:
        """Collective. Return the largest magnitudes of columns and weights (D + 1,) of the channel, whose rows it checks."""
        largest, heaviest = np.zeros(self._shard.columns or 1), 0.0
        batches = NumericBatches(self._world, "train", self._shard, self._assigner.largest, weights=True)
        for _, _, magnitudes, most, _ in batches.epoch(self._rows, 0):
            np.maximum(largest, magnitudes, out=largest)
            heaviest = max(heaviest, most)
        return np.append(largest, heaviest)

    def _read(self) -> Iterator[Part]:
        for batch in self._shard.batches(self._rows):
            weights = np.zeros(0) if batch.weight is None else batch.weight.astype(np.float64)
            yield batch.first_row, numbers(batch.features, "channel 'train'"), weights


def _distances(centers: Array, others: Array) -> Array:
    """Return bounds of how far each of two sets of centres (k, D) is from its like (k,)."""
    lengths = np.empty(len(centers))
    for at in range(0, len(centers), _SLICE):
        difference = centers[at : at + _SLICE].astype(np.float64) - others[at : at + _SLICE]
        lengths[at : at + _SLICE] = np.einsum("kd,kd->k", difference, difference)
    return np.asarray(np.sqrt(lengths) * (1 + 1e-9))


def head(rows: Array | Csr, stop: int) -> Array | Csr:
    """Return the first `stop` rows; no copy."""
    if not isinstance(rows, Csr):
        return rows[:stop]
    end = int(rows.indptr[stop])
    return Csr(rows.indptr[: stop + 1], rows.indices[:end], rows.values[:end], rows.columns)
