"""Conformance suite of `data.format.Format`: inherit `FormatChecks`, say how rows are written, get all checks.

class TestMine(FormatChecks):
    content_type, suffix = "text/mine", "mine"

    def encode(self, features, label): ...   # the bytes of a file
    def broken(self): ...                    # files that must be refused, and what the error must say
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..contracts import Array, Batch, Collective, Csr, Features, Records
from ..data.channel import Channel
from ..data.order import parts
from ..data.shard import FileShard, open_shard
from ..errors import UserError
from ..parallel.threads import run_threads

ROWS, COLUMNS = 700, 6
_BATCHES = (1000, 700, 128, 37)


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that must be refused."""

    name: str
    content: bytes
    says: Sequence[str]  # parts of the error's text, beside the file's name
    columns: int | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """What a rank read: whole batches one after another."""

    batches: list[Batch]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First position and length of every batch."""
        return [(batch.first_row, len(batch)) for batch in self.batches]

    @property
    def features(self) -> Array:
        """All rows, sparse ones made dense."""
        return np.concatenate([dense(batch.features) for batch in self.batches])

    @property
    def label(self) -> Array | None:
        """All labels."""
        found = [batch.label for batch in self.batches if batch.label is not None]
        assert len(found) in (0, len(self.batches)), "some batches have labels and some have none"
        return np.concatenate(found) if found else None


class FormatChecks:
    """Every check writes small files and reads them as ranks do."""

    content_type: str
    suffix: str
    sparse: bool = False
    labelled: bool = True
    missing: bool = True  # whether a feature can be missing (NaN)
    compressible: bool = True

    def encode(self, features: Array, label: Array | None) -> bytes:
        """Return a file that holds these rows; zeros are left out by sparse formats."""
        raise NotImplementedError

    def broken(self) -> list[Broken]:
        """Return files that must be refused."""
        raise NotImplementedError

    def table(self, rows: int = ROWS) -> tuple[Array, Array | None]:
        """Return features (rows, COLUMNS) and labels of the kind that the format can hold."""
        random = np.random.default_rng(rows)
        features = random.normal(size=(rows, COLUMNS)).astype(np.float32)
        features[random.random(features.shape) < 0.3] = 0
        features[:, 0] = np.arange(rows) + 1
        features[:, -1] = np.maximum(features[:, -1], np.float32(1e-30))  # the last column is never left out
        if self.missing and rows > 3:
            features[3, 2] = np.nan
        return features, (np.arange(rows) % 3).astype(np.float32) if self.labelled else None

    # -- what is read ---------------------------------------------------------------------------------------------------

    def test_rows_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        features, label = self.table()
        path = self.write(tmp_path / f"all.{self.suffix}", features, label)
        with self.opened(path) as shard:
            assert (shard.rows, shard.columns) == (ROWS, COLUMNS)
            for rows in _BATCHES:
                same(read(shard, rows), features, label)
            kind = Csr if self.sparse else np.ndarray
            assert all(isinstance(batch.features, kind) for batch in shard.batches(100))

    @pytest.mark.parametrize("size", [2, 3])
    def test_ranks_read_their_blocks(self, tmp_path: Path, size: int) -> None:
        features, label = self.table()
        for number, (start, stop) in enumerate([(0, 100), (100, 101), (101, ROWS)]):
            self.write(
                tmp_path / "data" / f"{number}.{self.suffix}",
                features[start:stop],
                None if label is None else label[start:stop],
            )
        for rows in _BATCHES:
            found = self.by_ranks(tmp_path / "data", size, lambda shard, rows=rows: read(shard, rows))  # type: ignore[misc]
            assert len({len(rank.batches) for rank in found}) == 1
            for number, rank in enumerate(found):
                planned = list(parts(ROWS, rows, rank=number, size=size))
                assert rank.spans == [(part.start, part.stop - part.start) for part in planned]
                own = np.concatenate([np.arange(part.start, part.stop) for part in planned])
                same(rank, features[own], None if label is None else label[own])

    def test_a_replicated_channel_is_whole_on_every_rank(self, tmp_path: Path) -> None:
        features, label = self.table(100)
        path = self.write(tmp_path / f"all.{self.suffix}", features, label)
        for name, spread in (("validation", None), ("train", "replicate")):
            for rank in self.by_ranks(path, 2, lambda shard: read(shard, 33), name=name, spread=spread):
                same(rank, features, label)

    def test_more_ranks_than_rows(self, tmp_path: Path) -> None:
        features, label = self.table(2)
        path = self.write(tmp_path / f"all.{self.suffix}", features[:, :], label)
        found = self.by_ranks(path, 3, lambda shard: read(shard, 5))
        assert [len(rank.batches) for rank in found] == [1, 1, 1]
        assert sum(length for rank in found for _, length in rank.spans) == 2
        for rank in found:
            assert rank.features.shape[1] == COLUMNS

    def test_files_read_one_after_another_are_one_file(self, tmp_path: Path) -> None:
        features, label = self.table()
        files = []
        for number, (start, stop) in enumerate([(0, 1), (1, 130), (130, 131), (131, ROWS)]):
            part = None if label is None else label[start:stop]
            files.append(self.write(tmp_path / "many" / f"part-{number}.{self.suffix}", features[start:stop], part))
        (tmp_path / "many" / "_SUCCESS").touch()
        (tmp_path / "many" / ".hidden").write_text("no data")
        for url in (tmp_path / "many", str(tmp_path / "many" / f"part-*.{self.suffix}"), [str(file) for file in files]):
            with self.opened(url) as shard:
                same(read(shard, 100), features, label)

    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_compressed_files_read_the_same(self, tmp_path: Path, compression: str) -> None:
        if not self.compressible:
            pytest.skip("this format brings its own compression")
        features, label = self.table()
        packed = compress(self.encode(features, label), compression)
        path = tmp_path / f"all.{self.suffix}.{'gz' if compression == 'gzip' else 'zst'}"
        path.write_bytes(packed)
        for mode in ("file", "stream"):
            with self.opened(path, mode=mode) as shard:
                for rows in (ROWS, 64):
                    same(read(shard, rows), features, label)
        (tmp_path / f"nameless.{self.suffix}").write_bytes(packed)  # found out from its first bytes
        for rank in self.by_ranks(tmp_path / f"nameless.{self.suffix}", 2, lambda shard: read(shard, 64)):
            assert len(rank.batches) == 11
        path.write_bytes(packed[: len(packed) // 2])
        self.refused(path, path.name)

    def test_streaming_and_other_storages_read_the_same(self, tmp_path: Path) -> None:
        features, label = self.table()
        path = self.write(tmp_path / f"all.{self.suffix}", features, label)
        with in_memory_url(path.read_bytes(), self.suffix) as url:
            for mode in ("file", "stream"):
                for source in (path, url):
                    with self.opened(source, mode=mode) as shard:
                        same(read(shard, 100), features, label)

    def test_shuffling_is_a_permutation_of_seed_and_epoch_alone(self, tmp_path: Path) -> None:
        features, label = self.table()
        path = self.write(tmp_path / f"all.{self.suffix}", features, label)

        def order(shard: FileShard, epoch: int = 0) -> list[list[float]]:
            return [dense(batch.features)[:, 0].tolist() for batch in shard.batches(64, epoch=epoch, shuffle=True)]

        with self.opened(path) as shard, self.opened(path, seed=8) as other:
            alone = order(shard)
            assert sorted(chain.from_iterable(alone)) == list(range(1, ROWS + 1))
            assert order(shard) == alone
            assert order(shard, 1) != alone
            assert order(other) != alone
            mixed = next(shard.batches(ROWS, shuffle=True))
            at = dense(mixed.features)[:, 0].astype(int) - 1
            same(Rows([mixed]), features[at], None if label is None else label[at])
        apart = self.by_ranks(path, 3, order)
        assert [list(chain.from_iterable(batches)) for batches in zip(*apart, strict=True)] == alone

    def test_iteration_goes_on_from_a_saved_position(self, tmp_path: Path) -> None:
        features, label = self.table()
        path = self.write(tmp_path / f"all.{self.suffix}", features, label)
        for shuffle in (False, True):
            with self.opened(path) as shard, self.opened(path) as resumed:
                whole = Rows(list(shard.batches(64, epoch=3, shuffle=shuffle)))
                running = shard.batches(64, epoch=3, shuffle=shuffle)
                first = [next(running) for _ in range(4)]
                resumed.load_state_dict(shard.state_dict())
                rest = list(resumed.batches(64, epoch=3, shuffle=shuffle))
                assert Rows(first + rest).spans == whole.spans
                same(Rows(first + rest), whole.features, whole.label)
                assert len(list(resumed.batches(64, epoch=3))) == 11, "the position counts once"
                resumed.load_state_dict(shard.state_dict())
                assert len(list(resumed.batches(64, epoch=4))) == 11, "the position belongs to its epoch"

    def test_it_gives_its_files_back(self, tmp_path: Path) -> None:
        features, label = self.table(60)
        for number in range(60):
            part = None if label is None else label[number : number + 1]
            self.write(tmp_path / "data" / f"{number:02}.{self.suffix}", features[number : number + 1], part)
        before = len(os.listdir("/proc/self/fd"))
        with self.opened(tmp_path / "data") as shard:
            same(read(shard, 7), features, label)
            assert len(os.listdir("/proc/self/fd")) - before < 40, "a channel of many files keeps few of them open"
        assert len(os.listdir("/proc/self/fd")) <= before

    # -- what is refused ------------------------------------------------------------------------------------------------

    def test_broken_files_are_refused_by_name_and_place(self, tmp_path: Path) -> None:
        broken = self.broken()
        assert broken
        for case in broken:
            path = tmp_path / f"{case.name}.{self.suffix}"
            path.write_bytes(case.content)
            self.refused(path, path.name, *case.says, columns=case.columns)

    def test_a_broken_file_is_refused_on_every_rank_alike(self, tmp_path: Path) -> None:
        case = self.broken()[0]
        (tmp_path / "data").mkdir()
        self.write(tmp_path / "data" / f"a.{self.suffix}", *self.table(40))
        (tmp_path / "data" / f"b.{self.suffix}").write_bytes(case.content)

        def attempt(world: Collective) -> str:
            try:
                shard = self.open(tmp_path / "data", world=world, scratch=tmp_path / str(world.rank))
            except UserError as error:
                return error.message
            try:
                list(shard.batches(10))
            except UserError as error:
                return error.message
            finally:
                shard.close()
            return ""

        said = [text for text in run_threads(3, attempt) if text]
        assert said, "no rank refused the file"
        assert len(set(said)) == 1
        assert f"b.{self.suffix}" in said[0]
        assert "channel 'train'" in said[0]

    def test_no_rows_are_refused(self, tmp_path: Path) -> None:
        empty = tmp_path / f"empty.{self.suffix}"
        empty.write_bytes(b"")
        self.refused(empty, "empty")
        self.refused(tmp_path / f"none.{self.suffix}", "there is no file", f"none.{self.suffix}")
        (tmp_path / "folder").mkdir()
        self.refused(tmp_path / "folder", "folder")

    def test_an_empty_file_beside_others_is_no_matter(self, tmp_path: Path) -> None:
        features, label = self.table(50)
        empty = self.encode(features[:0], None if label is None else label[:0])
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / f"a.{self.suffix}").write_bytes(empty)
        self.write(tmp_path / "data" / f"b.{self.suffix}", features, label)
        (tmp_path / "data" / f"c.{self.suffix}").write_bytes(empty)
        with self.opened(tmp_path / "data") as shard:
            same(read(shard, 20), features, label)

    def test_widths_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        features, label = self.table(40)
        path = self.write(tmp_path / f"all.{self.suffix}", features, label)
        self.refused(path, str(COLUMNS - 1), columns=COLUMNS - 1)
        if self.sparse:
            with self.opened(path, columns=COLUMNS + 3) as shard:
                assert shard.columns == COLUMNS + 3
                wider = np.pad(features, ((0, 0), (0, 3)))
                same(read(shard, 16), wider, label)
            return
        self.refused(path, str(COLUMNS + 1), columns=COLUMNS + 1)
        self.write(tmp_path / "two" / f"a.{self.suffix}", features, label)
        self.write(tmp_path / "two" / f"b.{self.suffix}", features[:, :-1], label)
        self.refused(tmp_path / "two", f"b.{self.suffix}", str(COLUMNS), str(COLUMNS - 1))

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def test_damaged_bytes_are_rows_or_a_user_error(self, data: st.DataObject) -> None:
        features, label = self.table(12)
        content = damaged(data, self.encode(features, label))
        if self.compressible and data.draw(st.booleans()) and data.draw(st.booleans()):
            content = damaged(data, compress(content, data.draw(st.sampled_from(["gzip", "zstd"]))))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"data.{self.suffix}"
            path.write_bytes(content)
            try:
                with self.opened(path, columns=data.draw(st.sampled_from([None, COLUMNS]))) as shard:
                    rows = sum(len(batch) for batch in shard.batches(5))
                    assert rows == shard.rows
                    next(shard.batches(5, shuffle=True))
                    shard.where(rows - 1)
            except UserError as error:
                message = error.message
            else:
                return
        assert message.startswith("channel 'train'")
        assert message.isprintable(), message

    # -- tools ----------------------------------------------------------------------------------------------------------

    def write(self, path: Path, features: Array, label: Array | None) -> Path:
        """Write rows to a file and return it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.encode(features, label))
        return path

    def open(
        self,
        url: object,
        *,
        world: Collective | None = None,
        scratch: Path,
        name: str = "train",
        mode: str = "file",
        spread: str | None = None,
        columns: int | None = None,
        seed: int = 7,
    ) -> FileShard:
        """Open a channel as one rank of `world`, or alone."""
        urls = [str(one) for one in url] if isinstance(url, list) else str(url)
        return open_shard(
            name,
            Channel(url=urls, content_type=self.content_type, mode=mode, spread=spread),
            rank=0 if world is None else world.rank,
            size=1 if world is None else world.size,
            seed=seed,
            gather=(lambda value: [value]) if world is None else world.all_gather,
            scratch=scratch,
            columns=columns,
            index_base=1,
            threads=2,
        )

    @contextmanager
    def opened(self, url: object, *, mode: str = "file", columns: int | None = None, seed: int = 7) -> Iterator[FileShard]:
        """Open a channel alone and close it afterwards."""
        with tempfile.TemporaryDirectory() as scratch:
            shard = self.open(url, scratch=Path(scratch), mode=mode, columns=columns, seed=seed)
            try:
                yield shard
            finally:
                shard.close()

    def by_ranks(
        self, url: object, size: int, action: Callable[[FileShard], Any], *, name: str = "train", spread: str | None = None
    ) -> list[Any]:
        """Return what `action` returns on every rank."""
        found: dict[int, Any] = {}

        def rank_main(world: Collective) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                shard = self.open(url, world=world, scratch=Path(scratch), name=name, spread=spread)
                try:
                    found[world.rank] = action(shard)
                finally:
                    shard.close()

        run_threads(size, rank_main)
        return [found[rank] for rank in range(size)]

    def refused(self, url: object, *says: str, columns: int | None = None) -> None:
        """Check that reading all of a channel raises one UserError that says all of this."""
        with pytest.raises(UserError) as raised, self.opened(url, columns=columns) as shard:
            for _ in shard.batches(100):
                pass
        message = raised.value.message
        assert message.startswith("channel 'train'"), message
        for part in says:
            assert part in message, f"'{part}' is not in: {message}"
        assert message.count("channel 'train'") == 1
        assert len(message) < 600
        assert message.isprintable(), message


