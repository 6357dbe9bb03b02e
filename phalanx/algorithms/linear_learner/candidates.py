"""The candidates of a job: what their grid of step sizes, penalties and class weights is.

The first candidate is what a user gets who asks for one model; the others spread around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...contracts import Array, Json
from .data import Survey
from .hyperparameters import LinearLearnerHyperparameters

_RATES = {"sgd": 0.01, "adam": 0.01, "rmsprop": 0.003}


@dataclass(frozen=True, slots=True)
class Candidates:
    """What differs between candidates; (P,) each."""

    rate: Array
    wd: Array
    l1: Array
    positive_weight: Array

    def described(self, number: int) -> dict[str, Json]:
        """Return one candidate's values."""
        return {
            "learning_rate": float(self.rate[number]),
            "wd": float(self.wd[number]),
            "l1": float(self.l1[number]),
            "positive_example_weight_mult": float(self.positive_weight[number]),
        }


def grid_of(wanted: LinearLearnerHyperparameters, survey: Survey, *, validated: bool, rows: int) -> Candidates:
    """Return the candidates that the hyperparameters leave free."""
    count = wanted.models(validated=validated)
    number = np.arange(count)
    wd_scale: Array
    if wanted.solves:
        powers_of_ten = 5 * number / max(count, 2)  # up to 1e5 / rows: strong
        if validated:  # without rows to choose by the weakest would always win
            powers_of_ten = 8 * number / max(count, 2)
            powers_of_ten = np.where(powers_of_ten < 5, powers_of_ten, powers_of_ten - 8)
        wd_scale, with_l1 = np.power(10.0, powers_of_ten), number % 4 == 3
    else:
        wd_scale, with_l1 = np.power(10.0, number // 8 % 4), number // 8 % 4 == 3
    centre = 1 / max(rows, 1)
    wd = centre * wd_scale if wanted.wd == "auto" else np.full(count, float(wanted.wd))
    l1 = np.where(with_l1, centre * wd_scale / 10, 0.0) if wanted.l1 == "auto" else np.full(count, float(wanted.l1))
    first = _RATES["adam" if wanted.optimizer == "auto" else wanted.optimizer]
    if wanted.optimizer != "sgd":  # a step moves a weight by about the rate: few steps must be long
        first = max(first, min(0.3, 10 / max(wanted.epochs * -(-rows // wanted.mini_batch_size), 1)))
    powers = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, -2.0])[number % 8]
    rate = first * 10.0**powers if wanted.learning_rate == "auto" else np.full(count, float(wanted.learning_rate))
    return Candidates(rate=rate, wd=wd, l1=l1, positive_weight=_positive(wanted, survey, number))


def class_weights(wanted: LinearLearnerHyperparameters, survey: Survey, candidates: Candidates) -> Array:
    """Return factors (classes, P) of a row's loss; (1, P) in regression."""
    count = len(candidates.wd)
    if wanted.predictor_type == "binary_classifier":
        return np.stack([np.ones(count), candidates.positive_weight])
    if wanted.predictor_type == "regressor":
        return np.ones((1, count))
    factor = np.ones(wanted.outputs)
    if wanted.balance_multiclass_weights:
        seen = survey.class_weight > 0
        factor[seen] = survey.class_weight.sum() / (seen.sum() * survey.class_weight[seen])
    return np.repeat(factor[:, None], count, axis=1)


def _positive(wanted: LinearLearnerHyperparameters, survey: Survey, number: Array) -> Array:
    given = wanted.positive_example_weight_mult
    if not isinstance(given, str):
        return np.full(len(number), float(given))
    negatives, positives = survey.class_weight[:2]
    balanced = float(negatives / positives) if negatives > 0 and positives > 0 else 1.0
    if given == "balanced":
        return np.full(len(number), balanced)
    return np.asarray(balanced ** (number % 3 / 2))
