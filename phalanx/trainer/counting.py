"""Rows of a classifier counted by label and prediction, of a Trainer's batches and of a learnt algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contracts import Algorithm, Array, Records, Session
from ..errors import PhalanxError

if TYPE_CHECKING:
    import torch

_MOST_CLASSES = 1000
_LABEL = "__label__"
_ROWS = 2000  # of channel `train` that a learnt algorithm is asked about


def confusion(outputs: Sequence[torch.Tensor], targets: Sequence[Any]) -> dict[str, Any] | None:
    """Return classes and counts as `Labels` has them; None where output and target are not those of a classifier.

    Args:
        outputs: of the module, one a micro-batch: (N, classes), or a logit or probability of class 1 each, (N,) or (N, 1).
        targets: numbers of classes, (N,); of two classes also as floats.
    """
    pairs = [_pair(output, target) for output, target in zip(outputs, targets, strict=False)]
    if not pairs or any(pair is None for pair in pairs):
        return None
    known = [pair for pair in pairs if pair is not None]
    return count(np.concatenate([pair[0] for pair in known]), np.concatenate([pair[1] for pair in known]))


def count(labels: Array, predictions: Array) -> dict[str, Any] | None:
    """Return classes and counts as `Labels` has them; None where there are too many classes, or labels that are no classes."""
    if not len(labels) or not np.array_equal(labels, np.round(labels)):
        return None
    classes, places = np.unique(np.concatenate([labels, np.round(predictions)]), return_inverse=True)
    size = len(classes)
    if size > _MOST_CLASSES:
        return None
    found = np.bincount(places[: len(labels)] * size + places[len(labels) :], minlength=size * size).reshape(size, size)
    return {"classes": [f"{value:g}" for value in classes], "confusion": found.tolist()}


def count_learnt(algorithm: Algorithm, session: Session, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how an algorithm that has learnt takes the first rows of its channel `train`, None where it is no classifier.

    Args:
        algorithm: after `fit`.
        session: its session.
        settings: hyperparameters.
    """
    if "regress" in str(settings.get("predictor_type", "")) or str(settings.get("objective", "")).startswith(("reg:", "rank:")):
        return None
    try:
        batch = next(iter(session.channels["train"].batches(_ROWS)), None)
        if batch is None or not len(batch):
            return None
        if isinstance(batch.features, Records):
            return _count_lines(algorithm, batch.features)
        if batch.label is None:
            return None
        answer = algorithm.predict(batch.features)
    except (PhalanxError, KeyError):  # a channel that can be read once only
        return None
    predicted = answer.get("predicted_label")
    if predicted is None:
        score = answer.get("score")
        objective = str(settings.get("objective", ""))
        if score is None or not objective.startswith(("binary:logistic", "multi:")):
            return None
        predicted = score.argmax(axis=1) if score.ndim == 2 else score if objective.startswith("multi:") else score > 0.5
    labels = np.asarray(batch.label, dtype=np.float64)
    if labels.min() < 0 and set(np.unique(labels)) == {-1.0, 1.0}:
        labels = (labels > 0).astype(np.float64)
    return count(labels, np.asarray(predicted, dtype=np.float64).reshape(-1))


def _count_lines(algorithm: Algorithm, lines: Records) -> dict[str, Any] | None:
    """Count lines of text that begin with `__label__NAME`, by the first of their labels."""
    pairs = [str(line).split(maxsplit=1) for line in lines.items if str(line).startswith(_LABEL)]
    known = [(label.removeprefix(_LABEL), rest[0]) for label, *rest in pairs if rest and not rest[0].startswith(_LABEL)]
    answer = algorithm.predict(Records([text for _, text in known])).get("label") if known else None
    if answer is None:
        return None
    predicted = [str(label).removeprefix(_LABEL) for label in answer.reshape(len(known), -1)[:, 0]]
    classes = sorted({*(label for label, _ in known), *predicted})
    places = {name: place for place, name in enumerate(classes)}
    found = count(np.array([places[label] for label, _ in known]), np.array([places[label] for label in predicted]))
    return None if found is None else {**found, "classes": [classes[int(place)] for place in found["classes"]]}


def _pair(output: torch.Tensor, target: Any) -> tuple[Array, Array] | None:
    kind: str = str(getattr(target, "dtype", ""))
    if not kind or getattr(target, "ndim", 0) not in (1, 2) or output.ndim not in (1, 2):
        return None
    if output.ndim == 2 and output.shape[1] > 1:
        if target.ndim != 1 or "int" not in kind or output.shape[1] > _MOST_CLASSES or len(output) != len(target):
            return None
        return _numbers(target), _numbers(output.argmax(dim=1))
    flat, wanted = _numbers(output), _numbers(target)
    if len(flat) != len(wanted) or not set(np.unique(wanted)) <= {0.0, 1.0}:
        return None
    probable = len(flat) > 0 and flat.min() >= 0 and flat.max() <= 1
    return wanted, (flat > (0.5 if probable else 0.0)).astype(np.float64)


def _numbers(tensor: Any) -> Array:
    found: Array = tensor.detach().reshape(-1).double().cpu().numpy()
    return found
