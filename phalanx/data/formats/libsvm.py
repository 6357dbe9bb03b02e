"""`label[:weight] [qid:n] index:value …`: sparse rows as LIBSVM writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from ...contracts import Array, Csr
from ...errors import UserError
from ..format import STRIDE, Options, RowIndex, Table
from ..kernels import BAD_INDEX, BAD_LABEL, COLON, HASH, INDEX_TOO_LARGE, NO_ROW, OK, parse_libsvm
from ..lines import changed, in_threads, index_lines, line_of, read_span, text_at
from ..source import Source

_BYTES = 8 << 20  # parsed at once while indexing, about


@dataclass(frozen=True, slots=True)
class _Parsed:
    """Parsed rows."""

    lengths: Array  # (N,) entries of each row
    indices: Array
    values: Array
    side: Array  # (N, 2) label, weight or NaN
    group: Array  # (N,) query id or -1
    widest: int


@final
class LibSvm:
    """`text/libsvm`; `;index_base=0` or `1` says what the first column is called."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`; every row is parsed once, for the width, the weights and the query groups."""
        rows, places = index_lines(source, HASH)
        lines = RowIndex(rows, places, None, sparse=True)
        step = max(1, int(_BYTES / max(lines.end / max(rows, 1), 1))) // STRIDE * STRIDE or STRIDE
        widest = 0
        weighted = grouped = False
        groups = _Groups()
        for start in range(0, rows, step):
            parsed = self._parse(source, lines, start, min(rows, start + step), options)
            widest = max(widest, parsed.widest)
            if start == 0:
                weighted, grouped = not np.isnan(parsed.side[0, 1]), bool(parsed.group[0] >= 0)
            for what, flag, has in (
                ("weight", weighted, ~np.isnan(parsed.side[:, 1])),
                ("qid", grouped, parsed.group >= 0),
            ):
                self._check_alike(source, lines, start, what, flag, has)
            if grouped and (back := groups.add(parsed.group, start)) is not None:
                raise UserError(
                    f"{self.where(source, lines, back[0])}: qid {back[1]} comes back after another one; "
                    "rows of a query group must be neighbours"
                )
        columns = widest if options.columns is None else options.columns
        return RowIndex(
            rows,
            places,
            columns,
            sparse=True,
            weighted=weighted,
            group_starts=groups.starts if grouped else None,
            group_ends=groups.ends if grouped else None,
        )

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        parsed = self._parse(source, index, start, stop, options)
        columns = options.columns if options.columns is not None else (index.columns or 0)
        indptr = np.concatenate([[0], np.cumsum(parsed.lengths)]).astype(np.int64)
        label = parsed.side[:, 0].copy()
        weight = parsed.side[:, 1].copy() if index.weighted else None
        for what, column in (("label", label), ("weight", weight)):
            if column is not None and not np.isfinite(column).all():
                row = int(np.argmax(~np.isfinite(column)))
                where = self.where(source, index, start + row)
                raise UserError(f"{where}: the {what} must be a finite number, not {column[row]}")
        group = parsed.group if index.group_starts is not None else None
        return Table(Csr(indptr, parsed.indices, parsed.values, columns), label, weight, group)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row, HASH)}"

    def _parse(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> _Parsed:
        span = read_span(source, index, start, stop, options.threads)
        lengths, group = np.empty(stop - start, dtype=np.int64), np.empty(stop - start, dtype=np.int64)
        side = np.empty((stop - start, 2), dtype=np.float32)
        columns = -1 if options.columns is None else options.columns
        ends = [*(cut[0] for cut in span.cuts[1:]), len(span.data)]

        def parse(part: int) -> tuple[int, int, int, int, Array, Array, int, bool]:
            at, skip, rows = span.cuts[part]
            entries = int(np.count_nonzero(span.data[at : ends[part]] == COLON))
            indices, values = np.empty(entries, dtype=np.int64), np.empty(entries, dtype=np.float32)
            first = sum(cut[2] for cut in span.cuts[:part])
            own = slice(first, first + rows)
            code, row, begin, place, used, widest, ascending = parse_libsvm(
                span.data,
                at,
                len(span.data),
                skip,
                options.index_base,
                columns,
                lengths[own],
                indices,
                values,
                side[own],
                group[own],
            )
            return code, first + row, begin, place, indices[:used], values[:used], widest, ascending

        pieces = in_threads(parse, len(span.cuts))
        for code, row, begin, place, *_ in pieces:
            if code != OK:
                raise self._wrong(source, index, start + row, code, span.data, begin, place, options)
        indices = pieces[0][4] if len(pieces) == 1 else np.concatenate([piece[4] for piece in pieces])
        values = pieces[0][5] if len(pieces) == 1 else np.concatenate([piece[5] for piece in pieces])
        if not all(piece[7] for piece in pieces):
            indices, values = _sorted(
                lengths, indices, values, options.index_base, lambda row: self.where(source, index, start + row)
            )
        return _Parsed(lengths, indices, values, side, group, max(int(piece[6]) for piece in pieces))

    def _check_alike(self, source: Source, index: RowIndex, start: int, what: str, flag: bool, has: Array) -> None:
        """All rows of a file have a weight or qid, or none has."""
        if (has == flag).all():
            return
        where = self.where(source, index, start + int(np.argmax(has != flag)))
        state = f"has no {what}, the first row has one" if flag else f"has a {what}, the first row has none"
        raise UserError(f"{where} {state}: all rows must have it, or none")

    def _wrong(
        self, source: Source, index: RowIndex, row: int, code: int, data: Array, begin: int, place: int, options: Options
    ) -> UserError:
        if code == NO_ROW:
            return changed(source)
        where, line = self.where(source, index, row), text_at(data, begin)
        shown = next(iter(text_at(data, place, 40).split()), "")
        if code == BAD_INDEX and options.index_base == 1 and shown.startswith("0:"):
            return UserError(f"{where}: index 0 in '{shown}', but indices start at 1; if they start at 0, say ;index_base=0")
        if code == INDEX_TOO_LARGE:
            return UserError(f"{where}: '{shown}' lies beyond the {options.columns} columns of the data")
        if code == BAD_LABEL:
            return UserError(f"{where} does not begin with a label or label:weight: '{line}'; is it libsvm?")
        return UserError(f"{where}: '{shown}' is no index:value pair of numbers; is it libsvm?")


def _sorted(lengths: Array, indices: Array, values: Array, base: int, where: Callable[[int], str]) -> tuple[Array, Array]:
    """Return indices and values with those of each row in ascending order.

    Raises:
        UserError: a row names an index twice; `where` names the row.
    """
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((indices, row))
    indices = indices[order]
    twice = np.flatnonzero((indices[1:] == indices[:-1]) & (row[1:] == row[:-1]))
    if len(twice):
        place = int(twice[0])
        raise UserError(f"{where(int(row[place]))} names the index {int(indices[place]) + base} twice")
    return indices, values[order]


@final
class _Groups:
    """The query groups of a file, found piece by piece."""

    def __init__(self) -> None:
        self._starts: list[Array] = []
        self._seen: set[int] = set()
        self._first = self._last = -1

    @property
    def starts(self) -> Array:
        """First rows of the groups, (G,) int64."""
        return np.concatenate(self._starts).astype(np.int64)

    @property
    def ends(self) -> tuple[int, int]:
        """Query ids of the first and the last row."""
        return self._first, self._last

    def add(self, group: Array, start: int) -> tuple[int, int] | None:
        """Take the ids of rows from `start` on; return row and id where one comes back after another, else None."""
        changes = np.flatnonzero(np.concatenate([[group[0] != self._last], group[1:] != group[:-1]]))
        self._starts.append(changes + start)
        for row in changes.tolist():
            number = int(group[row])
            if number in self._seen:
                return start + row, number
            self._seen.add(number)
        self._first = int(group[0]) if start == 0 else self._first
        self._last = int(group[-1])
        return None
