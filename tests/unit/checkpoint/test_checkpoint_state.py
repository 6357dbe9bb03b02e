"""States as files and back: any cut to any cut, hostile files, and the places that files are put to."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx import storage
from phalanx.checkpoint.arrays import parse
from phalanx.checkpoint.manifest import DamagedError, FileRecord, Manifest, read_manifest, write_manifest
from phalanx.checkpoint.place import StoragePlace
from phalanx.checkpoint.state import Assembly, Copier
from phalanx.contracts import Array, Entry, State
from phalanx.errors import PlatformError, UserError


def grid(shape: tuple[int, int], rows: int, columns: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut a matrix into rows x columns boxes (offset, extent); some may be empty."""
    edges = [[i * length // count for i in range(count + 1)] for length, count in zip(shape, (rows, columns), strict=True)]
    return [
        ((edges[0][i], edges[1][j]), (edges[0][i + 1] - edges[0][i], edges[1][j + 1] - edges[1][j]))
        for i in range(rows)
        for j in range(columns)
    ]


def piece(whole: Array, offset: tuple[int, int], extent: tuple[int, int]) -> Entry:
    value = whole[offset[0] : offset[0] + extent[0], offset[1] : offset[1] + extent[1]]
    return Entry(value, "sharded", whole.shape, offset)


@given(st.integers(0, 9), st.integers(1, 9), *[st.integers(1, 4)] * 4)
def test_any_cut_becomes_any_other(height: int, width: int, rows: int, columns: int, new_rows: int, new_columns: int) -> None:
    whole = np.arange(height * width, dtype=np.int32).reshape(height, width)
    manifest, contents = saved([{"x": piece(whole, *box)} for box in grid(whole.shape, rows, columns)])
    for offset, extent in grid(whole.shape, new_rows, new_columns):
        wanted = Entry(np.zeros(extent, dtype=np.int32), "sharded", whole.shape, offset)
        assembly = Assembly(manifest, {"part": {"x": wanted}}, 0)
        for file in assembly.files:
            assembly.add(file, parse(contents[file]), contents[file])
        got = assembly.finish()["part"]["x"]
        assert (got.scope, got.shape, got.offset) == ("sharded", whole.shape, offset)
        np.testing.assert_array_equal(got.value, piece(whole, offset, extent).value)


def test_a_missing_piece_is_noticed() -> None:
    whole = np.arange(12.0).reshape(4, 3)
    manifest, contents = saved([{"x": piece(whole, (0, 0), (2, 3))}, {"x": piece(whole, (3, 0), (1, 3))}])
    assembly = Assembly(manifest, {"part": {"x": Entry(np.zeros((4, 3)))}}, 0)
    for file in assembly.files:
        assembly.add(file, parse(contents[file]), contents[file])
    with pytest.raises(DamagedError, match="'part/x' lacks pieces"):
        assembly.finish()


def saved(states: list[State]) -> tuple[Manifest, dict[str, Array]]:
    """Return a manifest of what each rank saved, and the files' bytes."""
    snapshots = [Copier().copy({"part": state}, rank) for rank, state in enumerate(states)]
    contents = {n: np.frombuffer(bytearray(d), dtype=np.uint8) for found in snapshots for n, d in found.files.items()}
    entries = tuple(entry for found in snapshots for entry in found.entries)
    files = tuple(FileRecord(name, len(data), "") for name, data in contents.items())
    return Manifest("job", 0, 1, len(states), 0.0, {}, ("part",), files, entries), contents


def test_the_memory_of_a_copy_is_used_again() -> None:
    copier = Copier()
    first = copier.copy({"part": {"x": Entry(np.arange(1000.0))}}, 0).files["rank-0.safetensors"]
    second = copier.copy({"part": {"x": Entry(np.arange(900.0))}}, 0).files["rank-0.safetensors"]
    assert np.shares_memory(np.asarray(first), np.asarray(second))
    np.testing.assert_array_equal(parse(np.asarray(second))["part/x"], np.arange(900.0))


@given(st.binary(max_size=200))
def test_hostile_arrays_are_damaged_not_a_crash(data: bytes) -> None:
    for content in (data, len(data).to_bytes(8, "little") + data):
        try:
            parse(np.frombuffer(content, dtype=np.uint8))
        except DamagedError:
            continue


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_name_files_elsewhere(name: str) -> None:
    manifest = Manifest("job", 0, 1, 1, 0.0, {}, ("part",), (FileRecord(name, 1, "0"),), ())
    with pytest.raises(DamagedError):
        read_manifest(write_manifest(manifest), 1)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = StoragePlace(str(tmp_path))
    place.put("1/x", b"before")
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(PlatformError, match=r"no room left for .*x: make room there, or give another place"):
        place.put("1/x", b"after")
    assert place.sizes() == {"1/x": 6}
    assert place.read("1/x", 6).tobytes() == b"before"


def test_a_local_place(tmp_path: Path) -> None:
    place = StoragePlace(str(tmp_path / "not" / "yet"))
    assert place.sizes() == place.sizes("1") == {}
    place.put("1/a/x", b"abc")
    place.put("1/a/x", memoryview(b"abcd"))
    place.put("2/y", b"")
    assert place.sizes() == {"1/a/x": 4, "2/y": 0}
    assert place.sizes("1") == {"1/a/x": 4}
    assert place.read("2/y", 0).tobytes() == b""
    with pytest.raises(UserError, match="has 4 bytes where 3 were expected"):
        place.read("1/a/x", 3)
    with pytest.raises(UserError, match="there is no file"):
        place.read("1/z", 3)
    place.remove(["1/a/x", "1/a/nothing"])
    assert [path.name for path in (tmp_path / "not" / "yet").iterdir()] == ["2"], "empty folders go with their files"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((PlatformError, UserError), match="file"):
        StoragePlace(str(tmp_path / "file")).put("1/x", b"x")
