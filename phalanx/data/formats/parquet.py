"""`application/x-parquet`: columns of numbers, the label first where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import numpy as np

from ...contracts import Array
from ...errors import UserError
from ..format import Options, RowIndex, Table, every_stride
from ..source import Source

_ROWS = 1 << 15  # decoded at once


@final
class Parquet:
    """Read by pyarrow, in bounded memory: batches of a row group one after another."""

    def __init__(self) -> None:
        self._readers: dict[int, _Reader] = {}

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`; a row's place is its number."""
        reader = self._reader(source, options)
        rows = reader.rows
        extra = options.label_size + options.weight_size
        if rows and reader.width <= extra:
            raise UserError(f"{source.name} has {reader.width} columns, too few for {extra} before the features")
        return RowIndex(rows, every_stride(np.arange(rows), rows), reader.width - extra if rows else None)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        extra = options.label_size + options.weight_size
        matrix = self._reader(source, options).read(start, stop)
        bad = np.argwhere(~np.isfinite(matrix[:, :extra]))
        if len(bad):
            row, field = bad[0].tolist()
            what = "label" if options.label_size and field == 0 else "weight"
            raise UserError(
                f"{self.where(source, index, start + row)}: the {what} must be a finite number, not {matrix[row, field]}"
            )
        label = matrix[:, 0].copy() if options.label_size else None
        weight = matrix[:, options.label_size].copy() if options.weight_size else None
        return Table(np.ascontiguousarray(matrix[:, extra:]), label, weight)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} row {row + 1}"

    def _reader(self, source: Source, options: Options) -> _Reader:
        key = id(source)
        if key not in self._readers:
            self._readers[key] = _Reader(source, options)
        return self._readers[key]


@final
class _Reader:
    """Rows of one file by number; going forward is cheap."""

    def __init__(self, source: Source, options: Options) -> None:
        import pyarrow
        import pyarrow.parquet

        self._source = source
        self._threads = options.threads > 1
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)
        try:
            self._file: Any = pyarrow.parquet.ParquetFile(source.raw)
            self._starts = np.cumsum(
                [0, *(self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))]
            )
            self.rows = int(self._file.metadata.num_rows)
        except self._errors as error:
            raise self._damaged(error) from None
        if self.rows != int(self._starts[-1]) or self.rows < 0:
            raise UserError(f"{source.name} is damaged: its row groups do not add up to its rows")
        self._lists = self._check_types(pyarrow)
        self._batches: Iterator[Any] = iter(())
        self._position = 0  # of the next row that the iterator gives
        self._kept: Array | None = None  # the rows just before it
        self.width = self._find_width()

    def read(self, start: int, stop: int) -> Array:
        """Return rows [start, stop), (rows, width) float32."""
        kept = 0 if self._kept is None else len(self._kept)
        if start < self._position - kept or start > self._position + 4 * _ROWS or self._position == 0:
            self._seek(start)
        parts: list[Array] = []
        while True:
            begin = self._position - (0 if self._kept is None else len(self._kept))
            if self._kept is not None and start < self._position:
                parts.append(self._kept[start - begin : stop - begin])
                start = min(stop, self._position)
            if start >= stop:
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._advance()

    def _seek(self, row: int) -> None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        groups = list(range(group, self._file.num_row_groups))
        self._batches = self._file.iter_batches(batch_size=_ROWS, row_groups=groups, use_threads=self._threads)
        self._position, self._kept = int(self._starts[group]), None

    def _advance(self) -> None:
        try:
            batch = next(self._batches, None)
            if batch is None:
                raise UserError(f"{self._source.name} is damaged: it holds fewer rows than it says")
            self._kept = self._matrix(batch)
        except self._errors as error:
            raise self._damaged(error) from None
        self._position += len(self._kept)

    def _matrix(self, batch: Any) -> Array:
        columns = [self._column(batch.column(i), name) for i, name in enumerate(batch.schema.names)]
        width = sum(column.shape[1] for column in columns)
        matrix = np.empty((batch.num_rows, width), dtype=np.float32)
        at = 0
        for column in columns:
            matrix[:, at : at + column.shape[1]] = column
            at += column.shape[1]
        if self.rows and self._position and width != self.width:
            raise UserError(f"{self._source.name}: the lists of numbers near row {self._position + 1} have another length")
        return matrix

    def _column(self, column: Any, name: str) -> Array:
        """Return a column as (rows, 1), or a column of lists as (rows, their length); nulls are NaN."""
        if name not in self._lists:
            return np.asarray(column.cast("float32", safe=False).to_numpy(zero_copy_only=False)).reshape(-1, 1)
        lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False))
        if not len(lengths) or (lengths != lengths[0]).any():
            raise UserError(f"{self._source.name}: the lists in column '{name}' differ in length near row {self._position + 1}")
        values = column.flatten().cast("float32", safe=False).to_numpy(zero_copy_only=False)
        return np.asarray(values).reshape(len(lengths), int(lengths[0]))

    def _check_types(self, pyarrow: Any) -> set[str]:
        types = pyarrow.types
        lists = set()
        for field in self._file.schema_arrow:
            kind = field.type
            if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
                lists.add(field.name)
                kind = kind.value_type
            if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)):
                raise UserError(
                    f"{self._source.name}: column '{field.name}' holds {field.type}, not numbers; encode it or leave it out"
                )
        return lists

    def _find_width(self) -> int:
        if not self.rows or not self._lists:
            return len(self._file.schema_arrow.names)
        return int(self.read(0, 1).shape[1])

    def _damaged(self, error: Exception) -> UserError:
        text = str(error).split("\n", 1)[0]
        return UserError(f"{self._source.name} is damaged or no parquet file: {text}")
