"""A running job, followed, stopped from its folder, and stopped by a rule."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import phalanx
from phalanx.tracking import load_job, stop_file

ENDLESS = """
import phalanx
session = phalanx.session()
session.restore({})
for step in range(1, 10_000_000):
    session.report(step, {"train:loss": 1.1 ** min(step, 3000)})
"""


def _job(tmp_path: Path, *rules: str) -> phalanx.TrainingJob:
    (tmp_path / "endless.py").write_text(ENDLESS)
    return phalanx.TrainingJob(
        script=str(tmp_path / "endless.py"), output=str(tmp_path), name="one", checkpoint_every="never", rules=rules
    )


def test_a_request_in_the_folder_stops_the_job(tmp_path: Path) -> None:
    job = _job(tmp_path)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            job.run(progress=False)
        except phalanx.Stopped as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not (tmp_path / "one" / "status.json").exists() and thread.is_alive():
            thread.join(0.05)
        kinds = []
        for event in load_job(str(tmp_path / "one")).events():
            if event.kind == "step" and "step" not in kinds:
                stop_file.ask(str(tmp_path / "one"))
            kinds.append(event.kind)
    finally:
        job.stop()
        thread.join()
    assert kinds[-1] == "end"
    assert "phalanx stop" in str(raised[0])


def test_a_rule_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(phalanx.Stopped, match="loss_not_decreasing"):
        _job(tmp_path, "loss_not_decreasing:action=stop", "overfit").run(progress=False)
    found = load_job(str(tmp_path / "one")).findings()
    assert [(f["rule"], f["step"]) for f in found] == [("loss_not_decreasing", 30)]
