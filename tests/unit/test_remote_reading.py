"""A storage that fails in the middle of a read: one of our errors, with no credentials in it."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractFileSystem

from phalanx import archive, storage
from phalanx.data.format import Options
from phalanx.data.formats import format_named
from phalanx.data.formats.recordio import write_dense
from phalanx.data.source import Source
from phalanx.errors import PlatformError, UserError

URL = "flaky://user:pa55word@host/"


class ConnectionLost(Exception):
    """As the libraries of storages raise: of no common base."""


class FlakyFile(io.BytesIO):
    def __init__(self, data: bytes, left: list[int], error: Exception) -> None:
        super().__init__(data)
        self._left = left
        self._error = error

    def read(self, size: int | None = -1) -> bytes:
        if self._left[0] == 0:
            raise self._error
        self._left[0] -= 1
        return super().read(size)


class Flaky(AbstractFileSystem):  # type: ignore[misc]
    """Answers `reads` reads, then raises."""

    protocol = "flaky"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    left: ClassVar[list[int]] = [0]
    error: ClassVar[Exception] = ConnectionLost()

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        if name not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[name]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> FlakyFile:
        return FlakyFile(self.files[str(self.info(path)["name"]).rpartition("/")[2]], Flaky.left, Flaky.error)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rows = np.random.default_rng(0).random((40_000, 30), dtype=np.float32)
    text = "\n".join(",".join(map(str, row)) for row in rows[:20_000].round(3).tolist()).encode()
    records = io.BytesIO()
    write_dense(records, rows)
    return {"a.csv": text, "a.csv.gz": gzip.compress(text, 1), "a.recordio": records.getvalue()}


@pytest.fixture(autouse=True)
def flaky(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "files", dict(files))


def index(name: str) -> None:
    (file,) = storage.list_files(URL + name)
    source = Source(file)
    try:
        options = Options(label_size=1, weight_size=0, index_base=1, columns=None)
        found = format_named("recordio" if "recordio" in name else "csv").index(source, options)
        assert found.rows >= 20_000
    finally:
        source.close()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.recordio"])
@pytest.mark.parametrize("error", [ConnectionLost("pa55word: reset by peer"), OSError("reset by peer"), TimeoutError("late")])
def test_a_read_that_fails_is_the_platforms(name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flaky, "error", error)
    monkeypatch.setattr(Flaky, "left", [1000])
    index(name)  # it can be read
    for reads in (0, 1, 2):
        monkeypatch.setattr(Flaky, "left", [reads])
        with pytest.raises(PlatformError, match=r"flaky://\*\*\*@host/a") as caught:
            index(name)
        assert type(error).__name__ in caught.value.message
        assert "user:" not in caught.value.message


def test_fetching_and_unpacking_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(np.random.default_rng(0).bytes(1 << 20))
    archive.pack(tmp_path / "folder", tmp_path / "model.tar.gz")
    Flaky.files["model.tar.gz"] = (tmp_path / "model.tar.gz").read_bytes()
    monkeypatch.setattr(Flaky, "error", ConnectionLost("reset by peer"))
    monkeypatch.setattr(Flaky, "left", [2])
    with pytest.raises(PlatformError, match="ConnectionLost: reset by peer"):
        archive.unpack(URL + "model.tar.gz", tmp_path / "out")
    monkeypatch.setattr(Flaky, "left", [1])
    with pytest.raises(PlatformError, match="ConnectionLost: reset by peer"):
        storage.fetch(storage.list_files(URL + "a.csv"), tmp_path / "fetched")


def test_a_file_that_is_gone_is_the_users() -> None:
    with pytest.raises(UserError, match=r"no file at flaky://\*\*\*@host/b"):
        storage.open_reader(URL + "b.csv")
