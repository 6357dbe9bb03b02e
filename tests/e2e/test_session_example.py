"""One script in three ways: under phalanx run, under torchrun, alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import phalanx

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "torchrun" / "train.py"


def last_loss(text: str) -> float:
    found = re.search(r"loss after \d+ steps: ([0-9.]+)", text)
    assert found, text
    return float(found[1])


def run(*command: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_under_phalanx_run(tmp_path: Path) -> None:
    job = phalanx.TrainingJob(script=str(EXAMPLE), workers=2, arguments=["--steps", "20"], output=str(tmp_path), name="job")
    result = job.run(progress=False)
    lines = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["train:loss"] < lines[0]["train:loss"]
    assert result.artifact is not None
    assert last_loss((tmp_path / "job" / "logs" / "rank-0.log").read_text()) == pytest.approx(lines[-1]["train:loss"], abs=1e-4)


def test_a_session_without_a_job_takes_channels_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("1,2\n3,4\n5,6\n")
    code = """
import os
os.environ["SM_CHANNEL_TRAINING"] = "rows"
import phalanx
s = phalanx.session()
assert s is phalanx.session()
there = s.channels["training"].rows, list(s.channels), str(s.channel_folder("training"))
print(*there, s.world.size, s.seed, s.strategy, s.hyperparameters)
s.report(1, {"loss": 1.0})
try:
    s.channels["train"]
except phalanx.UserError as error:
    print(error)
raise phalanx.UserError("the end")
"""
    (tmp_path / "alone.py").write_text(code)
    done = subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == "3 ['training'] rows 1 0 None {}"
    assert "SM_CHANNEL_TRAIN; did you mean 'training'" in second
    assert done.returncode == 1
    assert "UserError: the end" in done.stderr


@pytest.mark.slow
def test_alone(tmp_path: Path) -> None:
    alone = last_loss(run(str(EXAMPLE), "--steps", "20", folder=tmp_path))
    assert alone < 0.6
    assert (tmp_path / "model" / "model.pt").exists()


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE), "--steps", "20")
    assert last_loss(run(*command, folder=tmp_path)) < 0.6
    assert (tmp_path / "model" / "model.pt").exists()
