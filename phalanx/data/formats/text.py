"""`text/plain`: a record is a line."""

from __future__ import annotations

from typing import final

from ...contracts import Records
from ...errors import UserError
from ..format import Options, RowIndex, Table
from ..lines import index_lines, line_of, lines_of
from ..source import Source


@final
class Text:
    """Lines of UTF-8 text, blank ones left out."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`."""
        rows, places = index_lines(source)
        return RowIndex(rows, places, None)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        return Table(Records(decoded_lines(source, index, start, stop)))

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row)}"


def decoded_lines(source: Source, index: RowIndex, start: int, stop: int) -> list[str]:
    """Return rows [start, stop) as text without their newlines.

    Raises:
        UserError: a line that is no UTF-8, named.
    """
    lines: list[str] = []
    for row, line in enumerate(lines_of(source, index, start, stop)):
        try:
            lines.append(line.decode().strip())
        except UnicodeDecodeError as error:
            number = line_of(source, index, start + row)
            raise UserError(f"{source.name} line {number} is no UTF-8 text: {error.reason}") from None
    return lines
