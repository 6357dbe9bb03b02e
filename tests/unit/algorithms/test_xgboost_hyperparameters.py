"""XGBoost's hyperparameters: what is accepted, refused and passed on."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx.algorithms.xgboost.algorithm import XGBoost
from phalanx.algorithms.xgboost.hyperparameters import XGBoostHyperparameters
from phalanx.errors import UserError
from phalanx.hyperparameters import describe, json_schema, parse


def parsed(**given: Any) -> XGBoostHyperparameters:
    return parse(XGBoostHyperparameters, {"num_round": 10, **given}, owner="xgboost")


def passed_on(**given: Any) -> dict[str, Any]:
    return parsed(**given).parameters(device="cpu", threads=3, seed=7)


# name, default, (lowest, highest allowed), (tunable) as users of managed XGBoost know them
KNOWN = [
    ("booster", "gbtree"),
    ("objective", "reg:squarederror"),
    ("learning_rate", 0.3),
    ("eta", 0.3),
    ("min_split_loss", 0.0),
    ("gamma", 0.0),
    ("max_depth", 6),
    ("min_child_weight", 1.0),
    ("max_delta_step", 0.0),
    ("subsample", 1.0),
    ("colsample_bytree", 1.0),
    ("colsample_bylevel", 1.0),
    ("colsample_bynode", 1.0),
    ("lambda", 1.0),
    ("reg_lambda", 1.0),
    ("alpha", 0.0),
    ("reg_alpha", 0.0),
    ("tree_method", "auto"),
    ("grow_policy", "depthwise"),
    ("max_leaves", 0),
    ("max_bin", 256),
    ("sketch_eps", 0.03),
    ("scale_pos_weight", 1.0),
    ("monotone_constraints", None),
    ("interaction_constraints", None),
    ("num_class", None),
    ("base_score", None),
    ("eval_metric", None),
    ("early_stopping_rounds", None),
    ("seed", None),
    ("nthread", None),
    ("verbosity", 1),
    ("csv_weights", 0),
    ("num_parallel_tree", 1),
    ("save_model_on_termination", False),
    ("sample_type", "uniform"),
    ("normalize_type", "tree"),
    ("rate_drop", 0.0),
    ("skip_drop", 0.0),
    ("one_drop", 0),
    ("lambda_bias", 0.0),
    ("tweedie_variance_power", 1.5),
    ("aft_loss_distribution", "normal"),
    ("aft_loss_distribution_scale", 1.0),
    ("updater", None),
    ("refresh_leaf", 1),
    ("process_type", "default"),
    ("dsplit", "row"),
    ("predictor", "auto"),
    ("deterministic_histogram", True),
    ("single_precision_histogram", False),
    ("sampling_method", "uniform"),
    ("use_dask_gpu_training", False),
    ("_kfold", None),
    ("_num_cv_round", None),
    ("_tuning_objective_metric", None),
]


@pytest.mark.parametrize(("name", "default"), KNOWN)
def test_known_names_have_their_defaults(name: str, default: Any) -> None:
    by_name = {alias: field for field in describe(XGBoostHyperparameters) for alias in (field.name, *field.aliases)}
    assert by_name[name].default == default
    assert type(by_name[name].default) is type(default)


def test_only_num_round_is_required() -> None:
    assert json_schema(XGBoostHyperparameters)["required"] == ["num_round"]
    with pytest.raises(UserError, match="xgboost needs the hyperparameter num_round"):
        parse(XGBoost.Hyperparameters, {}, owner="xgboost")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"eta": 1.5}, r"eta=1.5 is not allowed: it must be in \[0, 1\]"),
        ({"learning_rate": "fast"}, "eta=fast is not allowed: it must be float"),
        ({"subsample": 0}, r"subsample=0 is not allowed: it must be in \(0, 1\]"),
        ({"max_depth": -1}, "max_depth=-1"),
        ({"num_class": 1}, "num_class=1"),
        ({"num_round": 0}, "num_round=0"),
        ({"tweedie_variance_power": 2}, "tweedie_variance_power=2"),
        ({"booster": "gbforest"}, "booster=gbforest"),
        ({"max_dept": 3}, "did you mean 'max_depth'"),
        ({"lambda": 1, "reg_lambda": 2}, "same hyperparameter"),
        ({"objective": "multi:softmax"}, "needs num_class"),
        ({"objective": "binary:logistic", "num_class": 2}, "num_class=2 belongs to objectives multi:"),
        ({"eval_metric": "auk"}, "no eval_metric 'auk'; did you mean 'auc'"),
        ({"eval_metric": "auc@3"}, "after @ comes a number"),
        ({"eval_metric": "ndcg@ten"}, "after @ comes a number"),
        ({"eval_metric": "map@1.5"}, "whole number of ranks"),
        ({"eval_metric": "precision", "objective": "multi:softprob", "num_class": 3}, "use precision_macro"),
        ({"monotone_constraints": "(1,2)"}, "monotone_constraints"),
        ({"monotone_constraints": "up,down"}, "monotone_constraints=up,down is not allowed"),
        ({"interaction_constraints": "0 with 1"}, "lists of column numbers"),
        ({"interaction_constraints": "[[0,-1]]"}, "lists of column numbers"),
        ({"interaction_constraints": "[["}, "lists of column numbers"),
        ({"_kfold": 5}, "cross-validation inside a job"),
        ({"process_type": "update"}, "model to start from"),
        ({"use_dask_gpu_training": "true"}, "use_dask_gpu_training"),
        ({"dsplit": "col"}, "dsplit=row"),
        ({"sampling_method": "gradient_based"}, "sampling_method=uniform"),
        ({"tree_method": "exact", "colsample_bynode": 0.5}, "colsample_bynode=1"),
        ({"tree_method": "exact", "max_depth": 0}, "max_depth=0"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parsed(**given)


def test_defaults_are_left_to_the_library() -> None:
    assert passed_on() == {
        "booster": "gbtree",
        "objective": "reg:squarederror",
        "seed": 7,
        "nthread": 3,
        "verbosity": 1,
    }


def test_values_are_passed_on_under_the_librarys_names() -> None:
    given = passed_on(**{"lambda": 2, "seed": 5, "nthread": 1, "base_score": 0.4, "max_depth": 3, "objective": "reg:linear"})
    assert given["lambda"] == 2
    assert given["seed"] == 5
    assert given["nthread"] == 1
    assert given["base_score"] == 0.4
    assert given["max_depth"] == 3
    assert given["objective"] == "reg:squarederror"
    assert passed_on(monotone_constraints="1,0,-1")["monotone_constraints"] == "(1,0,-1)"
    assert passed_on(monotone_constraints=[1, 0])["monotone_constraints"] == "(1,0)"
    assert passed_on(interaction_constraints=[[0, 1], [2]])["interaction_constraints"] == "[[0, 1], [2]]"
    assert passed_on(tree_method="gpu_hist") | {"seed": 0} == passed_on(tree_method="hist", seed=0) | {"device": "cuda"} | {
        "tree_method": "hist"
    }


def test_metrics_keep_their_order_and_are_split_between_the_library_and_us() -> None:
    settings = parsed(eval_metric="auc, f1,logloss,auc", _tuning_objective_metric="validation:accuracy")
    assert settings.metrics() == ["auc", "f1", "logloss", "accuracy"]
    assert settings.parameters(device="cpu", threads=1, seed=0)["eval_metric"] == ["auc", "logloss"]
    assert passed_on(eval_metric=["f1"])["disable_default_eval_metric"] == 1
    assert parsed(objective="reg:tweedie", eval_metric="tweedie-nloglik").metrics() == ["tweedie-nloglik@1.5"]


def test_options_without_effect_are_told() -> None:
    notes = parsed(sketch_eps=0.1, predictor="cpu_predictor", rate_drop=0.1).notes()
    assert [note.split()[0] for note in notes] == ["xgboost", "xgboost", "rate_drop=0.1"]
    assert parsed().notes() == []
    assert parsed(booster="dart", rate_drop=0.1).notes() == []
    assert parsed(booster="gblinear", max_depth=3).notes() == ["max_depth=3 has no effect with booster=gblinear"]


@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({}, False),
        ({"subsample": 0.5}, True),
        ({"colsample_bynode": 0.5}, True),
        ({"rate_drop": 0.5}, False),
        ({"booster": "dart", "rate_drop": 0.5}, True),
        ({"booster": "gblinear", "subsample": 0.5}, False),
    ],
)
def test_what_draws_random_numbers(given: dict[str, Any], samples: bool) -> None:
    assert parsed(**given).samples() is samples
