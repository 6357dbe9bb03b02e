"""Which rows a rank computes at which step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from phalanx.data.memory import array_shard
from phalanx.errors import UserError
from phalanx.trainer.cutting import pieces, seed_of
from phalanx.trainer.feeding import Loading, Share
from phalanx.trainer.sources import feed_of

ROWS = 23
X = torch.arange(ROWS * 2, dtype=torch.float32).reshape(ROWS, 2)
Y = torch.arange(ROWS)


class Numbers(Dataset[Any]):
    """Samples drawn with noise from every generator that datasets use."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        import random

        return X[row] + torch.rand(2) + np.random.rand() + random.random(), row


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter((X[row], row) for row in range(ROWS))


class Batches:
    """A sampler of whole batches."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[3, 1], [5], [7, 9, 11]])

    def __len__(self) -> int:
        return 3


def rows_of_epoch(
    data: Any, loading: Loading, size: int, accumulate: int = 1, epoch: int = 0, skip: int = 0
) -> list[list[int]]:
    """Return the rows of every global batch, put together from what the ranks get, stand-ins left out."""
    steps: list[list[int]] = []
    for rank in range(size):
        feed = feed_of(data, loading, seed=5, training=True)
        for step, portion in enumerate(feed.epoch(epoch, Share(rank, size, accumulate), skip=skip)):
            assert len(portion.batches) == accumulate
            if rank == 0:
                steps.append([])
            for piece, (_, target) in zip(portion.pieces, portion.batches, strict=True):
                assert len(target) >= 1
                if piece.weight:
                    assert piece.weight == pytest.approx(len(target) / portion.rows)
                    steps[step] += [int(t) for t in target]
    return steps


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 6))
def test_pieces_cover_a_batch_once(rows: int, size: int, accumulate: int) -> None:
    cut = [p for rank in range(size) for p in pieces(rows, data_rank=rank, data_size=size, accumulate=accumulate)]
    real = [p for p in cut if p.weight]
    assert [row for p in real for row in range(p.start, p.stop)] == list(range(rows))
    assert sum(p.weight for p in cut) == pytest.approx(1)
    assert all(0 <= p.start < p.stop <= rows for p in cut)
    assert [p.number for p in cut] == list(range(size * accumulate))
    assert max(p.stop - p.start for p in real) - min(p.stop - p.start for p in real) <= 1


def test_seeds_differ_and_fit() -> None:
    seeds = {seed_of(seed, step, number) for seed in range(3) for step in range(40) for number in range(12)}
    assert len(seeds) == 3 * 40 * 12
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y), Numbers(), DataLoader(Numbers(), batch_size=6, shuffle=True)])
def test_the_order_does_not_depend_on_the_ranks(data: Any) -> None:
    loading = Loading(batch_size=6)
    one = rows_of_epoch(data, loading, 1)
    assert sorted(row for rows in one for row in rows) == list(range(ROWS))
    assert [len(rows) for rows in one] == [6, 6, 6, 5]
    for size, accumulate in ((2, 1), (3, 2), (4, 2)):
        assert rows_of_epoch(data, loading, size, accumulate) == one
    assert rows_of_epoch(data, loading, 2, epoch=1) != one
    assert rows_of_epoch(data, loading, 2, skip=2) == one[2:]
    assert rows_of_epoch(data, Loading(batch_size=6, drop_last=True), 2) == one[:3]
    assert rows_of_epoch(data, Loading(batch_size=6, shuffle=False), 2)[0] == [0, 1, 2, 3, 4, 5]


def fetched(processes: int, skip: int = 0) -> list[torch.Tensor]:
    feed = feed_of(Numbers(), Loading(batch_size=6, processes=processes), seed=5, training=True)
    return [batch[0] for portion in feed.epoch(2, Share(0, 2, 2), skip=skip) for batch in portion.batches]


def test_random_samples_do_not_depend_on_who_fetches_them() -> None:
    here = fetched(0)
    for other in (fetched(2), fetched(0)):
        assert all(torch.equal(a, b) for a, b in zip(here, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(here[4:], fetched(1, skip=2), strict=True))


def test_loaders_keep_their_samplers_and_batches() -> None:
    weights = [1.0] * 3 + [0.0] * (ROWS - 3)
    drawn = DataLoader(Numbers(), batch_size=4, sampler=WeightedRandomSampler(weights, 10))
    one = rows_of_epoch(drawn, Loading(), 1)
    assert [len(rows) for rows in one] == [4, 4, 2]
    assert {row for rows in one for row in rows} <= {0, 1, 2}
    assert rows_of_epoch(drawn, Loading(), 2) == one
    assert rows_of_epoch(drawn, Loading(), 2, epoch=1) != one
    generator = torch.Generator().manual_seed(1)
    own = DataLoader(Numbers(), batch_size=4, sampler=RandomSampler(Numbers(), generator=generator))
    assert rows_of_epoch(own, Loading(), 3) == rows_of_epoch(own, Loading(), 1)
    batched: Any = DataLoader(Numbers(), batch_sampler=Batches())  # type: ignore[arg-type]
    assert rows_of_epoch(batched, Loading(), 2) == [[3, 1], [5], [7, 9, 11]]
    in_order = DataLoader(Numbers(), batch_size=10)
    assert rows_of_epoch(in_order, Loading(), 2)[0] == list(range(10))


def test_streams_are_read_by_all_and_cut() -> None:
    for data in (Stream(), DataLoader(Stream(), batch_size=6)):
        loading = Loading(batch_size=6)
        assert [len(rows) for rows in rows_of_epoch(data, loading, 2)] == [6, 6, 6, 5]
        assert rows_of_epoch(data, loading, 3, 2) == rows_of_epoch(data, loading, 1)
        assert rows_of_epoch(data, loading, 2, skip=3) == rows_of_epoch(data, loading, 1)[3:]


def test_channels_are_cut_where_they_are_read() -> None:
    def epoch(size: int, accumulate: int, replicate: bool) -> list[list[int]]:
        steps: list[list[int]] = []
        for rank in range(size):
            shard = array_shard(
                X.numpy(), Y.numpy().astype(np.float32), None, None, rank=rank, size=size, seed=5, replicate=replicate
            )
            feed = feed_of(shard, Loading(batch_size=9), seed=5, training=True)
            assert feed.steps == 3
            for step, portion in enumerate(feed.epoch(0, Share(rank, size, accumulate))):
                if rank == 0:
                    steps.append([])
                assert len(portion.batches) == accumulate
                for piece, (inputs, target) in zip(portion.pieces, portion.batches, strict=True):
                    assert len(inputs) == len(target) >= 1
                    if piece.weight:
                        assert piece.weight == pytest.approx(len(target) / portion.rows)
                        steps[step] += [int(t) for t in target]
        return steps

    one = epoch(1, 1, False)
    assert sorted(row for rows in one for row in rows) == list(range(ROWS))
    for size, accumulate, replicate in ((2, 1, False), (3, 2, False), (2, 2, True)):
        assert epoch(size, accumulate, replicate) == one


def test_what_is_no_data_is_refused() -> None:
    cases: list[tuple[Any, Loading, str]] = [
        ("data.csv", Loading(batch_size=2), "data must be a Dataset.*not str"),
        ((X, Y[:3]), Loading(batch_size=2), "different numbers of rows"),
        (TensorDataset(X[:0]), Loading(batch_size=2), "no rows"),
        ((X, Y), Loading(), "batch_size=None is not allowed"),
        ((X, Y), Loading(batch_size=0), "batch_size=0 is not allowed"),
        ((X, Y), Loading(batch_size=50, drop_last=True), "fewer than batch_size=50"),
        (DataLoader(Stream(), batch_size=6), Loading(batch_size=7), "makes batches of 6 rows"),
    ]
    for data, loading, message in cases:
        with pytest.raises(UserError, match=message):
            feed_of(data, loading, seed=0, training=True)
