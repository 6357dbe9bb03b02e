"""What is special to one format or one way of reading."""

from __future__ import annotations

import gzip
import io
import json
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables, which a test must not

from phalanx import storage
from phalanx.contracts import Collective, Csr, Records
from phalanx.data import agree
from phalanx.data import shard as shards
from phalanx.data.channel import Channel
from phalanx.data.formats import parquet
from phalanx.data.formats.recordio import MAGIC, decode_records, write_dense, write_sparse
from phalanx.data.samples import write_sample
from phalanx.data.shard import FileShard, open_shard
from phalanx.data.source import Source
from phalanx.errors import PlatformError, UserError
from phalanx.parallel.threads import run_threads


class Opener(Protocol):
    def __call__(
        self, url: object, *, name: str = "train", columns: int | None = None, threads: int = 1, **fields: Any
    ) -> FileShard: ...


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Open channels alone; all are closed when the test ends."""
    with ExitStack() as stack:

        def open_one(
            url: object, *, name: str = "train", columns: int | None = None, threads: int = 1, **fields: Any
        ) -> FileShard:
            shard = open_shard(
                name,
                Channel(str(url), **fields),
                rank=0,
                size=1,
                seed=0,
                gather=lambda value: [value],
                scratch=Path("never-made"),
                columns=columns,
                index_base=1,
                threads=threads,
            )
            stack.callback(shard.close)
            return shard

        yield open_one


def test_csv_written_in_other_ways(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbf1,"2.5", 3\r\n\r\n0,,nan\r\n \n4,5,6'
    )  # byte order mark, quotes, blank lines, no last newline
    shard = opened(path)
    (batch,) = shard.batches(10)
    np.testing.assert_array_equal(batch.features, np.array([[2.5, 3], [np.nan, np.nan], [5, 6]], np.float32))
    assert batch.label is not None
    assert batch.label.tolist() == [1, 0, 4]
    assert [shard.where(row) for row in range(3)] == [f"{path} line {line}" for line in (1, 3, 5)]


def test_rows_of_a_shuffled_order_are_found_where_they_are(opened: Opener, tmp_path: Path) -> None:
    for number in range(3):
        lines = [f"{number},{line}\n" for line in range(1, 1001)]
        (tmp_path / f"{number}.csv").write_text("".join(lines))
    shard = opened(tmp_path)
    for epoch in (0, 1):
        moved = 0
        for batch in shard.batches(700, epoch=epoch, shuffle=True):
            assert batch.label is not None
            assert isinstance(batch.features, np.ndarray)
            for row in (0, len(batch) // 2, len(batch) - 1):
                place = f"{tmp_path / str(int(batch.label[row]))}.csv line {int(batch.features[row, 0])}"
                assert shard.where(batch.first_row + row, epoch=epoch, shuffle=True) == place
                moved += shard.where(batch.first_row + row) != place
        assert moved > 5


def test_csv_weights(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,0.5,7\n0,2,8\n")
    shard = opened(tmp_path / "a.csv", content_type="text/csv;weight_size=1")
    (batch,) = shard.batches(10)
    assert (shard.columns, batch.weight.tolist(), batch.features.tolist()) == (1, [0.5, 2], [[7], [8]])  # type: ignore[union-attr]
    (tmp_path / "a.csv").write_text("1,0.5,7\n0,inf,8\n")
    with pytest.raises(UserError, match=r"a\.csv line 2: the weight must be a finite number"):
        list(opened(tmp_path / "a.csv", content_type="text/csv;weight_size=1").batches(10))


def test_a_far_line_is_named_by_its_physical_number(opened: Opener, tmp_path: Path) -> None:
    lines = ["1,2"] * 5000
    lines[2000:2000] = [""] * 7
    lines[4000] = "1,x"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for threads in (1, 2):
        with pytest.raises(UserError, match=r"a\.csv line 4001, column 2: not a number in '1,x'"):
            list(opened(tmp_path / "a.csv", threads=threads).batches(9000))


def test_large_files_parsed_in_threads(opened: Opener, tmp_path: Path) -> None:
    table = np.random.default_rng(0).integers(0, 10**6, size=(40_000, 6))
    np.savetxt(tmp_path / "a.csv", table, fmt="%d", delimiter=",")
    (tmp_path / "a.libsvm").write_text(
        "".join(f"{r[0]} " + " ".join(f"{i}:{v}" for i, v in enumerate(r[1:], 1)) + "\n" for r in table)
    )
    for name in ("a.csv", "a.libsvm"):
        for start in (0, 7):  # also where the first row of a read is none whose place is known
            shard = opened(tmp_path / name, threads=3)
            found = shard._read_rows(start, 40_000)
            values = found.features.values.reshape(-1, 5) if isinstance(found.features, Csr) else found.features
            np.testing.assert_array_equal(values, table[start:, 1:].astype(np.float32))
            np.testing.assert_array_equal(found.label, table[start:, 0].astype(np.float32))


def test_libsvm_weights_groups_and_comments(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.libsvm").write_text("# made by hand\n1:0.5 qid:4 2:1 1:3 # first\n0:2 qid:4 \n1:1 qid:5 3:1\n")
    (tmp_path / "a" / "2.libsvm").write_text("1:1 qid:5 1:9\n0:1 qid:4 1:8\n")
    shard = opened(tmp_path / "a")
    assert (shard.rows, shard.columns) == (5, 3)
    batches = list(shard.batches(1))  # a group is never split, not even where it goes on in the next file
    assert [batch.group.tolist() for batch in batches] == [[4, 4], [5, 5], [4]]  # type: ignore[union-attr]
    assert [batch.weight.tolist() for batch in batches] == [[0.5, 2], [1, 1], [1]]  # type: ignore[union-attr]
    first = batches[0].features
    assert isinstance(first, Csr)
    assert (first.indptr.tolist(), first.indices.tolist(), first.values.tolist()) == ([0, 2, 2], [0, 1], [3, 1])
    assert shard.where(0).endswith("1.libsvm line 2")
    with pytest.raises(UserError, match="cannot be shuffled"):
        list(shard.batches(2, shuffle=True))


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ("1:1 1:2\n", "1 1:2\n", "a.libsvm has weights, .*b.libsvm has none"),
        ("1 1:2\n", "1 qid:1 1:2\n", "b.libsvm has query groups"),
    ],
)
def test_libsvm_files_that_do_not_fit(opened: Opener, tmp_path: Path, one: str, other: str, says: str) -> None:
    (tmp_path / "a.libsvm").write_text(one)
    (tmp_path / "b.libsvm").write_text(other)
    with pytest.raises(UserError, match=says):
        opened(tmp_path)


def test_files_of_different_kinds(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    (tmp_path / "b.libsvm").write_text("1 1:2\n")
    with pytest.raises(UserError, match="are of different kinds; give a content type"):
        opened(tmp_path)
    with (tmp_path / "c.recordio").open("wb") as dense, (tmp_path / "d.recordio").open("wb") as sparse:
        write_dense(dense, np.ones((1, 2), np.float32))
        write_sparse(sparse, Csr(np.array([0, 1]), np.array([0]), np.ones(1, np.float32), 2))
    with pytest.raises(UserError, match=r"d\.recordio holds sparse rows, .*c\.recordio dense rows"):
        opened(str(tmp_path / "*.recordio"))


def test_a_wrong_width_hints_at_the_label(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with pytest.raises(UserError, match=r"2 feature columns, 3 are expected; with label_size=0"):
        opened(tmp_path / "a.csv", columns=3)
    with pytest.raises(UserError, match=r"3 feature columns, 2 are expected; with label_size=1"):
        opened(tmp_path / "a.csv", columns=2, content_type="text/csv;label_size=0")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_recordio_keeps_what_was_written(dtype: type) -> None:
    rows = np.array([[1, -2, 3], [4, 5, -6]], dtype)
    out = io.BytesIO()
    write_dense(out, rows, np.array([1, 0], dtype))
    np.testing.assert_array_equal(decode_records(out.getvalue(), None), rows.astype(np.float32))
    with pytest.raises(UserError, match="float16"):
        write_dense(out, rows.astype(np.float16))
    with pytest.raises(UserError, match="vector of 2 values"):
        write_dense(out, rows, np.ones(3))


def test_recordio_in_several_parts(opened: Opener, tmp_path: Path) -> None:
    out = io.BytesIO()
    rows = np.frombuffer(struct.pack("<I", MAGIC) * 3, dtype=np.float32).reshape(1, 3)  # the magic number stands in the data
    write_dense(out, np.vstack([rows, np.ones((1, 3), np.float32)]), np.array([1, 2], np.float32))
    body = out.getvalue()
    size = len(body) // 2
    payload = body[8 : 8 + struct.unpack_from("<I", body, 4)[0]]
    at = payload.index(struct.pack("<I", MAGIC))
    pieces = [payload[:at], payload[at + 4 : at + 8], payload[at + 8 :]]
    pieces = [payload[:at], payload[at + 4 :]]
    framed = b"".join(
        struct.pack("<II", MAGIC, flag << 29 | len(piece)) + piece + b"\0" * (-len(piece) % 4)
        for flag, piece in zip((1, 3), pieces, strict=True)
    )
    (tmp_path / "a.recordio").write_bytes(body[size:] + framed + body[size:])
    shard = opened(tmp_path / "a.recordio")
    (batch,) = shard.batches(10)
    assert shard.rows == 3
    assert batch.label is not None
    assert batch.label.tolist() == [2, 1, 2]
    np.testing.assert_array_equal(batch.features, np.vstack([np.ones(3), rows[0], np.ones(3)]).astype(np.float32))
    (tmp_path / "a.recordio").write_bytes(framed[:-8])
    with pytest.raises(UserError, match=r"a\.recordio record 1: cut short"):
        opened(tmp_path / "a.recordio")


def test_recordio_rows_without_entries_are_sparse(opened: Opener, tmp_path: Path) -> None:
    with (tmp_path / "a.recordio").open("wb") as out:
        write_sparse(out, Csr(np.array([0, 0, 0]), np.empty(0, int), np.empty(0, np.float32), 5), np.ones(2, np.float32))
    shard = opened(tmp_path / "a.recordio")
    (batch,) = shard.batches(10)
    assert isinstance(batch.features, Csr)
    assert (shard.columns, batch.features.indptr.tolist()) == (5, [0, 0, 0])


def test_a_length_in_a_file_takes_no_memory(opened: Opener, tmp_path: Path) -> None:
    claims = {
        "frame.recordio": struct.pack("<II", MAGIC, 0x1FFFFFFF) + b"x" * 12,
        "field.recordio": struct.pack("<II", MAGIC, 12) + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f\0\0",
        "index.libsvm": b"1 1099511627776:1\n",
        "shape.jsonl": json.dumps({"features": {"keys": [0], "values": [1], "shape": [2**60]}}).encode(),
    }
    for name, content in claims.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                opened(tmp_path / name)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("filler", [b"0", b"\n"])
def test_a_bomb_is_read_in_bounded_memory(opened: Opener, tmp_path: Path, filler: bytes) -> None:
    with gzip.open(tmp_path / "bomb.csv.gz", "wb", compresslevel=1) as out:
        for _ in range(120):
            out.write(filler * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"line longer than 64 MiB|no rows"):
            opened(tmp_path / "bomb.csv.gz")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_streamed_channel_is_read_in_bounded_memory(opened: Opener, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(30_000, 50)).astype(np.float32)
    with (tmp_path / "a.recordio").open("wb") as out:
        write_dense(out, rows)
    pyarrow.parquet.write_table(pyarrow.table({f"c{i}": column for i, column in enumerate(rows.T)}), tmp_path / "a.parquet")
    for name, content_type in (("a.recordio", None), ("a.parquet", "parquet;label_size=0")):
        shard = opened(tmp_path / name, content_type=content_type, mode="stream")
        next(iter(shard.batches(1000)))
        tracemalloc.start()
        try:
            total = sum(len(batch) for batch in shard.batches(1000))
            assert tracemalloc.get_traced_memory()[1] < 48 << 20
        finally:
            tracemalloc.stop()
        assert total == 30_000


def test_text_and_records(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Grüße an alle\n\n  zweite Zeile \n", encoding="utf-8")
    shard = opened(tmp_path / "a.txt")
    assert [batch.features for batch in shard.batches(5)] == [Records(["Grüße an alle", "zweite Zeile"])]
    assert shard.columns is None
    (tmp_path / "a.txt").write_bytes(b"good\n\nb\xe4d\n")
    with pytest.raises(UserError, match=r"a\.txt line 3 is no UTF-8"):
        list(opened(tmp_path / "a.txt").batches(5))
    (tmp_path / "a.json").write_text('{"start": "2020", "target": [1, null]}\n{"start": "2021", "target": []}\n')
    shard = opened(tmp_path / "a.json")
    (batch,) = shard.batches(5)
    assert batch.features == Records([{"start": "2020", "target": [1, None]}, {"start": "2021", "target": []}])


def test_parquet_columns_of_other_types(opened: Opener, tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "label": pyarrow.array([True, False]),
            "vector": pyarrow.array([[1, 2], [3, None]], pyarrow.list_(pyarrow.float64())),
            "whole": pyarrow.array([7, None], pyarrow.int64()),
            "money": pyarrow.array([1, 2], pyarrow.decimal128(5, 2)),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    shard = opened(tmp_path / "a.parquet")
    (batch,) = shard.batches(5)
    np.testing.assert_array_equal(batch.features, np.array([[1, 2, 7, 1], [3, np.nan, np.nan, 2]], np.float32))
    assert batch.label is not None
    assert batch.label.tolist() == [1, 0]
    ragged = pyarrow.table({"label": [0, 1], "vector": [[1.0], [1.0, 2.0]]})
    pyarrow.parquet.write_table(ragged, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="lists in column 'vector' differ in length"):
        list(opened(tmp_path / "a.parquet").batches(5))


def test_a_file_read_here_and_there_is_unpacked_once(tmp_path: Path) -> None:
    body = np.random.default_rng(0).integers(0, 256, size=20 << 20, dtype=np.uint8).tobytes()
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb", compresslevel=0) as out:
        out.write(body)
    source = Source(storage.File(str(path), path.stat().st_size), scratch=tmp_path / "scratch")
    for at in (19 << 20, 5, 18 << 20, 6, 17 << 20, 7, 16 << 20, 8, 15 << 20, 9, 19 << 20, 10):
        assert source.read(at, 100) == body[at : at + 100]
    assert source.read(len(body) - 5, 100) == body[-5:]
    source.close()
    assert source.read(3, 4) == body[3:7]
    source.close()


def test_ranks_wait_for_one_that_is_slow_and_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agree, "_SIGN_OF_LIFE_S", 0.05)
    go_on = threading.Event()
    gathers = []

    def rank_main(world: Collective) -> list[Any]:
        def gather(value: Any) -> list[Any]:
            if world.rank == 0:
                gathers.append(value)
                if len(gathers) == 30:
                    go_on.set()
            return world.all_gather(value)

        return agree.agree("train", gather, 2, lambda: go_on.wait(60) if world.rank else "quick")

    assert run_threads(2, rank_main) == [["quick", True]] * 2
    assert len(gathers) >= 30, "rank 0 did not wait"


def test_the_first_error_is_the_error_of_all() -> None:
    def rank_main(world: Collective) -> str:
        def action() -> None:
            if world.rank == 1:
                raise PlatformError("the disk is full")
            if world.rank == 2:
                raise ValueError("later")

        try:
            agree.agree("train", world.all_gather, 3, action)
        except PlatformError as error:
            return error.message
        return ""

    assert run_threads(3, rank_main) == ["channel 'train': the disk is full"] * 3


def test_sample_data(opened: Opener, tmp_path: Path) -> None:
    for name, rows, columns in (("iris", 150, 4), ("digits", 1797, 64), ("diabetes", 442, 10)):
        written = write_sample(name, tmp_path / name)
        assert {path.name for path, _ in written} >= {"train.csv", "validation.libsvm", "test.recordio", "test-features.csv"}
        total = 0
        for split in ("train", "validation", "test"):
            tables = []
            for suffix in ("csv", "recordio", "libsvm"):
                shard = opened(tmp_path / name / f"{split}.{suffix}", columns=columns)
                (batch,) = shard.batches(5000)
                assert batch.label is not None
                tables.append((batch.label, batch.features))
            np.testing.assert_array_equal(tables[0][0], tables[1][0])
            np.testing.assert_array_equal(tables[0][0], tables[2][0])
            dense, same, sparse = (features for _, features in tables)
            assert isinstance(dense, np.ndarray)
            np.testing.assert_array_equal(dense, same)
            assert isinstance(sparse, Csr)
            assert sparse.values.sum(dtype=np.float64) == pytest.approx(dense.sum(dtype=np.float64))
            total += len(dense)
        assert total == rows
    again = {path.name: path.read_bytes() for path, _ in write_sample("iris", tmp_path / "again")}
    assert again == {path.name: path.read_bytes() for path in (tmp_path / "iris").iterdir()}
    with pytest.raises(UserError, match="did you mean 'iris'"):
        write_sample("irsi", tmp_path)


def _parquet(folder: Path, rows: int) -> Path:
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    table = pyarrow.table({"label": np.arange(rows) % 2, **{f"x{n}": x[:, n] for n in range(3)}})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=rows // 4)
    return folder / "a.parquet"


def _features(shard: FileShard, epochs: int, *, shuffle: bool) -> list[Any]:
    return [batch.features.copy() for epoch in range(epochs) for batch in shard.batches(500, epoch=epoch, shuffle=shuffle)]  # type: ignore[union-attr]


@pytest.mark.parametrize("full", [False, True])
def test_a_shuffled_order_decodes_a_file_once_to_memory_or_disk(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    path = _parquet(tmp_path, 8000)
    monkeypatch.setattr(shards, "_PAGE", 4)  # a window of the order is 64 pages: of many, as a large file has
    expected = _features(opened(path), 3, shuffle=True)
    seeks: list[int] = []
    seek = parquet._Reader._seek

    def counted(self: Any, row: int) -> None:
        seeks.append(row)
        seek(self, row)

    monkeypatch.setattr(parquet._Reader, "_seek", counted)
    np.testing.assert_array_equal(_features(opened(path), 3, shuffle=True), expected)
    assert len(seeks) < 10  # of 48 batches from all over the file
    seeks.clear()
    monkeypatch.setattr(shards, "_HELD_BYTES", 0)
    monkeypatch.setattr(parquet, "_VALUES", 4 * 512)  # several batches a file, as a large one has
    monkeypatch.setattr(parquet, "_TABLE_BYTES", 1 << 12)
    if full:

        def no_room(**_: object) -> io.BytesIO:
            class Full(io.BytesIO):
                def write(self, data: object) -> int:
                    raise OSError(28, "No space left on device")

            return Full()

        monkeypatch.setattr(parquet.tempfile, "TemporaryFile", no_room)
    np.testing.assert_array_equal(_features(opened(path), 3, shuffle=True), expected)
    assert (len(seeks) < 20) is not full


def test_a_glance_at_a_shuffled_order_keeps_nothing(opened: Opener, tmp_path: Path) -> None:
    shard = opened(_parquet(tmp_path, 8000))
    next(iter(shard.batches(500, shuffle=True)))
    assert shard._held is None
    list(shard.batches(500, shuffle=True))
    assert shard._held is not None


@pytest.mark.parametrize("few", [False, True])
def test_later_passes_in_order_come_from_memory(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: bool
) -> None:
    shard = opened(_parquet(tmp_path, 8000))
    if not few:
        monkeypatch.setattr(shards, "_HELD_BYTES", 2 * 8000 * shard._row_bytes())
    first = _features(shard, 1, shuffle=False)
    assert (shard._kept is not None) is few
    second = _features(shard, 1, shuffle=False)
    monkeypatch.setattr(FileShard, "_read_rows", None)
    np.testing.assert_array_equal(_features(shard, 1, shuffle=False), first)
    np.testing.assert_array_equal(second, first)
    shard.load_state_dict(_halfway(shard))
    np.testing.assert_array_equal(_features(shard, 1, shuffle=False), first[8:])
    with pytest.raises(TypeError):
        list(shard.batches(400))


def _halfway(shard: FileShard) -> Any:
    for batch in shard.batches(500):
        if batch.first_row == 3500:
            return shard.state_dict()
    raise AssertionError
