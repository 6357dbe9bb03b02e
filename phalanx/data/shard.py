"""A channel as one rank sees it: opened, indexed, read block by block from its files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, final

import numpy as np

from .. import storage
from ..contracts import Array, Batch, Csr, Entry, Features, Json, Records, State
from ..errors import PhalanxError, UserError, from_record, to_record
from .channel import Channel, ContentType, guess_content_type, parse_content_type
from .format import Format, Options, RowIndex, Table
from .formats import format_named
from .memory import take
from .order import Part, parts, shuffled
from .source import Source

Gather = Callable[[Any], list[Any]]
_READ_BYTES = 8 << 20  # decoded at once, about
_PAGE = 256  # rows that a shuffled order keeps together in the file
_PAGES_KEPT = 192


def open_shard(
    name: str,
    channel: Channel,
    *,
    rank: int,
    size: int,
    seed: int,
    gather: Gather,
    scratch: Path,
    columns: int | None,
    index_base: int,
    threads: int,
    fetches: bool = True,
) -> FileShard:
    """Collective. Open a channel: list and fetch its files, index them (each rank its part), agree on rows and columns.

    Args:
        name: the channel's name.
        channel: what it is.
        rank: this rank.
        size: ranks of the world.
        seed: of the shuffled order.
        gather: `Collective.all_gather`.
        scratch: folder for files that are fetched, shared by the ranks of a machine.
        columns: width that the data must have; None: taken from the data.
        index_base: of libsvm files whose content type does not say.
        threads: for decoding.
        fetches: whether this rank fetches for its machine.

    Raises:
        UserError: on every rank, the same: whatever is wrong with the channel on any of them.
    """
    opened: list[FileShard] = []

    def prepare() -> dict[str, Json]:
        opened.append(
            FileShard(name, channel, rank=rank, size=size, seed=seed, scratch=scratch, index_base=index_base, threads=threads)
        )
        return opened[0].index_own(columns)

    if channel.mode == "file":
        _agree(name, gather, lambda: _fetch(channel, scratch / name) if fetches else None)
    try:
        metas = _agree(name, gather, prepare)
        places = gather(np.concatenate([np.empty(0, np.int64), *opened[0].own_places()]))
        groups = gather(np.concatenate([np.empty(0, np.int64), *opened[0].own_groups()]))
        _agree(name, gather, lambda: opened[0].assemble(metas, places, groups, columns))
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return opened[0]


def _agree(name: str, gather: Gather, action: Callable[[], Json]) -> list[Json]:
    """Collective. Return every rank's result of `action`; where it fails on any, the first error is raised on all."""
    error: BaseException | None = None
    outcome: dict[str, Json] = {"error": None, "result": None}
    try:
        outcome["result"] = action()
    except PhalanxError as raised:
        raised.args = (f"channel '{name}': {raised.message}",)
        raised.message = str(raised.args[0])
        error, outcome["error"] = raised, to_record(raised)
    outcomes = gather(outcome)
    failed = [o["error"] for o in outcomes if o["error"] is not None]
    if failed:
        raise error if error is not None else from_record(failed[0])
    return [o["result"] for o in outcomes]


