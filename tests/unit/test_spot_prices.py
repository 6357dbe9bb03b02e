"""What a job on spot workers cost, and what it saved."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import phalanx
from phalanx.contracts import Json
from phalanx.errors import UserError
from phalanx.storage import read_json
from phalanx.tracking import load_job
from phalanx.tracking.summary import rows_of

GOODPUT = {"wall_s": 4000.0, "training_s": 3000.0, "stall_s": 100.0, "lost_work_s": 400.0, "restart_s": 500.0, "goodput": 0.75}


def test_the_saving_counts_what_interruptions_cost() -> None:
    spot = phalanx.Spot(prices=(0.3, 1.0))
    found = spot.cost(2, 3600.0, GOODPUT, restarts=4)
    assert found is not None
    undisturbed_s = 3000 + 100 + 500 / 5
    assert found["spot"] == pytest.approx(2 * 0.3)
    assert found["on_demand"] == pytest.approx(2 * undisturbed_s / 3600)
    assert found["saved"] == pytest.approx(1 - 0.6 / (2 * undisturbed_s / 3600), abs=1e-4)


def test_without_prices_nothing_is_said() -> None:
    assert phalanx.Spot().cost(2, 3600.0, GOODPUT, restarts=0) is None


@pytest.mark.parametrize("prices", [(1.0,), (0.0, 1.0), ("a", 1.0), (math.nan, 1.0), (True, 1.0), 3.0, (1.0, math.inf)])
def test_prices_are_two_numbers_above_zero(prices: Json) -> None:
    with pytest.raises(UserError, match=r"spot\.prices=.* is not allowed: it must be two numbers above 0"):
        phalanx.Spot(prices=prices)


def test_the_record_of_a_job_says_what_it_cost(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("".join(f"{i % 7},{i % 5}\n" for i in range(60)))
    phalanx.TrainingJob(
        algorithm="kmeans",
        inputs={"train": phalanx.Channel(url=str(tmp_path / "train.csv"), content_type="text/csv;label_size=0")},
        hyperparameters={"k": 2},
        output=str(tmp_path),
        name="job",
        spot={"prices": [0.12, 0.40]},
    ).run(progress=False)
    status = read_json(str(tmp_path / "job" / "status.json"))
    assert status["cost"]["spot"] == pytest.approx(status["billable_seconds"] / 3600 * 0.12, abs=1e-6)
    assert 0 < status["cost"]["spot"] < status["cost"]["on_demand"]
    (cost,) = [value for name, value in rows_of(load_job(str(tmp_path / "job"))) if name == "cost"]
    assert cost.endswith("% saved)")
