"""`application/x-parquet`: columns of numbers, the label first where there is one; or series, a row each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast, final

import numpy as np

from ...contracts import Array, Records
from ...errors import UserError
from ..format import Options, RowIndex, Table, every_stride
from ..kernels import transpose
from ..lines import in_threads
from ..source import Source
from .parquet_records import records_of

_VALUES = 1 << 22  # made rows of at once
_TABLE_BYTES = 128 << 20  # decoded at once where row groups are small enough: three times as fast as piece by piece
_JUMPS = 4  # back, before a file is decoded to disk


@final
class Parquet:
    """Read by pyarrow, in bounded memory: batches of a row group one after another."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`; a row's place is its number."""
        if not source.raw.seek(0, 2):
            return RowIndex(0, np.zeros(1, dtype=np.int64), None)
        records = records_of(source)
        if records is not None:
            return RowIndex(records.rows, every_stride(np.arange(records.rows), records.rows), None)
        reader = _reader(source, options)
        rows = reader.rows
        extra = options.label_size + options.weight_size
        if rows and reader.width <= extra:
            raise UserError(f"{source.name} has {reader.width} columns, too few for {extra} before the features")
        return RowIndex(rows, every_stride(np.arange(rows), rows), reader.width - extra if rows else None)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        records = records_of(source)
        if records is not None:
            return Table(Records(records.read(start, stop)))
        side, features = _reader(source, options).read(start, stop)
        bad = np.argwhere(~np.isfinite(side))
        if len(bad):
            row, field = bad[0].tolist()
            what = "label" if options.label_size and field == 0 else "weight"
            raise UserError(
                f"{self.where(source, index, start + row)}: the {what} must be a finite number, not {side[row, field]}"
            )
        label = side[:, 0].copy() if options.label_size else None
        weight = side[:, options.label_size].copy() if options.weight_size else None
        return Table(features, label, weight)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} row {row + 1}"


def _reader(source: Source, options: Options) -> _Reader:
    if source.decoder is None:
        source.decoder = _Reader(source, options)
    return cast(_Reader, source.decoder)