@final
class FileShard:
    """`contracts.Shard` over files. Made by `open_shard`."""

    def __init__(
        self, name: str, channel: Channel, *, rank: int, size: int, seed: int, scratch: Path, index_base: int, threads: int
    ) -> None:
        self.name = name
        self.streaming = channel.mode == "stream"
        replicated = channel.spread == "replicate" or (channel.spread is None and name != "train")
        self._world = (rank, size)
        self._rank, self._size = (0, 1) if replicated else (rank, size)
        self._seed = seed
        files = _files(channel)
        content = parse_content_type(channel.content_type) if channel.content_type else _common_type(files)
        self._options = _options(content, index_base, threads)
        self._format: Format = format_named(content.format)
        local = files if self.streaming else storage.fetched(files, scratch / name)
        self._sources = [Source(file, channel.compression) for file in local]
        for source, file in zip(self._sources, files, strict=True):
            source.name = file.name  # errors name the file as the user gave it
        self._own: dict[int, RowIndex] = {}
        self._indexes: list[RowIndex] = []
        self._first: Array = np.zeros(1, dtype=np.int64)  # global number of every file's first row, then of the end
        self._columns: int | None = None
        self._starts: Array | None = None
        self._position = 0

    @property
    def rows(self) -> int:
        """Rows of the whole channel."""
        return int(self._first[-1])

    @property
    def columns(self) -> int | None:
        """Columns of the whole channel; None for records."""
        return self._columns

    @property
    def sparse(self) -> bool:
        """Whether batches are `Csr`."""
        return any(index.sparse for index in self._indexes)

    def index_own(self, columns: int | None) -> dict[str, Json]:
        """Index this rank's part of the files; return what the others must know."""
        rank, size = self._world
        if columns is not None:
            self._options = _with_columns(self._options, columns)
        for number in range(rank, len(self._sources), size):
            self._own[number] = self._format.index(self._sources[number], self._options)
        return {
            str(number): {
                "rows": index.rows,
                "columns": index.columns,
                "sparse": index.sparse,
                "places": len(index.places),
                "groups": None if index.group_starts is None else len(index.group_starts),
            }
            for number, index in self._own.items()
        }

    def own_places(self) -> list[Array]:
        """Return the places of this rank's files, in order."""
        return [index.places for _, index in sorted(self._own.items())]

    def own_groups(self) -> list[Array]:
        """Return the group starts of this rank's files, in order."""
        return [index.group_starts for _, index in sorted(self._own.items()) if index.group_starts is not None]

    def assemble(self, metas: list[Json], places: list[Array], groups: list[Array], columns: int | None) -> None:
        """Put every rank's part of the index together and check that the files fit each other.

        Raises:
            UserError: no rows, files of different widths, or not the width that was asked for.
        """
        found: dict[int, RowIndex] = {}
        for meta, rank_places, rank_groups in zip(metas, places, groups, strict=True):
            place = group = 0
            for number, of in sorted(meta.items(), key=lambda item: int(item[0])):
                starts = None if of["groups"] is None else rank_groups[group : group + of["groups"]]
                group += of["groups"] or 0
                part = rank_places[place : place + of["places"]]
                found[int(number)] = RowIndex(of["rows"], part, of["columns"], of["sparse"], starts)
                place += of["places"]
        indexes = [found[number] for number in range(len(self._sources))]
        kept = [i for i, index in enumerate(indexes) if index.rows]
        if not kept:
            raise UserError(f"{_some(self._sources)} hold{'s' * (len(self._sources) == 1)} no rows: the channel is empty")
        for source in (s for i, s in enumerate(self._sources) if i not in kept):
            source.close()
        self._sources = [self._sources[i] for i in kept]
        self._indexes = [indexes[i] for i in kept]
        self._first = np.concatenate([[0], np.cumsum([index.rows for index in self._indexes])]).astype(np.int64)
        self._columns = self._agreed_columns(columns)
        if any(index.group_starts is not None for index in self._indexes):
            if any(index.group_starts is None for index in self._indexes):
                raise UserError("some files have query groups (qid) and some have none")
            shifted = [index.group_starts + first for index, first in zip(self._indexes, self._first, strict=False)]
            self._starts = np.concatenate(shifted).astype(np.int64)
        if self._columns is not None:
            self._options = _with_columns(self._options, self._columns)

    def where(self, row: int) -> str:
        """Return how a person finds a row of the channel: "train.csv line 17"."""
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return self._format.where(self._sources[number], self._indexes[number], row - int(self._first[number]))

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """See `contracts.Shard.batches`.

        Raises:
            UserError: a bad row (with its file and line); shuffling a channel with query groups.
        """
        if rows < 1:
            raise UserError(f"a batch must have at least one row, not {rows}")
        planned = parts(self.rows, rows, rank=self._rank, size=self._size, starts=self._starts)
        if not shuffle:
            yield from self._in_order(planned)
            return
        if self._starts is not None:
            raise UserError(f"channel '{self.name}' has query groups: its rows cannot be shuffled")
        order = shuffled(self.rows, seed=self._seed, epoch=epoch, page=_PAGE)
        pages = _Pages(self._read_rows, self.rows)
        for part in planned:
            self._position = part.batch_stop
            yield _batch(part.start, pages.take(order[part.start : part.stop]))

    def state_dict(self) -> State:
        """Return the position: rows of the epoch that were handed out over all ranks."""
        return {"position": Entry(self._position)}

    def load_state_dict(self, state: State) -> None:
        """Put a position back."""
        self._position = int(state["position"].value)

    def close(self) -> None:
        """Give the files back."""
        for source in self._sources:
            source.close()

    def _agreed_columns(self, wanted: int | None) -> int | None:
        widths = [index.columns for index in self._indexes]
        if any(width is None for width in widths):
            return None
        known = [width for width in widths if width is not None]
        if self.sparse:
            return max(known) if wanted is None else wanted
        for source, width in zip(self._sources, known, strict=True):
            if width != known[0]:
                raise UserError(f"{source.name} has {width} feature columns, {self._sources[0].name} has {known[0]}")
        if wanted is not None and known[0] != wanted:
            hint = "; with label_size=0 in the content type no column is taken as the label" if known[0] == wanted - 1 else ""
            raise UserError(f"{self._sources[0].name} has {known[0]} feature columns, {wanted} are expected{hint}")
        return known[0]

    def _in_order(self, planned: Iterator[Part]) -> Iterator[Batch]:
        """Read several parts at once, about `_READ_BYTES`, and hand them out one by one."""
        per_row = max(
            16.0, sum(float(i.end) if s.plain else 0.0 for i, s in zip(self._indexes, self._sources, strict=True)) / self.rows
        )
        limit = max(1, int(_READ_BYTES / max(per_row, 4.0 * min(self._columns or 1, 1 << 14))))
        waiting: list[Part] = []
        for part in planned:
            waiting.append(part)
            if sum(p.stop - p.start for p in waiting) >= limit:
                yield from self._read_parts(waiting)
                waiting = []
        yield from self._read_parts(waiting)

    def _read_parts(self, waiting: list[Part]) -> Iterator[Batch]:
        """Yield a batch for each part, neighbours decoded in one go."""
        runs: list[list[Part]] = []
        for part in waiting:
            if runs and runs[-1][-1].stop == part.start:
                runs[-1].append(part)
            else:
                runs.append([part])
        for run in runs:
            first, last = run[0].start, run[-1].stop
            table = self._read_rows(first, last) if last > first else self._empty()
            for part in run:
                self._position = part.batch_stop
                where = slice(part.start - first, part.stop - first)
                yield _batch(part.start, table if len(run) == 1 else _take(table, where))

    def _read_rows(self, start: int, stop: int) -> Table:
        tables = []
        for number, (source, index) in enumerate(zip(self._sources, self._indexes, strict=True)):
            a = max(start - int(self._first[number]), 0)
            b = min(stop - int(self._first[number]), index.rows)
            if a < b:
                tables.append(self._read_file(source, index, a, b))
        return tables[0] if len(tables) == 1 else _concatenate(tables)

    def _read_file(self, source: Source, index: RowIndex, start: int, stop: int) -> Table:
        try:
            return self._format.read(source, index, start, stop, self._options)
        except UserError as error:
            raise UserError(f"channel '{self.name}': {error.message}") from None

    def _empty(self) -> Table:
        """Return no rows, of the kind that this channel has."""
        one = self._read_rows(0, 1)
        return _take(one, slice(0, 0))


