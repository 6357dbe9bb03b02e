"""`label[:weight] [qid:n] index:value …`: sparse rows as LIBSVM writes them."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from ...contracts import Array, Csr
from ...errors import UserError
from ..format import STRIDE, Options, RowIndex, Table
from ..kernels import BAD_INDEX, BAD_LABEL, DUPLICATE, INDEX_TOO_LARGE, OK, parse_libsvm
from ..lines import index_lines, line_of, read_lines, text_of
from ..source import Source

_ROWS = STRIDE * 256  # parsed at once while indexing


@final
class LibSvm:
    """`text/libsvm`; `;index_base=0` or `1` says what the first column is called."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`; every row is parsed once, for the width and the query groups."""
        rows, places = index_lines(source, options.threads)
        lines = RowIndex(rows, places, None, sparse=True)
        widest = 0
        groups: list[Array] = []
        for start in range(0, rows, _ROWS):
            stop = min(rows, start + _ROWS)
            parsed = self._parse(source, lines, start, stop, options)
            widest = max(widest, parsed["widest"])
            groups.append(parsed["group"])
        group = np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
        starts = None
        if (group >= 0).any():
            if (group < 0).any():
                row = int(np.argmax(group < 0))
                raise UserError(
                    f"{self.where(source, lines, row)} has no qid: where there are query groups every row names its own"
                )
            starts = np.append(0, np.flatnonzero(group[1:] != group[:-1]) + 1).astype(np.int64)
        return RowIndex(rows, places, widest if options.columns is None else options.columns, sparse=True, group_starts=starts)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        parsed = self._parse(source, index, start, stop, options)
        columns = options.columns if options.columns is not None else (index.columns or 0)
        indptr = np.concatenate([[0], np.cumsum(parsed["lengths"])]).astype(np.int64)
        features = Csr(indptr, parsed["indices"], parsed["values"], columns)
        weight = parsed["side"][:, 1].copy() if parsed["weights"] else None
        group = parsed["group"] if parsed["groups"] else None
        label = parsed["side"][:, 0].copy()
        self._check(source, index, start, label, weight)
        return Table(features, label, weight, group)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} line {line_of(source, index, row)}"

    def _parse(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> dict[str, Any]:
        data, starts = read_lines(source, index, start, stop, options.threads)
        rows = stop - start
        entries = int(np.count_nonzero(data == 58))
        lengths, group = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)
        indices, values = np.empty(entries, dtype=np.int64), np.empty(entries, dtype=np.float32)
        side = np.empty((rows, 2), dtype=np.float32)
        columns = -1 if options.columns is None else options.columns
        code, row, at, used, widest, weights, groups = parse_libsvm(
            data, starts, options.index_base, columns, lengths, indices, values, side, group
        )
        if code != OK:
            raise self._wrong(source, index, start + row, code, data, starts, row, at, options)
        return {
            "lengths": lengths,
            "indices": indices[:used],
            "values": values[:used],
            "side": side,
            "group": group,
            "widest": int(widest),
            "weights": bool(weights),
            "groups": bool(groups),
        }

    def _wrong(
        self,
        source: Source,
        index: RowIndex,
        row: int,
        code: int,
        data: Array,
        starts: Array,
        place: int,
        at: int,
        options: Options,
    ) -> UserError:
        where = self.where(source, index, row)
        token = bytes(data[at : min(at + 40, int(starts[place + 1]))]).split()
        shown = token[0].decode("utf-8", "replace") if token else ""
        if code == BAD_INDEX and options.index_base == 1 and shown.startswith("0:"):
            return UserError(f"{where}: index 0 in '{shown}', but indices start at 1; if they start at 0, say ;index_base=0")
        if code == INDEX_TOO_LARGE:
            return UserError(f"{where}: '{shown}' lies beyond the {options.columns} columns of the data")
        if code == DUPLICATE:
            return UserError(f"{where} names an index twice: '{text_of(data, starts, place)}'")
        if code == BAD_LABEL:
            return UserError(
                f"{where} does not begin with a label or label:weight: '{text_of(data, starts, place)}'; is it libsvm?"
            )
        return UserError(f"{where}: '{shown}' is no index:value pair of numbers; is it libsvm?")

    def _check(self, source: Source, index: RowIndex, start: int, label: Array, weight: Array | None) -> None:
        for what, column in (("label", label), ("weight", weight)):
            if column is None:
                continue
            bad = np.flatnonzero(~np.isfinite(column))
            if len(bad):
                row = int(bad[0])
                raise UserError(
                    f"{self.where(source, index, start + row)}: the {what} must be a finite number, not {column[row]}"
                )
