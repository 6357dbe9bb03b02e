"""A channel of lines, read once and kept on disk as numbers: memory does not follow the text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, final

import numpy as np

from ...contracts import Array, Collective, Features, Json, Records, Session, Shard
from ...errors import UserError, nearest
from ...parallel.collective import together
from .vocabulary import LABEL, Table

Where = Callable[[int], str]
_FEWEST_LINES, _MOST_LINES, _STEPS = 64, 16384, 16


@final
class Spill:
    """Arrays in a file that has no name, and is gone when it is closed or the process ends."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._kept: list[list[tuple[int, int, str]]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, arrays: Sequence[Array]) -> None:
        """Keep some arrays (n,) under the next number."""
        places = []
        for array in arrays:
            places.append((self._file.seek(0, 2), len(array), array.dtype.str))
            self._file.write(np.ascontiguousarray(array).data)
        self._kept.append(places)

    def __getitem__(self, number: int) -> list[Array]:
        """Return the arrays of a number."""
        found = []
        for place, length, kind in self._kept[number]:
            array = np.empty(length, np.dtype(kind))
            self._file.seek(place)
            self._file.readinto(array.data)  # type: ignore[attr-defined]
            found.append(array)
        return found

    def lengths(self, place: int = 0) -> list[int]:
        """Return the length of an array of every number, the first unless said."""
        return [places[place][1] for places in self._kept]

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def train_channel(session: Session) -> Shard:
    """Return the channel `train`.

    Raises:
        UserError: there is none, or it holds numbers.
    """
    train = session.channels.get("train")
    if train is None:
        raise UserError(f"blazingtext needs a channel 'train'; {nearest('train', session.channels)}")
    if train.columns is not None:
        raise UserError(
            "blazingtext needs lines of text (text/plain) or JSON records with 'source'; channel 'train' holds numbers"
        )
    return train


def lines_of_step(shard: Shard, wanted: int | str) -> int:
    """Return the lines of a step over all ranks."""
    if isinstance(wanted, int):
        return wanted
    return min(max(shard.rows // _STEPS, _FEWEST_LINES), _MOST_LINES)


def count_channel(session: Session, name: str, shard: Shard, lines: int, *, shuffle: bool) -> tuple[Table, Spill]:
    """Collective. Read this rank's lines of a channel; return the table of their words, and every step's entries.

    Raises:
        UserError: on every rank, where a rank's lines cannot be read.
    """
    table, spill = Table(), Spill()

    def read() -> None:
        with ThreadPoolExecutor(1) as behind:  # words are counted while the next lines are read
            counting: Future[Array] | None = None
            for data in encoded(name, shard, lines, shuffle=shuffle):
                if counting is not None:
                    spill.append([counting.result()])
                counting = behind.submit(table.count, data)
            if counting is not None:
                spill.append([counting.result()])

    try:
        together(session.world, f"reading channel '{name}'", read)
    except BaseException:
        spill.close()
        raise
    return table, spill


def encoded(name: str, shard: Shard, lines: int, *, shuffle: bool = False) -> Iterator[Array]:
    """Yield this rank's lines of every global batch as bytes."""
    for batch in shard.batches(lines, epoch=0, shuffle=shuffle):
        yield as_bytes(batch.features, lambda row, at=batch.first_row: shard_place(name, shard, at + row, shuffle))  # type: ignore[misc]


def shard_place(name: str, shard: Shard, row: int, shuffle: bool) -> str:
    """Return where a line is, for errors."""
    return f"channel '{name}', {shard.where(row, epoch=0, shuffle=shuffle)}"


def as_bytes(features: Features, where: Where) -> Array:
    """Return records as lines of UTF-8, (bytes,) uint8.

    Raises:
        UserError: a record that is no line.
    """
    if not isinstance(features, Records):
        raise UserError("lines of text are needed, not rows of numbers")
    items = features.items
    try:
        text = "\n".join(items)
    except TypeError:
        items = [line_of(item, lambda row=row: where(row)) for row, item in enumerate(items)]  # type: ignore[misc]
        text = "\n".join(items)
    if text.count("\n") != max(len(items) - 1, 0):
        text = "\n".join(item.replace("\n", " ") for item in items)
    data = (text + "\n" * bool(len(items))).encode(errors="replace")
    return np.frombuffer(bytearray(data), np.uint8)


def line_of(item: Json, where: Callable[[], str]) -> str:
    """Return a record as a line: a text, or an object with `source` and perhaps `label`, a number or several."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and isinstance(item.get("source"), str):
        labels = item.get("label", [])
        labels = labels if isinstance(labels, list) else [labels]
        if all(
            isinstance(label, (int, str)) and not isinstance(label, bool) and str(label).split() == [str(label)]
            for label in labels
        ):
            marked = [str(label) if str(label).startswith(LABEL.decode()) else f"{LABEL.decode()}{label}" for label in labels]
            return " ".join([*marked, item["source"]])
    raise UserError(f'{where()}: a line of text, or {{"source": "text"}} with "label": 1 or [1, 3], is expected')


def pieces(tokens: Array, size: int) -> list[Array]:
    """Cut tokens where lines end into pieces of about `size`, whatever the number of threads."""
    ends = np.flatnonzero(tokens == -1) + 1
    wanted = np.arange(1, max(len(tokens) // size, 1)) * size
    cuts = np.unique(ends[np.searchsorted(ends, wanted)]) if len(ends) else wanted[:0]
    return [piece for piece in np.split(tokens, cuts) if len(piece)]


def runs(tokens: Array, count: int) -> list[Array]:
    """Cut tokens where lines end into `count` runs of about one size; some may be empty."""
    if count == 1:
        return [tokens]
    ends = np.concatenate([[0], np.flatnonzero(tokens == -1) + 1])
    wanted = np.arange(1, count) * len(tokens) // count
    return np.split(tokens, ends[np.searchsorted(ends, wanted, side="right") - 1])


def turns_of_steps(world: Collective, lengths: Sequence[int], size: int) -> tuple[Array, Array]:
    """Collective. Return the turns of every step, the same on all ranks, and the mean of the ranks' work in it.

    Args:
        world: the ranks; one alone does a step in one turn.
        lengths: what this rank does in every step.
        size: what a rank does in a turn, at most.
    """
    mine = np.array(lengths, np.int64)
    longest, work = world.all_reduce(mine, "max"), world.all_reduce(mine) / world.size
    if world.size == 1:
        return np.ones(len(mine), np.int64), work
    return np.maximum(-(-longest // size), 1), work
