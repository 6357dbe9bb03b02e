"""The four algorithms for tables as users of the managed originals know them: hyperparameters, ranges, metrics.

What differs on purpose stands in `DIFFERENT`, and in each algorithm's page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - loads what sets variables before the test begins

from phalanx.hyperparameters import describe, parse
from phalanx.registry import load
from phalanx.testing.sessions import MemorySession, Rows

_RATES = (1e-8, 512.0)
ANY, ATLEAST_1, ABOVE_0, ATLEAST_0, INSIDE, BELOW_1 = "", "[1, inf)", "(0, inf)", "[0, inf)", "(0, 1)", "[0, 1)"

# algorithm: name -> default of the original, range ("" where there is none), range of sweeps
KNOWN: dict[str, dict[str, tuple[Any, str, Any]]] = {
    "linear_learner": {
        "predictor_type": (None, ANY, None),
        "num_classes": (None, "[3, 1e+06]", None),
        "feature_dim": ("auto", ATLEAST_1, None),
        "mini_batch_size": (1000, ATLEAST_1, (100, 5000)),
        "epochs": (15, ATLEAST_1, None),
        "num_models": ("auto", ATLEAST_1, None),
        "num_calibration_samples": (10_000_000, ATLEAST_1, None),
        "optimizer": ("auto", ANY, None),
        "loss": ("auto", ANY, None),
        "learning_rate": ("auto", ABOVE_0, (1e-5, 1)),
        "l1": ("auto", ATLEAST_0, (1e-7, 1)),
        "wd": ("auto", ATLEAST_0, (1e-7, 1)),
        "momentum": ("auto", BELOW_1, None),
        "beta_1": ("auto", BELOW_1, None),
        "beta_2": ("auto", BELOW_1, None),
        "bias_lr_mult": ("auto", ABOVE_0, None),
        "bias_wd_mult": ("auto", ATLEAST_0, None),
        "use_bias": (True, ANY, ("true", "false")),
        "use_lr_scheduler": (True, ANY, None),
        "lr_scheduler_step": ("auto", ATLEAST_1, None),
        "lr_scheduler_factor": ("auto", INSIDE, None),
        "lr_scheduler_minimum_lr": ("auto", ABOVE_0, None),
        "normalize_data": (True, ANY, None),
        "normalize_label": ("auto", ANY, None),
        "unbias_data": ("auto", ANY, None),
        "unbias_label": ("auto", ANY, None),
        "num_point_for_scaler": (10_000, ATLEAST_1, None),
        "early_stopping_patience": (3, ATLEAST_1, None),
        "early_stopping_tolerance": (0.001, ATLEAST_0, None),
        "margin": (1.0, ATLEAST_0, None),
        "quantile": (0.5, INSIDE, None),
        "loss_insensitivity": (0.01, ABOVE_0, None),
        "huber_delta": (1.0, ATLEAST_0, None),
        "positive_example_weight_mult": (1.0, ABOVE_0, (1e-5, 1e5)),
        "balance_multiclass_weights": (False, ANY, None),
        "binary_classifier_model_selection_criteria": ("accuracy", ANY, None),
        "target_recall": (0.8, INSIDE, None),
        "target_precision": (0.8, INSIDE, None),
        "f_beta": (1.0, ABOVE_0, None),
        "accuracy_top_k": (3, "[1, 1e+06]", None),
        "init_method": ("uniform", ANY, None),
        "init_scale": (0.07, ATLEAST_0, None),
        "init_sigma": (0.01, ATLEAST_0, None),
        "init_bias": (0.0, ANY, None),
    },
    "kmeans": {
        "k": (None, ATLEAST_1, None),
        "feature_dim": (None, ATLEAST_1, None),
        "epochs": (1, ATLEAST_1, (1, 10)),
        "eval_metrics": (["msd"], ANY, None),
        "extra_center_factor": ("auto", ATLEAST_1, (4, 10)),
        "half_life_time_size": (0, ATLEAST_0, None),
        "init_method": ("random", ANY, ("random", "kmeans++")),
        "local_lloyd_init_method": ("kmeans++", ANY, None),
        "local_lloyd_max_iter": (300, ATLEAST_1, None),
        "local_lloyd_num_trials": ("auto", ATLEAST_1, None),
        "local_lloyd_tol": (1e-4, "[0, 1]", None),
        "mini_batch_size": (5000, ATLEAST_1, (3000, 15000)),
    },
    "random_cut_forest": {
        "feature_dim": (None, "[1, 10000]", None),
        "num_trees": (100, "[50, 1000]", (50, 1000)),
        "num_samples_per_tree": (256, "[1, 2048]", (1, 2048)),
        "eval_metrics": (["accuracy", "precision_recall_fscore"], ANY, None),
    },
    "factorization_machines": {
        "predictor_type": (None, ANY, None),
        "num_factors": (64, "[2, 1000]", None),
        "feature_dim": (None, ATLEAST_1, None),
        "epochs": (1, ATLEAST_1, (1, 1000)),
        "mini_batch_size": (1000, ATLEAST_1, (100, 10_000)),
        "clip_gradient": (None, ABOVE_0, None),
        "rescale_grad": (None, ABOVE_0, None),
        "eps": (None, ABOVE_0, None),
        "bias_lr": (0.1, ATLEAST_0, _RATES),
        "linear_lr": (0.001, ATLEAST_0, _RATES),
        "factors_lr": (0.0001, ATLEAST_0, _RATES),
        "bias_wd": (0.01, ATLEAST_0, _RATES),
        "linear_wd": (0.001, ATLEAST_0, _RATES),
        "factors_wd": (0.00001, ATLEAST_0, _RATES),
        **{f"{part}_init_method": ("normal", ANY, None) for part in ("bias", "linear", "factors")},
        "bias_init_sigma": (0.01, ATLEAST_0, _RATES),
        "linear_init_sigma": (0.01, ATLEAST_0, _RATES),
        "factors_init_sigma": (0.001, ATLEAST_0, _RATES),
        **{f"{part}_init_scale": (None, ATLEAST_0, _RATES) for part in ("bias", "linear", "factors")},
        **{f"{part}_init_value": (None, ANY, _RATES) for part in ("bias", "linear", "factors")},
    },
}
# required there; here the data tell (feature_dim), or what its documentation advises is taken (num_factors)
NOT_REQUIRED = {"feature_dim", "num_factors"}
# `auto` here, what the original has with a named solver
DIFFERENT = {
    name
    for name in KNOWN["factorization_machines"]
    if name.endswith(("_lr", "_wd", "_init_sigma")) or name in ("epochs", "feature_dim")
}
REQUIRED = {"linear_learner": {"predictor_type"}, "kmeans": {"k"}, "factorization_machines": {"predictor_type"}}
CASES = [(algorithm, name, *known) for algorithm, table in KNOWN.items() for name, known in table.items()]


@pytest.mark.parametrize(("algorithm", "name", "default", "within", "tunable"), CASES)
def test_known_names_have_their_defaults_and_ranges(algorithm: str, name: str, default: Any, within: str, tunable: Any) -> None:
    found = {field.name: field for field in describe(load(algorithm).Hyperparameters)}[name]
    different = algorithm == "factorization_machines" and name in DIFFERENT
    assert found.default == ("auto" if different else default)
    assert found.range == within
    assert found.tunable == tunable


@pytest.mark.parametrize("algorithm", list(KNOWN))
def test_no_more_is_required_than_by_the_original(algorithm: str) -> None:
    found = {field.name for field in describe(load(algorithm).Hyperparameters) if field.required}
    assert found == REQUIRED.get(algorithm, set())
    assert not found & NOT_REQUIRED


def test_a_named_solver_has_the_defaults_of_the_original() -> None:
    given = {"predictor_type": "regressor", "solver": "adam"}
    wanted = parse(load("factorization_machines").Hyperparameters, given, owner="factorization_machines")
    for part, name in zip(wanted.parts(1000, 10.0, 30.0), ("bias", "linear", "factors"), strict=True):
        known = KNOWN["factorization_machines"]
        assert (part.rate, part.decay, part.spread) == tuple(known[f"{name}_{of}"][0] for of in ("lr", "wd", "init_sigma"))
    assert wanted.passes(1000) == known["epochs"][0]


_X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
_TWO, _THREE = (_X[:, 0] > 0).astype(np.float32), (np.arange(200) % 3).astype(np.float32)
_LOSSES = ("objective_loss", "mse", "rmse", "absolute_loss")
_BINARY = ("objective_loss", "binary_classification_accuracy", "binary_f_beta", "precision", "recall", "roc_auc_score",
           "balanced_accuracy")  # fmt: skip
_CLASSES = ("objective_loss", "multiclass_accuracy", "multiclass_top_k_accuracy", "dcg", "macro_f_beta", "macro_precision",
            "macro_recall")  # fmt: skip
METRICS = [
    ("linear_learner", {"predictor_type": "regressor"}, _X[:, 0], _LOSSES),
    ("linear_learner", {"predictor_type": "binary_classifier"}, _TWO, _BINARY),
    ("linear_learner", {"predictor_type": "multiclass_classifier", "num_classes": 3}, _THREE, _CLASSES),
    ("kmeans", {"k": 3, "eval_metrics": ["msd", "ssd"]}, None, ("msd", "ssd")),
    ("random_cut_forest", {"num_trees": 50}, _TWO, ("f1", "precision", "recall", "accuracy")),
    ("factorization_machines", {"predictor_type": "regressor"}, _X[:, 0], ("rmse",)),
    (
        "factorization_machines",
        {"predictor_type": "binary_classifier"},
        _TWO,
        ("binary_classification_accuracy", "binary_classification_cross_entropy", "binary_f_beta"),
    ),
]


@pytest.mark.parametrize(("algorithm", "given", "label", "names"), METRICS)
def test_metrics_have_their_known_names(tmp_path: Path, algorithm: str, given: dict[str, Any], label: Any, names: Any) -> None:
    made = load(algorithm)
    model = made(parse(made.Hyperparameters, given, owner=algorithm))
    session = MemorySession({name: Rows(_X, label).shard() for name in ("train", "test")}, tmp_path)
    model.fit(session)
    assert {f"test:{name}" for name in names} <= set(session.metrics)
    assert set(names) <= {*model.hyperparameters.objectives(), "msd", "ssd"}  # sweeps may go by them


_SAID = "solver=lloyd makes no use of epochs, init_method, mini_batch_size: they belong to solver=stream"


def test_what_plays_no_part_in_a_solver_of_kmeans_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = load("kmeans")
    given = {"k": 2, "epochs": 3, "mini_batch_size": 100, "init_method": "kmeans++"}
    for solver, said in (("lloyd", f"{_SAID}\n"), ("stream", "")):
        model = made(parse(made.Hyperparameters, {**given, "solver": solver}, owner="kmeans"))
        model.fit(MemorySession({"train": Rows(_X).shard()}, tmp_path))
        assert capsys.readouterr().out == said
    assert not parse(made.Hyperparameters, {"k": 2, "solver": "lloyd"}, owner="kmeans").without_effect
