"""Jobs that are killed, interrupted and stopped go on from their checkpoints, and end with the same bytes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phalanx
from phalanx.data.samples import write_sample
from phalanx.errors import PlatformError, Stopped, UserError

SCRIPT = """
import torch, phalanx
from torch import nn

session = phalanx.session()
torch.manual_seed(1)
inputs, target = torch.randn(240, 6), torch.randint(0, 3, (240,))
trainer = phalanx.Trainer(
    nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Linear(16, 3)),
    nn.functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99),
)
trainer.fit((inputs, target), epochs=12, batch_size=16)
trainer.export()
"""


class At:
    """A progress that acts once, when a step is reported."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self._step, self._act, self.done = step, act, False

    def started(self, name: str, headline: str) -> None: ...
    def status(self, secondary: str, message: str) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        if step >= self._step and not self.done:
            self.done = True
            self._act()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_sample("digits", folder)
    (folder / "train.py").write_text(SCRIPT)
    return folder


def job(kind: str, data: Path, output: Path, name: str, **how: Any) -> phalanx.TrainingJob:
    channel = phalanx.Channel(url=str(data / "train.csv"), content_type="text/csv;label_size=1")
    given: dict[str, Any] = {
        "kmeans": {
            "algorithm": "kmeans",
            "inputs": {"train": channel},
            "hyperparameters": {"k": 10, "mini_batch_size": 60, "epochs": 6, "extra_center_factor": 2},
        },
        "xgboost": {
            "algorithm": "xgboost",
            "inputs": {"train": channel},
            "hyperparameters": {
                "num_round": 40,
                "objective": "multi:softprob",
                "num_class": 10,
                "max_depth": 3,
                "subsample": 0.7,
                "colsample_bytree": 0.8,
            },
        },
        "script": {"script": str(data / "train.py")},
    }[kind]
    defaults = {"workers": 2, "output": str(output), "name": name, "checkpoint_every": 5, "seed": 3, "threads_per_worker": 1}
    return phalanx.TrainingJob(**{**given, **defaults, **how})


def pids(output: Path, name: str) -> list[int]:
    status = json.loads((output / name / "status.json").read_text())
    return [worker["pid"] for worker in status["workers"]]


def artifact(output: Path, name: str) -> bytes:
    return (output / name / "model.tar.gz").read_bytes()


