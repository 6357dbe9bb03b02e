"""A channel as one rank sees it: opened, indexed, read block by block from its files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from .. import storage
from ..contracts import Array, Batch, Json, State
from ..errors import UserError
from .agree import Gather, agree, of_channel
from .channel import Channel, ContentType, guess_content_type, parse_content_type
from .format import Format, Options, RowIndex, Table
from .formats import format_named
from .order import Part, parts, shuffled
from .position import Position
from .source import Source
from .tables import Pages, concatenate, take_rows

_READ_BYTES = 8 << 20  # decoded at once, about
_PAGE = 256  # rows that a shuffled order keeps together in the file, at most
_PAGE_BYTES = 1 << 20
_OPEN_FILES = 16  # at once
_HELD_BYTES = 512 << 20  # of decoded rows that all ranks together keep in memory for the passes that follow
_FEW = 8  # so many times the rows would fit as well: there may be no second pass
_GLANCE = 8  # a shuffled order that ends within this part of its rows was a glance


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

    def index() -> dict[str, Json]:
        shard = FileShard(
            name, channel, rank=rank, size=size, seed=seed, scratch=scratch, index_base=index_base, threads=threads
        )
        opened.append(shard)
        return shard.index_own(columns)

    if channel.mode == "file":
        agree(name, gather, size, lambda: _fetch(channel, scratch / name) if fetches else None)
    try:
        metas = agree(name, gather, size, index)
        places = gather(np.concatenate([np.empty(0, np.int64), *opened[0].own_places()]))
        groups = gather(np.concatenate([np.empty(0, np.int64), *opened[0].own_groups()]))
        agree(name, gather, size, lambda: opened[0].assemble(metas, places, groups, columns))
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return opened[0]


@final
class FileShard:
    """`contracts.Shard` over files. Made by `open_shard`."""

    def __init__(
        self, name: str, channel: Channel, *, rank: int, size: int, seed: int, scratch: Path, index_base: int, threads: int
    ) -> None:
        self.name = name
        self._streaming = channel.mode == "stream"
        replicated = channel.spread == "replicate" or (channel.spread is None and name != "train")
        self._world = (rank, size)
        self._rank, self._size = (0, 1) if replicated else (rank, size)
        self._seed = seed
        files = _files(channel)
        content = parse_content_type(channel.content_type) if channel.content_type else _common_type(files)
        self._options = _options(content, index_base, threads)
        self._says_label_size = content.format in ("csv", "parquet")
        self._format: Format = format_named(content.format)
        local = files if self._streaming else storage.fetched(files, scratch / name)
        # errors name the file as the user gave it
        self._sources = [
            Source(here, channel.compression, name=given.name, scratch=scratch)
            for here, given in zip(local, files, strict=True)
        ]
        self._open: OrderedDict[int, Source] = OrderedDict()
        self._own: dict[int, RowIndex] = {}
        self._indexes: list[RowIndex] = []
        self._first: Array = np.zeros(1, dtype=np.int64)  # global number of every file's first row, then of the end
        self._columns: int | None = None
        self._starts: Array | None = None
        self._empty: Table | None = None
        self._held: Table | None = None
        self._passes: dict[int, int] = {}  # in order, that came to their end, by the rows of a batch
        self._kept: tuple[int, list[tuple[Part, Table]]] | None = None  # rows of a batch, and this rank's parts in order
        self._position = Position()

    @property
    def rows(self) -> int:
        """Rows of the whole channel."""
        return int(self._first[-1])

    @property
    def parts(self) -> int:
        """Ranks that share its rows."""
        return self._size

    @property
    def streaming(self) -> bool:
        """Whether its rows must not all be held in memory: mode=stream."""
        return self._streaming

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
        self._options = replace(self._options, columns=columns)
        for number in range(rank, len(self._sources), size):
            self._own[number] = self._format.index(self._source(number), self._options)
        return {str(number): index.facts() for number, index in self._own.items()}

    def own_places(self) -> list[Array]:
        """Return the places of this rank's files, in order."""
        return [index.places for _, index in sorted(self._own.items())]

    def own_groups(self) -> list[Array]:
        """Return the group starts of this rank's files, in order."""
        return [index.group_starts for _, index in sorted(self._own.items()) if index.group_starts is not None]

    def assemble(self, metas: list[Json], places: list[Array], groups: list[Array], columns: int | None) -> None:
        """Put every rank's part of the index together and check that the files fit each other.

        Raises:
            UserError: no rows, files that differ in kind or width, or not the width that was asked for.
        """
        found = _indexes(metas, places, groups)
        kept = [number for number in range(len(self._sources)) if found[number].rows]
        if not kept:
            raise UserError(f"{_some(self._sources)} hold{'s' * (len(self._sources) == 1)} no rows: the channel is empty")
        for number, source in list(self._open.items()):
            if number not in kept:
                source.close()
        self._open = OrderedDict((kept.index(number), source) for number, source in self._open.items() if number in kept)
        self._sources = [self._sources[number] for number in kept]
        self._indexes = [found[number] for number in kept]
        self._first = np.concatenate([[0], np.cumsum([index.rows for index in self._indexes])]).astype(np.int64)
        for source, index in zip(self._sources, self._indexes, strict=True):
            _check_alike(self._sources[0], self._indexes[0], source, index)
        self._starts = _group_starts(self._indexes, self._first)
        self._columns = self._agreed_columns(columns)
        self._options = replace(self._options, columns=self._columns)

    def where(self, position: int, *, epoch: int = 0, shuffle: bool = False) -> str:
        """See `contracts.Shard.where`."""
        row = int(self._order(epoch)[position]) if shuffle else position
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return self._format.where(self._source(number), self._indexes[number], row - int(self._first[number]))

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """See `contracts.Shard.batches`; goes on from a position that was put back.

        Raises:
            UserError: a bad row (with its file and line); shuffling a channel with query groups.
        """
        if rows < 1:
            raise UserError(f"a batch must have at least one row, not {rows}")
        done = self._position.begin(epoch)
        planned = parts(self.rows, rows, rank=self._rank, size=self._size, starts=self._starts)
        due = (part for part in planned if part.batch_stop > done)
        for part, table in self._shuffled(due, epoch) if shuffle else self._again(rows, done, due):
            self._position.reach(part.batch_stop)
            yield Batch(part.start, table.features, table.label, table.weight, table.group)

    def state_dict(self) -> State:
        """Return the epoch, and its rows that were handed out over all ranks."""
        return self._position.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Put a position back: the next iteration over its epoch goes on there."""
        self._position.load_state_dict(state)

    def hold(self) -> None:
        """Decode all rows now and keep them: reading on takes them from memory.

        Raises:
            UserError: a bad row.
        """
        self._held = self._read_rows(0, self.rows)

    def close(self) -> None:
        """Give the files back; reading on would open them again."""
        for source in self._open.values():
            source.close()
        self._open.clear()

    def _source(self, number: int) -> Source:
        """Return a file for reading; the one that was not read for longest is closed when too many are open."""
        source = self._open.pop(number, None) or self._sources[number]
        self._open[number] = source
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return source

    def _agreed_columns(self, wanted: int | None) -> int | None:
        widths = [index.columns or 0 for index in self._indexes]
        first = self._indexes[0]
        if first.columns is None:
            return None
        if first.sparse:
            return max(widths) if wanted is None else wanted
        for source, width in zip(self._sources, widths, strict=True):
            if width != widths[0]:
                raise UserError(f"{source.name} has {width} feature columns, {self._sources[0].name} has {widths[0]}")
        if wanted is not None and widths[0] != wanted:
            hint = ""
            if self._says_label_size and widths[0] == wanted - 1 and self._options.label_size:
                hint = "; with label_size=0 in the content type no column is taken as the label"
            elif self._says_label_size and widths[0] == wanted + 1 and not self._options.label_size:
                hint = "; with label_size=1 in the content type the first column is the label"
            raise UserError(f"{self._sources[0].name} has {widths[0]} feature columns, {wanted} are expected{hint}")
        return widths[0]

    def _row_bytes(self) -> float:
        """Return about how much memory a row takes, the same on every rank."""
        stored = sum(index.end for index in self._indexes) / self.rows
        return max(16.0, stored, 0.0 if self.sparse else 4.0 * (self._columns or 1))

    def _may_keep(self, copies: int) -> bool:
        """Return whether so many copies of all rows are small enough to stay in memory decoded."""
        plain = not self._streaming and self._columns is not None
        return plain and self.rows * self._row_bytes() * copies <= _HELD_BYTES

    def _again(self, rows: int, done: int, due: Iterator[Part]) -> Iterator[tuple[Part, Table]]:
        """Read in order; parts of a second pass stay in memory for the third, those of the first already where they are few."""
        if self._kept is not None and self._kept[0] == rows:
            yield from (pair for pair in self._kept[1] if pair[0].batch_stop > done)
            return
        keeps = done == 0 and self._held is None and self._may_keep(1 if self._passes.get(rows, 0) else _FEW)
        kept: list[tuple[Part, Table]] = []
        for pair in self._in_order(due):
            if keeps:
                kept.append(pair)
            yield pair
        self._passes[rows] = self._passes.get(rows, 0) + 1
        if keeps:
            self._kept = (rows, kept)

    def _in_order(self, due: Iterator[Part]) -> Iterator[tuple[Part, Table]]:
        """Read several parts at once, about `_READ_BYTES`, and hand them out one by one."""
        limit = max(1, int(_READ_BYTES / self._row_bytes()))
        waiting: list[Part] = []
        rows = 0
        for part in due:
            waiting.append(part)
            rows += part.stop - part.start
            if rows >= limit:
                yield from self._read_parts(waiting)
                waiting, rows = [], 0
        yield from self._read_parts(waiting)

    def _read_parts(self, waiting: list[Part]) -> Iterator[tuple[Part, Table]]:
        """Yield the rows of each part, neighbours decoded in one go."""
        runs: list[list[Part]] = []
        for part in waiting:
            if runs and runs[-1][-1].stop == part.start:
                runs[-1].append(part)
            else:
                runs.append([part])
        for run in runs:
            first, last = run[0].start, run[-1].stop
            table = self._read_rows(first, last)
            for part in run:
                yield part, table if len(run) == 1 else take_rows(table, slice(part.start - first, part.stop - first))

    def _shuffled(self, due: Iterator[Part], epoch: int) -> Iterator[tuple[Part, Table]]:
        if self._starts is not None:
            raise UserError(f"channel '{self.name}' has query groups: its rows cannot be shuffled")
        order = self._order(epoch)
        pages = Pages(self._read_rows, self.rows, self._page())
        for source in self._sources:
            source.scattered = True
        keeps = self._held is None and self._may_keep(self._world[1])
        for part in due:
            if keeps and part.batch_start * _GLANCE >= self.rows:  # who goes on wants them all, from all over the channel
                self.hold()
                keeps = False
            rows = order[part.start : part.stop]
            if self._held is not None:
                yield part, take_rows(self._held, rows)
            else:
                yield part, pages.take(rows) if len(rows) else self._no_rows()

    def _page(self) -> int:
        """Return the rows that a shuffled order keeps together."""
        return min(_PAGE, max(1, int(_PAGE_BYTES / self._row_bytes())))

    def _order(self, epoch: int) -> Array:
        """Return the shuffled order of an epoch: position -> global row number."""
        return shuffled(self.rows, seed=self._seed, epoch=epoch, page=self._page())

    def _read_rows(self, start: int, stop: int) -> Table:
        if self._held is not None:
            return take_rows(self._held, slice(start, stop))
        if start == stop:
            return self._no_rows()
        tables = []
        files = range(int(np.searchsorted(self._first, start, side="right")) - 1, len(self._indexes))
        for number in files:
            index, first = self._indexes[number], int(self._first[number])
            if first >= stop:
                break
            a, b = max(start - first, 0), min(stop - first, index.rows)
            try:
                tables.append(self._format.read(self._source(number), index, a, b, self._options))
            except UserError as error:
                raise UserError(of_channel(self.name, error.message)) from None
        return concatenate(tables)

    def _no_rows(self) -> Table:
        """Return no rows, of the kind that this channel has."""
        if self._empty is None:
            self._empty = take_rows(self._read_rows(0, 1), slice(0, 0))
        return self._empty


def _files(channel: Channel) -> list[storage.File]:
    return [file for url in channel.urls for file in storage.list_files(url)]


def _fetch(channel: Channel, folder: Path) -> None:
    storage.fetch(_files(channel), folder)


def _indexes(metas: list[Json], places: list[Array], groups: list[Array]) -> dict[int, RowIndex]:
    """Return the index of every file, by its number, from what each rank sent."""
    found: dict[int, RowIndex] = {}
    for facts, rank_places, rank_groups in zip(metas, places, groups, strict=True):
        place = group = 0
        for number, of in sorted(facts.items(), key=lambda item: int(item[0])):
            own_places = rank_places[place : place + of["places"]]
            own_groups = None if of["groups"] is None else rank_groups[group : group + of["groups"]]
            found[int(number)] = RowIndex.from_facts(of, own_places, own_groups)
            place, group = place + of["places"], group + (of["groups"] or 0)
    return found


def _check_alike(first: Source, one: RowIndex, source: Source, other: RowIndex) -> None:
    """Refuse a file whose rows are of another kind than the first file's."""
    kinds = [
        ("records" if index.columns is None else "sparse rows" if index.sparse else "dense rows") for index in (one, other)
    ]
    if kinds[0] != kinds[1]:
        raise UserError(f"{source.name} holds {kinds[1]}, {first.name} {kinds[0]}: a channel holds one kind")
    for what, a, b in (
        ("labels", one.labelled, other.labelled),
        ("weights", one.weighted, other.weighted),
        ("query groups (qid)", one.group_starts is not None, other.group_starts is not None),
    ):
        if a != b:
            has, lacks = (first, source) if a else (source, first)
            raise UserError(f"{has.name} has {what}, {lacks.name} has none")