@final
class _Pages:
    """Decoded pages of a file, the latest kept."""

    def __init__(self, read: Callable[[int, int], Table], rows: int) -> None:
        self._read = read
        self._rows = rows
        self._kept: OrderedDict[int, Table] = OrderedDict()

    def take(self, rows: Array) -> Table:
        """Return the rows with these numbers, in this order."""
        if not len(rows):
            return _take(self._page(0), slice(0, 0))
        pages = rows // _PAGE
        numbers = np.unique(pages)
        tables = [_take(self._page(int(number)), rows[pages == number] - number * _PAGE) for number in numbers]
        back = np.empty(len(rows), dtype=np.int64)
        back[np.concatenate([np.flatnonzero(pages == number) for number in numbers])] = np.arange(len(rows))
        return _take(_concatenate(tables), back)

    def _page(self, number: int) -> Table:
        table = self._kept.pop(number, None)
        if table is None:
            table = self._read(number * _PAGE, min((number + 1) * _PAGE, self._rows))
        self._kept[number] = table
        if len(self._kept) > _PAGES_KEPT:
            self._kept.popitem(last=False)
        return table


def _batch(first_row: int, table: Table) -> Batch:
    return Batch(first_row, table.features, table.label, table.weight, table.group)


def _take(table: Table, where: slice | Array) -> Table:
    def of(column: Array | None) -> Array | None:
        return None if column is None else column[where]

    return Table(take(table.features, where), of(table.label), of(table.weight), of(table.group))