def steps_of(output: Path, name: str) -> list[int]:
    lines = (output / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Return the artifact of an uninterrupted job, made once a kind; without checkpoints, so that taking them is seen to change
    nothing.
    """
    output = tmp_path_factory.mktemp("whole")

    def made(kind: str) -> bytes:
        if not (output / kind).exists():
            job(kind, data, output, kind, checkpoint_every="never").run(progress=False)
        return artifact(output, kind)

    return made


@pytest.mark.parametrize("kind", ["kmeans", "xgboost", "script"])
def test_a_killed_worker_costs_nothing(kind: str, data: Path, tmp_path: Path, whole: Callable[[str], bytes]) -> None:
    killed = At(13, lambda: os.kill(pids(tmp_path, "job")[1], signal.SIGKILL))
    result = job(kind, data, tmp_path, "job", max_restarts=1).run(progress=killed)
    assert killed.done
    assert (result.status, result.restarts) == ("Completed", 1)
    assert artifact(tmp_path, "job") == whole(kind)
    assert steps_of(tmp_path, "job") == list(range(1, result.step + 1))
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["resumed_from_step"] % 5 == 0
    assert status["goodput"]["lost_work_s"] >= 0
    assert 0 < status["goodput"]["goodput"] <= 1


@pytest.mark.parametrize("kind", ["kmeans", "xgboost", "script"])
def test_a_stopped_job_is_resumed(kind: str, data: Path, tmp_path: Path, whole: Callable[[str], bytes]) -> None:
    running = job(kind, data, tmp_path, "job", checkpoint_every="auto")
    with pytest.raises(Stopped) as stopped:
        running.run(progress=At(7, running.stop))
    assert stopped.value.result.step >= 7
    assert stopped.value.result.artifact is None
    result = job(kind, data, tmp_path, "job", resume=True).run(progress=False)
    assert result.status == "Completed"
    assert artifact(tmp_path, "job") == whole(kind)
    assert steps_of(tmp_path, "job") == list(range(1, result.step + 1))
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["resumed_from_step"] == stopped.value.result.step
    with pytest.raises(UserError, match="has completed: there is nothing to resume"):
        job(kind, data, tmp_path, "job", resume=True).run(progress=False)


def test_an_interruption_is_no_failure(data: Path, tmp_path: Path, whole: Callable[[str], bytes]) -> None:
    """SIGTERM to a worker: it saves at the next step, and the group starts again out of the budget for interruptions."""
    taken = At(9, lambda: os.kill(pids(tmp_path, "job")[0], signal.SIGTERM))
    result = job("kmeans", data, tmp_path, "job", checkpoint_every="1h", spot={"max_restarts": 1}).run(progress=taken)
    assert (result.status, result.restarts) == ("Completed", 1)
    assert artifact(tmp_path, "job") == whole("kmeans")
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["resumed_from_step"] >= 9, "saved on the signal, not by the clock"
    assert "Interrupted" in [t["status"] for t in status["transitions"]]
    taken = At(9, lambda: os.kill(pids(tmp_path, "none")[0], signal.SIGTERM))
    with pytest.raises(PlatformError, match="interrupted from outside"):
        job("kmeans", data, tmp_path, "none", spot=phalanx.Spot(max_restarts=0)).run(progress=taken)


@pytest.mark.parametrize("workers", [1, 3])
def test_another_number_of_workers_goes_on(workers: int, data: Path, tmp_path: Path, whole: Callable[[str], bytes]) -> None:
    """k-means is the same to the bit on any number of workers, also when that changes on the way."""
    running = job("kmeans", data, tmp_path, "job")
    with pytest.raises(Stopped):
        running.run(progress=At(11, running.stop))
    job("kmeans", data, tmp_path, "job", resume=True, workers=workers).run(progress=False)
    assert artifact(tmp_path, "job") == whole("kmeans")


@pytest.mark.slow
def test_a_script_ends_with_the_same_bytes_on_other_workers(data: Path, tmp_path: Path) -> None:
    """Strategy exact: one worker from beginning to end, and two that are stopped and gone on with by three."""
    job("script", data, tmp_path, "one", elastic="exact", micro_batches=6, workers=1).run(progress=False)
    running = job("script", data, tmp_path, "job", elastic="exact", micro_batches=6, workers=2)
    with pytest.raises(Stopped):
        running.run(progress=At(30, running.stop))
    job("script", data, tmp_path, "job", elastic="exact", micro_batches=6, workers=3, resume=True).run(progress=False)
    assert artifact(tmp_path, "job") == artifact(tmp_path, "one")


def test_a_damaged_checkpoint_is_passed_over(data: Path, tmp_path: Path, whole: Callable[[str], bytes]) -> None:
    running = job("kmeans", data, tmp_path, "job")
    with pytest.raises(Stopped):
        running.run(progress=At(21, running.stop))
    newest = max((p for p in (tmp_path / "job" / "checkpoints").iterdir()), key=lambda p: int(p.name))
    for path in newest.rglob("*.safetensors"):
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        content[-1] ^= 1
        path.write_bytes(content.tobytes())
    job("kmeans", data, tmp_path, "job", resume=True).run(progress=False)
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert [passed["step"] for passed in status["passed_over"]] == [int(newest.name)]
    assert "damaged" in status["passed_over"][0]["why"]
    assert status["resumed_from_step"] < int(newest.name)
    assert artifact(tmp_path, "job") == whole("kmeans")


def test_checkpoints_of_their_own_place_and_mistakes(data: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "elsewhere")
    running = job("kmeans", data, tmp_path, "job", checkpoints=place)
    with pytest.raises(Stopped):
        running.run(progress=At(6, running.stop))
    assert not (tmp_path / "job" / "checkpoints").exists()
    with pytest.raises(UserError, match=r"there are checkpoints of a job 'job'.*go on from them with resume"):
        job("kmeans", data, tmp_path / "other", "job", checkpoints=place).run(progress=False)
    for how, message in (
        ({"checkpoint_every": "soon"}, "checkpoints every 'soon'"),
        ({"keep": 0}, "each must be 1 or more"),
        ({"keep": {"lats": 1}}, "keep has no field 'lats'; did you mean 'last'"),
        ({"spot": {"grace": 1}}, "spot has no field 'grace'; did you mean 'grace_s'"),
        ({"resume": True, "name": None}, "give the name of the job"),
        ({"resume": True, "checkpoint_every": "never"}, "resume needs checkpoints"),
    ):
        with pytest.raises(UserError, match=message):
            job("kmeans", data, tmp_path, **{"name": "wrong", **how}).run(progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "xgboost", "elastic": "exact"}, "depends on the number of workers.*kmeans"),
        ({"kind": "kmeans", "elastic": "loose"}, "elastic must be 'exact'"),
        ({"kind": "script", "elastic": "exact", "micro_batches": 5}, "no multiple of workers=2"),
        ({"kind": "script", "elastic": "exact", "strategy": "zero2"}, "leave one out"),
    ],
)
def test_what_cannot_be_elastic_is_told_before_anything_starts(
    given: dict[str, Any], told: str, data: Path, tmp_path: Path
) -> None:
    how = {key: value for key, value in given.items() if key != "kind"}
    with pytest.raises(UserError, match=told):
        job(given["kind"], data, tmp_path, "job", **how).run(progress=False)
    assert not (tmp_path / "job").exists()


FALLS_AT_SEVEN = """
import os, signal
import phalanx

session = phalanx.session()
first = session.restore({}) + 1
for step in range(first, 10):
    if first == 1 and step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    session.report(step, {"loss": 1 / step})
"""


def test_the_step_gone_on_from_is_recorded_though_the_driver_had_not_heard_of_it(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(FALLS_AT_SEVEN)
    job = phalanx.TrainingJob(script=str(script), output=str(tmp_path), name="job", checkpoint_every=2)
    with pytest.raises(PlatformError):
        job.run(progress=False)
    saved = max(int(entry.name) for entry in (tmp_path / "job" / "checkpoints").iterdir() if entry.name.isdigit())
    metrics = tmp_path / "job" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[: saved - 1]))  # as of a driver that was killed while its worker went on
    assert replace(job, resume=True).run(progress=False).status == "Completed"
    found = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [entry["step"] for entry in found] == list(range(1, 10))
    assert found[saved - 1]["loss"] == pytest.approx(1 / saved)
