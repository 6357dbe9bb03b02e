"""Nearest centres of many rows: chunks that fit the cache, spread over threads; dense and sparse rows.

Legend of shapes: N rows, M rows of a chunk, D columns, K centres.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self, TypeVar, final

import numpy as np

from ...contracts import Array, Csr
from ..fixed_point import snap
from . import bounds
from . import kmeans as loops
from .blas import single_threaded_blas

S = TypeVar("S")
T = TypeVar("T")
_CHUNK_BYTES = 2 << 20  # of a chunk's rows or its products: what the shared cache holds beside the centres
_MOST_ROWS, _FEWEST_ROWS = 512, 16
_PRODUCT_BYTES, _FEWEST_PRODUCTS = 12 << 20, 256  # many centres are read from memory: for so many rows at once
_SHARED_SUMS = 8 << 20  # bytes of sums by centre from which on threads share one array
_SPAN_BYTES, _LONGEST_SPAN = 2 << 20, 2048  # rows that are made dense at once, and of which those to compare are gathered


@final
class Centers:
    """K centres made ready for comparison.

    Attributes:
        values: (K, D) float32, as they are.
        offset: (D,) their mean; products are taken of differences to it, where their rounding is smallest.
        shifted: (K, D) float32, less the offset.
        half_squares: (K,) float32, |shifted|² / 2.
        largest_norm, largest_half: bounds over all centres.
    """

    def __init__(self, values: Array) -> None:
        self.values = np.ascontiguousarray(values, dtype=np.float32)
        self.offset = self.values.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.shifted = np.empty_like(self.values)
        norms = np.empty(len(self.values), dtype=np.float32)
        loops.shift(self.values, self.offset, self.shifted, norms)
        with np.errstate(over="ignore"):  # numbers too large for products are compared one by one
            halves = 0.5 * np.einsum("kd,kd->k", self.shifted, self.shifted, dtype=np.float64)
            self.half_squares = halves.astype(np.float32)
        self.largest_half = float(halves.max())
        self.largest_norm = float(np.sqrt(2 * self.largest_half))

    def farthest(self, largest: Array) -> float:
        """Return a bound of the squared distance of any row whose magnitudes are at most `largest` (D,) to any centre."""
        reach = largest.astype(np.float64) + np.maximum(self.values.max(axis=0), -self.values.min(axis=0))
        return float((reach * reach).sum())


@dataclass(slots=True)
class Sums:
    """Sums of rows by their nearest centre, in one array so that one all-reduce takes them all."""

    flat: Array  # (K * D + K + 1,) float64: sums of rows, counts, sum of squared distances
    shape: tuple[int, int]  # K, D

    @classmethod
    def zeros(cls, shape: tuple[int, int]) -> Self:
        """Return sums of no rows."""
        return cls(np.zeros(shape[0] * shape[1] + shape[0] + 1), shape)

    @property
    def rows(self) -> Array:
        """(K, D) sums of rows."""
        return self.flat[: self.shape[0] * self.shape[1]].reshape(self.shape)

    @property
    def counts(self) -> Array:
        """(K,) rows of each centre."""
        return self.flat[self.shape[0] * self.shape[1] : -1]


@dataclass(slots=True)
class Known:
    """What is known of rows from the pass before."""

    labels: Array  # (N,) int32, nearest centre; -1: not known
    lower: Array  # (N,) float32, bounds of the distances to all other centres
    distances: Array  # (N,) float64, squared, to the nearest centre

    @classmethod
    def nothing(cls, rows: int) -> Self:
        """Return what is known of rows that were never seen."""
        return cls(np.full(rows, -1, np.int32), np.zeros(rows, np.float32), np.zeros(rows))

    def grown(self, rows: int) -> Known:
        """Return the same for `rows` rows, of which the first are these."""
        more = rows - len(self.labels)
        if more == 0:
            return self
        new = Known.nothing(more)
        return Known(
            np.concatenate([self.labels, new.labels]),
            np.concatenate([self.lower, new.lower]),
            np.concatenate([self.distances, new.distances]),
        )


@final
class Assigner:
    """Finds nearest centres with a number of threads; a context manager that owns them.

    Args:
        threads: that chunks are spread over. They change the time, never a result.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._resources = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._resources.enter_context(single_threaded_blas())
        if self.threads > 1:
            self._pool = self._resources.enter_context(ThreadPoolExecutor(self.threads, thread_name_prefix="phalanx-rows"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._resources.close()
        self._pool = None

    def largest(self, rows: Array | Csr) -> Array:
        """Return the largest magnitude of each column (D,) float32; not finite where a value is not."""
        if isinstance(rows, Csr):
            return _largest_sparse(rows)
        bits = rows.view(np.int32)

        def of_part(part: slice) -> Array:
            largest = np.zeros(rows.shape[1], dtype=np.int32)
            loops.raise_to_largest(bits[part], largest)
            return largest

        found = self.each([slice(start, stop) for start, stop in _split(len(rows), self.threads)], of_part)
        magnitudes: Array = np.max(found, axis=0).view(np.float32)
        return magnitudes

    def assign(self, rows: Array | Csr, centers: Centers) -> tuple[Array, Array]:
        """Return the nearest centre of each row (N,) int32, the first of equals, and the squared distance (N,) float64."""
        labels, distances, _ = self._run(rows, centers, None, np.zeros(0))
        return labels, distances

    def assign_and_sum(
        self, rows: Array | Csr, centers: Centers, anchors: Array, weights: Array | None = None
    ) -> tuple[Array, Array, Sums]:
        """Return labels and squared distances, and the sums of weight · row by centre on the grids of `anchors`.

        Args:
            rows: (N, D).
            centers: to compare with.
            anchors: (D + 1,) of the columns and of the squared distances; (D + 2,) where rows have weights, theirs last.
            weights: (N,) float64; None: every row weighs 1.
        """
        columns = centers.values.shape[1]
        heavy = np.zeros(0) if weights is None else weights
        labels, distances, sums = self._run(rows, centers, np.append(anchors[:columns], anchors[-1]), heavy)
        total = sums[0]
        for other in sums[1:]:
            total.flat += other.flat
        total.flat[-1] = snap(distances if weights is None else distances * weights, anchors[columns]).sum()
        return labels, distances, total

    def update(
        self,
        rows: Array | Csr,
        weights: Array,
        known: Known,
        centers: Centers,
        drift: Array | None,
        anchors: Array,
        distance_anchor: Array,
        deltas: list[Sums],
    ) -> int:
        """Bring what is known of rows up to date with centres that moved; return how many rows changed their centre.

        Args:
            rows: (N, D).
            weights: (N,) float64; (0,) where every row weighs 1.
            known: of the rows; written.
            centers: as they are now.
            drift: (K,) bounds of how far each centre moved since `known`; None: nothing is known.
            anchors: (D + 1,) of the grids for columns and weights.
            distance_anchor: of the grid for weighted squared distances.
            deltas: from `sums`: changes of the sums by centre are added, and the sum of weighted squared distances.
        """
        moves = _Moves.of(drift)
        shared = deltas * self.threads if len(deltas) == 1 else deltas
        spans = list(zip(_split(len(rows), self.threads), shared, strict=False))
        turn = threading.Lock() if len(deltas) == 1 else nullcontext()

        def of_part(item: tuple[tuple[int, int], Sums]) -> int:
            (start, stop), delta = item
            return sum(
                _update_span(rows, weights, known, centers, moves, anchors, delta, span, turn)
                for span in spans_of(start, stop, centers.values.shape[1])
            )

        changed = sum(self.each(spans, of_part))
        costs = known.distances * weights if len(weights) else known.distances
        deltas[0].flat[-1] += snap(costs, distance_anchor).sum()
        return changed

    def sums(self, shape: tuple[int, int], so_far: Sums | None = None) -> list[Sums]:
        """Return sums (K, D) for `update` to change: one for each thread; one for all where that would be much memory.

        The first are those so far, without their squared distances, the others are of no rows.
        """
        first = so_far or Sums.zeros(shape)
        first.flat[-1] = 0.0
        count = 1 if 8 * shape[0] * shape[1] > _SHARED_SUMS else self.threads
        return [first, *(Sums.zeros(shape) for _ in range(count - 1))]

    def each(self, items: Sequence[S], work: Callable[[S], T]) -> list[T]:
        """Return `work(item)` of every item, done by the threads."""
        if self._pool is None or len(items) < 2:
            return [work(item) for item in items]
        return list(self._pool.map(work, items))

    def split(self, rows: int) -> list[tuple[int, int]]:
        """Return a run of rows [start, stop) for each thread."""
        return list(_split(rows, self.threads))

    def _run(
        self, rows: Array | Csr, centers: Centers, anchors: Array | None, weights: Array
    ) -> tuple[Array, Array, list[Sums]]:
        labels = np.empty(len(rows), dtype=np.int32)
        distances = np.empty(len(rows), dtype=np.float64)

        def of_part(part: slice) -> Sums:
            shape = centers.values.shape
            sums = Sums.zeros((shape[0], shape[1]) if anchors is not None else (0, 0))
            totals, counts = sums.rows, sums.counts
            for start, chunk, norms, products in _products(rows, part, centers):
                to = slice(start, start + len(chunk))
                loops.nearest(
                    chunk,
                    norms,
                    products,
                    centers.values,
                    centers.half_squares,
                    centers.largest_norm,
                    centers.largest_half,
                    labels[to],
                    distances[to],
                )
                if anchors is None:
                    continue
                if len(weights):
                    nowhere = np.full(len(chunk), -1, np.int32)
                    bounds.exchange(chunk, weights[to], nowhere, labels[to], anchors, totals, counts)
                else:
                    loops.add_by_label(chunk, labels[to], anchors[:-1], totals, counts)
            return sums

        parts = [slice(start, stop) for start, stop in _split(len(rows), self.threads)]
        return labels, distances, self.each(parts, of_part)


@dataclass(frozen=True, slots=True)
class _Moves:
    """How far centres moved at most."""

    most: float
    next_most: float  # without the fastest
    fastest: int

    @classmethod
    def of(cls, drift: Array | None) -> Self:
        """Return the extremes of what each centre moved (K,)."""
        if drift is None:
            return cls(np.inf, np.inf, -1)
        fastest = int(drift.argmax())
        others = np.delete(drift, fastest)
        return cls(float(drift[fastest]), float(others.max(initial=0.0)), fastest)


def _update_span(
    rows: Array | Csr,
    weights: Array,
    known: Known,
    centers: Centers,
    moves: _Moves,
    anchors: Array,
    delta: Sums,
    span: slice,
    turn: AbstractContextManager[object],
) -> int:
    """Do the work of `Assigner.update` for rows `span`."""
    chunk = dense_rows(rows, span.start, span.stop)
    labels, lower, distances = known.labels[span], known.lower[span], known.distances[span]
    todo = np.empty(len(chunk), dtype=np.int32)
    count = bounds.to_compare(chunk, centers.values, labels, lower, moves.most, moves.next_most, moves.fastest, distances, todo)
    if count == 0:
        return 0
    before = labels.copy()
    clusters, columns = centers.values.shape
    most = min(_chunk_rows(clusters, columns), count)
    shifted = np.empty((most, columns), dtype=np.float32)
    products = np.empty((most, clusters), dtype=np.float32)
    norms = np.empty(most, dtype=np.float32)
    for start in range(0, count, most):
        some = todo[start : min(start + most, count)]
        size = len(some)
        bounds.shift_some(chunk, some, centers.offset, shifted, norms)
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(shifted[:size], centers.shifted.T, out=products[:size])
        bounds.nearest_of_some(
            chunk,
            some,
            norms,
            products,
            centers.values,
            centers.half_squares,
            centers.largest_norm,
            centers.largest_half,
            labels,
            lower,
            distances,
        )
    heavy = weights[span] if len(weights) else weights
    with turn:
        return int(bounds.exchange(chunk, heavy, before, labels, anchors, delta.rows, delta.counts))


def dense_rows(rows: Array | Csr, start: int, stop: int) -> Array:
    """Return rows [start, stop) as a dense float32 array (M, D)."""
    if not isinstance(rows, Csr):
        return rows[start:stop].astype(np.float32, copy=False)
    dense = np.zeros((stop - start, rows.columns), dtype=np.float32)
    first, last = int(rows.indptr[start]), int(rows.indptr[stop])
    lines = np.repeat(np.arange(stop - start), np.diff(rows.indptr[start : stop + 1]))
    np.add.at(dense, (lines, rows.indices[first:last]), rows.values[first:last])
    return dense


def spans_of(start: int, stop: int, columns: int) -> Iterator[slice]:
    """Yield rows [start, stop) in runs that fit the cache."""
    rows = min(max(_SPAN_BYTES // (4 * max(columns, 1)), _FEWEST_ROWS), _LONGEST_SPAN)
    for at in range(start, stop, rows):
        yield slice(at, min(at + rows, stop))


def packed(rows: Array | Csr) -> Array | Csr:
    """Return rows of whole numbers up to 255, as pictures have, in a byte for a number; `dense_rows` gives them back."""
    if isinstance(rows, Csr):
        return rows
    codes = np.empty(rows.shape, dtype=np.uint8)
    for span in spans_of(0, len(rows), rows.shape[1]):
        part = rows[span]
        if part.min(initial=0) < 0 or part.max(initial=0) > 255 or not (part == np.floor(part)).all():
            return rows
        codes[span] = part
    return codes


def _products(rows: Array | Csr, part: slice, centers: Centers) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yield, chunk by chunk: first row, rows (M, D), norms (M,) of the shifted rows, their products (M, K) with the centres."""
    count, columns = centers.values.shape
    most = _chunk_rows(count, columns)
    shifted = np.empty((most, columns), dtype=np.float32)
    products = np.empty((most, count), dtype=np.float32)
    norms = np.empty(most, dtype=np.float32)
    for start in range(part.start, part.stop, most):
        chunk = dense_rows(rows, start, min(start + most, part.stop))
        size = len(chunk)
        loops.shift(chunk, centers.offset, shifted[:size], norms[:size])
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(shifted[:size], centers.shifted.T, out=products[:size])
        yield start, chunk, norms[:size], products[:size]


def _chunk_rows(clusters: int, columns: int) -> int:
    """Return how many rows are multiplied with all centres at once."""
    rows = max(_CHUNK_BYTES // (4 * max(clusters, columns)), min(_PRODUCT_BYTES // (4 * clusters), _FEWEST_PRODUCTS))
    return min(max(rows, _FEWEST_ROWS), _MOST_ROWS)


def _split(rows: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yield `parts` runs of about equal length, at least one; empty ones are left out."""
    edges = [rows * part // parts for part in range(parts + 1)]
    runs = [(a, b) for a, b in pairwise(edges) if a < b]
    yield from runs or [(0, 0)]


def _largest_sparse(rows: Csr) -> Array:
    largest = np.zeros(rows.columns, dtype=np.int32)
    np.maximum.at(largest, rows.indices, rows.values.view(np.int32) & 0x7FFFFFFF)
    return largest.view(np.float32)
