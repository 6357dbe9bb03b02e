"""What every format does: say where a file's rows are, and decode a run of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from ..contracts import Array, Features, Json
from .source import Source

STRIDE = 32  # every so many rows of a file have their place noted in its index


@dataclass(frozen=True, slots=True)
class Options:
    """How a channel's files are read."""

    label_size: int = 1  # 0: the rows have no label
    weight_size: int = 0
    index_base: int = 1  # of libsvm
    columns: int | None = None  # width of sparse rows that is known already; a wider row is an error
    threads: int = 1


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Where a file's rows are."""

    rows: int
    places: Array  # int64: place (mostly a byte offset) of row 0, STRIDE, 2·STRIDE, …, then of the end
    columns: int | None  # features of a row: exact for dense ones, enough for sparse ones, None for records
    sparse: bool = False
    labelled: bool = False  # whether rows bring labels, where that is not the channel's to say
    weighted: bool = False  # the same of weights
    group_starts: Array | None = None  # first rows of the query groups
    group_ends: tuple[int, int] | None = None  # query ids of the first and the last row

    @property
    def end(self) -> int:
        """The place after the last row."""
        return int(self.places[-1])

    def facts(self) -> dict[str, Json]:
        """Return all but the arrays as JSON values, for the other ranks."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "sparse": self.sparse,
            "labelled": self.labelled,
            "weighted": self.weighted,
            "places": len(self.places),
            "groups": None if self.group_starts is None else len(self.group_starts),
            "group_ends": self.group_ends,
        }

    @classmethod
    def from_facts(cls, facts: Json, places: Array, group_starts: Array | None) -> Self:
        """Return the index that another rank made."""
        ends = facts["group_ends"]
        return cls(
            rows=facts["rows"],
            places=places,
            columns=facts["columns"],
            sparse=facts["sparse"],
            labelled=facts["labelled"],
            weighted=facts["weighted"],
            group_starts=group_starts,
            group_ends=None if ends is None else (ends[0], ends[1]),
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Decoded rows."""

    features: Features
    label: Array | None = None  # (N,) float32
    weight: Array | None = None  # (N,) float32
    group: Array | None = None  # (N,) int64


class Format(Protocol):
    """One content type. Errors are `UserError`s that name file and row: `source.name` and a line or record number."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """Return where the rows of a file are; reads it once, in bounded memory."""
        ...

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """Return rows [start, stop) of a file, `start` < `stop`; sparse ones as wide as `options.columns` where that is set."""
        ...

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """Return how a person finds a row: "train.csv line 17"."""
        ...


def place_before(index: RowIndex, row: int) -> tuple[int, int]:
    """Return the last noted row at or before `row`, and its place."""
    number = min(row // STRIDE, len(index.places) - 2)
    return number * STRIDE, int(index.places[number])


def place_after(index: RowIndex, row: int) -> int:
    """Return the first noted place at or after the start of `row`."""
    number = -(-row // STRIDE)
    return int(index.places[min(number, len(index.places) - 1)])


def every_stride(places: Array, end: int) -> Array:
    """Return the `places` member of an index from the places of all rows."""
    return np.append(places[::STRIDE], end).astype(np.int64)