def _group_starts(indexes: Sequence[RowIndex], first: Array) -> Array | None:
    """Return the first rows of all query groups; a group that goes on in the next file is one group."""
    if indexes[0].group_starts is None:
        return None
    starts: list[Array] = []
    last: int | None = None
    for index, row in zip(indexes, first, strict=False):
        own = np.empty(0, np.int64) if index.group_starts is None else index.group_starts + row
        begins, ends = index.group_ends or (0, 0)
        starts.append(own[1:] if begins == last else own)
        last = ends
    return np.concatenate(starts).astype(np.int64)


def _common_type(files: list[storage.File]) -> ContentType:
    """Return the content type that all files' names say."""
    first = guess_content_type(files[0].url)
    for file in files:
        if guess_content_type(file.url) != first:
            raise UserError(f"{files[0].name} and {file.name} are of different kinds; give a content type or separate channels")
    # a channel's file holds many rows, so what calls itself JSON must be a row a line
    return replace(first, format="jsonlines") if first.format == "json" else first


def _options(content: ContentType, index_base: int, threads: int) -> Options:
    return Options(
        label_size=1 if content.label_size is None else content.label_size,
        weight_size=content.weight_size,
        index_base=index_base if content.index_base is None else content.index_base,
        threads=threads,
    )


def _some(sources: Sequence[Source]) -> str:
    return sources[0].name if len(sources) == 1 else f"the {len(sources)} files ({sources[0].name}, …)"
