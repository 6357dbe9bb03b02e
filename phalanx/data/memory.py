"""A channel whose rows are in memory: for tests, for scikit-learn-like use, for whoever has arrays already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np

from ..contracts import Array, Batch, Csr, Features, Records, State
from ..errors import UserError
from .order import parts, shuffled
from .position import Position


@final
class MemoryShard:
    """`contracts.Shard` over arrays; see `array_shard`."""

    def __init__(
        self,
        features: Features,
        label: Array | None,
        weight: Array | None,
        group: Array | None,
        rank: int,
        size: int,
        seed: int,
    ) -> None:
        self._features = features
        self._label = label
        self._weight = weight
        self._group = group
        self._rank = rank
        self._size = size
        self._seed = seed
        self._starts = None if group is None else _group_starts(group)
        self._position = Position()

    @property
    def rows(self) -> int:
        """Rows of the whole channel."""
        return len(self._features)

    @property
    def parts(self) -> int:
        """Ranks that share its rows."""
        return self._size

    @property
    def streaming(self) -> bool:
        """False: its rows are in memory already."""
        return False

    @property
    def columns(self) -> int | None:
        """Columns of the whole channel; None for records."""
        return columns_of(self._features)

    def where(self, position: int, *, epoch: int = 0, shuffle: bool = False) -> str:
        """See `contracts.Shard.where`."""
        order = self._order(epoch) if shuffle else None
        return f"row {(position if order is None else int(order[position])) + 1}"

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """See `contracts.Shard.batches`; a shuffled order is a full permutation."""
        order = self._order(epoch) if shuffle else None
        done = self._position.begin(epoch)
        for part in parts(self.rows, rows, rank=self._rank, size=self._size, starts=self._starts):
            if part.batch_stop <= done:
                continue
            where: slice | Array = slice(part.start, part.stop) if order is None else order[part.start : part.stop]
            self._position.reach(part.batch_stop)
            yield Batch(
                part.start,
                _as_numbers(take(self._features, where)),
                None if self._label is None else self._label[where],
                None if self._weight is None else self._weight[where],
                None if self._group is None else self._group[where],
            )

    def _order(self, epoch: int) -> Array | None:
        """Return the shuffled order of an epoch; None where query groups forbid it."""
        return shuffled(self.rows, seed=self._seed, epoch=epoch, page=1) if self._group is None else None

    def state_dict(self) -> State:
        """Return the epoch, and its rows that were handed out over all ranks."""
        return self._position.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Put a position back: the next iteration over its epoch goes on there."""
        self._position.load_state_dict(state)


def array_shard(
    features: Features,
    label: Array | None = None,
    weight: Array | None = None,
    group: Array | None = None,
    *,
    rank: int = 0,
    size: int = 1,
    seed: int = 0,
    replicate: bool = False,
) -> MemoryShard:
    """Return a shard over rows in memory; every rank passes all rows.

    Args:
        features: (N, D) array, `Csr` or `Records`; numbers become float32, bytes (uint8) only batch by batch.
        label: (N,) or None.
        weight: (N,) or None.
        group: (N,) query ids, rows of a group neighbouring, or None.
        rank: this rank.
        size: ranks of the world.
        seed: of the shuffled order.
        replicate: every rank sees all rows.

    Raises:
        UserError: lengths that differ, features that are no matrix.
    """
    if isinstance(features, np.ndarray):
        if features.ndim != 2:
            raise UserError(f"features must have the shape (rows, columns), not {features.shape}")
        features = np.ascontiguousarray(features, dtype=np.uint8 if features.dtype == np.uint8 else np.float32)
    for name, column in (("label", label), ("weight", weight), ("group", group)):
        if column is not None and len(column) != len(features):
            raise UserError(f"{name} has {len(column)} rows, features have {len(features)}")
    return MemoryShard(
        features,
        None if label is None else np.asarray(label, dtype=np.float32),
        None if weight is None else np.asarray(weight, dtype=np.float32),
        None if group is None else np.asarray(group, dtype=np.int64),
        0 if replicate else rank,
        1 if replicate else size,
        seed,
    )


def columns_of(features: Features) -> int | None:
    """Return how many columns features have; None for records."""
    if isinstance(features, Records):
        return None
    return features.columns if isinstance(features, Csr) else int(features.shape[1])


def _as_numbers(features: Features) -> Features:
    return features.astype(np.float32) if isinstance(features, np.ndarray) and features.dtype == np.uint8 else features


def take(features: Features, where: slice | Array) -> Features:
    """Return some rows of features."""
    if isinstance(features, np.ndarray):
        return features[where]
    if isinstance(features, Csr) and isinstance(where, slice) and where.step in (None, 1):
        start, stop, _ = where.indices(len(features))
        indptr = features.indptr[start : max(start, stop) + 1]
        inside = slice(int(indptr[0]), int(indptr[-1]))
        return Csr(indptr - indptr[0], features.indices[inside], features.values[inside], features.columns)
    rows = np.arange(len(features))[where]
    if isinstance(features, Records):
        return Records([features.items[i] for i in rows])
    return take_sparse(features, rows)


def take_sparse(matrix: Csr, rows: Array) -> Csr:
    """Return rows of a sparse matrix, in the order given."""
    lengths = matrix.indptr[rows + 1] - matrix.indptr[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.repeat(matrix.indptr[rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
    return Csr(indptr, matrix.indices[places], matrix.values[places], matrix.columns)


def _group_starts(group: Array) -> Array:
    changes = np.flatnonzero(group[1:] != group[:-1]) + 1
    starts = np.concatenate([[0], changes]).astype(np.int64)
    if len(np.unique(group[starts])) != len(starts):
        raise UserError("rows of a query group must be neighbours: a group id comes back after another one")
    return starts
