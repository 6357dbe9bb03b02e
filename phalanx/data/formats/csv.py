"""Numbers between commas: label first where there is one, no header line."""

from __future__ import annotations

from typing import final

import numpy as np

from ...contracts import Array
from ...errors import UserError
from ..format import Options, RowIndex, Table
from ..kernels import BAD_NUMBER, OK, TOO_FEW, parse_csv
from ..lines import in_threads, index_lines, line_of, read_lines, text_of
from ..source import Source

_DELIMITERS = b",;\t| "
_PARALLEL_BYTES = 1 << 20  # below, a second thread costs more than it brings


@final
class Csv:
    """`text/csv`: fields separated by comma, semicolon, tab, bar or spaces (found out from the first line)."""

    def __init__(self) -> None:
        self._delimiter: dict[str, int] = {}

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`."""
        rows, places = index_lines(source, options.threads)
        if rows == 0:
            return RowIndex(0, places, None)
        one = RowIndex(rows, places, None)
        data, starts = read_lines(source, one, 0, 1)
        fields = self._fields(source, bytes(data[starts[0] : starts[1]]))
        columns = fields - options.label_size - options.weight_size
        if columns < 1:
            raise UserError(
                f"{self.where(source, one, 0)} has {fields} column{'s' * (fields > 1)}, too few for {_layout(options)}"
            )
        _check_header(source, one, data, starts, self._delimiter[source.name])
        return RowIndex(rows, places, columns)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        if source.name not in self._delimiter:
            data, starts = read_lines(source, index, 0, 1)
            self._fields(source, bytes(data[starts[0] : starts[1]]))
        data, starts = read_lines(source, index, start, stop, options.threads)
        extra = options.label_size + options.weight_size
        columns = index.columns or 0
        out = np.empty((stop - start, columns), dtype=np.float32)
        side = np.empty((stop - start, extra), dtype=np.float32)
        delimiter = self._delimiter[source.name]
        threads = options.threads if len(data) >= _PARALLEL_BYTES else 1
        cuts = np.linspace(0, stop - start, threads + 1).astype(int)

        def parse(part: int) -> tuple[int, int, int]:
            a, b = int(cuts[part]), int(cuts[part + 1])
            code, row, field = parse_csv(data, starts[a : b + 1], delimiter, columns + extra, extra, out[a:b], side[a:b])
            return code, row + a, field

        for code, row, field in in_threads(parse, threads):
            if code != OK:
                raise self._wrong(source, index, start + row, code, field, columns + extra, text_of(data, starts, row))
        self._check_side(source, index, start, side, options)
        label = side[:, 0].copy() if options.label_size else None
        weight = side[:, options.label_size].copy() if options.weight_size else None
        return Table(out, label, weight)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row)}"

    def _fields(self, source: Source, line: bytes) -> int:
        """Find out the delimiter of a file; return the fields of its first line."""
        text = line.strip(b"\r\n")
        counts = {d: text.count(bytes([d])) for d in _DELIMITERS[:-1]}
        best = max(counts, key=lambda d: counts[d])
        if counts[best]:
            self._delimiter[source.name] = best
            return counts[best] + 1
        runs = len(text.split())
        self._delimiter[source.name] = 32 if runs > 1 else 44
        return runs

    def _wrong(self, source: Source, index: RowIndex, row: int, code: int, field: int, columns: int, text: str) -> UserError:
        where = self.where(source, index, row)
        if code == BAD_NUMBER:
            return UserError(f"{where}, column {field + 1}: not a number in '{text}'")
        if code == TOO_FEW:
            return UserError(f"{where} has {field} columns where line 1 has {columns}: '{text}'")
        return UserError(f"{where} has more than the {columns} columns of line 1: '{text}'")

    def _check_side(self, source: Source, index: RowIndex, start: int, side: Array, options: Options) -> None:
        bad = np.argwhere(~np.isfinite(side))
        if len(bad):
            row, field = bad[0].tolist()
            what = "label" if options.label_size and field == 0 else "weight"
            raise UserError(
                f"{self.where(source, index, start + row)}: the {what} must be a finite number, not {side[row, field]}"
            )


def _check_header(source: Source, index: RowIndex, data: Array, starts: Array, delimiter: int) -> None:
    """Refuse a first line of which no field is a number."""
    text = bytes(data[starts[0] : starts[1]]).strip(b"\r\n")
    if b"\0" in text:
        raise UserError(f"{source.name} is no csv: its first line holds binary data")
    separator = bytes([delimiter]) if delimiter != 32 else None
    fields = text.split(separator)
    if not any(_is_number(field) for field in fields):
        line = line_of(source, index, 0)
        raise UserError(
            f"{source.name} line {line} looks like a header: '{text_of(data, starts, 0)}'; csv has none here: remove it"
        )


def _is_number(field: bytes) -> bool:
    text = field.strip().strip(b'"').strip()
    if not text:
        return True  # a missing value
    try:
        float(text)
    except ValueError:
        return text.lower() in (b"na", b"null")
    return True


def _layout(options: Options) -> str:
    parts = ["a label"] * options.label_size + ["a weight"] * options.weight_size + ["at least one feature"]
    return " and ".join(parts) + " (is there a label? label_size=0 says there is none)" * options.label_size
