"""Loss and gradient of all candidates in one pass over the rows, the same bits for any number of ranks and threads.

Dense rows are multiplied in the fixed blocks of `phalanx.data.order`, whose products do not depend on who computes them;
what is added up over blocks, or over single sparse rows, lies on a common grid (`fixed_point`).

Legend of shapes: N rows, D columns, P candidates, K outputs of a row, M = P·K.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, final

import numpy as np

from ...contracts import Array, Collective, Csr
from ..fixed_point import grid, snap
from ..kernels import linear as loops
from ..kernels import logistic
from ..kernels.blas import single_threaded_blas
from .data import Piece, rows_of
from .losses import Logistic, Loss

_GROUP_FEATURES = 1 << 20  # that a thread works on at once: they stay in a cache
_GROUP_SCORES = 1 << 17
_SPARSE_ROWS = 8192
_RUN = 1 << 18  # numbers of an array that a thread takes at once


@final
class Objective:
    """The mean loss over a world's rows.

    Args:
        world: the ranks.
        loss: of a row.
        class_weight: (classes, P) factors of a row's loss by its class and the candidate; (1, P) in regression.
        crew: of threads.
        largest: (D,) bounds of the normalised features.
        largest_label: bound of the normalised labels.
        largest_weight: bound of row weights.
        addends: rows that are added at most, over all ranks.
    """

    def __init__(
        self,
        world: Collective,
        loss: Loss | Logistic,
        class_weight: Array,
        *,
        crew: Crew,
        largest: Array,
        largest_label: float,
        largest_weight: float,
        addends: int,
    ) -> None:
        self._world = world
        self._loss = loss
        self._class_weight = class_weight
        self._crew = crew
        self._largest = largest
        self._largest_label = largest_label
        self._largest_weight = largest_weight * float(class_weight.max())
        self._addends = addends

    def sums(
        self, weights: Array, active: Array, pieces: Iterable[Piece], *, gradients: bool = True
    ) -> tuple[Array, Array, float]:
        """Collective. Return the sums of losses (P,), of gradients (D + 1, P, K) or (0, P, K), and of row weights.

        Args:
            weights: (D + 1, P, K) of the candidates `active`, the last row is the bias.
            active: (P,) their numbers.
            pieces: this rank's rows.
            gradients: whether they are wanted.
        """
        columns, models, outputs = weights.shape[0] - 1, weights.shape[1], weights.shape[2]
        flat = np.ascontiguousarray(weights.reshape(columns + 1, models * outputs))
        grids = _Grids(self, flat, models, gradients=gradients)
        class_weight = self._class_weight[:, active]
        plain = bool((class_weight == 1).all())

        def work(group: Piece) -> None:
            part = grids.mine()
            part.weight += snap(group.weight, grids.weight).sum()
            factor: Array | None = None
            if not plain or (group.weight != 1).any():
                factor = group.weight[:, None] * class_weight[_classes(group.label, len(class_weight))]
            if isinstance(self._loss, Logistic):
                _add_logistic(group, factor, flat, grids, part, gradients=gradients)
                return
            z = scores(group.features, flat, group.block).reshape(len(group), models, outputs)
            loss, slope = self._loss.evaluate(z, group.label)
            if factor is not None:
                loss, slope = loss * factor, slope * factor[:, :, None]
            part.loss += snap(loss, grids.loss).sum(axis=0)
            if not gradients:
                return
            slopes = slope.reshape(len(group), -1)
            part.gradient[-1] += snap(slopes, grids.score).sum(axis=0)
            _add_gradient(group, slopes, grids, part.gradient)

        whole = isinstance(self._loss, Logistic)  # whose kernels go through a piece chunk by chunk
        self._crew.run(work, pieces if whole else _groups(pieces, models * outputs))
        sums = self._world.all_reduce(grids.total())
        return sums[:models], sums[models + 1 :].reshape(-1, models, outputs), float(sums[models])

    def bounds(self, flat: Array) -> tuple[Array, Array]:
        """Return bounds of slopes (M,) and of losses (M,) of a row, weighted."""
        sizes = self._crew.sums(
            lambda a, b, sums: loops.sizes(flat[a:b], self._largest[a:b], sums), len(flat) - 1, flat.shape[1], (flat.shape[1],)
        )
        gap = sizes + np.abs(flat[-1]) + self._largest_label
        slope = self._loss.largest_slope(gap)
        return slope * self._largest_weight, (slope * 2 * gap + 64) * self._largest_weight

    @property
    def largest(self) -> Array:
        """(D,) bounds of the features."""
        return self._largest

    @property
    def largest_weight(self) -> float:
        """Bound of row weights."""
        return self._largest_weight

    @property
    def addends(self) -> int:
        """Rows that are added at most."""
        return self._addends


class _Part:
    """What one thread has added up: losses (P,), the weight (1,), gradients (D + 1, M) where they are wanted."""

    def __init__(self, models: int, shape: tuple[int, int]) -> None:
        self.all = np.zeros(models + 1 + shape[0] * shape[1])
        self.loss, self.weight = self.all[:models], self.all[models : models + 1]
        self.gradient = self.all[models + 1 :].reshape(shape)


@final
class _Grids:
    """The anchors of a pass, and the parts of its threads."""

    def __init__(self, objective: Objective, flat: Array, models: int, *, gradients: bool) -> None:
        import threading

        slope, loss = objective.bounds(flat)
        self._shape = (models, (len(flat) if gradients else 0, flat.shape[1]))
        self.loss = grid(loss.reshape(models, -1).max(axis=1), objective.addends)
        self.score = grid(slope, objective.addends)
        self.weight = grid(objective.largest_weight, objective.addends)
        # of gradients: a product of two powers of two, one for the column and one for the score
        self.column = np.ldexp(1.5, np.frexp(objective.largest)[1])
        self.of_score = np.ldexp(1.0, np.frexp(slope * (1 + 1e-6))[1] + max(1, objective.addends.bit_length()) + 1)
        self._local = threading.local()
        self._parts: list[_Part] = []
        self._lock = threading.Lock()

    def mine(self) -> _Part:
        """Return the part of the calling thread."""
        part: _Part | None = getattr(self._local, "part", None)
        if part is None:
            part = self._local.part = _Part(*self._shape)
            with self._lock:
                self._parts.append(part)
        return part

    def total(self) -> Array:
        """Return the sum of all parts; sums on a grid are the same in any order."""
        parts = self._parts or [_Part(*self._shape)]
        for part in parts[1:]:
            parts[0].all += part.all
        return parts[0].all


def scores(features: Array | Csr, flat: Array, block: int) -> Array:
    """Return the scores (N, M) float64 of rows in blocks of `block`; `flat` (D + 1, M) holds the bias in its last row."""
    if isinstance(features, Csr):
        out = np.zeros((len(features), flat.shape[1]))
        loops.sparse_scores(features.indptr, features.indices, features.values, np.ascontiguousarray(flat[:-1]), out)
        out += flat[-1]
        return out
    weights = flat[:-1].astype(np.float32)
    found = np.empty((len(features), flat.shape[1]), dtype=np.float32)
    whole = len(features) - len(features) % block
    if whole:
        np.matmul(_blocks(features[:whole], block), weights, out=_blocks(found[:whole], block))
    if whole < len(features):
        np.matmul(features[whole:], weights, out=found[whole:])
    return np.asarray(found + flat[-1])


@final
class Crew:
    """Threads that share the rows of every pass; a context manager, at whose end they are gone.

    Args:
        threads: that work, the caller's among them.
    """

    def __init__(self, threads: int) -> None:
        self._helpers = threads - 1
        self._pool = ThreadPoolExecutor(
            max(self._helpers, 1), thread_name_prefix="phalanx-rows"
        )  # starts a thread when there is something to do

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, work: Callable[[Piece], None], groups: Iterable[Piece]) -> None:
        """Do `work` on every group of rows; no more of them are held than there are threads, twice."""
        waiting: list[Future[None]] = []
        with single_threaded_blas():
            for group in groups:
                for one in [one for one in waiting if one.done()]:
                    waiting.remove(one)
                    one.result()
                if len(waiting) < 2 * self._helpers:
                    waiting.append(self._pool.submit(work, group))
                else:
                    work(group)
            for one in waiting:
                one.result()

    def over(self, work: Callable[[int, int], None], rows: int, width: int) -> None:
        """Do `work(start, stop)` on runs of rows of an array with so many, `width` numbers each."""
        self._spread([functools.partial(work, start, stop) for start, stop in _runs(rows, width)])

    def sums(self, work: Callable[[int, int, Array], None], rows: int, width: int, shape: tuple[int, ...]) -> Array:
        """As `over`; return the sum of what `work(start, stop, sums)` adds up, in the order of the runs."""
        runs = _runs(rows, width)
        parts = np.zeros((len(runs), *shape))
        self._spread([functools.partial(work, *run, part) for run, part in zip(runs, parts, strict=True)])
        total: Array = parts[0] if len(parts) == 1 else parts.sum(axis=0)
        return total

    def _spread(self, tasks: list[Callable[[], None]]) -> None:
        own = len(tasks) // (self._helpers + 1) if self._helpers else 0
        waiting = [self._pool.submit(task) for task in tasks[own:]] if own else []
        for task in tasks[:own] if own else tasks:
            task()
        for one in waiting:
            one.result()


def _runs(rows: int, width: int) -> list[tuple[int, int]]:
    """Cut rows into runs, by the shape alone."""
    count = max(min(-(-rows * width // _RUN), rows), 1)
    return [(rows * at // count, rows * (at + 1) // count) for at in range(count)]


def _add_logistic(piece: Piece, factor: Array | None, flat: Array, grids: _Grids, part: _Part, *, gradients: bool) -> None:
    """Add losses, and with `gradients` the gradients, of rows that are read once for all candidates."""
    features = piece.features
    if factor is None:
        factor = np.empty((0, flat.shape[1]))
    anchors = (grids.column, grids.of_score, grids.score, grids.loss)
    if isinstance(features, Csr):
        parts = (features.indptr, features.indices, features.values)
        logistic.sparse_logistic(*parts, piece.label, factor, flat, *anchors, gradients, part.gradient, part.loss)
        return
    weights = flat[:-1].astype(np.float32)
    logistic.dense_logistic(
        features, piece.label, factor, piece.block, weights, flat[-1], *anchors, gradients, part.gradient, part.loss
    )


def _add_gradient(group: Piece, slopes: Array, grids: _Grids, out: Array) -> None:
    features, block = group.features, group.block
    if isinstance(features, Csr):
        loops.sparse_gradient(
            features.indptr,
            features.indices,
            features.values,
            slopes.astype(np.float64),
            grids.column,
            grids.of_score,
            out[:-1],
        )
        return
    narrow = slopes.astype(np.float32, copy=False)
    anchors = grids.column[:, None] * grids.of_score
    whole = len(features) - len(features) % block
    if whole:
        products = np.matmul(_blocks(features[:whole], block).transpose(0, 2, 1), _blocks(narrow[:whole], block))
        if len(products) == 1:
            out[:-1] += snap(products[0], anchors)
        else:
            out[:-1] += snap(products, anchors).sum(axis=0)
    if whole < len(features):
        out[:-1] += snap(features[whole:].T @ narrow[whole:], anchors)


def _groups(pieces: Iterable[Piece], width: int) -> Iterator[Piece]:
    """Cut pieces into groups of whole blocks that fit a cache."""
    for piece in pieces:
        if isinstance(piece.features, Csr):
            size = max(_GROUP_SCORES // width, 64) if width > 128 else _SPARSE_ROWS
        else:
            size = min(_GROUP_FEATURES // piece.features.shape[1], _GROUP_SCORES // width)
            size = max(size // piece.block, 1) * piece.block
        for start in range(0, len(piece), size):
            yield rows_of(piece, start, min(start + size, len(piece)))


def _blocks(rows: Array, block: int) -> Array:
    return rows.reshape(len(rows) // block, block, rows.shape[1])


def _classes(label: Array, count: int) -> Array:
    return label.astype(np.int64) if count > 1 else np.zeros(len(label), dtype=np.int64)
