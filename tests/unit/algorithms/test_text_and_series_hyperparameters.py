"""Names, defaults, ranges and metrics of BlazingText and DeepAR are those that users of the managed original know."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.algorithms.blazingtext.algorithm import BlazingText
from phalanx.algorithms.deepar.algorithm import DeepAR
from phalanx.errors import UserError
from phalanx.hyperparameters import describe, parse

REQUIRED = "required"
# name: default (or required), range, tunable
BLAZINGTEXT: dict[str, tuple[Any, str, Any]] = {
    "mode": (REQUIRED, "", ("batch_skipgram", "skipgram", "cbow")),
    "vector_dim": (100, "[1, 2048]", (32, 300)),
    "epochs": (5, "[1, inf)", (5, 15)),
    "learning_rate": (0.05, "(0, inf)", (0.005, 0.01)),
    "min_count": (5, "[0, inf)", (0, 100)),
    "window_size": (5, "[1, 100]", (1, 10)),
    "negative_samples": (5, "[1, 100]", (5, 25)),
    "sampling_threshold": (1e-4, "(0, 0.001]", (1e-4, 1e-3)),
    "batch_size": (11, "[1, inf)", (8, 32)),
    "subwords": (False, "", None),
    "min_char": (3, "[1, 64]", None),
    "max_char": (6, "[1, 64]", None),
    "buckets": (2_000_000, "[1, 2.14748e+09]", (1_000_000, 10_000_000)),
    "evaluation": (True, "", None),
    "word_ngrams": (2, "[1, 20]", (1, 3)),
    "early_stopping": (False, "", None),
    "patience": (4, "[1, inf)", None),
    "min_epochs": (5, "[1, inf)", None),
}
DEEPAR: dict[str, tuple[Any, str, Any]] = {
    "time_freq": (REQUIRED, "", None),
    "prediction_length": (REQUIRED, "[1, 10000]", None),
    "context_length": (REQUIRED, "[1, 10000]", (1, 200)),
    "epochs": (REQUIRED, "[1, inf)", (1, 1000)),
    "mini_batch_size": (128, "[1, inf)", (32, 1028)),
    "learning_rate": (1e-3, "(0, inf)", (1e-5, 1e-1)),
    "likelihood": ("student-T", "", None),
    "num_layers": (2, "[1, 32]", (1, 8)),
    "num_cells": (40, "[1, 4096]", (30, 200)),
    "embedding_dimension": (10, "[1, 1024]", (1, 50)),
    "dropout_rate": (0.1, "[0, 1)", (0, 0.2)),
    "early_stopping_patience": (None, "[1, inf)", None),
    "num_eval_samples": (100, "[1, inf)", None),
    "test_quantiles": (None, "(0, 1)", None),
    "num_dynamic_feat": ("auto", "[0, inf)", None),
    "cardinality": ("auto", "", None),
}
OURS = {
    BlazingText: {"loss", "lines_per_step"},
    DeepAR: {"test_windows", "batches_per_epoch", "strategy"},
}
CHOICES = {
    (BlazingText, "mode"): ("batch_skipgram", "skipgram", "cbow", "supervised"),
    (DeepAR, "likelihood"): ("gaussian", "beta", "negative-binomial", "student-T", "deterministic-L1"),
}
SERIES = {"time_freq": "H", "prediction_length": 3, "context_length": 4, "epochs": 1}


@pytest.mark.parametrize(("algorithm", "known"), [(BlazingText, BLAZINGTEXT), (DeepAR, DEEPAR)])
def test_hyperparameters(algorithm: Any, known: dict[str, tuple[Any, str, Any]]) -> None:
    found = {one.name: one for one in describe(algorithm.Hyperparameters)}
    assert set(found) - OURS[algorithm] == set(known)
    for name, wanted in known.items():
        one = found[name]
        assert (REQUIRED if one.required else one.default, one.range, one.tunable) == wanted, name
    for (owner, name), choices in CHOICES.items():
        if owner is algorithm:
            assert found[name].choices == choices


def test_metrics_of_a_sweep() -> None:
    assert parse(BlazingText.Hyperparameters, {"mode": "cbow"}, owner="blazingtext").objectives() == {"mean_rho": "maximize"}
    classifier = parse(BlazingText.Hyperparameters, {"mode": "supervised"}, owner="blazingtext")
    assert classifier.objectives() == {"accuracy": "maximize"}
    forecaster = parse(DeepAR.Hyperparameters, SERIES, owner="deepar")
    assert forecaster.objectives() == dict.fromkeys(("RMSE", "mean_wQuantileLoss", "final_loss"), "minimize")
    assert forecaster.quantiles == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


@pytest.mark.parametrize("text", ["min", "15min", "H", "2H", "D", "W", "3M"])
def test_frequencies_of_the_original(text: str) -> None:
    parse(DeepAR.Hyperparameters, {**SERIES, "time_freq": text}, owner="deepar")


@pytest.mark.parametrize("value", ["auto", "ignore", "", "2", 2])
def test_features_that_change_with_time(value: object) -> None:
    parse(DeepAR.Hyperparameters, {**SERIES, "num_dynamic_feat": value}, owner="deepar")


@pytest.mark.parametrize("value", ["auto", "ignore", "", "[5, 3]", "5"])
def test_cardinalities_of_the_original(value: str) -> None:
    parse(DeepAR.Hyperparameters, {**SERIES, "cardinality": value}, owner="deepar")


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        (BlazingText, {}),
        (BlazingText, {"mode": "glove"}),
        (BlazingText, {"mode": "cbow", "sampling_threshold": 0.002}),
        (BlazingText, {"mode": "cbow", "sampling_threshold": 0}),
        (BlazingText, {"mode": "cbow", "epochs": 0}),
        (BlazingText, {"mode": "batch_skipgram", "subwords": True}),
        (BlazingText, {"mode": "skipgram", "subwords": True, "min_char": 7}),
        (DeepAR, {**SERIES, "time_freq": "Q"}),
        (DeepAR, {**SERIES, "context_length": 0}),
        (DeepAR, {**SERIES, "dropout_rate": 1}),
        (DeepAR, {**SERIES, "likelihood": "poisson"}),
        (DeepAR, {**SERIES, "test_quantiles": "[0.5, 1]"}),
        (DeepAR, {name: value for name, value in SERIES.items() if name != "context_length"}),
    ],
)
def test_what_is_refused(algorithm: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        parse(algorithm.Hyperparameters, changes, owner="x")
