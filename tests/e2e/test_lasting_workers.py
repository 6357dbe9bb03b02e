"""Jobs that follow each other in one process learn the bytes of a fresh one, and are stopped and logged one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx import registry
from phalanx.launch.warm import close_servers

LABELLED = "text/csv;label_size=1"
JOBS: dict[str, list[dict[str, Any]]] = {
    "xgboost": [
        {"num_round": 5, "objective": "binary:logistic", "subsample": 0.7, "tree_method": "approx"},
        {"num_round": 20, "objective": "binary:logistic", "subsample": 0.5, "colsample_bytree": 0.6},
        {"num_round": 6, "objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3},
    ],
    "kmeans": [{"k": 3, "mini_batch_size": 100}, {"k": 10, "mini_batch_size": 50, "init_method": "kmeans++"}],
    "linear_learner": [
        {"predictor_type": "binary_classifier", "epochs": 2},
        {"predictor_type": "binary_classifier", "epochs": 1, "mini_batch_size": 30},
    ],
    "random_cut_forest": [{"num_trees": 60}, {"num_trees": 50, "num_samples_per_tree": 128}],
    "factorization_machines": [
        {"predictor_type": "binary_classifier", "num_factors": 4, "epochs": 2},
        {"predictor_type": "binary_classifier", "num_factors": 8, "epochs": 1},
    ],
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """No server, and so no worker, before or after."""
    close_servers()
    yield
    close_servers()


def job_of(algorithm: str, settings: dict[str, Any], data: Path, output: Path, name: str, **more: Any) -> phalanx.TrainingJob:
    url = str(data / "train.csv")
    labelled = algorithm in ("kmeans", "random_cut_forest")
    train = phalanx.Channel(url=url, content_type=LABELLED) if labelled else phalanx.Channel(url=url)
    given: dict[str, Any] = {"inputs": {"train": train}, "hyperparameters": settings, "output": str(output), "name": name}
    return phalanx.TrainingJob(algorithm=algorithm, **given, **more)


def process_of(folder: Path) -> int:
    return int(json.loads((folder / "status.json").read_text())["workers"][0]["pid"])


def test_which_algorithms_last() -> None:
    assert {name for name, entry in registry.ALGORITHMS.items() if entry.lasts} == set(JOBS)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("algorithm", sorted(JOBS))
def test_a_job_after_another_learns_the_bytes_of_one_in_a_fresh_process(algorithm: str, cancer: Path, tmp_path: Path) -> None:
    alone = {}
    for number, settings in enumerate(JOBS[algorithm]):
        close_servers()
        result = job_of(algorithm, settings, cancer, tmp_path, f"alone-{number}", seed=number).run(progress=False)
        alone[number] = Path(str(result.artifact)).read_bytes()
    close_servers()
    order = [*alone, *reversed(alone)]
    processes = set()
    for place, number in enumerate(order):
        job = job_of(algorithm, JOBS[algorithm][number], cancer, tmp_path, f"row-{place}", seed=number)
        result = job.run(progress=False)
        assert Path(str(result.artifact)).read_bytes() == alone[number]
        processes.add(process_of(tmp_path / f"row-{place}"))
    assert len(processes) == 1
