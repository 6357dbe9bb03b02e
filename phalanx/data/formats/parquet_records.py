"""Parquet files whose rows are records: time series, with a start and a list of values each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, cast, final

import numpy as np

from ...contracts import Json
from ...errors import UserError
from ..source import Source

_NEEDED = ("start", "target")  # columns that tell a file of series


def records_of(source: Source) -> RecordsReader | None:
    """Return a reader of a file of series, None for any other; damaged files are left to the reader of numbers."""
    if source.decoder is None:
        import pyarrow
        import pyarrow.parquet
        from pyarrow import types

        try:
            file = pyarrow.parquet.ParquetFile(source.raw)
            kinds = {field.name: field.type for field in file.schema_arrow}
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError):
            return None
        if not set(_NEEDED) <= kinds.keys() or types.is_floating(kinds["start"]) or types.is_integer(kinds["start"]):
            return None
        source.decoder = RecordsReader(file, source.name, pyarrow.ArrowException)
    return source.decoder if isinstance(source.decoder, RecordsReader) else None


@final
class RecordsReader:
    """Rows of one file by number, a row group in memory at a time.

    Args:
        file: pyarrow's.
        name: for errors.
        error: what pyarrow raises.
    """

    def __init__(self, file: Any, name: str, error: type[Exception]) -> None:
        self._file, self._name = file, name
        self._errors = (error, OSError, ValueError, MemoryError)
        groups = range(file.num_row_groups)
        self._starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in groups)])
        self.rows = int(self._starts[-1])
        self._group, self._kept = -1, cast(Any, None)

    def read(self, start: int, stop: int) -> list[Json]:
        """Return rows [start, stop) as JSON objects: times as text, columns without a value left out.

        Raises:
            UserError: the file is damaged.
        """
        found: list[Json] = []
        while start < stop:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, end = int(self._starts[group]), int(self._starts[group + 1])
            last = min(stop, end)
            found += [_record(row) for row in self._rows_of(group).slice(start - first, last - start).to_pylist()]
            start = last
        return found

    def _rows_of(self, group: int) -> Any:
        if group != self._group:
            try:
                self._kept = self._file.read_row_group(group)
            except self._errors as error:
                text = str(error).split("\n", 1)[0]
                raise UserError(f"{self._name} is damaged: {text}") from None
            self._group = group
        return self._kept

    def close(self) -> None:
        """Nothing is held outside of memory."""


def _record(row: dict[str, Any]) -> Json:
    return {name: _plain(value) for name, value in row.items() if value is not None}


def _plain(value: Any) -> Json:
    if isinstance(value, datetime):
        return value.replace(microsecond=0).isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and any(isinstance(v, Sequence) for v in value):
        return [_plain(v) for v in value]
    return value
