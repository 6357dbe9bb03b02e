"""Decoded rows: parts of them, one piece after another, pages of a file kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from ..contracts import Array, Csr, Features, Records
from ..errors import UserError
from .format import Table
from .memory import take

_PAGES_KEPT = 160  # a window of a shuffled order is 64 pages; a batch may lie in two, its end in a third


def take_rows(table: Table, where: slice | Array) -> Table:
    """Return some rows of a table."""

    def of(column: Array | None) -> Array | None:
        return None if column is None else column[where]

    return Table(take(table.features, where), of(table.label), of(table.weight), of(table.group))


def concatenate(tables: Sequence[Table]) -> Table:
    """Return the rows of tables of one kind, one after another."""
    if len(tables) == 1:
        return tables[0]

    def of(columns: Sequence[Array | None]) -> Array | None:
        given = [column for column in columns if column is not None]
        if given and len(given) < len(columns):
            raise UserError("some rows have labels, weights or query groups and some have none")
        return np.concatenate(given) if given else None

    return Table(
        concatenate_features([table.features for table in tables]),
        of([table.label for table in tables]),
        of([table.weight for table in tables]),
        of([table.group for table in tables]),
    )


def concatenate_features(pieces: Sequence[Features]) -> Features:
    """Return rows of one kind, one piece after another."""
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    if len(arrays) == len(pieces):
        return np.concatenate(arrays)
    records = [piece for piece in pieces if isinstance(piece, Records)]
    if len(records) == len(pieces):
        return Records([item for piece in records for item in piece.items])
    sparse = [piece for piece in pieces if isinstance(piece, Csr)]
    if len(sparse) != len(pieces):
        raise UserError("some rows are dense, some sparse or records: a channel holds one kind")
    ends = np.cumsum([0, *(int(piece.indptr[-1]) for piece in sparse)])
    indptr = np.concatenate([[0], *(piece.indptr[1:] + end for piece, end in zip(sparse, ends, strict=False))])
    indices = np.concatenate([piece.indices for piece in sparse])
    values = np.concatenate([piece.values for piece in sparse])
    return Csr(indptr.astype(np.int64), indices, values, max(piece.columns for piece in sparse))


@final
class Pages:
    """Rows by number from pages of neighbouring rows, the latest of which are kept.

    Args:
        read: decodes rows [start, stop).
        rows: rows in all.
        page: rows of a page.
    """

    def __init__(self, read: Callable[[int, int], Table], rows: int, page: int) -> None:
        self._read = read
        self._rows = rows
        self._size = page
        self._kept: OrderedDict[int, Table] = OrderedDict()

    def take(self, rows: Array) -> Table:
        """Return the rows with these numbers, in this order."""
        pages = rows // self._size
        by_page = np.argsort(pages, kind="stable")
        numbers, begins = np.unique(pages[by_page], return_index=True)
        groups = np.split(by_page, begins[1:])
        tables = [
            take_rows(self._page(number), rows[group] - number * self._size)
            for number, group in zip(numbers.tolist(), groups, strict=True)
        ]
        back = np.empty(len(rows), dtype=np.int64)
        back[by_page] = np.arange(len(rows))
        return take_rows(concatenate(tables), back)

    def _page(self, number: int) -> Table:
        table = self._kept.pop(number, None)
        if table is None:
            table = self._read(number * self._size, min((number + 1) * self._size, self._rows))
        self._kept[number] = table
        if len(self._kept) > _PAGES_KEPT:
            self._kept.popitem(last=False)
        return table
