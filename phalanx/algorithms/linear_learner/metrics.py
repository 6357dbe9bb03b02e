"""Metrics of scores, the choice of a decision threshold, and the criterion that chooses among candidates.

Legend of shapes: N rows, K classes.
"""

from __future__ import annotations

import numpy as np

from ...contracts import Array
from .hyperparameters import LinearLearnerHyperparameters


def calibrate(scores: Array, label: Array, wanted: LinearLearnerHyperparameters) -> tuple[float, float]:
    """Return the threshold with the best criterion, and the criterion there; at least one row.

    Args:
        scores: (N,) a row is positive where its score is at least the threshold.
        label: (N,) 0 and 1.
        wanted: names the criterion; where that is a loss, accuracy decides.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order].astype(np.float64), label[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores
    hits = np.concatenate([[0.0], np.cumsum(positive)[last]])
    taken = np.concatenate([[0.0], last + 1.0])
    below = np.append(ranked[last][1:], ranked[-1] - 1e-6)
    thresholds = np.concatenate([[ranked[0] + 1e-6], (ranked[last] + below) / 2])
    values = _criterion(hits, taken, float(positive.sum()), len(ranked), wanted)
    best = values.max()
    good = np.flatnonzero(values == best)
    place = int(good[len(good) // 2])
    return float(thresholds[place]), float(best)


def _criterion(hits: Array, taken: Array, positives: float, rows: int, wanted: LinearLearnerHyperparameters) -> Array:
    precision = hits / np.maximum(taken, 1)
    recall = hits / max(positives, 1)
    match wanted.binary_classifier_model_selection_criteria:
        case "f1":
            return _f(precision, recall, 1.0)
        case "f_beta":
            return _f(precision, recall, wanted.f_beta)
        case "precision_at_target_recall":
            enough = recall >= wanted.target_recall
            return np.where(enough, precision, recall - 1)  # where no threshold reaches the target, the nearest to it
        case "recall_at_target_precision":
            enough = (precision >= wanted.target_precision) & (taken > 0)
            return np.where(enough, recall, precision - 1)
        case _:
            value: Array = (rows - positives - taken + 2 * hits) / rows
            return value


def binary(scores: Array, label: Array, threshold: float, beta: float) -> dict[str, float]:
    """Return the metrics of a binary_classifier by the names users know."""
    chosen = scores >= threshold
    positives, rows = float(label.sum()), max(len(label), 1)
    hits, taken = float(label[chosen].sum()), float(chosen.sum())
    precision, recall = hits / max(taken, 1), hits / max(positives, 1)
    negatives = len(label) - positives
    kept = negatives - (taken - hits)
    return {
        "binary_classification_accuracy": (hits + kept) / rows,
        "binary_f_beta": float(_f(np.array(precision), np.array(recall), beta)),
        "precision": precision,
        "recall": recall,
        "balanced_accuracy": (recall + kept / max(negatives, 1)) / 2,
        "roc_auc_score": area(scores, label),
    }


def area(scores: Array, label: Array) -> float:
    """Return the area under the ROC curve; 0.5 where a class is missing."""
    positives = float(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return 0.5
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][label > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def multiclass(scores: Array, label: Array, wanted: LinearLearnerHyperparameters) -> dict[str, float]:
    """Return the metrics of a multiclass_classifier; `scores` are (N, K)."""
    classes, at, rows = scores.shape[1], label.astype(np.int64), max(len(label), 1)
    own = np.take_along_axis(scores, at[:, None], axis=1)
    rank = (scores > own).sum(axis=1)
    chosen = scores.argmax(axis=1) if len(scores) else at
    hits = np.bincount(at[chosen == at], minlength=classes)
    precision = hits / np.maximum(np.bincount(chosen, minlength=classes), 1)
    recall = hits / np.maximum(np.bincount(at, minlength=classes), 1)
    return {
        "multiclass_accuracy": float(hits.sum()) / rows,
        "multiclass_top_k_accuracy": float((rank < wanted.accuracy_top_k).sum()) / rows,
        "dcg": float((1 / np.log2(rank + 2)).sum()) / rows,
        "macro_f_beta": float(_f(precision, recall, wanted.f_beta).mean()),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
    }


def regression(scores: Array, label: Array) -> dict[str, float]:
    """Return the metrics of a regressor."""
    error = scores - label
    mse = float(np.mean(error**2)) if len(error) else 0.0
    return {"mse": mse, "rmse": mse**0.5, "absolute_loss": float(np.abs(error).mean()) if len(error) else 0.0}


def _f(precision: Array, recall: Array, beta: float) -> Array:
    below = beta**2 * precision + recall
    value: Array = (1 + beta**2) * precision * recall / np.where(below > 0, below, 1)
    return value
