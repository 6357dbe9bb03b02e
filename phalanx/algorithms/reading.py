"""Batches of numbers whose errors all ranks learn of, at the price of one small all-reduce a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import numpy as np

from ..contracts import Array, Batch, Collective, Csr, Features, Records, Session, Shard
from ..errors import UserError, nearest
from ..parallel.collective import together


class Part(NamedTuple):
    """A rank's part of a global batch."""

    batch: Batch
    features: Array | Csr
    largest: Array  # (D,) magnitudes of the columns, over all ranks
    heaviest: float  # weight of a row, over all ranks; 1 where rows have none
    seen: Array  # (E,) what `look` returned, the largest over all ranks


@final
class NumericBatches:
    """The batches of a channel, checked: finite numbers, `columns` wide.

    Args:
        world: the ranks.
        name: of the channel, for error texts.
        shard: the channel.
        largest: returns the largest magnitude of each column (D,), not finite where a value is not.
        weights: whether rows may have weights.
        look: returns what else is to be known of a batch, as (E,) numbers of which the largest over all ranks counts; it is
            given a way to name the place of one of the batch's rows, and raises where they cannot be used.
        looked_at: E.
    """

    def __init__(
        self,
        world: Collective,
        name: str,
        shard: Shard,
        largest: Callable[[Array | Csr], Array],
        *,
        weights: bool = False,
        look: Callable[[Batch, Callable[[int], str]], Array] | None = None,
        looked_at: int = 0,
    ) -> None:
        self._world = world
        self._name = name
        self._shard = shard
        self._largest = largest
        self._weights = weights
        self._look, self._looked_at = look, looked_at

    def epoch(self, rows: int, epoch: int, *, shuffle: bool = False) -> Iterator[Part]:
        """Collective. Yield this rank's part of every global batch.

        Raises:
            UserError: on every rank, when a rank meets rows that cannot be read or numbers that are not finite.
        """
        columns = self._shard.columns or 0
        batches: Iterator[Batch] | None = None
        while True:
            error: Exception | None = None
            batch: Batch | None = None
            most = np.zeros(columns + self._looked_at + 2)  # magnitudes, what `look` returned, weight, whether it failed
            seen = most[columns:-2]
            seen[:] = -np.inf
            try:
                batches = batches or self._shard.batches(rows, epoch=epoch, shuffle=shuffle)
                batch = next(batches, None)
                if batch is not None:

                    def where(row: int, first: int = batch.first_row) -> str:
                        return self._shard.where(first + row, epoch=epoch, shuffle=shuffle)

                    most[:columns] = self._checked(batch, columns, where)
                    most[-2] = 1.0 if batch.weight is None else batch.weight.max(initial=0.0)
                    if self._look is not None:
                        seen[:] = self._look(batch, where)
            except Exception as problem:
                error = problem
                most[-1] = 1
            most = self._world.all_reduce(most, "max")
            if most[-1]:
                together(self._world, f"reading channel '{self._name}'", lambda error=error: _raise(error))  # type: ignore[misc]
            if batch is None:
                return
            features = numbers(batch.features, f"channel '{self._name}'")
            yield Part(batch, features, most[:columns], float(most[-2]), most[columns:-2])

    def _checked(self, batch: Batch, columns: int, where: Callable[[int], str]) -> Array:
        features = numbers(batch.features, f"channel '{self._name}'")
        width = width_of(features)
        if batch.weight is not None and not self._weights:
            raise UserError(f"channel '{self._name}' has row weights, which this algorithm does not take; leave them out")
        if batch.weight is not None and not (np.isfinite(batch.weight) & (batch.weight >= 0)).all():
            raise UserError(f"channel '{self._name}' has row weights that are negative or not finite")
        if width != columns:
            raise UserError(f"channel '{self._name}' has {width} columns where {columns} are expected")
        largest = self._largest(features)
        if not np.isfinite(largest).all():
            row, column, value = first_not_finite(features)
            place = where(row)
            raise UserError(
                f"channel '{self._name}', {place}: feature {column + 1} is {value}; only finite numbers can be trained on"
            )
        return largest


def train_channel(session: Session, algorithm: str) -> Shard:
    """Return the channel to learn from.

    Raises:
        UserError: there is none, it has no rows, or one of the channels train, validation and test holds no rows of numbers.
    """
    train = session.channels.get("train")
    if train is None:
        raise UserError(f"{algorithm} needs a channel 'train'; {nearest('train', session.channels)}")
    if train.rows == 0:
        raise UserError("channel 'train' has no rows")
    for name in used_channels(session):
        if session.channels[name].columns is None:
            raise UserError(f"{algorithm} needs rows of numbers, channel '{name}' holds text or JSON records")
    if train.columns == 0:
        raise UserError("channel 'train' has no features: every row is empty")
    return train


def used_channels(session: Session) -> list[str]:
    """Return which of the channels that algorithms for tables take are there."""
    return [name for name in ("train", "validation", "test") if name in session.channels]


def requested_rows(requests: Features, columns: int, model: str) -> Array | Csr:
    """Return the rows of a request; sparse ones may be narrower than the `columns` that `model` was trained on.

    Raises:
        UserError: they are no rows of `columns` finite numbers.
    """
    rows = numbers(requests, "the request")
    width = width_of(rows)
    if width != columns and not (isinstance(rows, Csr) and width < columns):
        raise UserError(f"the requests have {width} features; {model} was trained on {columns}")
    refuse_not_finite(rows)
    return rows


def refuse_not_finite(rows: Array | Csr) -> None:
    """Check the rows of a request.

    Raises:
        UserError: a number is NaN or infinite.
    """
    if not np.isfinite(rows.values if isinstance(rows, Csr) else rows).all():
        row, column, value = first_not_finite(rows)
        raise UserError(f"request {row + 1}: feature {column + 1} is {value}; only finite numbers can be scored")


def numbers(features: Features, what: str) -> Array | Csr:
    """Return features as rows of float32 numbers, dense or sparse; those that are read-only are copied: kernels refuse them.

    Raises:
        UserError: `what` holds records.
    """
    if isinstance(features, Records):
        raise UserError(f"{what} holds text or JSON records; rows of numbers are needed")
    if isinstance(features, Csr):
        indptr, indices, values = (
            np.require(part, requirements=["C", "W"]) for part in (features.indptr, features.indices, features.values)
        )
        return Csr(indptr, indices, values, features.columns)
    return np.require(features, dtype=np.float32, requirements=["C", "W"])


def width_of(features: Array | Csr) -> int:
    """Return the number of columns."""
    return features.columns if isinstance(features, Csr) else int(features.shape[1])


def first_not_finite(features: Array | Csr) -> tuple[int, int, float]:
    """Return row, column and value of the first number that is NaN or infinite; there is one."""
    if isinstance(features, Csr):
        place = int(np.flatnonzero(~np.isfinite(features.values))[0])
        row = int(np.searchsorted(features.indptr, place, side="right")) - 1
        return row, int(features.indices[place]), float(features.values[place])
    row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
    column = int(np.flatnonzero(~np.isfinite(features[row]))[0])
    return row, column, float(features[row, column])


def copies(world: Collective, shard: Shard) -> int:
    """Return how many ranks see each row of a channel."""
    return world.size if shard.parts == 1 else 1


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
