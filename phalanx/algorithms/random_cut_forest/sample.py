"""What a random cut forest learns from: windows of a channel's rows, and a sample of them in one pass.

Legend of shapes: N rows, C numbers of a row, D = C * shingle_size columns of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from ...contracts import Array, Collective, Entry, State
from ..kernels import forest as loops


@final
class Shingles:
    """Windows of `size` rows, one after another in time, the oldest first; each ends at one row of the channel.

    Args:
        size: rows of a window.
        columns: C.
        parted: whether the ranks share the rows; otherwise every rank has all.
    """

    def __init__(self, size: int, columns: int, *, parted: bool) -> None:
        self._size = size
        self._parted = parted
        self.recent = np.zeros((0, columns), np.float32)  # the last rows so far, of all ranks; at most size - 1

    def of(self, world: Collective, first_row: int, rows: Array) -> tuple[int, Array]:
        """Collective. Return the windows (N', D) that end in this rank's rows (N, C), and the number of the first one's row.

        A window that would begin before the channel does is left out, so N' may be less than N.
        """
        if self._size == 1:
            return first_row, rows
        before = self.recent
        if self._parted and world.size > 1:
            tails = world.all_gather(np.ascontiguousarray(rows[max(len(rows) - self._size + 1, 0) :]))
            places = world.all_gather(first_row if len(rows) else -1)
            order = sorted((place, rank) for rank, place in enumerate(places) if place >= 0)
            earlier = [tails[rank] for place, rank in order if place < first_row]
            self.recent = self._newest([before, *(tails[rank] for _, rank in order)])
            before = self._newest([before, *earlier])
        else:
            self.recent = self._newest([before, rows])
        windows = windows_of(np.concatenate([before, rows]), self._size)
        windows = windows[max(len(windows) - len(rows), 0) :]
        return first_row + len(rows) - len(windows), windows

    def _newest(self, parts: list[Array]) -> Array:
        return np.ascontiguousarray(np.concatenate(parts)[-(self._size - 1) :])


def windows_of(rows: Array, size: int) -> Array:
    """Return all windows (N - size + 1, D) of rows (N, C), a view of them; none where there are too few."""
    if size == 1 or len(rows) < size:
        return rows if size == 1 else np.zeros((0, size * rows.shape[1]), np.float32)
    flat = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1)
    step = rows.shape[1]
    view: Array = np.lib.stride_tricks.sliding_window_view(flat, size * step)[::step]
    return view


@final
class Sample:
    """The windows with the smallest hashes of (seed, number of their row): the same for every number of workers.

    Args:
        most: windows to keep.
        columns: D.
        seed: of the job.
    """

    def __init__(self, most: int, columns: int, seed: int) -> None:
        self._most = most
        self._seed = np.uint64(seed % 2**64)
        self.keys = np.zeros(0, np.uint64)  # ascending
        self._store = np.zeros((0, columns), np.float32)  # the windows in the order they came, a new one in place of an old one
        self._places = np.zeros(0, np.int64)  # of the keys' windows in it

    def offer(self, world: Collective, first_row: int, windows: Array) -> None:
        """Collective. Keep the smallest keys of the sample and of windows (N, D) that end in rows from `first_row` on."""
        keys = np.empty(len(windows), np.uint64)
        loops.keys_of(self._seed, np.arange(first_row, first_row + len(windows), dtype=np.uint64), keys)
        low = np.flatnonzero(keys < self.keys[-1]) if len(self.keys) >= self._most else np.arange(len(keys))
        if len(low) > self._most:
            low = low[np.sort(np.argpartition(keys[low], self._most - 1)[: self._most])]
        offered = [part.view(np.uint64) for part in world.all_gather(keys[low].view(np.int64))]
        if not any(len(part) for part in offered):
            return
        seen = np.concatenate([self.keys, *offered])
        values = world.all_gather(np.ascontiguousarray(windows[low]))
        kept, found = np.unique(seen, return_index=True)  # a replicated channel offers every row once a rank
        kept, found = kept[: self._most], found[: self._most]
        before = len(self.keys)
        old, new = np.flatnonzero(found < before), np.flatnonzero(found >= before)
        self._store = self._room(len(kept))
        free = np.ones(len(self._store), dtype=bool)
        free[self._places[found[old]]] = False
        places = np.empty(len(kept), np.int64)
        places[old], places[new] = self._places[found[old]], np.flatnonzero(free)[: len(new)]
        start = before
        for part in values:
            own = new[(found[new] >= start) & (found[new] < start + len(part))]
            self._store[places[own]] = part[found[own] - start]
            start += len(part)
        self.keys, self._places = kept, places

    @property
    def rows(self) -> Array:
        """The windows (n, D) in the order of their keys; a copy."""
        return self.first(len(self.keys))

    def first(self, count: int) -> Array:
        """Return the windows (at most `count`, D) with the smallest keys."""
        found: Array = self._store[self._places[:count]]
        return found

    def _room(self, count: int) -> Array:
        """Return the store with room for `count` windows at least; it doubles, so that it is seldom copied."""
        if count <= len(self._store):
            return self._store
        wider = np.zeros((min(max(2 * len(self._store), count), max(self._most, count)), self._store.shape[1]), np.float32)
        wider[: len(self._store)] = self._store
        return wider

    def dealt(self, trees: int, size: int) -> Array:
        """Return the samples (trees, at most `size`, D) of the trees.

        No row is in two trees; where there are too few rows for that trees share them, and no tree has one twice.
        """
        count = len(self.keys)
        if count >= trees * size:
            chosen = np.arange(trees * size).reshape(size, trees).T
        else:
            keys, picks = np.empty(count, np.uint64), []
            for tree in range(trees):
                loops.keys_of(np.uint64(tree), self.keys, keys)
                least = np.argpartition(keys, size - 1)[:size] if count > size else np.arange(count)
                picks.append(least[np.argsort(keys[least], kind="stable")])
            chosen = np.array(picks)
        dealt: Array = self._store[self._places[chosen]]
        return dealt

    def state_dict(self) -> State:
        """Return keys and rows."""
        return {"keys": Entry(self.keys.view(np.int64)), "rows": Entry(self.rows)}

    def load_state_dict(self, state: Mapping[str, Entry]) -> None:
        """Put back what `state_dict` gave."""
        self.keys = np.ascontiguousarray(state["keys"].value, dtype=np.int64).view(np.uint64)
        self._store = np.array(state["rows"].value, dtype=np.float32)
        self._places = np.arange(len(self._store))
