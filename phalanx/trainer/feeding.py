"""Feeds: datasets, loaders, iterables and channels as numbered global batches, cut for a rank.

The rows of a global batch are a function of (seed, epoch, step in the epoch) alone, and so is every random number drawn while
they are fetched: neither the number of ranks nor that of loading processes nor a resume moves a row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias, final

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    TensorDataset,
    default_collate,
)

from ..contracts import Array, Batch, Csr, Shard
from ..errors import UserError
from .cutting import Piece, pieces, seed_of

Collate = Callable[[Any], Any]
Rows: TypeAlias = Array | range  # numbers of the samples of a global batch


@dataclass(frozen=True, slots=True)
class Loading:
    """How batches are made.

    Attributes:
        batch_size: rows of a global batch; None: as the loader has it.
        shuffle: a new order every epoch; None: as the loader has it, else for training only.
        drop_last: leave out a last batch that is not full.
        collate: makes a batch of a list of samples, or of a `Batch` of a channel.
        processes: that fetch ahead, beside this one; 0: this one fetches.
    """

    batch_size: int | None = None
    shuffle: bool | None = None
    drop_last: bool = False
    collate: Collate | None = None
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of each global batch a rank computes."""

    data_rank: int
    data_size: int
    accumulate: int

    def of(self, rows: int) -> list[Piece]:
        """Return the rank's pieces of a global batch of so many rows."""
        return pieces(rows, data_rank=self.data_rank, data_size=self.data_size, accumulate=self.accumulate)


@dataclass(frozen=True, slots=True)
class Portion:
    """A rank's part of one global batch: the batch of every piece, on the CPU."""

    rows: int  # of the global batch
    pieces: Sequence[Piece]
    batches: Sequence[Any]


class Feed(Protocol):
    """Data of a fit, an evaluation or a prediction."""

    @property
    def steps(self) -> int | None:
        """Global batches of an epoch; None where that is found out by reading."""
        ...

    def epoch(self, epoch: int, share: Share, *, skip: int = 0) -> Iterator[Portion]:
        """Yield the rank's part of every global batch of an epoch (counted from 0) but the first `skip`."""
        ...


@final
class MapFeed:
    """A dataset of known length whose samples are fetched by number."""

    def __init__(self, dataset: Any, loading: Loading, plan: Callable[[int], list[Rows]], steps: int | None, seed: int) -> None:
        self._dataset = dataset
        self._loading = loading
        self._plan = plan
        self._steps = steps
        self._seed = seed

    @property
    def steps(self) -> int | None:
        """See `Feed`."""
        return self._steps

    def epoch(self, epoch: int, share: Share, *, skip: int = 0) -> Iterator[Portion]:
        """See `Feed`."""
        wanted = [_Wanted(number, rows, share) for number, rows in enumerate(self._plan(epoch)) if number >= skip]
        fetch = _Fetch(self._dataset, self._loading.collate, self._seed, epoch)
        if self._loading.processes == 0:
            for item in wanted:
                yield fetch[item]
            return
        loader: Any = DataLoader(
            fetch,
            sampler=wanted,
            batch_size=None,
            num_workers=self._loading.processes,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )
        yield from loader


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One global batch to fetch this rank's part of."""

    number: int
    rows: Rows
    share: Share


@final
class _Fetch(Dataset[Portion]):
    """Fetches a rank's part of global batches, in this process or in a loading process."""

    def __init__(self, dataset: Any, collate: Collate | None, seed: int, epoch: int) -> None:
        self._dataset = dataset
        self._collate = collate
        self._seed = seed
        self._epoch = epoch

    def __getitem__(self, wanted: _Wanted) -> Portion:
        cut = wanted.share.of(len(wanted.rows))
        return Portion(len(wanted.rows), cut, [self._piece(wanted, piece) for piece in cut])

    def _piece(self, wanted: _Wanted, piece: Piece) -> Any:
        rows = wanted.rows[piece.start : piece.stop]
        if isinstance(self._dataset, TensorDataset) and self._collate is None:
            if isinstance(rows, range):  # neighbours need not be copied
                return tuple(tensor[rows.start : rows.stop] for tensor in self._dataset.tensors)
            gathered = torch.from_numpy(rows)
            return tuple(tensor[gathered] for tensor in self._dataset.tensors)
        seed = seed_of(self._seed ^ 0x5EED, self._epoch, (wanted.number << 20) + piece.number)
        seed_all(seed)  # samples may be drawn at random: the same ones wherever and whenever they are fetched
        many = getattr(self._dataset, "__getitems__", None)
        numbers = list(rows) if isinstance(rows, range) else rows.tolist()
        samples = many(numbers) if many is not None else [self._dataset[row] for row in numbers]
        return (self._collate or default_collate)(samples)


