"""The trees of a random cut forest as arrays: built, scored by, followed through a stream, written and read.

Legend of shapes: N rows, D columns, T trees, M rows of a tree's sample; the others are in `kernels.forest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, final

import numpy as np

from ...contracts import Array, Collective
from ...errors import UserError
from ..kernels import forest as loops
from ..kernels import forest_batch as batch_loops
from ..kernels import forest_stream as stream_loops

LARGEST = 1e30  # magnitude of a number: sums of differences must stay finite in float32
_CHUNK_BYTES = 128 << 10  # of rows that a tree is asked about at once: beside the tree they lie in the cache
_MANY_ROWS = 4096  # tables of the cuts, some 30 us a tree, are worth their making
_LARGE_CHUNK = 1 << 15  # rows at once with them


@final
@dataclass(slots=True)
class Trees:
    """T trees; the kernels' arrays."""

    columns: int  # D
    words: Array  # (T, V, W) float32
    points: Array  # (T, M, P) float32
    leaves: Array  # (T, M, 2) int32
    heads: Array  # (T, 4) int32
    places: Array  # (T, M) int32
    spare: Array  # (T, 2, M) int32

    @classmethod
    def empty(cls, trees: int, rows: int, columns: int) -> Self:
        """Return `trees` trees without rows, of at most `rows` each."""
        width, nodes = _padded(columns), max(rows - 1, 1)
        made = cls(
            columns=columns,
            words=np.zeros((trees, nodes, loops.HEAD + 2 * width), np.float32),
            points=np.zeros((trees, rows, width), np.float32),
            leaves=np.zeros((trees, rows, 2), np.int32),
            heads=np.zeros((trees, 4), np.int32),
            places=np.zeros((trees, rows), np.int32),
            spare=np.zeros((trees, 2, rows), np.int32),
        )
        made.grow(np.zeros((trees, 0, columns), np.float32), 0, 1)
        return made

    @property
    def ints(self) -> Array:
        """The nodes' words as int32, the same memory."""
        return self.words.view(np.int32)

    @property
    def count(self) -> int:
        """T."""
        return len(self.words)

    def part(self, first: int, last: int) -> Trees:
        """Return views of the trees [first, last)."""
        return Trees(self.columns, **{name: array[first:last] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """Return all arrays by name."""
        return {name: getattr(self, name) for name in ("words", "points", "leaves", "heads", "places", "spare")}

    def grow(self, samples: Array, seed: int, threads: int, *, first: int = 0) -> None:
        """Build all trees afresh.

        Args:
            samples: (T, at most M, D) float32.
            seed: of the forest.
            threads: to use.
            first: number of the first of these trees in the forest; its cuts depend on it.
        """
        ints = self.ints

        def one(t: int) -> None:
            tree = np.uint64((seed * 1009 + first + t) % 2**64)
            loops.build(
                padded(samples[t]), tree, self.words[t], ints[t], self.points[t], self.leaves[t], self.places[t],
                self.heads[t], self.spare[t],
            )  # fmt: skip

        _spread(one, range(self.count), threads)

    def joined(self, world: Collective) -> Trees:
        """Collective. Return the trees of all ranks, in their order."""
        if world.size == 1:
            return self
        parts = {name: world.all_gather(array) for name, array in self.arrays().items()}
        return Trees(self.columns, **{name: np.concatenate(arrays) for name, arrays in parts.items()})

    def score(self, rows: Array, threads: int = 1) -> Array:
        """Return the scores (N,) float64 of rows (N, D)."""
        units = np.zeros(len(rows), np.int64)
        narrow = self.points.shape[2] <= batch_loops.NARROW and self.points.shape[1] <= batch_loops.MOST_LEAVES
        if narrow and len(rows) >= _MANY_ROWS:
            for start in range(0, len(rows), _LARGE_CHUNK):
                self._score_many(padded(rows[start : start + _LARGE_CHUNK]), threads, units[start : start + _LARGE_CHUNK])
            return units * (loops.UNIT / self.count)

        def some(part: slice) -> None:
            wide = padded(rows[part])
            turned = np.ascontiguousarray(wide.T)
            trees = (self.words, self.ints, self.points, self.leaves, self.heads)
            batch_loops.score(wide, turned, self.columns, *trees, units[part])

        _spread(some, self._chunks(len(rows)), threads)
        return units * (loops.UNIT / self.count)

    def _score_many(self, rows: Array, threads: int, units: Array) -> None:
        """Add the scores of padded rows (N, P) to `units` (N,)."""
        groups = max(min(threads, self.count), -(-self.count * self.words.shape[1] // batch_loops.MOST_CUTS))

        def some(ends: tuple[int, int]) -> Array:
            own, found = self.part(*ends), np.zeros(len(rows), np.int64)
            keys = np.empty(own.count * own.words.shape[1], np.int64)
            keys = np.sort(keys[: batch_loops.keys_of_cuts(own.words, own.ints, own.heads, keys)])
            begins = np.searchsorted(keys, np.arange(self.columns + 1) << 48)
            cuts, places = np.empty(len(keys), np.float32), np.empty((len(rows), self.columns), np.uint16)
            batch_loops.cuts_of(keys, cuts)
            batch_loops.place_all(rows, cuts, begins, places)
            batch_loops.score_many(rows, places, keys, begins, own.words, own.ints, own.points, own.leaves, own.heads, found)
            return found

        bounds = np.linspace(0, self.count, groups + 1).astype(int).tolist()
        for found in _spread(some, list(pairwise(bounds)), threads):
            units += found

    def explain(self, rows: Array, threads: int = 1) -> Array:
        """Return what each feature adds to the scores of rows, (N, D) float64."""
        units = np.zeros((len(rows), self.columns), np.int64)

        def some(part: slice) -> None:
            loops.explain(padded(rows[part]), self.words, self.ints, self.points, self.leaves, self.heads, units[part])

        _spread(some, self._chunks(len(rows)), threads)
        return units * (loops.UNIT / self.count)

    def follow(self, rows: Array, keys: Array, how: Following, threads: int = 1) -> tuple[Array, Array]:
        """Score every row (N, D) by the trees as they are before it, then let it into their samples.

        Args:
            rows: in the order of the stream.
            keys: (T, M) float64 of the samples; changed.
            how: where in which stream.
            threads: to use; trees are spread over them.

        Returns:
            The scores (N,), and what each feature adds to them (N, D): of no rows unless `how` asks for it.
        """
        units = np.zeros(len(rows), np.int64)
        shares = np.zeros((len(rows) if how.explained else 0, self.columns), np.int64)
        bounds = np.linspace(0, self.count, min(threads, self.count) + 1).astype(int).tolist()
        chunks = [(part, padded(rows[part])) for part in self._chunks(len(rows))]

        def some(ends: tuple[int, int]) -> tuple[Array, Array]:
            own = self.part(*ends)
            scores, parts = np.zeros_like(units), np.zeros_like(shares)
            for part, wide in chunks:
                stream_loops.follow(
                    wide, own.words, own.ints, own.points, own.leaves, own.heads, own.places, own.spare,
                    keys[ends[0] : ends[1]], np.uint64(how.seed % 2**64), how.first + part.start, how.decay, ends[0],
                    scores[part], parts[part] if how.explained else parts,
                )  # fmt: skip
            return scores, parts

        for scores, parts in _spread(some, list(pairwise(bounds)), threads):
            units += scores
            shares += parts
        return units * (loops.UNIT / self.count), shares * (loops.UNIT / self.count)

    def packed(self) -> dict[str, Array]:
        """Return what `unpacked` takes: everything but what follows from it."""
        nodes = np.ascontiguousarray(self.ints[:, :, : loops.SIZE])
        points = np.ascontiguousarray(self.points[:, :, : self.columns])
        return {"nodes": nodes, "points": points, "leaves": self.leaves, "heads": self.heads, "places": self.places,
                "spare": self.spare}  # fmt: skip

    @classmethod
    def unpacked(cls, found: Mapping[str, Array], name: str) -> Self:
        """Return the trees that `packed` gave.

        Raises:
            UserError: the arrays, of file `name`, are no trees.
        """
        points = found["points"]
        if points.ndim != 3 or points.dtype != np.float32 or 0 in points.shape or not np.isfinite(points).all():
            raise UserError(f"{name} holds no forest: a finite float32 array of points (trees, rows, features) is expected")
        made = cls.empty(*points.shape)
        made.points[:, :, : made.columns] = points
        for field, target in (("leaves", made.leaves), ("heads", made.heads), ("places", made.places), ("spare", made.spare)):
            if found[field].shape != target.shape or found[field].dtype != np.int32:
                raise UserError(f"{name} holds no forest: {field} is not an int32 array {target.shape}")
            target[:] = found[field]
        if found["nodes"].shape != (*made.words.shape[:2], loops.SIZE) or found["nodes"].dtype != np.int32:
            raise UserError(f"{name} holds no forest: nodes is not an int32 array")
        made.ints[:, :, : loops.SIZE] = found["nodes"]
        if not loops.complete(made.words, made.ints, made.points, made.leaves, made.heads, made.places, made.spare):
            raise UserError(f"{name} holds trees that are not sound")
        return made

    def _chunks(self, rows: int) -> list[slice]:
        size = max(_CHUNK_BYTES // (4 * self.points.shape[2]), 16)
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@dataclass(frozen=True, slots=True)
class Following:
    """Where in which stream some rows are."""

    seed: int
    first: int  # number of the first of them
    decay: float  # a row's weight is exp(decay * its number)
    explained: bool = False


def padded(rows: Array) -> Array:
    """Return rows (N, D) as float32 with zeros up to a multiple of 8 columns."""
    width = _padded(rows.shape[1])
    if width == rows.shape[1]:
        return np.require(rows, dtype=np.float32, requirements=["C", "W"])  # windows may be a view that is read-only
    wide = np.zeros((len(rows), width), np.float32)
    wide[:, : rows.shape[1]] = rows
    return wide


def _padded(columns: int) -> int:
    return -(-columns // 8) * 8


def _spread(work: Callable[[Any], Any], items: Any, threads: int) -> list[Any]:
    """Return what `work` makes of each item, in order; kernels let other threads run."""
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(work, items))
