"""Storage: listing, redaction, packing and unpacking."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phalanx import archive, storage
from phalanx.errors import UserError


def _tar(path: Path, *members: tarfile.TarInfo) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return str(path)


def _member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def test_a_folder_lists_its_files_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden", "_SUCCESS", "sub/c.csv", ".git/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    listed = [Path(f.url).relative_to(tmp_path).as_posix() for f in storage.list_files(str(tmp_path))]
    assert listed == ["a.csv", "b.csv", "sub/c.csv"]


def test_a_glob_lists_what_it_matches(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).write_text("1\n")
    assert [Path(f.url).name for f in storage.list_files(str(tmp_path / "*.csv"))] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("missing", ["nothing.csv", "no*.csv", "folder"])
def test_nothing_there_is_the_users_error(tmp_path: Path, missing: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="there is no file"):
        storage.list_files(str(tmp_path / missing))


def test_a_memory_url_is_listed_fetched_and_published(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/data/a.csv", b"1,2\n")
    fs.pipe_file("/bucket/data/b.csv", b"3,4\n")
    files = storage.list_files("memory://bucket/data")
    assert [f.size for f in files] == [4, 4]
    fetched = storage.fetch(files, tmp_path)
    assert [Path(f.url).read_bytes() for f in fetched] == [b"1,2\n", b"3,4\n"]
    (tmp_path / "x").write_text("published")
    storage.put_file(tmp_path / "x", "memory://bucket/out/x")
    assert storage.read_bytes("memory://bucket/out/x") == b"published"
    with pytest.raises(UserError, match="exists already"):
        storage.claim_folder("memory://bucket/out")
    fs.rm("/bucket", recursive=True)


def test_a_file_where_folders_are_wanted_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="runs is no folder"):
        storage.claim_folder(str(tmp_path / "runs" / "job"))


def test_credentials_never_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", "hunter2hunter2")
    text = "s3://key:pass@bucket/x https://h/x?X-Amz-Signature=abc&a=1 hunter2hunter2"
    assert storage.redact(text) == "s3://***@bucket/x https://h/x?X-Amz-Signature=***&a=1 ***"


def test_packing_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for folder, order in (("one", ("a", "sub/b")), ("two", ("sub/b", "a"))):
        for name in order:
            (tmp_path / folder / name).write_text(name)
    (tmp_path / "two" / "a").chmod(0o600)
    archive.pack(tmp_path / "one", tmp_path / "one.tar.gz")
    archive.pack(tmp_path / "two", tmp_path / "two.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    assert archive.unpack(str(tmp_path / "one.tar.gz"), tmp_path / "out") == ["a", "sub/b"]
    assert (tmp_path / "out/sub/b").read_text() == "sub/b"


@pytest.mark.parametrize(
    "member",
    [
        _member("/etc/evil"),
        _member("../evil"),
        _member("a/../../evil"),
        _member("link", tarfile.SYMTYPE, 0, "/etc/passwd"),
        _member("hard", tarfile.LNKTYPE, 0, "/etc/passwd"),
        _member("device", tarfile.CHRTYPE, 0),
        _member("pipe", tarfile.FIFOTYPE, 0),
    ],
    ids=lambda m: m.name,
)
def test_unpacking_refuses_what_reaches_outside(tmp_path: Path, member: tarfile.TarInfo) -> None:
    url = _tar(tmp_path / "evil.tar.gz", member)
    with pytest.raises(UserError, match="refused"):
        archive.unpack(url, tmp_path / "out")
    assert not (tmp_path / "evil").exists()
    assert not list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else True


def test_unpacking_is_bounded(tmp_path: Path) -> None:
    url = _tar(tmp_path / "big.tar.gz", _member("zeros", size=1 << 20))
    with pytest.raises(UserError, match="refused"):
        archive.unpack(url, tmp_path / "out", max_bytes=1 << 10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 7)), max_size=4))
def test_a_damaged_archive_is_the_users_error_or_unpacks(tmp_path: Path, cut: int, flips: list[tuple[int, int]]) -> None:
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m/a").write_bytes(bytes(range(200)))
    archive.pack(tmp_path / "m", tmp_path / "m.tar.gz")
    data = bytearray((tmp_path / "m.tar.gz").read_bytes())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    (tmp_path / "bad.tar.gz").write_bytes(bytes(data[: max(0, len(data) - cut)]))
    with contextlib.suppress(UserError):
        archive.unpack(str(tmp_path / "bad.tar.gz"), tmp_path / "out")


def test_a_writer_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "answers.json"

    def fail() -> None:
        with storage.replacing_writer(str(target)) as out:
            out.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not target.exists()
