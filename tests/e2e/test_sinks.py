"""Metrics in TensorBoard, MLflow and Weights & Biases, read back with their own libraries; sinks that fail leave jobs alone."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx.errors import AlgorithmError, UserError
from phalanx.tracking import load_job, sinks

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow 3.17
SCRIPT = """
import sys
import phalanx
session = phalanx.session()
begin = session.restore({}) or 0
for step in range(begin + 1, int(sys.argv[1]) + 1):
    session.report(step, {"train:loss": 1 / step, "validation:loss": float("nan") if step == 2 else 2 / step})
if len(sys.argv) > 2:
    raise ValueError("as it was told")
"""
WANTED = [(step, 1 / step) for step in range(1, 6)]


class Told:
    """Keeps what a job says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, name: str, headline: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...

    def status(self, secondary: str, message: str) -> None:
        if secondary == "Sinks":
            self.lines.append(message)


def _job(tmp_path: Path, *given: str, steps: int = 5, more: Sequence[str] = (), **fields: Any) -> phalanx.TrainingJob:
    (tmp_path / "train.py").write_text(SCRIPT)
    return phalanx.TrainingJob(
        script=str(tmp_path / "train.py"), arguments=[str(steps), *more], hyperparameters={}, output=str(tmp_path / "runs"),
        name="one", sinks=given, **fields,
    )  # fmt: skip


def _tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    assert "validation/loss" in found.Tags()["scalars"]
    return [(point.step, point.value) for point in found.Scalars("train/loss")]


def test_tensorboard(tmp_path: Path) -> None:
    _job(tmp_path, "tensorboard").run(progress=False)
    found = _tensorboard(tmp_path / "runs" / "one" / "tensorboard")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert all(math.isclose(value, 1 / step, rel_tol=1e-6) for step, value in found)


def test_a_resumed_job_goes_on_with_its_run_in_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'tracked.db'}"
    given = f"mlflow:uri={uri},experiment=digits"
    with pytest.raises(AlgorithmError, match="as it was told"):
        _job(tmp_path, given, steps=3, more=["fail"], checkpoint_every=1).run(progress=False)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("one", "FAILED")
    _job(tmp_path, given, checkpoint_every=1, resume=True).run(progress=False)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["workers"] == "1"
    points = client.get_metric_history(run.info.run_id, "train:loss")
    assert sorted((point.step, point.value) for point in points) == WANTED


def test_mlflow_beside_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _job(tmp_path, "mlflow").run(progress=False)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("phalanx")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["train:loss"] == 0.2


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: after 7 bytes LevelDB's log format, blocks of 32 KiB, headers of 7 bytes."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last part
            yield record
            record = b""


def test_wandb_offline(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    _job(tmp_path, "wandb:project=digits").run(progress=False)
    (path,) = (tmp_path / "runs" / "one").glob("wandb/offline-run-*/run-*.wandb")
    found = []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "train:loss" in values:
            found.append((values["_step"], values["train:loss"]))
    assert found == WANTED


class Broken:
    """A sink that fails, or hangs, where it is told to."""

    def __init__(self, options: Mapping[str, str], folder: Path, output: str) -> None:
        self._where = options["where"]
        self.released = threading.Event()

    def begin(self, job: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._fail("begin")

    def write(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        self._fail("write")

    def end(self, status: str) -> None:
        self._fail("end")

    def _fail(self, here: str) -> Mapping[str, Any]:
        if self._where == here:
            raise ConnectionError("nobody answers")
        if self._where == "hang":
            HANGING.wait()
        return {}


HANGING = threading.Event()


@pytest.mark.parametrize("where", ["begin", "write", "end"])
def test_a_broken_sink_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(sinks, "SINKS", {**sinks.SINKS, "broken": sinks.Kind(Broken, "json", "test", {"where": None})})
    told = Told()
    result = _job(tmp_path, f"broken:where={where}", "tensorboard").run(progress=told)
    assert result.status == "Completed"
    assert told.lines == ["the sink broken has failed and gets no more: ConnectionError: nobody answers"]
    assert len(_tensorboard(tmp_path / "runs" / "one" / "tensorboard")) == 5


def test_a_sink_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "SINKS", {"broken": sinks.Kind(Broken, "json", "test", {"where": None})})
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.1)
    told = Told()
    try:
        result = _job(tmp_path, "broken:where=hang").run(progress=told)
    finally:
        HANGING.set()
    assert result.status == "Completed"
    assert told.lines == ["the sink broken did not end in 0 s; it may lack the last metrics"]
    assert len(load_job(result.folder).curves()["train:loss"].values) == 5


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["tensorbord"], "did you mean 'tensorboard'"),
        (["tensorboard:dir=x"], "does not take 'dir=x'; options: folder"),
        (["mlflow:uri=runs"], "takes no folder"),
        (["wandb:mode=shared"], "no mode 'shared'"),
        (["wandb", "wandb:project=x"], "can be given once"),
        ("wandb", "must be a list"),
    ],
)
def test_sinks_that_are_not_allowed(tmp_path: Path, given: Any, why: str) -> None:
    job = _job(tmp_path)
    job.sinks = given
    with pytest.raises(UserError, match=why):
        job.run(progress=False)
    assert not (tmp_path / "runs").exists()
