"""The command line as a user sees it: output, exit codes, signals, orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

LABELLED = "text/csv;label_size=1"


def phalanx(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phalanx.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100, check=False)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "phalanx.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def endless(data: Path, output: Path) -> list[str]:
    settings = ["--set", "k=10", "--set", "mini_batch_size=500", "--set", "epochs=1000000"]
    where = ["--train", str(data / "train.csv"), "--content-type", LABELLED, "--output", str(output), "--name", "job"]
    return ["train", "kmeans", *where, *settings, "--workers", "2"]


def wait_for_steps(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            return
    pytest.fail(f"the job ended before its first step: {process.wait()}")


def status_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())  # type: ignore[no-any-return]


def test_train_then_predict(cancer: Path, tmp_path: Path) -> None:
    trained = phalanx(
        *("train", "xgboost", "--train", str(cancer / "train.csv"), "--validation", str(cancer / "validation.csv")),
        *("--set", "num_round=10", "--set", "objective=binary:logistic", "--workers", "2"),
        *("--output", str(tmp_path), "--name", "demo"),
    )
    assert trained.returncode == 0, trained.stderr
    assert "Completed" in trained.stdout
    assert str(tmp_path / "demo" / "model.tar.gz") in trained.stdout
    answers = tmp_path / "answers.jsonl"
    arguments = ["--input", str(cancer / "test-features.csv"), "--accept", "application/jsonlines", "--output", str(answers)]
    predicted = phalanx("predict", str(tmp_path / "demo" / "model.tar.gz"), "--json", *arguments)
    assert predicted.returncode == 0, predicted.stderr
    scores = [json.loads(line)["score"] for line in answers.read_text().splitlines()]
    assert json.loads(predicted.stdout) == {"output": str(answers), "answers": len(scores)}
    assert len(scores) == len((cancer / "test-features.csv").read_text().splitlines())
    assert all(0 <= score <= 1 for score in scores)


def test_a_job_file_runs_and_its_schema_is_printed(digits: Path, tmp_path: Path) -> None:
    job = {
        "algorithm": "kmeans",
        "inputs": {"train": {"url": str(digits / "train.csv"), "content_type": LABELLED}},
        "hyperparameters": {"k": 4},
        "output": str(tmp_path),
        "name": "from-file",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    ran = phalanx("run", str(tmp_path / "job.yaml"), "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["result"]["status"] == "Completed"
    schema = json.loads(phalanx("run", "--schema").stdout)
    assert set(job) <= set(schema["properties"])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "worker": 2}))
    wrong = phalanx("run", str(tmp_path / "job.yaml"))
    assert wrong.returncode == 2
    assert "did you mean 'workers'" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "xgbost", "--train", "x.csv"], "did you mean 'xgboost'"),
        (["train", "kmeans", "--train", "x.csv", "--set", "k=2"], "no file at x.csv"),
        (["train", "kmeans", "--train", "x.csv", "--set", "k"], "NAME=VALUE"),
        (["train", "kmeans", "--train", "x.csv", "--set", "k=2", "--max-runtime", "soon"], "duration"),
        (["train", "kmeans", "--wokers", "2"], "--wokers"),
        (["predict", "nothing.tar.gz", "--input", "x.csv"], "nothing.tar.gz"),
        (["run", "nothing.yaml"], "no job file"),
        (["algorithms", "kmens"], "did you mean 'kmeans'"),
        (["predict", "nothing.tar.gz", "--input", "x.csv", "--json"], "--output"),
        (["sample-data", "irises", "folder"], "iris"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    ran = phalanx(*arguments, cwd=tmp_path)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.rglob("model.tar.gz"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("1,2\n3\n")
    arguments = ["train", "kmeans", "--train", "train.csv", "--content-type", LABELLED, "--set", "k=1"]
    quiet, loud = phalanx(*arguments, cwd=tmp_path), phalanx(*arguments, "--debug", cwd=tmp_path)
    assert quiet.returncode == loud.returncode == 2
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_algorithms_describes_every_hyperparameter() -> None:
    listed = json.loads(phalanx("algorithms", "--json").stdout)
    assert {"kmeans", "xgboost"} <= {a["name"] for a in listed}
    described = json.loads(phalanx("algorithms", "kmeans", "--json").stdout)["hyperparameters"]
    by_name = {h["name"]: h for h in described}
    assert by_name["k"]["required"] is True
    assert by_name["mini_batch_size"]["default"] == 5000
    assert "mini_batch_size" in phalanx("algorithms", "kmeans").stdout


def test_sample_data_names_its_files(tmp_path: Path) -> None:
    listed = json.loads(phalanx("sample-data", "iris", str(tmp_path), "--json").stdout)
    assert sorted(entry["file"] for entry in listed) == sorted(str(path) for path in tmp_path.iterdir())
    assert all(entry["holds"] for entry in listed)


def test_env_reports_versions_and_extras() -> None:
    report = json.loads(phalanx("env", "--json").stdout)
    assert report["versions"]["torch"]
    assert {e["name"] for e in report["extras"]} >= {"xgboost", "ray", "deepspeed", "horovod", "tune", "s3"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_job_in_order(digits: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    with start(*endless(digits, tmp_path)) as process:
        wait_for_steps(process)
        workers = [w["pid"] for w in status_of(tmp_path / "job")["workers"]]
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    status = status_of(tmp_path / "job")
    assert status["status"] == "Stopped"
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_killing_the_parent_ends_every_worker(digits: Path, tmp_path: Path) -> None:
    with start(*endless(digits, tmp_path)) as process:
        wait_for_steps(process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3  # the warm server and two workers
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive


def test_importing_phalanx_loads_no_torch() -> None:
    code = "import sys, phalanx; assert not {'torch', 'numpy', 'fsspec', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_script_without_a_main_guard_runs(digits: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import phalanx\n"
        f"channel = phalanx.Channel(url={str(digits / 'train.csv')!r}, content_type={LABELLED!r})\n"
        "job = phalanx.TrainingJob(algorithm='kmeans', inputs={'train': channel}, hyperparameters={'k': 3}, workers=2,\n"
        f"                          output={str(tmp_path)!r}, name='plain')\n"
        "print(job.run(progress=False).status)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert ran.stdout == "Completed\n", ran.stderr
