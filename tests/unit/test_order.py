"""Which rows a rank reads: every row once, whole blocks, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.contracts import Array
from phalanx.data.order import MAX_BLOCK, Part, block_rows, blocks, parts, shuffled

ROWS = st.integers(0, 5000)
BATCH = st.integers(1, 6000)
SIZE = st.integers(1, 9)


@st.composite
def group_starts(draw: st.DrawFn) -> tuple[int, Array]:
    """Return rows of a channel and where its query groups begin."""
    lengths = draw(st.lists(st.integers(1, 400), min_size=1, max_size=60))
    ends = np.cumsum(lengths)
    return int(ends[-1]), np.concatenate([[0], ends[:-1]]).astype(np.int64)


def by_rank(rows: int, batch: int, size: int, starts: Array | None = None) -> list[list[Part]]:
    return [list(parts(rows, batch, rank=rank, size=size, starts=starts)) for rank in range(size)]


@pytest.mark.parametrize(
    ("batch", "block"), [(1, 32), (32, 32), (1000, 32), (2047, 32), (2048, 64), (5000, 128), (8192, 256), (10**7, 256)]
)
def test_block_sizes(batch: int, block: int) -> None:
    assert block_rows(batch) == block


@given(st.integers(1, 10**9))
def test_blocks_are_powers_of_two_and_about_32_a_batch(batch: int) -> None:
    size = block_rows(batch)
    assert size & (size - 1) == 0
    assert 32 <= size <= MAX_BLOCK
    assert -(-batch // size) <= 64 or size == MAX_BLOCK


@given(st.integers(0, 10**6), st.integers(1, 20_000))
def test_blocks_cut_a_batch_from_its_start(start: int, length: int) -> None:
    cuts = blocks(start, start + length)
    assert cuts[0] == start
    assert cuts[-1] == start + length
    sizes = np.diff(cuts)
    assert (sizes[:-1] == block_rows(length)).all()
    assert 0 < sizes[-1] <= block_rows(length)


@settings(max_examples=200)
@given(ROWS, BATCH, SIZE)
def test_every_row_is_read_once_in_order(rows: int, batch: int, size: int) -> None:
    ranks = by_rank(rows, batch, size)
    assert {len(mine) for mine in ranks} == {-(-rows // batch)}, "all ranks see the same number of batches"
    place = 0
    for number, of_batch in enumerate(zip(*ranks, strict=True)):
        for part in of_batch:
            assert (part.batch_start, part.batch_stop) == (number * batch, min((number + 1) * batch, rows))
            assert part.start == place
            assert part.stop >= part.start
            place = part.stop
        assert place == of_batch[0].batch_stop
    assert place == rows


@given(ROWS, BATCH, SIZE)
def test_a_part_is_a_run_of_the_batchs_blocks(rows: int, batch: int, size: int) -> None:
    for mine in by_rank(rows, batch, size):
        for part in mine:
            cuts = set(blocks(part.batch_start, part.batch_stop).tolist())
            assert {part.start, part.stop} <= cuts


@given(ROWS, BATCH, SIZE)
def test_parts_are_even(rows: int, batch: int, size: int) -> None:
    for of_batch in zip(*by_rank(rows, batch, size), strict=True):
        counts = [-(-(part.stop - part.start) // block_rows(part.batch_stop - part.batch_start)) for part in of_batch]
        assert max(counts) - min(counts) <= 1


@given(ROWS, BATCH)
def test_one_rank_reads_whole_batches(rows: int, batch: int) -> None:
    for part in parts(rows, batch, rank=0, size=1):
        assert (part.start, part.stop) == (part.batch_start, part.batch_stop)


@settings(max_examples=200)
@given(group_starts(), st.integers(1, 3000), SIZE)
def test_groups_are_never_split(groups: tuple[int, Array], batch: int, size: int) -> None:
    rows, starts = groups
    edges = {*starts.tolist(), rows}
    ranks = by_rank(rows, batch, size, starts)
    assert len({len(mine) for mine in ranks}) == 1
    place = 0
    for of_batch in zip(*ranks, strict=True):
        assert len({(part.batch_start, part.batch_stop) for part in of_batch}) == 1
        assert of_batch[0].batch_stop > of_batch[0].batch_start, "no batch is empty over all ranks"
        assert of_batch[0].batch_start == place
        for part in of_batch:
            assert part.start == place
            assert {part.start, part.stop} <= edges
            place = part.stop
    assert place == rows


@given(group_starts(), st.integers(1, 3000), SIZE)
def test_batches_of_groups_do_not_depend_on_the_ranks(groups: tuple[int, Array], batch: int, size: int) -> None:
    rows, starts = groups
    alone = [(part.batch_start, part.batch_stop) for part in parts(rows, batch, rank=0, size=1, starts=starts)]
    for mine in by_rank(rows, batch, size, starts):
        assert [(part.batch_start, part.batch_stop) for part in mine] == alone
        for part in mine:
            assert {part.start, part.stop} <= set(blocks(part.batch_start, part.batch_stop, starts).tolist())


@given(group_starts(), st.integers(1, 3000))
def test_batches_of_groups_end_at_the_first_group_end(groups: tuple[int, Array], batch: int) -> None:
    rows, starts = groups
    longest = int(np.diff(np.append(starts, rows)).max())
    for part in parts(rows, batch, rank=0, size=1, starts=starts):
        assert part.batch_stop - part.batch_start < batch + longest


def test_groups_of_one_row_change_nothing() -> None:
    for size in (1, 3):
        assert by_rank(1000, 300, size, np.arange(1000)) == by_rank(1000, 300, size)


def test_a_group_longer_than_a_batch_is_one_batch() -> None:
    found = [(p.batch_start, p.batch_stop) for p in parts(50, 10, rank=0, size=1, starts=np.array([0, 3, 38]))]
    assert found == [(0, 38), (38, 50)]


@given(ROWS, st.integers(-(2**70), 2**70), st.integers(0, 1000), st.sampled_from([1, 2, 7, 256]))
def test_a_shuffled_order_is_a_permutation(rows: int, seed: int, epoch: int, page: int) -> None:
    order = shuffled(rows, seed=seed, epoch=epoch, page=page)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))
    np.testing.assert_array_equal(order, shuffled(rows, seed=seed, epoch=epoch, page=page))


@pytest.mark.parametrize("page", [1, 16])
def test_seed_and_epoch_make_the_order(page: int) -> None:
    orders = {shuffled(5000, seed=seed, epoch=epoch, page=page).tobytes() for seed in (0, 1, -1) for epoch in range(3)}
    assert len(orders) == 9


def test_a_window_of_the_order_touches_few_pages() -> None:
    page, rows = 8, 100_000
    order = shuffled(rows, seed=0, epoch=0, page=page)
    window = page * 64
    for start in range(0, rows, window):
        assert len(np.unique(order[start : start + window] // page)) <= 65
    assert len(np.unique(order[:20] // page)) > 10, "rows of a page do not stay together"
    first_pages = order[:window] // page
    assert first_pages.min() < 1000 < 11_000 < first_pages.max(), "a window has pages from all over the channel"
