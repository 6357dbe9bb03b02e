"""All rules watch a good run of every built-in algorithm, and find nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phalanx
from phalanx.tracking import load_job


@dataclass(frozen=True)
class Run:
    """A training that goes well."""

    algorithm: str
    data: Callable[[Path], Mapping[str, str]]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1


def _table(folder: Path, name: str, rows: int, kind: str, seed: int) -> str:
    """Write rows whose label a linear model learns, but for some noise; `kind` is what the label is."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 12))
    weights = np.random.default_rng(0).normal(size=(12, 4))
    score = features @ weights + 0.5 * generator.normal(size=(rows, 4))
    label = {
        "number": score[:, 0],
        "binary": (score[:, 0] > 0).astype(float),
        "classes": score.argmax(axis=1).astype(float),
        "none": None,
    }[kind]
    table = features if label is None else np.column_stack([label, features])
    path = folder / f"{name}.csv"
    np.savetxt(path, table, delimiter=",", fmt="%.5f")
    return str(path)


def _labelled(kind: str, rows: int = 6000) -> Callable[[Path], Mapping[str, str]]:
    return lambda folder: {
        "train": _table(folder, "train", rows, kind, 1),
        "validation": _table(folder, "validation", rows // 4, kind, 2),
    }


def _points(folder: Path) -> Mapping[str, phalanx.Channel]:
    generator = np.random.default_rng(3)
    centers = generator.normal(scale=4, size=(8, 6))
    points = centers[generator.integers(8, size=20_000)] + generator.normal(size=(20_000, 6))
    path = folder / "train.csv"
    np.savetxt(path, points, delimiter=",", fmt="%.4f")
    return {"train": phalanx.Channel(url=str(path), content_type="text/csv;label_size=0")}


def _lines(labelled: bool) -> Callable[[Path], Mapping[str, str]]:
    topics = {
        "sea": ["ship", "wave", "harbour", "sailor", "tide", "anchor"],
        "farm": ["cow", "barn", "field", "plough", "wheat", "tractor"],
    }

    def write(folder: Path) -> Mapping[str, str]:
        generator = np.random.default_rng(4)
        found = []
        for _ in range(6000):
            topic = str(generator.choice(list(topics)))
            words = generator.choice([*topics[topic], "the", "a"], 12).tolist()
            found.append(" ".join([f"__label__{topic}", *words] if labelled else words))
        path = folder / "train.txt"
        path.write_text("\n".join(found) + "\n")
        return {"train": str(path)}

    return write


def _series(folder: Path) -> Mapping[str, str]:
    generator = np.random.default_rng(5)
    path = folder / "train.json"
    with path.open("w") as file:
        for _ in range(60):
            length, level = int(generator.integers(80, 120)), float(generator.uniform(5, 50))
            wave = 1 + 0.5 * np.sin(2 * np.pi * np.arange(length) / 7)
            target = level * wave + generator.normal(size=length) * level / 50
            file.write(json.dumps({"start": "2024-01-01 00:00:00", "target": target.round(3).tolist()}) + "\n")
    return {"train": str(path)}


LINEAR = {"epochs": 5, "mini_batch_size": 200}
FORECAST = {"time_freq": "1D", "prediction_length": 7, "context_length": 14, "epochs": 8, "mini_batch_size": 32}
FACTORS = {"num_factors": 4, "feature_dim": 12, "epochs": 8, "mini_batch_size": 200}
RUNS = {
    "kmeans": Run("kmeans", _points, {"k": 8, "mini_batch_size": 500, "epochs": 3}),
    "kmeans-lloyd-two": Run("kmeans", _points, {"k": 8, "solver": "lloyd"}, workers=2),
    "linear-binary": Run("linear_learner", _labelled("binary"), {"predictor_type": "binary_classifier", **LINEAR}),
    "linear-classes-two": Run(
        "linear_learner",
        _labelled("classes"),
        {"predictor_type": "multiclass_classifier", "num_classes": 4, **LINEAR},
        workers=2,
    ),
    "linear-number": Run("linear_learner", _labelled("number"), {"predictor_type": "regressor", **LINEAR}),
    "linear-adam": Run(
        "linear_learner", _labelled("binary"), {"predictor_type": "binary_classifier", "optimizer": "adam", **LINEAR}
    ),
    "factors-binary": Run("factorization_machines", _labelled("binary"), {"predictor_type": "binary_classifier", **FACTORS}),
    "factors-number-two": Run(
        "factorization_machines", _labelled("number"), {"predictor_type": "regressor", **FACTORS}, workers=2
    ),
    "forest": Run("random_cut_forest", _points, {"feature_dim": 6}),
    "xgboost-binary": Run("xgboost", _labelled("binary"), {"num_round": 30, "objective": "binary:logistic"}),
    "xgboost-classes": Run(
        "xgboost", _labelled("classes"), {"num_round": 20, "objective": "multi:softprob", "num_class": 4, "eta": 0.2}
    ),
    "xgboost-number-two": Run("xgboost", _labelled("number"), {"num_round": 40, "eta": 0.2}, workers=2),
    "text-words": Run("blazingtext", _lines(False), {"mode": "skipgram", "vector_dim": 20, "epochs": 5}),
    "text-classes": Run("blazingtext", _lines(True), {"mode": "supervised", "vector_dim": 10, "epochs": 5}),
    "forecast": Run("deepar", _series, FORECAST),
}
QUICK = ("kmeans", "xgboost-binary")


def _watched(run: Run, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Run it; return what the rules found."""
    (folder / "data").mkdir()
    phalanx.TrainingJob(
        algorithm=run.algorithm,
        inputs=run.data(folder / "data"),
        hyperparameters=dict(run.hyperparameters),
        workers=run.workers,
        output=str(folder),
        name="one",
        rules=["all"],
        **changes,
    ).run(progress=False)
    return load_job(str(folder / "one")).findings()


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    assert _watched(RUNS[name], tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in QUICK])
def test_nothing_is_found_in_any(name: str, tmp_path: Path) -> None:
    assert _watched(RUNS[name], tmp_path) == []


def test_every_algorithm_is_among_them() -> None:
    from phalanx import registry

    assert {run.algorithm for run in RUNS.values()} == set(registry.ALGORITHMS)