@final
class _Reader:
    """Rows of one file by number. Going forward is cheap; a file that is read here and there is decoded to disk."""

    def __init__(self, source: Source, options: Options) -> None:
        import pyarrow
        import pyarrow.parquet

        self._source = source
        self._threads = options.threads > 1
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)
        try:
            self._file: Any = pyarrow.parquet.ParquetFile(source.raw)
            groups = range(self._file.num_row_groups)
            self._starts = np.cumsum([0, *(self._file.metadata.row_group(i).num_rows for i in groups)])
            self.rows = int(self._file.metadata.num_rows)
            self._kinds = _kinds(self._file.schema_arrow, source.name)
        except self._errors as error:
            raise self._damaged(error) from None
        if self.rows < 0 or self.rows != int(self._starts[-1]) or (np.diff(self._starts) < 0).any():
            raise UserError(f"{source.name} is damaged: its row groups do not add up to its rows")
        self._batch_rows = max(64, _VALUES // max(len(self._kinds), 1))
        self._batches: Iterator[Any] = iter(())
        self._kept: Any = None  # decoded rows
        self._position = 0  # of the row after those kept
        self._jumps = 0
        self._spool: BinaryIO | None = None
        self._may_spool = True
        self._rooms = [np.empty(0, dtype=np.float32)] * 2
        self._extra = options.label_size + options.weight_size
        self.width = len(self._kinds)
        if self.rows and "list" in self._kinds:
            self._seek(0)
            self._advance()
            self.width = sum(1 if block.ndim == 1 else block.shape[1] for block in self._blocks(self._kept))

    def read(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return label and weight (rows, 0 to 2), and features (rows, D) of rows [start, stop)."""
        if self._spool is None:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            kept = 0 if self._kept is None else self._kept.num_rows
            if start < self._position - kept or self._starts[group] > self._position or not kept:
                self._jumps += start < self._position
                self._seek(start)
                if self._jumps > _JUMPS and self._may_spool:
                    self._make_spool(start)
        if self._spool is not None:
            self._spool.seek(start * self.width * 4)
            found = np.frombuffer(self._spool.read((stop - start) * self.width * 4), dtype=np.float32)
            whole = found.reshape(stop - start, self.width)
            return whole[:, : self._extra], np.ascontiguousarray(whole[:, self._extra :])
        side = np.empty((stop - start, self._extra), dtype=np.float32)
        features = np.empty((stop - start, self.width - self._extra), dtype=np.float32)
        row = start
        while row < stop:
            if row >= self._position:
                self._advance()
                continue
            begin = self._position - self._kept.num_rows
            some = self._kept.slice(row - begin, stop - row)
            to = slice(row - start, row - start + some.num_rows)
            self._fill(some, side[to], features[to])
            row += some.num_rows
        return side, features

    def close(self) -> None:
        """Give the copy on disk back."""
        if self._spool is not None:
            self._spool.close()

    def _seek(self, row: int) -> None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        self._batches = self._decoded(group)
        self._position, self._kept = int(self._starts[group]), None

    def _decoded(self, group: int) -> Iterator[Any]:
        """Yield the batches of all row groups from `group` on."""
        row_bytes = _row_bytes(self._file.schema_arrow)
        sizes = np.diff(self._starts) * row_bytes
        while group < len(sizes):
            last = group + 1
            while last < len(sizes) and sizes[group : last + 1].sum() <= _TABLE_BYTES:
                last += 1
            groups = list(range(group, last))
            if sizes[group:last].sum() <= _TABLE_BYTES:
                table = self._file.read_row_groups(groups, use_threads=self._threads)
                yield from table.to_batches(max_chunksize=self._batch_rows)
            else:
                yield from self._file.iter_batches(batch_size=self._batch_rows, row_groups=groups, use_threads=self._threads)
            group = last

    def _advance(self) -> None:
        try:
            batch = next(self._batches, None)
            if batch is None:
                raise UserError(f"{self._source.name} is damaged: it holds fewer rows than it says")
        except self._errors as error:
            raise self._damaged(error) from None
        self._kept = batch
        self._position += batch.num_rows
        if self._position >= self.rows and not self._source.scattered:
            self._jumps = 0  # a pass over the whole file is no jumping about

    def _blocks(self, batch: Any) -> list[Array]:
        names = batch.schema.names
        try:
            return [self._column(batch.column(i), kind, names[i]) for i, kind in enumerate(self._kinds)]
        except self._errors as error:
            raise self._damaged(error) from None

    def _fill(self, batch: Any, side: Array, features: Array) -> None:
        """Write the rows of a batch; nulls are NaN."""
        blocks = self._blocks(batch)
        lefts = np.cumsum([0, *(1 if block.ndim == 1 else block.shape[1] for block in blocks)])
        if lefts[-1] != self.width or any(block.ndim > 1 for block in blocks[: self._extra]):
            raise UserError(f"{self._source.name}: the lists of numbers near row {self._position} have another length")
        for number in range(self._extra):
            side[:, number] = blocks[number]
        parts = 2 if self._threads and features.size > _VALUES // 4 else 1
        cuts = np.linspace(self._extra, len(blocks), parts + 1).astype(int)

        def fill(part: int) -> None:
            left, right = int(lefts[cuts[part]]), int(lefts[cuts[part + 1]])
            by_column = self._room(part, (right - left) * batch.num_rows).reshape(right - left, batch.num_rows)
            at = 0
            for block in blocks[cuts[part] : cuts[part + 1]]:
                if block.ndim == 1:
                    by_column[at] = block
                    at += 1
                else:
                    by_column[at : at + block.shape[1]] = block.T
                    at += block.shape[1]
            transpose(by_column, left - self._extra, features)

        in_threads(fill, parts)

    def _room(self, part: int, values: int) -> Array:
        """Return memory for a thread's columns; the same again and again, since fresh memory is slow."""
        if len(self._rooms[part]) < values:
            self._rooms[part] = np.empty(values, dtype=np.float32)
        return self._rooms[part][:values]

    def _column(self, column: Any, kind: str, name: str) -> Array:
        """Return a column as (rows,), or a column of lists as (rows, their length)."""
        if kind != "list":
            return _numbers(column, kind)
        lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False))
        if not len(lengths) or not (lengths == lengths[0]).all():
            raise UserError(f"{self._source.name}: the lists in column '{name}' differ in length near row {self._position + 1}")
        return _numbers(column.flatten(), "cast").reshape(len(lengths), int(lengths[0]))

    def _make_spool(self, row: int) -> None:
        """Decode the file to disk; where the disk is too small, go on as before, from `row` on."""
        if self._source.scratch is not None:
            self._source.scratch.mkdir(parents=True, exist_ok=True)
        spool = cast(BinaryIO, tempfile.TemporaryFile(dir=self._source.scratch))  # noqa: SIM115 - close() does
        self._may_spool = False
        try:
            self._seek(0)
            for start in range(0, self.rows, self._batch_rows):
                side, features = self.read(start, min(self.rows, start + self._batch_rows))
                spool.write(np.hstack([side, features]).tobytes())
        except OSError:
            spool.close()
            self._seek(row)
            return
        except BaseException:
            spool.close()
            raise
        self._spool, self._kept = spool, None

    def _damaged(self, error: Exception) -> UserError:
        text = str(error).split("\n", 1)[0]
        return UserError(f"{self._source.name} is damaged or no parquet file: {text}")


def _kinds(schema: Any, name: str) -> list[str]:
    """Return "plain", "cast" or "list" for every column.

    Raises:
        UserError: a column that holds no numbers.
    """
    from pyarrow import types

    kinds = []
    for field in schema:
        kind = field.type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if is_list:
            kind = kind.value_type
        if types.is_integer(kind) or types.is_floating(kind):
            kinds.append("list" if is_list else "plain")
        elif types.is_boolean(kind) or types.is_decimal(kind):
            kinds.append("list" if is_list else "cast")
        else:
            raise UserError(f"{name}: column '{field.name}' holds {field.type}, not numbers; encode it or leave it out")
    return kinds


def _row_bytes(schema: Any) -> int:
    """Return the memory that a decoded row takes; a very large number where rows hold lists."""
    try:
        return sum(field.type.bit_width // 8 + 1 for field in schema)
    except ValueError:  # no fixed width
        return _TABLE_BYTES + 1


def _numbers(column: Any, kind: str) -> Array:
    if kind == "cast" or column.null_count:
        column = column.cast("float64", safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False))
