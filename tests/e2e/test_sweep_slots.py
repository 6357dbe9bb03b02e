"""When a trial's slot is free: once its workers have ended, with what it came to learnt, while its model is published."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx import job as jobs
from phalanx.errors import UserError
from phalanx.launch.supervise import Outcome
from phalanx.tuning.search import Search
from phalanx.tuning.sweep import Sweep

RANGES = {"eta": phalanx.Continuous(0.05, 0.5, "log")}
_PATIENCE_S = 60.0


def tuner(data: Path, output: Path, **more: Any) -> phalanx.Tuner:
    inputs = {"train": str(data / "train.csv"), "validation": str(data / "validation.csv")}
    settings = {"num_round": 5, "objective": "binary:logistic"}
    job = phalanx.TrainingJob(algorithm="xgboost", inputs=inputs, hyperparameters=settings)
    given: dict[str, Any] = {"ranges": RANGES, "max_jobs": 2, "max_parallel_jobs": 1, "early_stopping": "off", **more}
    return phalanx.Tuner(job, name="s", output=str(output), **given)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model was told and asked, in order."""
    seen: list[str] = []
    learn, propose = Search.learn, Search.propose

    def learning(self: Search, number: int, known: Any) -> None:
        seen.append(f"learn {number} {known.state}")
        learn(self, number, known)

    def proposing(self: Search, number: int) -> Any:
        seen.append(f"propose {number}")
        return propose(self, number)

    monkeypatch.setattr(Search, "learn", learning)
    monkeypatch.setattr(Search, "propose", proposing)
    return seen


def publishing(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Call `act` with the job's name before each publishing."""
    publish = jobs._Run._publish

    def acting(self: jobs._Run, outcome: Outcome) -> str | None:
        target = publish(self, outcome)
        act(self._request.name)
        return target

    monkeypatch.setattr(jobs._Run, "_publish", acting)


def test_the_next_trial_begins_while_a_model_is_published(
    cancer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    begun = threading.Event()
    in_time: list[bool] = []
    start = Sweep._start

    def starting(self: Sweep, trial: Any) -> None:
        start(self, trial)
        if trial.number == 1:
            begun.set()

    monkeypatch.setattr(Sweep, "_start", starting)
    publishing(monkeypatch, lambda name: in_time.append(begun.wait(_PATIENCE_S)))
    sweep = tuner(cancer, tmp_path)
    sweep.run(progress=False)
    assert in_time == [True, True]
    assert order[:3] == ["propose 0", "learn 0 Completed", "propose 1"]
    assert [trial.status for trial in sweep.trials()] == ["Completed"] * 2


def test_a_trial_whose_model_cannot_be_published_is_unlearnt(
    cancer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    def failing(name: str) -> None:
        if name.startswith("s-000"):
            raise UserError("the place for models is full")

    publishing(monkeypatch, failing)
    sweep = tuner(cancer, tmp_path)
    sweep.run(progress=False)
    assert [trial.status for trial in sweep.trials()] == ["Failed", "Completed"]
    assert [line for line in order if " 0" in line] == ["propose 0", "learn 0 Completed", "learn 0 Failed"]


@pytest.mark.parametrize("completion", [{"target": 0.0}, {"not_improving": 3}, {"on_convergence": True}])
def test_where_the_end_of_a_trial_may_end_the_sweep_it_is_waited_for(
    completion: dict[str, Any], cancer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    publishing(monkeypatch, lambda name: order.append(f"published {name[:5]}"))
    tuner(cancer, tmp_path, completion=phalanx.Completion(**completion)).run(progress=False)
    seen = [line for line in order if not line.startswith("learn")]
    assert seen == ["propose 0", "published s-000", "propose 1", "published s-001"]
