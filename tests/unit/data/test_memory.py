"""Rows in memory behave as a channel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from phalanx.contracts import Csr, Records
from phalanx.data.memory import array_shard, take_sparse
from phalanx.data.order import blocks, parts, shuffled
from phalanx.errors import UserError

X = np.arange(600, dtype=np.float64).reshape(300, 2)


def test_every_rank_gets_its_blocks() -> None:
    label = np.arange(300)
    for size in (1, 2, 3):
        shards = [array_shard(X, label, rank=rank, size=size) for rank in range(size)]
        for step, batches in enumerate(zip(*(shard.batches(100) for shard in shards), strict=True)):
            found = np.concatenate([batch.label for batch in batches if batch.label is not None])
            assert found.tolist() == list(range(step * 100, step * 100 + 100))
            assert all(isinstance(batch.features, np.ndarray) and batch.features.dtype == np.float32 for batch in batches)
    assert [len(batch) for batch in array_shard(X, rank=1, size=2, replicate=True).batches(200)] == [200, 100]


def test_kinds_of_rows() -> None:
    sparse = Csr(np.array([0, 1, 1, 3]), np.array([2, 0, 1]), np.array([1, 2, 3], np.float32), 4)
    shard = array_shard(sparse)
    assert (shard.rows, shard.columns) == (3, 4)
    (batch,) = shard.batches(9)
    assert isinstance(batch.features, Csr)
    assert batch.features.indptr.tolist() == [0, 1, 1, 3]
    back = take_sparse(sparse, np.array([2, 0]))
    assert (back.indptr.tolist(), back.indices.tolist(), back.values.tolist()) == ([0, 2, 3], [0, 1, 2], [2, 3, 1])
    texts = array_shard(Records(["a", "b", "c"]))
    assert texts.columns is None
    assert [batch.features for batch in texts.batches(2)] == [Records(["a", "b"]), Records(["c"])]
    assert texts.where(1) == "row 2"
    (batch,) = texts.batches(3, epoch=1, shuffle=True)
    assert isinstance(batch.features, Records)
    assert [texts.where(i, epoch=1, shuffle=True) for i in range(3)] == [
        f"row {'abc'.index(x) + 1}" for x in batch.features.items
    ]


def test_groups_are_never_split() -> None:
    group = np.repeat([7, 3, 9], [50, 120, 130])
    for size in (1, 2, 3):
        seen = []
        for rank in range(size):
            for batch in array_shard(X, group=group, rank=rank, size=size).batches(40):
                assert batch.group is not None
                seen += np.unique(batch.group).tolist()
        assert sorted(seen) == [3, 7, 9], "a group lies in two batches"
    with pytest.raises(UserError, match="neighbours"):
        array_shard(X[:3], group=np.array([1, 2, 1]))


def test_a_position_counts_once() -> None:
    shard, other = array_shard(X, seed=3), array_shard(X, seed=3)
    whole = [batch.features for batch in shard.batches(64, epoch=2, shuffle=True)]
    running = shard.batches(64, epoch=2, shuffle=True)
    next(running), next(running)
    other.load_state_dict(shard.state_dict())
    rest = [batch.features for batch in other.batches(64, epoch=2, shuffle=True)]
    np.testing.assert_array_equal(np.concatenate(rest), np.concatenate(whole[2:]))
    assert len(list(other.batches(64, epoch=2))) == 5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="label has 2 rows, features have 300"):
        array_shard(X, label=np.ones(2))
    with pytest.raises(UserError, match="shape"):
        array_shard(np.ones(3))


def test_blocks_and_parts_cover_all_rows() -> None:
    assert blocks(0, 10).tolist() == [0, 10]
    assert blocks(100, 1124).tolist() == list(range(100, 1125, 32))
    for rows, batch, size in ((0, 5, 2), (1, 5, 3), (1000, 300, 3), (70000, 65536, 4)):
        covered = [list(parts(rows, batch, rank=rank, size=size)) for rank in range(size)]
        assert len({len(own) for own in covered}) == 1
        spans = sorted((part.start, part.stop) for own in covered for part in own if part.stop > part.start)
        assert sum(stop - start for start, stop in spans) == rows
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_a_shuffled_order_keeps_pages_near() -> None:
    order = shuffled(10_000, seed=1, epoch=0, page=16)
    assert sorted(order.tolist()) == list(range(10_000))
    assert order.tolist() != shuffled(10_000, seed=1, epoch=1, page=16).tolist()
    assert max(len(np.unique(order[start : start + 1024] // 16)) for start in range(0, 9000, 1024)) <= 65