def read(shard: FileShard, rows: int) -> Rows:
    """Read all batches of a shard."""
    return Rows(list(shard.batches(rows)))


def same(found: Rows, features: Array, label: Array | None) -> None:
    """Check rows and labels, NaN included."""
    np.testing.assert_array_equal(found.features, features)
    if label is None:
        assert found.label is None
    else:
        assert found.label is not None
        np.testing.assert_array_equal(found.label, label)


def dense(features: Features) -> Array:
    """Return rows of numbers as an array."""
    assert not isinstance(features, Records)
    if not isinstance(features, Csr):
        assert features.dtype == np.float32
        return features
    assert features.values.dtype == np.float32
    assert len(features.indices) == len(features.values) == features.indptr[-1]
    out = np.zeros((len(features), features.columns), dtype=np.float32)
    for row in range(len(features)):
        part = slice(int(features.indptr[row]), int(features.indptr[row + 1]))
        assert (np.diff(features.indices[part]) > 0).all()
        out[row, features.indices[part]] = features.values[part]
    return out


def compress(content: bytes, how: str) -> bytes:
    """Return gzip or zstd bytes."""
    return gzip.compress(content, mtime=0) if how == "gzip" else zstandard.ZstdCompressor().compress(content)


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Cut, flip, overwrite, repeat or replace parts of a file."""
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(broken) - 1, 0)))
        kind = data.draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "remove"]))
        if kind == "cut":
            del broken[at:]
        elif kind == "flip" and broken:
            broken[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "overwrite":
            new = data.draw(st.binary(min_size=1, max_size=9))
            broken[at : at + len(new)] = new
        elif kind == "insert":
            broken[at:at] = data.draw(
                st.one_of(st.binary(max_size=9), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\n", b",", b":"]))
            )
        else:
            del broken[at : at + data.draw(st.integers(1, 9))]
    return bytes(broken)


@contextmanager
def in_memory_url(content: bytes, suffix: str) -> Iterator[str]:
    """Put bytes where only fsspec finds them."""
    from .. import storage

    url = f"memory://phalanx-format-checks/all.{suffix}"
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "all"
        local.write_bytes(content)
        storage.put_file(local, url)
    try:
        yield url
    finally:
        storage.remove(url)
