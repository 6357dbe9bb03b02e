"""Which rows a rank reads, in which order: a pure function of (rows, batch, rank, size, seed, epoch).

A global batch is rows [b·R, (b+1)·R) of the order of the epoch. It is cut into fixed blocks whose size depends on the batch's
length alone; a rank takes a run of whole blocks. So the number of ranks never changes what a block holds, and sums made block
by block do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..contracts import Array

MAX_BLOCK = 256
_MIN_BLOCK = 32
_WINDOW = 64  # shuffle: pages are shuffled over the epoch, rows within a window of so many pages


@dataclass(frozen=True, slots=True)
class Part:
    """A rank's run of rows of one global batch: positions [start, stop) in the order of the epoch."""

    batch_start: int
    batch_stop: int
    start: int
    stop: int


def block_rows(batch_rows: int) -> int:
    """Return the rows of a block of a global batch of `batch_rows` rows: a power of two from 32 to 256, about 32 a batch."""
    wanted = max(batch_rows // 32, 1)
    return int(min(MAX_BLOCK, max(_MIN_BLOCK, 1 << (wanted.bit_length() - 1))))


def blocks(batch_start: int, batch_stop: int, starts: Array | None = None) -> Array:
    """Return the block boundaries of a global batch, ascending, its start and stop included.

    Args:
        batch_start: first position of the batch.
        batch_stop: position after its last.
        starts: first rows of the query groups, ascending; boundaries then move up to the next start, so that no group is split.
    """
    cuts = np.arange(batch_start, batch_stop, block_rows(batch_stop - batch_start), dtype=np.int64)
    cuts = np.append(cuts, batch_stop)
    return cuts if starts is None else _snap(cuts, starts)


def parts(rows: int, batch: int, *, rank: int, size: int, starts: Array | None = None) -> Iterator[Part]:
    """Yield the part of rank `rank` of `size` of every global batch, empty parts too.

    Args:
        rows: rows of the channel.
        batch: rows of a global batch, at least 1.
        rank: this rank.
        size: ranks that share the channel (1 for a replicated one).
        starts: first rows of the query groups; batches and blocks then end where groups end.
    """
    edges = np.append(np.arange(0, rows, batch, dtype=np.int64), rows)
    if starts is not None:
        edges = _snap(edges, starts)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if start == stop:
            continue  # a group longer than the batch swallowed this one
        cuts = blocks(start, stop, starts)
        count = len(cuts) - 1
        first, last = count * rank // size, count * (rank + 1) // size
        yield Part(start, stop, int(cuts[first]), int(cuts[last]))


def shuffled(rows: int, *, seed: int, epoch: int, page: int) -> Array:
    """Return the order of an epoch, (rows,) int64: position -> row number.

    Pages of `page` neighbouring rows are permuted over the whole epoch, then rows within windows of 64 pages, so that a reader
    touches 64 places of a file at a time whatever its size. `page=1` is a full permutation.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)))
    if page == 1:
        return generator.permutation(rows)
    pages = generator.permutation(-(-rows // page))
    order = (pages[:, None] * page + np.arange(page)).ravel()
    order = order[order < rows]
    window = page * _WINDOW
    for start in range(0, rows, window):
        generator.shuffle(order[start : start + window])
    return order


def _snap(cuts: Array, starts: Array) -> Array:
    """Move inner cuts up to the next group start; the outer two stay."""
    ends = np.append(starts, cuts[-1])
    snapped = ends[np.searchsorted(ends, cuts[1:-1])]
    return np.concatenate([cuts[:1], np.minimum(snapped, cuts[-1]), cuts[-1:]])
