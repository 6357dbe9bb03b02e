"""A platform's notice interrupts a job in any phase; it goes on when the notice is gone, and ends with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import phalanx
from phalanx.errors import UserError
from phalanx.launch.interruptions import FileSource


class Notices:
    """A progress that puts a notice up in a phase or at a step, and takes it away when the job says it was interrupted."""

    def __init__(self, notice: Path, *, step: int = 0) -> None:
        self._notice, self._step = notice, step
        self.interrupted: list[str] = []

    def started(self, name: str, headline: str) -> None:
        if not self._step:
            self._notice.write_text("moving house")

    def status(self, secondary: str, message: str) -> None:
        if secondary == "Interrupted":
            self.interrupted.append(message)
            self._notice.unlink()

    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        if step == self._step and not self.interrupted:
            self._notice.write_text("moving house")


def job(digits: Path, output: Path, **how: object) -> phalanx.TrainingJob:
    given: dict[str, object] = {
        "algorithm": "kmeans",
        "inputs": {"train": phalanx.Channel(url=str(digits / "train.csv"), content_type="text/csv;label_size=1")},
        "hyperparameters": {"k": 10, "mini_batch_size": 60, "epochs": 24},
        "workers": 2,
        "output": str(output),
        "name": "job",
        "seed": 3,
        "threads_per_worker": 1,
        "checkpoint_every": "1h",
    }
    return phalanx.TrainingJob(**{**given, **how})  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0, 9])
def test_a_notice_interrupts(step: int, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileSource, "every_s", 0.01)  # the job must not end before the file is looked for
    notice = tmp_path / "notice"
    progress = Notices(notice, step=step)
    spot = phalanx.Spot(max_restarts=1, notices=(f"file:{notice}",))
    result = job(digits, tmp_path / "spot", spot=spot).run(progress=progress)
    assert progress.interrupted == ["interrupted: interrupted by notice: moving house"]
    assert (result.status, result.restarts) == ("Completed", 1)
    whole = job(digits, tmp_path / "whole").run(progress=False)
    assert (tmp_path / "spot/job/model.tar.gz").read_bytes() == (tmp_path / "whole/job/model.tar.gz").read_bytes()
    assert result.step == whole.step
    status = json.loads((tmp_path / "spot/job/status.json").read_text())
    assert "Interrupted" in [transition["status"] for transition in status["transitions"]]
    assert (status["resumed_from_step"] or 0) >= step, "saved on the notice, not by the clock"


def test_a_source_that_is_none(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the notice source 'amazon' is not allowed"):
        job(digits, tmp_path, spot={"notices": ["amazon"]}).run(progress=False)
