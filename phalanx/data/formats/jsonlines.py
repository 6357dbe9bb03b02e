"""`application/jsonlines`: a row is a JSON object on a line of its own."""

from __future__ import annotations

from typing import final

from ...contracts import Features, Json
from ...errors import UserError
from ..format import STRIDE, Options, RowIndex, Table
from ..json_rows import column_of, features_of, kind_of, parse_json
from ..lines import index_lines, line_of
from ..memory import columns_of
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
        labelled = options.label_size == 1 and "label" in first[0]
        weighted = "weight" in first[0]
        if kind == "sparse":
            widths = [
                columns_of(self._features(source, lines, start, min(rows, start + _ROWS), None)) or 0
                for start in range(0, rows, _ROWS)
            ]
            columns = max(widths) if options.columns is None else options.columns
            return RowIndex(rows, places, columns, sparse=True, labelled=labelled, weighted=weighted)
        dense = self._features(source, lines, 0, 1, None)
        return RowIndex(rows, places, columns_of(dense), labelled=labelled, weighted=weighted)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        rows = self._parse(source, index, start, stop)

        def where(row: int) -> str:
            return self.where(source, index, start + row)

        if index.columns is None:
            return Table(features_of(rows, where, None))
        columns = options.columns if index.sparse and options.columns is not None else index.columns
        features = features_of(rows, where, columns)
        label = column_of(rows, "label", where) if index.labelled else None
        return Table(features, label, column_of(rows, "weight", where) if index.weighted else None)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row)}"

    def _features(self, source: Source, index: RowIndex, start: int, stop: int, columns: int | None) -> Features:
        rows = self._parse(source, index, start, stop)
        return features_of(rows, lambda row: self.where(source, index, start + row), columns)

    def _parse(self, source: Source, index: RowIndex, start: int, stop: int) -> list[Json]:
        rows: list[Json] = []
        for row, line in enumerate(decoded_lines(source, index, start, stop)):
            try:
                rows.append(parse_json(line, ""))
            except UserError:
                rows.append(parse_json(line, self.where(source, index, start + row)))
        return rows
