"""`session.checkpoints`: what a script writes there is there again when its job is resumed, wherever checkpoints are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

import moto_s3
import pytest

import phalanx
from phalanx import storage
from phalanx.scripts.kept import KeptFiles, kept_url

SCRIPT = """
import sys, phalanx
session = phalanx.session()
mine = session.checkpoints / "deep" / "progress.txt"
done = int(mine.read_text()) if mine.exists() else 0
if session.world.rank == 0:
    (session.checkpoints / "old.txt").unlink(missing_ok=True) if done else (session.checkpoints / "old.txt").write_text("x")
for step in range(done + 1, 7):
    if session.world.rank == 0:
        mine.parent.mkdir(exist_ok=True)
        mine.write_text(str(step))
    session.report(step, {"from": float(done)})
    if step == 3 and not done:
        sys.exit(9)
"""


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    if request.param == "file":
        yield None
        return
    with moto_s3.serve() as endpoint:
        moto_s3.use(endpoint, "kept", monkeypatch)
        yield "s3://kept/run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_resumed_job_finds_the_files_of_its_script(place: str | None, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)

    def run(name: str = "job", *, resume: bool = False) -> phalanx.JobResult:
        return phalanx.TrainingJob(
            script=str(tmp_path / "train.py"), output=str(tmp_path / "runs"), name=name, checkpoints=place, resume=resume
        ).run(progress=False)

    with pytest.raises(phalanx.AlgorithmError, match="exit code 9"):
        run()
    where = kept_url(place or str(tmp_path / "runs/job/checkpoints"), "job")
    assert sorted(storage.sizes_below(where)) == ["deep/progress.txt", "old.txt"]
    if place is not None:
        with pytest.raises(phalanx.UserError, match="files that a script of a job 'job' kept at s3://kept/run"):
            phalanx.TrainingJob(
                script=str(tmp_path / "train.py"), output=str(tmp_path / "elsewhere"), name="job", checkpoints=place
            ).run(progress=False)
    assert run(resume=True).metrics["from"] == 3.0
    assert sorted(storage.sizes_below(where)) == ["deep/progress.txt"]


def test_a_folder_that_nobody_wrote_to_is_not_left(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path / "scratch", kept_url(str(tmp_path / "checkpoints"), "job"))
    kept.begin()
    assert kept.folder.is_dir()
    kept.end()
    assert not (tmp_path / "checkpoints").exists()


def test_a_script_may_remove_the_folder(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path / "scratch", kept_url(str(tmp_path / "checkpoints"), "job"))
    kept.begin()
    shutil.rmtree(kept.folder)
    kept.end()
    assert not kept.folder.exists()


def test_a_file_that_cannot_be_fetched_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script would begin anew, and its newer files would take the place of what was kept."""

    def refused(url: str) -> BinaryIO:
        raise phalanx.UserError(f"no permission for {url}")

    url = kept_url("memory://kept", "job")
    storage.put_bytes(storage.join(url, "progress.txt"), b"7")
    monkeypatch.setattr(storage, "open_reader", refused)
    with pytest.raises(phalanx.UserError, match="no permission"):
        KeptFiles(tmp_path / "scratch", url).begin()
    storage.remove(storage.join(url, "progress.txt"))
