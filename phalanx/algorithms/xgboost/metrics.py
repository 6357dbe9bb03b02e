"""Metrics that XGBoost lacks and its users know from managed training, correct over all ranks.

Each is computed from sums (a confusion matrix, or squared errors) that ranks add up, never as a mean of means. A replicated
channel adds every row once a rank; ratios of sums do not mind.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...contracts import Array

Sum = Callable[[Array], Array]  # adds a float64 array up over the ranks

_OF_CLASSES = (
    *("accuracy", "balanced_accuracy", "f1", "f1_binary", "f1_macro"),
    *("precision", "precision_macro", "precision_micro", "recall", "recall_macro", "recall_micro"),
)
_OF_NUMBERS = ("mse", "r2")
OWN_METRICS = frozenset([*_OF_CLASSES, *_OF_NUMBERS])
BINARY_METRICS = {"f1_binary": "f1_macro", "precision": "precision_macro", "recall": "recall_macro"}  # -> for many classes
_LOWER_IS_BETTER = (
    *("rmse", "rmsle", "mae", "mape", "mse", "mphe", "logloss", "error", "merror", "mlogloss"),
    *("poisson-nloglik", "gamma-nloglik", "gamma-deviance", "tweedie-nloglik", "cox-nloglik", "aft-nloglik"),
)


def maximises(name: str) -> bool:
    """Return whether a larger value of the metric is better."""
    return name.partition("@")[0] not in _LOWER_IS_BETTER


def evaluate(
    names: list[str], predictions: Array, labels: Array, *, objective: str, classes: int, add: Sum
) -> dict[str, float]:
    """Collective. Return the value of every metric.

    Args:
        names: of `OWN_METRICS`.
        predictions: what the booster predicts for this rank's rows: (N,), or (N, K) class probabilities.
        labels: (N,).
        objective: the booster's; it says how predictions become classes.
        classes: 2, or num_class.
        add: sums an array over the ranks.
    """
    values: dict[str, float] = {}
    if any(name in _OF_CLASSES for name in names):
        confusion = add(_confusion(_classes(predictions, objective), labels, classes))
        values |= {name: _of_classes(name, confusion) for name in names if name in _OF_CLASSES}
    if any(name in _OF_NUMBERS for name in names):
        values |= _of_numbers(predictions, labels, add)
    return {name: values[name] for name in names}


def _classes(predictions: Array, objective: str) -> Array:
    """Return the predicted class of every row."""
    if predictions.ndim == 2:
        return np.asarray(np.argmax(predictions, axis=1))
    if objective.startswith("multi:"):
        return predictions.astype(np.int64)
    return (predictions > (0.0 if objective == "binary:logitraw" else 0.5)).astype(np.int64)


def _confusion(predicted: Array, labels: Array, classes: int) -> Array:
    """Return how many rows of class i were taken for class j, (K, K) float64."""
    cells = (labels > 0.5 if classes == 2 else labels).astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.float64)


def _of_classes(name: str, confusion: Array) -> float:
    """Return scikit-learn's metric of that name; 0/0 is 0, classes that never occur do not count."""
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    recall, precision, f1 = _ratio(hits, true), _ratio(hits, predicted), _ratio(2 * hits, true + predicted)
    seen = (true + predicted) > 0
    accuracy = float(hits.sum() / max(confusion.sum(), 1))
    if name == "balanced_accuracy":
        return float(recall[true > 0].mean()) if (true > 0).any() else 0.0
    if name in ("accuracy", "precision_micro", "recall_micro"):
        return accuracy  # with one label a row all three are the share of hits
    stem, _, average = name.partition("_")
    by_class = {"f1": f1, "precision": precision, "recall": recall}[stem]
    if average == "macro" or (stem == "f1" and average == ""):
        return float(by_class[seen].mean()) if seen.any() else 0.0
    return float(by_class[1])


def _of_numbers(predictions: Array, labels: Array, add: Sum) -> dict[str, float]:
    if predictions.ndim == 2:
        predictions = np.argmax(predictions, axis=1)
    labels = labels.astype(np.float64)
    count, total = add(np.array([len(labels), labels.sum()]))
    mean = total / max(count, 1)
    squares = add(np.array([np.square(labels - predictions).sum(), np.square(labels - mean).sum()]))
    mse = float(squares[0] / max(count, 1))
    constant = 1.0 if squares[0] == 0 else 0.0  # as scikit-learn has it where all labels are the same
    return {"mse": mse, "r2": 1 - float(squares[0] / squares[1]) if squares[1] > 0 else constant}


def _ratio(over: Array, under: Array) -> Array:
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)
