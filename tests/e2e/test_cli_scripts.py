"""`phalanx run SCRIPT` as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TRAIN = """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--lr", type=float)
args = parser.parse_args()
for epoch in range(args.epochs):
    print(f"epoch {epoch} loss={args.lr / (epoch + 1)}")
if os.environ["RANK"] == "0":
    open(os.path.join(os.environ["SM_MODEL_DIR"], "factor"), "w").write(str(args.lr))
print("strategy", os.environ.get("PHALANX_STRATEGY"), os.environ["COLOUR"], os.listdir(os.environ["SM_CHANNEL_TRAIN"]))
"""
SERVED = """
import os
def model_fn(folder):
    factor = float(open(os.path.join(folder, "factor")).read())
    return lambda data: data.sum(axis=1) * factor
if __name__ == "__main__":
"""


def phalanx(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phalanx.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    body = "".join(f"    {line}\n" for line in TRAIN.strip().splitlines())
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(SERVED + body)
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n")
    return tmp_path


def test_run_then_predict(folder: Path) -> None:
    done = phalanx(
        *("run", "src/train.py", "--workers", "2", "--strategy", "ddp", "--train", "rows.csv", "--set", "epochs=3"),
        *("--metric", "loss=loss=([0-9.]+)", "--env", "COLOUR=blue", "--name", "job", "--", "--lr", "0.5"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "Completed  loss=0.166667" in done.stdout
    assert "[1] strategy ddp blue ['rows.csv']" in done.stderr
    answered = phalanx("predict", "runs/job/model.tar.gz", "--input", "rows.csv", "--accept", "text/csv", cwd=folder)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout == "1.5\n3.5\n"


def test_a_job_file_with_a_script(folder: Path) -> None:
    job = {
        "script": "src/train.py",
        "arguments": ["--lr", "2"],
        "hyperparameters": {"epochs": 1},
        "inputs": {"train": "rows.csv"},
        "environment": {"COLOUR": "red"},
        "metric_definitions": [{"name": "loss", "regex": "loss=(.*)"}],
        "name": "job",
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    done = phalanx("run", "job.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["metrics"] == {"loss": 2.0}
    refused = phalanx("run", "job.yaml", "--workers", "2", cwd=folder)
    assert refused.returncode == 2
    assert "--workers does not go with a job file" in refused.stderr


def test_exit_codes_and_words_without_tracebacks(folder: Path) -> None:
    done = phalanx("run", "src/train.py", "--train", "rows.csv", "--", "--lr", "much", cwd=folder)
    assert done.returncode == 2
    assert "argument --lr: invalid float value: 'much'" in done.stderr.splitlines()[-2]
    assert "Traceback" not in done.stderr
    done = phalanx("run", "src/train.py", "--train", "rows.csv", "--", "--epochs", "1", cwd=folder)
    assert done.returncode == 1
    assert "error: TypeError: unsupported operand" in done.stderr
    done = phalanx("run", "src/trian.py", cwd=folder)
    assert done.returncode == 2
    assert "there is no script at src/trian.py" in done.stderr


def test_the_schema_knows_scripts(folder: Path) -> None:
    schema = json.loads(phalanx("run", "--schema", cwd=folder).stdout)
    assert schema["oneOf"] == [{"required": ["algorithm", "inputs"]}, {"required": ["script"]}]
    assert schema["properties"]["metric_definitions"]["items"]["required"] == ["name", "regex"]
    pattern = schema["properties"]["strategy"]["pattern"]
    assert all(re.match(pattern, given) for given in ("zero2", "pipeline:stages=2,micro_batches=4"))
    assert not re.match(pattern, "zero4")


def test_sigterm_stops_a_scripts_job(tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text("import signal\nprint('running', flush=True)\nsignal.pause()\n")
    command = [sys.executable, "-m", "phalanx.cli", "run", "wait.py", "--workers", "2", "--name", "job"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            if "running" in line:
                break
        os.kill(process.pid, signal.SIGTERM)
        rest = process.stderr.read()
    assert process.wait() == 143
    assert "stopped by SIGTERM" in rest
    assert json.loads((tmp_path / "runs" / "job" / "status.json").read_text())["status"] == "Stopped"
