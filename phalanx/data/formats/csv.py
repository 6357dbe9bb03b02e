"""Numbers between commas: label first where there is one, no header line."""

from __future__ import annotations

from typing import final

import numpy as np

from ...contracts import Array
from ...errors import UserError
from ..format import Options, RowIndex, Table
from ..kernels import BAD_NUMBER, NO_ROW, OK, SPACE, TOO_FEW, parse_csv
from ..lines import changed, in_threads, index_lines, line_of, lines_of, read_span, text_at
from ..source import Source

_DELIMITERS = b",;\t|"


@final
class Csv:
    """`text/csv`: fields separated by comma, semicolon, tab, bar or spaces (found out from the first line of a file)."""

    def __init__(self) -> None:
        self._layouts: dict[str, tuple[int, int]] = {}  # delimiter and fields of every file

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`."""
        rows, places = index_lines(source)
        index = RowIndex(rows, places, None)
        if rows == 0:
            return index
        line = lines_of(source, index, 0, 1)[0].split(b"\n")[0]
        delimiter, fields = self._layouts[source.name] = _layout(line)
        self._check_header(source, index, line, delimiter)
        columns = fields - options.label_size - options.weight_size
        if columns < 1:
            what = " and ".join(
                ["a label"] * options.label_size + ["a weight"] * options.weight_size + ["at least one feature"]
            )
            hint = " (is there a label? label_size=0 says there is none)" if options.label_size else ""
            raise UserError(f"{self.where(source, index, 0)} has {_columns(fields)}, too few for {what}{hint}")
        return RowIndex(rows, places, columns)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        if source.name not in self._layouts:
            self._layouts[source.name] = _layout(lines_of(source, index, 0, 1)[0].split(b"\n")[0])
        delimiter, fields = self._layouts[source.name]
        span = read_span(source, index, start, stop, options.threads)
        extra = options.label_size + options.weight_size
        out = np.empty((stop - start, fields - extra), dtype=np.float32)
        side = np.empty((stop - start, extra), dtype=np.float32)

        def parse(part: int) -> tuple[int, int, int, int]:
            at, skip, rows = span.cuts[part]
            first = sum(cut[2] for cut in span.cuts[:part])
            own = slice(first, first + rows)
            code, row, field, place = parse_csv(span.data, at, len(span.data), skip, delimiter, fields, out[own], side[own])
            return code, first + row, field, place

        for code, row, field, place in in_threads(parse, len(span.cuts)):
            if code != OK:
                raise self._wrong(source, index, start + row, code, field, fields, text_at(span.data, place))
        self._check_side(source, index, start, side, options)
        label = side[:, 0].copy() if options.label_size else None
        weight = side[:, options.label_size].copy() if options.weight_size else None
        return Table(out, label, weight)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row)}"

    def _wrong(self, source: Source, index: RowIndex, row: int, code: int, field: int, fields: int, text: str) -> UserError:
        if code == NO_ROW:
            return changed(source)
        where, first = self.where(source, index, row), self.where(source, index, 0).rpartition(" ")[2]
        if code == BAD_NUMBER:
            hint = "; if it is a header, remove it" if row == 0 else ""
            return UserError(f"{where}, column {field + 1}: not a number in '{text}'{hint}")
        if code == TOO_FEW:
            return UserError(f"{where} has {_columns(field)} where line {first} has {fields}: '{text}'")
        return UserError(f"{where} has more than the {_columns(fields)} of line {first}: '{text}'")

    def _check_header(self, source: Source, index: RowIndex, line: bytes, delimiter: int) -> None:
        """Refuse a first line of which no field is a number."""
        if b"\0" in line:
            raise UserError(f"{source.name} is no csv: its first line holds binary data")
        fields = line.split(bytes([delimiter]) if delimiter != SPACE else None)
        if not any(_is_number(field) for field in fields):
            shown = text_at(np.frombuffer(line, dtype=np.uint8), 0)
            raise UserError(
                f"{self.where(source, index, 0)} looks like a header: '{shown}'; there must be none here: remove it"
            )

    def _check_side(self, source: Source, index: RowIndex, start: int, side: Array, options: Options) -> None:
        if np.isfinite(side).all():
            return
        row, field = np.argwhere(~np.isfinite(side))[0].tolist()
        what = "label" if options.label_size and field == 0 else "weight"
        raise UserError(f"{self.where(source, index, start + row)}: the {what} must be a finite number, not {side[row, field]}")


def _layout(line: bytes) -> tuple[int, int]:
    """Return delimiter and number of fields of a file's first line."""
    counts = {delimiter: line.count(bytes([delimiter])) for delimiter in _DELIMITERS}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    if counts[best]:
        return best, counts[best] + 1
    fields = len(line.split())
    return (SPACE, fields) if fields > 1 else (_DELIMITERS[0], 1)


def _is_number(field: bytes) -> bool:
    text = field.strip().strip(b'"').strip()
    if not text:
        return True  # a missing value
    try:
        float(text)
    except ValueError:
        return text.lower() in (b"na", b"null")
    return True


def _columns(number: int) -> str:
    return f"{number} column{'s' * (number != 1)}"