def _concatenate(tables: Sequence[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]

    def of(columns: list[Array | None]) -> Array | None:
        if all(column is None for column in columns):
            return None
        # a file without weights beside one with weights: its rows weigh 1
        return np.concatenate(
            [np.ones(len(t.features), np.float32) if c is None else c for c, t in zip(columns, tables, strict=True)]
        )

    return Table(
        concatenate_features([t.features for t in tables]),
        of([t.label for t in tables]),
        of([t.weight for t in tables]),
        of([t.group for t in tables]),
    )


def concatenate_features(pieces: Sequence[Features]) -> Features:
    """Return rows of one kind, one piece after another."""
    if all(isinstance(p, np.ndarray) for p in pieces):
        return np.concatenate([p for p in pieces if isinstance(p, np.ndarray)])
    records = [p for p in pieces if isinstance(p, Records)]
    if len(records) == len(pieces):
        return Records([item for p in records for item in p.items])
    sparse = [p for p in pieces if isinstance(p, Csr)]
    if len(sparse) != len(pieces):
        raise UserError("some files hold dense rows and some sparse ones")
    ends = np.cumsum([0, *(int(p.indptr[-1]) for p in sparse)])
    indptr = np.concatenate([[0], *(p.indptr[1:] + end for p, end in zip(sparse, ends, strict=False))]).astype(np.int64)
    indices = np.concatenate([p.indices for p in sparse])
    return Csr(indptr, indices, np.concatenate([p.values for p in sparse]), max(p.columns for p in sparse))


def _files(channel: Channel) -> list[storage.File]:
    return [file for url in channel.urls for file in storage.list_files(url)]


def _fetch(channel: Channel, folder: Path) -> None:
    storage.fetch(_files(channel), folder)


def _common_type(files: list[storage.File]) -> ContentType:
    """Return the content type that all files' names say."""
    kinds = [(guess_content_type(file.url), file) for file in files]
    for (kind, _), group in groupby(kinds, key=lambda item: (item[0], None)):
        if kind != kinds[0][0]:
            other = next(iter(group))[1]
            raise UserError(
                f"{files[0].name} and {other.name} are of different kinds; give a content type or separate channels"
            )
    return kinds[0][0]


def _options(content: ContentType, index_base: int, threads: int) -> Options:
    return Options(
        label_size=1 if content.label_size is None else content.label_size,
        weight_size=content.weight_size,
        index_base=index_base if content.index_base is None else content.index_base,
        threads=threads,
    )


def _with_columns(options: Options, columns: int) -> Options:
    return Options(options.label_size, options.weight_size, options.index_base, columns, options.threads)


def _some(sources: Sequence[Source]) -> str:
    return sources[0].name if len(sources) == 1 else f"the {len(sources)} files ({sources[0].name}, …)"
