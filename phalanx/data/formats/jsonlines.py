"""`application/jsonlines`: a row is a JSON object on a line of its own."""

from __future__ import annotations

from typing import final

from ...contracts import Json
from ..format import STRIDE, Options, RowIndex, Table
from ..json_rows import column_of, features_of, kind_of, parse_json
from ..lines import index_lines, line_of
from ..source import Source
from .text import decoded_lines

_ROWS = STRIDE * 128  # parsed at once while indexing


@final
class JsonLines:
    """Dense, sparse (as the first row is) or records; labels are taken where they are."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`; sparse rows are parsed once for their width."""
        rows, places = index_lines(source)
        lines = RowIndex(rows, places, None)
        if rows == 0:
            return lines
        first = self._parse(source, lines, 0, 1)
        kind = kind_of(first[0])
        if kind == "records":
            return lines
        if kind == "sparse":
            widths = [
                self._features(source, lines, start, min(rows, start + _ROWS), None).columns for start in range(0, rows, _ROWS)
            ]
            return RowIndex(rows, places, max(widths) if options.columns is None else options.columns, sparse=True)
        dense = self._features(source, lines, 0, 1, None)
        return RowIndex(rows, places, dense.shape[1])

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        rows = self._parse(source, index, start, stop)

        def where(row: int) -> str:
            return self.where(source, index, start + row)

        if index.columns is None:
            return Table(features_of(rows, where, None))
        columns = options.columns if index.sparse and options.columns is not None else index.columns
        features = features_of(rows, where, columns)
        label = None if options.label_size == 0 else column_of(rows, "label", where, required=False)
        return Table(features, label, column_of(rows, "weight", where, required=False))

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row)}"

    def _features(self, source: Source, index: RowIndex, start: int, stop: int, columns: int | None):  # type: ignore[no-untyped-def]
        rows = self._parse(source, index, start, stop)
        return features_of(rows, lambda row: self.where(source, index, start + row), columns)

    def _parse(self, source: Source, index: RowIndex, start: int, stop: int) -> list[Json]:
        rows: list[Json] = []
        for row, line in enumerate(decoded_lines(source, index, start, stop)):
            try:
                rows.append(parse_json(line, ""))
            except Exception:
                rows.append(parse_json(line, self.where(source, index, start + row)))
        return rows
