"""What a user may give a Trainer as data, recognised and made a feed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from ..data.order import shuffled
from ..errors import UserError
from .cutting import seed_of
from .feeding import Feed, Loading, MapFeed, Rows, ShardFeed, StreamFeed, seed_all


def feed_of(data: Any, loading: Loading, *, seed: int, training: bool) -> Feed:
    """Return the feed of a Dataset, DataLoader, iterable, channel, tensor or tuple of tensors.

    Raises:
        UserError: none of these, empty, or no batch size is known.
    """
    if isinstance(data, torch.Tensor):
        return _map_feed(TensorDataset(data), loading, seed, training)
    if isinstance(data, (tuple, list)) and data and all(isinstance(part, torch.Tensor) for part in data):
        if len({len(part) for part in data}) != 1:
            raise UserError(f"the tensors have different numbers of rows: {[len(part) for part in data]}")
        return _map_feed(TensorDataset(*data), loading, seed, training)
    if isinstance(data, DataLoader):
        return _loader_feed(data, loading, seed, training)
    if isinstance(data, IterableDataset):
        size = _known(loading.batch_size, "an IterableDataset")
        loader: Any = DataLoader(
            data, batch_size=size, collate_fn=loading.collate, num_workers=loading.processes, drop_last=loading.drop_last
        )
        return StreamFeed(loader, seed)
    if getattr(data, "batches", None) is not None and getattr(data, "rows", None) is not None:
        return ShardFeed(data, _known(loading.batch_size, "a channel"), loading, _or(loading.shuffle, training))
    if (
        not isinstance(data, (str, bytes, dict))
        and getattr(data, "__getitem__", None) is not None
        and getattr(data, "__len__", None) is not None
    ):
        return _map_feed(data, loading, seed, training)
    raise UserError(
        f"data must be a Dataset, a DataLoader, a channel of phalanx.session(), a tensor or a tuple of tensors, "
        f"not {type(data).__name__}"
    )


def _map_feed(dataset: Any, loading: Loading, seed: int, training: bool) -> MapFeed:
    rows = len(dataset)
    if rows == 0:
        raise UserError("the data has no rows")
    size = _known(loading.batch_size, f"a {type(dataset).__name__}")
    shuffle = _or(loading.shuffle, training)
    whole, rest = divmod(rows, size)
    count = whole + (rest > 0 and not loading.drop_last)
    if count == 0:
        raise UserError(f"the data has {rows} rows, fewer than batch_size={size}, and drop_last leaves none")

    def plan(epoch: int) -> list[Rows]:
        order: Rows = shuffled(rows, seed=seed, epoch=epoch, page=1) if shuffle else range(rows)
        return [order[start : start + size] for start in range(0, count * size, size)]

    return MapFeed(dataset, loading, plan, count, seed)


def _loader_feed(loader: Any, loading: Loading, seed: int, training: bool) -> Feed:
    """Take a user's loader apart: its dataset, order and collate function; it serves no batches itself unless it must."""
    if isinstance(loader.dataset, IterableDataset):
        if loading.batch_size not in (None, loader.batch_size):
            raise UserError(f"the loader makes batches of {loader.batch_size} rows; batch_size={loading.batch_size} was given")
        return StreamFeed(loader, seed)
    loading = Loading(
        loading.batch_size or loader.batch_size,
        loading.shuffle,
        loading.drop_last or loader.drop_last,
        loading.collate or (None if loader.collate_fn is default_collate else loader.collate_fn),
        loading.processes or loader.num_workers,
    )
    if type(loader.batch_sampler) is not BatchSampler and loader.batch_sampler is not None:
        return MapFeed(loader.dataset, loading, _sampled(loader.batch_sampler, seed, None, False), None, seed)
    sampler = loader.sampler
    if loading.shuffle is None and isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler)):
        shuffle = isinstance(sampler, RandomSampler) or bool(getattr(sampler, "shuffle", False))
        loading = replace(loading, shuffle=shuffle)
    if loading.shuffle is not None:
        return _map_feed(loader.dataset, loading, seed, training)
    size = _known(loading.batch_size, "a DataLoader without one")
    return MapFeed(loader.dataset, loading, _sampled(sampler, seed, size, loading.drop_last), None, seed)


def _sampled(sampler: Any, seed: int, size: int | None, drop_last: bool) -> Callable[[int], list[Rows]]:
    """Return the global batches that a user's sampler of rows (with `size`) or of batches (without) makes of an epoch."""

    def plan(epoch: int) -> list[Rows]:
        with torch.random.fork_rng(devices=[]):
            seed_all(seed_of(seed, epoch, 1))
            generator = getattr(sampler, "generator", None)
            if generator is not None:
                generator.manual_seed(seed_of(seed, epoch, 2))
            drawn = list(sampler)
        if size is None:
            return [np.asarray(batch, dtype=np.int64) for batch in drawn]
        rows = np.asarray(drawn, dtype=np.int64)
        stop = len(rows) - len(rows) % size if drop_last else len(rows)
        return [rows[start : start + size] for start in range(0, stop, size)]

    return plan


def _known(size: int | None, what: str) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"batch_size={size!r} is not allowed with {what}: give the rows of a global batch, at least 1")
    return size


def _or(given: bool | None, default: bool) -> bool:
    return default if given is None else given
