"""Trials that share their data: the same bytes as jobs alone, nothing left behind, killed at random."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import phalanx
from phalanx import registry, shared
from phalanx.algorithms.xgboost import shared as xgboost_shared
from phalanx.algorithms.xgboost.hyperparameters import XGBoostHyperparameters
from phalanx.contracts import Json
from phalanx.data.channel import Channel
from phalanx.testing.launcher_checks import descendants

RANGES: dict[str, dict[str, Any]] = {
    "xgboost": {"eta": phalanx.Continuous(0.05, 0.5, "log"), "max_bin": phalanx.Categorical([256, 16])},
    "linear_learner": {"mini_batch_size": phalanx.Integer(20, 200)},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "xgboost": {"num_round": 5, "objective": "binary:logistic", "subsample": 0.8},
    "linear_learner": {"predictor_type": "binary_classifier", "epochs": 2},
}


def job_of(algorithm: str, data: Path) -> phalanx.TrainingJob:
    inputs = {"train": str(data / "train.csv"), "validation": str(data / "validation.csv")}
    return phalanx.TrainingJob(algorithm=algorithm, inputs=inputs, hyperparameters=SETTINGS[algorithm])


@pytest.mark.parametrize("algorithm", ["xgboost", "linear_learner"])
def test_a_trial_learns_the_bytes_of_a_job_alone(algorithm: str, cancer: Path, tmp_path: Path) -> None:
    job = job_of(algorithm, cancer)
    sweep = phalanx.Tuner(
        job, name="s", output=str(tmp_path), ranges=RANGES[algorithm], max_jobs=3, max_parallel_jobs=2, early_stopping="off"
    )
    sweep.run(progress=False)
    for trial in sweep.trials():
        told = json.loads((tmp_path / "s" / trial.job / "job.json").read_text())["hyperparameters"]
        alone = replace(job, hyperparameters=told, output=str(tmp_path / "alone"), name=trial.job, threads_per_worker=2)
        artifact = alone.run(progress=False).artifact
        assert artifact is not None
        assert trial.artifact is not None
        assert Path(artifact).read_bytes() == Path(trial.artifact).read_bytes()


@pytest.fixture
def emptied() -> Iterator[None]:
    """Whatever a test keeps in this process for workers that share is forgotten again."""
    yield
    shared._kept.channels = {}
    xgboost_shared._kept.channels, xgboost_shared._kept.matrices = {}, {}


def payload_of(data: Path) -> Json:
    inputs = {name: {"url": str(data / f"{name}.csv")} for name in ("train", "validation")}
    return {"algorithm": "xgboost", "hyperparameters": SETTINGS["xgboost"], "inputs": inputs, "seed": 3}


def test_channels_are_shared_by_whoever_asks_for_the_same(cancer: Path, tmp_path: Path, emptied: None) -> None:
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_bytes((cancer / f"{name}.csv").read_bytes())
    payload = payload_of(tmp_path)
    inputs = {name: Channel(**given) for name, given in payload["inputs"].items()}
    assert shared.channels_of(inputs, algorithm="xgboost", seed=3, columns=None) is None
    shared.prepare(payload)
    kept = shared.channels_of(inputs, algorithm="xgboost", seed=3, columns=None)
    assert kept is not None
    assert list(kept) == ["train", "validation"]
    assert shared.channels_of(inputs, algorithm="linear_learner", seed=3, columns=None) is None
    assert shared.channels_of(inputs, algorithm="xgboost", seed=4, columns=None) is None
    assert shared.channels_of({"train": inputs["train"]}, algorithm="xgboost", seed=3, columns=None) is None
    with (tmp_path / "train.csv").open("ab") as file:
        file.write((tmp_path / "validation.csv").read_bytes().splitlines(keepends=True)[0])
    assert shared.channels_of(inputs, algorithm="xgboost", seed=3, columns=None) is None


def test_matrices_are_shared_by_settings_that_read_the_same(cancer: Path, emptied: None) -> None:
    shared.prepare(payload_of(cancer))
    channels = dict(shared._kept.channels)
    given: dict[str, Any] = {"num_round": 9, "objective": "binary:logistic"}
    found = xgboost_shared.find(channels, XGBoostHyperparameters(**given, max_depth=3), quantile=True)
    assert found is not None
    assert found[0]["train"].num_row() == channels["train"].rows
    assert xgboost_shared.find(channels, XGBoostHyperparameters(**given, max_bin=16), quantile=True) is None
    regression = XGBoostHyperparameters(num_round=9, objective="reg:squarederror")
    assert xgboost_shared.find(channels, regression, quantile=True) is None
    assert xgboost_shared.find({"train": channels["train"]}, XGBoostHyperparameters(**given), quantile=True) is None
    assert registry.entry("xgboost").prepares == f"{xgboost_shared.__name__}:prepare"


@pytest.mark.parametrize(
    ("url", "more", "may"),
    [
        ("train.csv", {}, True),
        ("train.csv", {"mode": "stream"}, False),
        ("train.csv", {"content_type": "application/x-parquet"}, False),
        ("memory://train.csv", {}, False),
    ],
)
def test_what_may_be_shared(url: str, more: dict[str, Any], may: bool, cancer: Path) -> None:
    place = url if "://" in url else str(cancer / url)
    assert shared.may_share({"train": Channel(url=place, **more)}) is may
    assert not shared.may_share({})


def left_behind() -> tuple[int, int, int, list[str]]:
    """Return threads, files, workers and entries of the temporary folder that this process has now."""
    workers = [process for process in descendants() if process.ppid() != os.getpid()]
    return threading.active_count(), psutil.Process().num_fds(), len(workers), os.listdir(tempfile.gettempdir())


def swept(data: Path, output: Path, name: str, trials: int) -> None:
    phalanx.Tuner(
        job_of("xgboost", data),
        name=name,
        output=str(output),
        ranges=RANGES["xgboost"],
        max_jobs=trials,
        max_parallel_jobs=2,
        strategy="random",
    ).run(progress=False)


@pytest.mark.parametrize("trials", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_is_left_behind(trials: int, cancer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    swept(cancer, tmp_path, "first", 3)  # starts the warm server
    gc.collect()
    before, memory = left_behind(), psutil.Process().memory_info().rss
    swept(cancer, tmp_path, "second", trials)
    gc.collect()
    after = left_behind()
    assert after == before
    assert after[2:] == (0, [])
    assert psutil.Process().memory_info().rss - memory < 64 << 20


def table(folder: Path) -> list[tuple[Any, ...]]:
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    return [(t["number"], t["values"], t["status"], t["objective"], t["stopped_at"]) for t in trials]


# a sweep that strikes itself: the driver at the n-th call of a method, and one worker as soon as it is born
STRUCK = """
import itertools, os, signal, sys
import phalanx
from phalanx.launch.prepared import PreparedLauncher
from phalanx.tuning.ledger import Ledger
from phalanx.tuning.view import SilentView

