"""XGBoost's extra metrics agree with scikit-learn, also when the rows are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from phalanx.algorithms.xgboost.metrics import BINARY_METRICS, OWN_METRICS, evaluate, maximises
from phalanx.contracts import Array, Collective
from phalanx.parallel.threads import run_threads

SKLEARN: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
    "f1": lambda y, p: sklearn_metrics.f1_score(y, p, average="macro"),
    "f1_binary": sklearn_metrics.f1_score,
    "f1_macro": lambda y, p: sklearn_metrics.f1_score(y, p, average="macro"),
    "precision": sklearn_metrics.precision_score,
    "precision_macro": lambda y, p: sklearn_metrics.precision_score(y, p, average="macro"),
    "precision_micro": lambda y, p: sklearn_metrics.precision_score(y, p, average="micro"),
    "recall": sklearn_metrics.recall_score,
    "recall_macro": lambda y, p: sklearn_metrics.recall_score(y, p, average="macro"),
    "recall_micro": lambda y, p: sklearn_metrics.recall_score(y, p, average="micro"),
    "mse": sklearn_metrics.mean_squared_error,
    "r2": sklearn_metrics.r2_score,
}
CLASSES = sorted(OWN_METRICS - {"mse", "r2"})


def over_ranks(
    names: list[str], predictions: Array, labels: Array, objective: str, classes: int, size: int
) -> dict[str, float]:
    def rank_main(world: Collective) -> dict[str, float]:
        mine = np.array_split(np.arange(len(labels)), size)[world.rank]
        return evaluate(
            names, predictions[mine], labels[mine], objective=objective, classes=classes, add=lambda x: world.all_reduce(x)
        )

    results = run_threads(size, rank_main)
    assert all(result == results[0] for result in results)
    return results[0]


def test_every_metric_is_compared() -> None:
    assert set(SKLEARN) == OWN_METRICS


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("objective", "threshold"), [("binary:logistic", 0.5), ("binary:logitraw", 0.0), ("binary:hinge", 0.5)]
)
def test_two_classes(objective: str, threshold: float, size: int) -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, size=101).astype(np.float32)
    predictions = (labels + generator.normal(size=101) * 0.8 - 0.5 + threshold).astype(np.float32)
    found = over_ranks(CLASSES, predictions, labels, objective, 2, size)
    for name in CLASSES:
        assert found[name] == pytest.approx(SKLEARN[name](labels, predictions > threshold), abs=1e-12), name


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("objective", ["multi:softmax", "multi:softprob"])
def test_many_classes(objective: str, size: int) -> None:
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 4, size=60).astype(np.float32)  # class 4 of 5 never occurs
    probabilities = generator.random((60, 5)).astype(np.float32)
    probabilities[:, 4] = 0
    predicted = np.argmax(probabilities, axis=1)
    given = predicted.astype(np.float32) if objective == "multi:softmax" else probabilities
    names = [name for name in CLASSES if name not in BINARY_METRICS]
    found = over_ranks(names, given, labels, objective, 5, size)
    for name in names:
        assert found[name] == pytest.approx(SKLEARN[name](labels, predicted), abs=1e-12), name


@pytest.mark.parametrize("size", [1, 2, 3])
def test_numbers(size: int) -> None:
    generator = np.random.default_rng(7)
    labels = (generator.normal(size=50) + 1e4).astype(np.float32)
    predictions = (labels + generator.normal(size=50) * 0.3).astype(np.float32)
    found = over_ranks(["r2", "mse"], predictions, labels, "reg:squarederror", 2, size)
    assert list(found) == ["r2", "mse"]
    for name, value in found.items():
        assert value == pytest.approx(SKLEARN[name](labels.astype(float), predictions.astype(float)), rel=1e-6), name


def test_labels_that_never_change() -> None:
    labels = np.full(5, 2.0)
    assert over_ranks(["r2"], labels, labels, "reg:squarederror", 2, 1) == {"r2": 1.0}
    assert over_ranks(["r2"], labels + 1, labels, "reg:squarederror", 2, 1) == {"r2": 0.0}


def test_no_rows_at_all() -> None:
    nothing = np.empty(0, dtype=np.float32)
    found = over_ranks([*CLASSES, "mse"], nothing, nothing, "binary:logistic", 2, 2)
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "larger"),
    [("auc", True), ("ndcg@5", True), ("f1", True), ("r2", True), ("rmse", False), ("error@0.3", False), ("mlogloss", False)],
)
def test_which_way_is_better(name: str, larger: bool) -> None:
    assert maximises(name) is larger
