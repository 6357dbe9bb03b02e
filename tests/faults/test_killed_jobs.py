"""Workers and drivers that are killed without notice, at every phase of a job: the model is that of the undisturbed run.

The long matrix, at random times, over more strategies, workers and an object store: `python benchmarks/faults.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import phalanx
from phalanx.data.samples import write_sample
from phalanx.errors import PlatformError
from phalanx.testing.killing import Killer

# Long enough for kills to come before their end: a step takes a few milliseconds, and the killer hears of it 20 ms later
KINDS: dict[str, dict[str, Any]] = {
    "kmeans": {"k": 10, "mini_batch_size": 60, "epochs": 20, "extra_center_factor": 2},
    "xgboost": {"num_round": 24, "objective": "multi:softprob", "num_class": 10, "max_depth": 3, "subsample": 0.7},
    "linear_learner": {
        "predictor_type": "multiclass_classifier",
        "num_classes": 10,
        "optimizer": "adam",
        "num_models": 1,
        "epochs": 20,
        "mini_batch_size": 100,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_sample("digits", folder)
    return folder


def job(kind: str, data: Path, output: Path, name: str, **how: Any) -> phalanx.TrainingJob:
    channel = phalanx.Channel(url=str(data / "train.csv"), content_type="text/csv;label_size=1")
    defaults = {"workers": 2, "checkpoint_every": 3, "max_restarts": 3, "threads_per_worker": 1, "seed": 5}
    return phalanx.TrainingJob(
        algorithm=kind,
        inputs={"train": channel},
        hyperparameters=KINDS[kind],
        output=str(output),
        name=name,
        **{**defaults, **how},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Return the artifact of an undisturbed job, made once a kind."""
    output = tmp_path_factory.mktemp("whole")

    def made(kind: str) -> bytes:
        if not (output / kind).exists():
            job(kind, data, output, kind, checkpoint_every="never").run(progress=False)
        return (output / kind / "model.tar.gz").read_bytes()

    return made


# `Uploading` comes when the workers have ended: there is nobody to kill, and nothing may go wrong
PLACES: list[tuple[str | int, ...]] = [("Downloading",), ("Training", 1), (4, 10), (7, "Training"), ("Uploading",)]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("places", PLACES, ids=lambda places: "-".join(map(str, places)))
def test_killed_workers_cost_nothing(
    kind: str,
    places: tuple[str | int, ...],
    case: Callable[[], None],
    data: Path,
    tmp_path: Path,
    whole: Callable[[str], bytes],
) -> None:
    ranks = (0, 1) if places == (4, 10) else (1,)
    killer = Killer(tmp_path / "job", places, ranks)
    result = job(kind, data, tmp_path, "job").run(progress=killer)
    case()
    assert result.status == "Completed"
    assert bool(killer.killed) == (places != ("Uploading",))
    assert (tmp_path / "job" / "model.tar.gz").read_bytes() == whole(kind)
    assert result.restarts == (0 if not killer.killed else len(places))
    lines = (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, result.step + 1))


SCRIPT = """
import torch, phalanx
from torch import nn

session = phalanx.session()
torch.manual_seed(1)
inputs, target = torch.randn(240, 6), torch.randint(0, 3, (240,))
layers = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)]
trainer = phalanx.Trainer(
    nn.Sequential(*layers), nn.functional.cross_entropy, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
)
trainer.fit((inputs, target), epochs=1, batch_size=24)
trainer.export()
"""


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gradients_of_four_ranks_are_added_as_before(compiled: bool, case: Callable[[], None], tmp_path: Path) -> None:
    """With three ranks and more the order of addition matters: it must not depend on when an attempt began."""
    (tmp_path / "train.py").write_text(SCRIPT.replace("optimizer=", "compile=True, optimizer=") if compiled else SCRIPT)

    def made(name: str, progress: Killer | bool) -> bytes:
        phalanx.TrainingJob(
            script=str(tmp_path / "train.py"),
            workers=4,
            threads_per_worker=1,
            strategy="ddp",
            output=str(tmp_path),
            name=name,
            checkpoint_every=3,
            max_restarts=1,
        ).run(progress=progress)
        return (tmp_path / name / "model.tar.gz").read_bytes()

    killer = Killer(tmp_path / "killed", (5,), (1,))
    assert made("killed", killer) == made("whole", False)
    case()
    assert len(killer.killed) == 1


def test_more_kills_than_restarts_publish_nothing(case: Callable[[], None], data: Path, tmp_path: Path) -> None:
    killer = Killer(tmp_path / "job", (2, 5))
    with pytest.raises(PlatformError, match="killed by SIGKILL"):
        job("kmeans", data, tmp_path, "job", max_restarts=1).run(progress=killer)
    case()
    assert len(killer.killed) == 2
    assert not (tmp_path / "job" / "model.tar.gz").exists()
    assert json.loads((tmp_path / "job" / "status.json").read_text())["status"] == "Failed"


def test_a_killed_driver_is_gone_on_from(
    case: Callable[[], None], data: Path, tmp_path: Path, whole: Callable[[str], bytes]
) -> None:
    """The process that launched the job dies: its workers end, and `--resume` goes on as if nothing had happened."""
    settings = [word for name, value in KINDS["kmeans"].items() for word in ("--set", f"{name}={value}")]
    channel = f"train={data / 'train.csv'},content_type=text/csv;label_size=1"
    command = [sys.executable, "-m", "phalanx.cli", "train", "kmeans", "--channel", channel, *settings]
    command += ["--workers", "2", "--threads-per-worker", "1", "--seed", "5", "--checkpoint-every", "3"]
    command += ["--output", str(tmp_path), "--name", "job"]
    metrics = tmp_path / "job" / "metrics.jsonl"
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert driver.stdout is not None
    for _ in driver.stdout:  # a line a step, and what goes before
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 5:
            break
    pids = [worker["pid"] for worker in json.loads((tmp_path / "job" / "status.json").read_text())["workers"]]
    os.kill(driver.pid, signal.SIGKILL)
    driver.stdout.read()
    driver.wait()
    driver.stdout.close()
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert not left, "workers do not outlive the driver"
    case()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert (tmp_path / "job" / "model.tar.gz").read_bytes() == whole("kmeans")