data, output, name, place, nth, born = sys.argv[1:]


def counted(holder, method, act, *, count, after):
    plain, calls = getattr(holder, method), itertools.count(1)

    def called(*args, **more):
        chosen = next(calls) == count
        if chosen and not after:
            act(None)
        result = plain(*args, **more)
        if chosen and after:
            act(result)
        return result

    setattr(holder, method, called)


def strike(_):
    os.kill(os.getpid(), signal.SIGKILL)


def worker(workers):
    os.kill(workers.members[0].pid, signal.SIGKILL)
    print("worker killed", flush=True)


if place != "nowhere":
    after, _, method = place.partition(" ")
    counted(SilentView if method == "finished" else Ledger, method, strike, count=int(nth), after=after == "after")
    counted(PreparedLauncher, "start", worker, count=int(born), after=True)
inputs = {part: f"{data}/{part}.csv" for part in ("train", "validation")}
settings = {"num_round": 60, "objective": "binary:logistic", "subsample": 0.7}
job = phalanx.TrainingJob(algorithm="xgboost", inputs=inputs, hyperparameters=settings)
phalanx.Tuner(
    job,
    name=name,
    output=output,
    ranges={"eta": phalanx.Continuous(0.05, 0.5)},
    max_jobs=10,
    max_parallel_jobs=2,
    deterministic=True,
    resume=os.path.exists(f"{output}/{name}"),
).run(progress=False)
"""
TRIALS = 10
PLACES = [f"{when} {what}" for what in ("begin", "finish", "finished") for when in ("before", "after")]


def swept_by(data: Path, output: Path, name: str, place: str, nth: int, born: int) -> subprocess.CompletedProcess[str]:
    given = [str(data), str(output), name, place, str(nth), str(born)]
    return subprocess.run([sys.executable, "-c", STRUCK, *given], capture_output=True, text=True)


@pytest.fixture(scope="module")
def undisturbed(cancer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    output = tmp_path_factory.mktemp("undisturbed")
    calm = swept_by(cancer, output, "wild", "nowhere", 0, 0)
    assert calm.returncode == 0, calm.stderr
    return table(output / "wild")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_killed_at_random(seed: int, cancer: Path, tmp_path: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    """Three drivers and a worker of each are killed, where the dice say; the table is that of an undisturbed sweep."""
    dice = random.Random(seed)
    for place in dice.sample(PLACES, 3):
        begun = "begin" in place  # before a trial has begun there may be no worker yet; before one is finished there was
        found = swept_by(cancer, tmp_path, "wild", place, dice.randint(1, 3), dice.randint(1, 2) if begun else 1)
        assert found.returncode == -signal.SIGKILL, found.stderr
        assert begun or "worker killed" in found.stdout
    last = swept_by(cancer, tmp_path, "wild", "nowhere", 0, 0)
    assert last.returncode == 0, last.stderr
    assert table(tmp_path / "wild") == undisturbed
    assert len(list((tmp_path / "wild").glob("wild-*"))) == TRIALS