@final
class StreamFeed:
    """A loader whose batches come one after another; every rank reads all of it and keeps its part."""

    steps = None

    def __init__(self, loader: Any, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def epoch(self, epoch: int, share: Share, *, skip: int = 0) -> Iterator[Portion]:
        """See `Feed`. A resume reads what was skipped once more."""
        seed_all(seed_of(self._seed, epoch, 0))
        set_epoch = getattr(getattr(self._loader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        for batch in islice(iter(self._loader), skip, None):
            rows = rows_of(batch)
            cut = share.of(rows)
            yield Portion(rows, cut, [_sliced(batch, piece) for piece in cut])


@final
class ShardFeed:
    """A channel of the job: it says what a rank reads of a global batch, and that is cut into micro-batches here."""

    def __init__(self, shard: Shard, batch_size: int, loading: Loading, shuffle: bool) -> None:
        self._shard = shard
        self._size = batch_size
        self._loading = loading
        self._shuffle = shuffle

    @property
    def steps(self) -> int | None:
        """See `Feed`."""
        whole, rest = divmod(self._shard.rows, self._size)
        return whole + (rest > 0 and not self._loading.drop_last)

    def epoch(self, epoch: int, share: Share, *, skip: int = 0) -> Iterator[Portion]:
        """See `Feed`."""
        if self._shard.parts not in (1, share.data_size):
            raise UserError(
                f"the channel is spread over {self._shard.parts} workers, the strategy shares batches among {share.data_size}: "
                "give the channel spread=replicate"
            )
        stand_in: Any = None
        for number, part in enumerate(self._shard.batches(self._size, epoch=epoch, shuffle=self._shuffle)):
            if self.steps is not None and number >= self.steps:
                return
            if number < skip:
                continue
            rows = min(self._size, self._shard.rows - number * self._size)
            own = len(part)
            if self._shard.parts == 1:
                batch = self._collated(part)
                cut = share.of(rows)
                yield Portion(rows, cut, [_sliced(batch, piece) for piece in cut])
                continue
            if own:
                stand_in = self._collated(part)
            elif stand_in is None:
                stand_in = self._collated(_zeros(self._shard))
            first = share.data_rank * share.accumulate
            local = pieces(max(own, 1), data_rank=0, data_size=1, accumulate=share.accumulate)
            weighed = [Piece(first + p.number, p.start, p.stop, p.weight * own / rows) for p in local]
            yield Portion(rows, weighed, [_sliced(stand_in, piece) for piece in weighed])

    def _collated(self, part: Batch) -> Any:
        return (self._loading.collate or _tensors)(part)


def rows_of(batch: Any) -> int:
    """Return the rows of a batch: the length of the first tensor in it.

    Raises:
        UserError: there is none.
    """
    if isinstance(batch, torch.Tensor):
        if batch.ndim:
            return len(batch)
    elif isinstance(batch, Mapping):
        for value in batch.values():
            return rows_of(value)
    elif isinstance(batch, (tuple, list)) and batch:
        return rows_of(batch[0])
    raise UserError(
        f"a batch must be of tensors with a row for every sample, alone or in tuples and mappings; got {type(batch)}"
    )


def map_tensors(value: Any, act: Callable[[torch.Tensor], Any]) -> Any:
    """Return `value` with every tensor in its tuples, lists and mappings replaced by what `act` makes of it."""
    if isinstance(value, torch.Tensor):
        return act(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, act) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        made = [map_tensors(item, act) for item in value]
        return type(value)(*made) if getattr(value, "_fields", None) is not None else type(value)(made)
    return value


def _tensors(part: Batch) -> Any:
    """Return (features, label) of a channel's rows as tensors; features alone where there are no labels."""
    features = part.features
    if isinstance(features, Csr):
        dense = np.zeros((len(features), features.columns), dtype=np.float32)
        dense[np.repeat(np.arange(len(features)), np.diff(features.indptr)), features.indices] = features.values
        features = dense
    if not isinstance(features, np.ndarray):
        raise UserError("this channel holds records, no numbers: give fit(collate=…), a function of a phalanx Batch")
    inputs = torch.from_numpy(np.ascontiguousarray(features))
    return inputs if part.label is None else (inputs, torch.from_numpy(np.ascontiguousarray(part.label)))


def _zeros(shard: Shard) -> Batch:
    """Return one row to stand in before this rank has read any."""
    return Batch(0, np.zeros((1, shard.columns or 1), dtype=np.float32), np.zeros(1, dtype=np.float32))


def _sliced(batch: Any, piece: Piece) -> Any:
    return map_tensors(batch, lambda tensor: tensor[piece.start : piece.stop])


def seed_all(seed: int) -> None:
    """Seed the generators that datasets draw from: Python's, numpy's, torch's of the CPU."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _one_thread(number: int) -> None:
    torch.set_num_threads(1)
