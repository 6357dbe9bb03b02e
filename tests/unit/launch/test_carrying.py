"""Folders that travel: packed whole, unpacked where they may be, mirrored as they change."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from phalanx.errors import PlatformError, UserError
from phalanx.launch import carrying


def test_a_folder_travels_with_what_its_links_point_to(tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    data.mkdir()
    (data / "large.bin").write_bytes(b"x" * 1000)
    folder = tmp_path / "job"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "train.py").write_text("print(1)\n")
    (folder / "code" / "data").symlink_to(data)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    parcel = carrying.pack(folder)
    assert (parcel.files, parcel.size) == (2, 1009)
    carrying.unpack(parcel.data, tmp_path / "there" / "files")
    there = tmp_path / "there" / "files" / "code"
    assert (there / "train.py").read_text() == "print(1)\n"
    assert (there / "data" / "large.bin").stat().st_size == 1000
    assert not (there / "data").is_symlink()
    carrying.remove(tmp_path / "there" / "files")
    assert not (tmp_path / "there").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_links_to_what_git_ignores_stay(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "init", "-q", str(home)], check=True)
    (home / ".gitignore").write_text("runs/\n")
    for name in ("runs", "tables"):
        (home / name).mkdir()
        (home / name / "a.bin").write_bytes(b"1")
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("runs", "tables"):
        (folder / name).symlink_to(home / name)
    with tarfile.open(fileobj=io.BytesIO(carrying.pack(folder).data)) as tar:
        assert tar.getnames() == ["tables", "tables/a.bin"]


def test_data_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "MOST_BYTES", 10)
    (tmp_path / "rows.csv").write_bytes(b"x" * 11)
    with pytest.raises(UserError, match=r"rows\.csv.*data does not"):
        carrying.pack(tmp_path)


def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(PlatformError, match="cannot be unpacked"):
        carrying.unpack(out.getvalue(), tmp_path / "there")
    with pytest.raises(PlatformError, match="leads out"):
        carrying.put_mirrored(tmp_path / "there", [("../escaped", b"x")])
    assert not (tmp_path / "escaped").exists()


def test_results_are_what_was_named(tmp_path: Path) -> None:
    for name in ("attempt-0/model/a", "attempt-0/data/b", "checkpoints/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    packed = io.BytesIO()
    assert carrying.pack_results(tmp_path, ["attempt-0/model", "checkpoints", "attempt-0/output"], packed) == 2
    packed.seek(0)
    carrying.unpack(packed, tmp_path / "there")
    assert sorted(p.relative_to(tmp_path / "there").as_posix() for p in (tmp_path / "there").rglob("*") if p.is_file()) == [
        "attempt-0/model/a",
        "checkpoints/c",
    ]


def test_a_mirror_tells_what_changed(tmp_path: Path) -> None:
    kept = tmp_path / "here" / "checkpoints"
    kept.mkdir(parents=True)
    (kept / "old").write_text("old")
    mirror = carrying.Mirror(tmp_path / "here", ["checkpoints"])
    assert mirror.changes() == []
    (kept / "deep").mkdir()
    (kept / "deep" / "new").write_text("new")
    (kept / "old").write_text("changed")
    changes = mirror.changes()
    assert sorted(changes) == [("checkpoints/deep/new", b"new"), ("checkpoints/old", b"changed")]
    assert mirror.changes() == []
    carrying.put_mirrored(tmp_path / "there", changes)
    assert (tmp_path / "there" / "checkpoints" / "deep" / "new").read_text() == "new"
