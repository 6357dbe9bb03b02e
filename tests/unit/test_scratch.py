import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from phalanx import scratch
from phalanx.scratch import Scratch

HOLD = """
import sys
from phalanx.scratch import Scratch
kept = Scratch("test")
(kept.path / "big").write_bytes(b"x" * 1000)
print(kept.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._sweep.cache_clear()
    return tmp_path


def held(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD], env={**os.environ, "TMPDIR": str(folder)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def ended(child: subprocess.Popen[str], how: int) -> None:
    child.send_signal(how)
    child.communicate()


def test_a_folder_is_there_until_it_is_closed(folder: Path) -> None:
    with Scratch("test") as path:
        (path / "file").write_text("x")
        assert next(p.name for p in folder.iterdir()).startswith("phalanx-test-")
        assert list(path.iterdir()) == [path / "file"]
    assert not list(folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(folder: Path) -> None:
    child, path = held(folder)
    assert (path / "big").exists()
    ended(child, signal.SIGKILL)
    assert path.exists()
    with Scratch("test"):
        assert not path.exists()
        assert len(list(folder.iterdir())) == 1


def test_what_a_living_process_needs_stays(folder: Path) -> None:
    child, path = held(folder)
    try:
        with Scratch("test"):
            assert (path / "big").exists()
    finally:
        ended(child, signal.SIGTERM)


def test_folders_of_others_stay(folder: Path) -> None:
    (folder / "phalanx-data").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "phalanx-link").symlink_to(folder / "elsewhere")
    with Scratch("test"):
        assert {"phalanx-data", "elsewhere", "phalanx-link"} <= {p.name for p in folder.iterdir()}
