"""What algorithms say of themselves for sweeps, tables, and when a sweep is complete."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import phalanx
from phalanx import Categorical, Completion, Continuous, Integer, UserError, WarmStart, registry
from phalanx.tuning import declared
from phalanx.tuning.declared import Objective
from phalanx.tuning.ending import completed
from phalanx.tuning.search import Known
from phalanx.tuning.table import best_of, counters, front_of, records
from phalanx.tuning.trial import Trial, job_name

REQUIRED: dict[str, dict[str, Any]] = {
    "factorization_machines": {"predictor_type": "regressor", "num_factors": 4},
    "kmeans": {"k": 3},
    "linear_learner": {"predictor_type": "regressor"},
    "random_cut_forest": {},
    "xgboost": {"num_round": 10},
}


@pytest.mark.parametrize("algorithm", sorted(REQUIRED))
def test_a_sweep_needs_nothing_but_the_algorithm(algorithm: str) -> None:
    static = declared.static_values(algorithm, REQUIRED[algorithm], None)
    ranges = declared.default_ranges(algorithm, static)
    assert ranges
    assert not set(ranges) & set(REQUIRED[algorithm])
    goal = declared.default_objective(algorithm, declared.sample_values(static, ranges), {"train": "x", "test": "y"})
    assert goal.metric.startswith("test:")
    assert declared.settings(algorithm, {**static, **declared.defaults_point(algorithm, static, ranges)})
    assert algorithm in registry.ALGORITHMS


def test_ranges_that_do_not_go_with_the_job_are_left_out() -> None:
    static = {"predictor_type": "regressor"}
    assert "positive_example_weight_mult" not in declared.default_ranges("linear_learner", static)
    binary = declared.default_ranges("linear_learner", {"predictor_type": "binary_classifier"})
    assert isinstance(binary["positive_example_weight_mult"], Continuous)
    assert binary["use_bias"] == Categorical([True, False])


def test_declared_scales() -> None:
    found = declared.default_ranges("xgboost", {})
    assert found["num_round"] == Integer(1, 4000)
    assert found["alpha"] == Continuous(1e-3, 1000, "log")
    assert found["eta"] == Continuous(0.1, 0.5)
    assert "eta" not in declared.default_ranges("xgboost", {"learning_rate": "0.2"})


def test_in_a_sweep_the_linear_learner_trains_one_candidate() -> None:
    assert declared.static_values("linear_learner", {"predictor_type": "regressor"}, None)["num_models"] == 1
    assert declared.static_values("linear_learner", {"num_models": 4}, None)["num_models"] == 4


def test_weighted_losses_are_not_compared() -> None:
    binary = {"predictor_type": "binary_classifier"}
    space = declared.default_ranges("linear_learner", binary)
    sample = declared.sample_values(binary, space)
    assert declared.default_objective("linear_learner", sample, {"train": "x"}).metric == "train:roc_auc_score"
    assert declared.default_objective("linear_learner", binary, {"train": "x"}).metric == "train:objective_loss"


def test_the_objective_is_reported() -> None:
    assert declared.static_values("xgboost", {}, "validation:f1")["tuning_objective_metric"] == "f1"
    assert "tuning_objective_metric" not in declared.static_values("xgboost", {"eval_metric": "f1,auc"}, "validation:f1")


def test_directions() -> None:
    metrics = declared.objectives_of("xgboost", {"num_round": 1, "objective": "binary:logistic"})
    assert next(iter(metrics)) == "logloss"
    assert declared.resolved("validation:ndcg@10", None, metrics) == Objective("validation:ndcg@10", "maximize")
    assert declared.resolved("validation:logloss", "Maximize", metrics).direction == "maximize"
    with pytest.raises(UserError, match="which way is better for 'loss'"):
        declared.resolved("loss", None, {})


def test_defaults_come_first() -> None:
    ranges = {"eta": Continuous(0.01, 0.2), "max_depth": Integer(2, 10)}
    assert declared.defaults_point("xgboost", {"num_round": 1}, ranges) == {"eta": pytest.approx(0.105), "max_depth": 6}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Completion(not_improving=2), "at least 3"),
        (lambda: Completion(max_runtime_s=0), "above 0"),
        (lambda: Completion(target="best"), "must be a number"),  # type: ignore[arg-type]
        (lambda: WarmStart([]), "1 to 5 folders"),
        (lambda: WarmStart("runs/a"), "1 to 5 folders"),
        (lambda: WarmStart(["a"], "other"), "kind='other'"),  # type: ignore[arg-type]
    ],
)
def test_options_refused(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_options() -> None:
    assert WarmStart(["a"], "TRANSFER_LEARNING").kind == "transfer_learning"  # type: ignore[arg-type]
    assert phalanx.Completion() == Completion()


def trial(number: int, objective: list[float] | None, **more: Any) -> Trial:
    return Trial(number, f"s-{number}", {"x": number}, **{"status": "Completed", **more}, objective=objective)


def test_best_front_and_counters() -> None:
    up, down = Objective("a", "maximize"), Objective("b", "minimize")
    trials = [
        trial(0, [0.5, 1.0]),
        trial(1, [0.9, 3.0]),
        trial(2, [0.4, 2.0]),
        trial(3, [0.99, 0.1], feasible=False),
        trial(4, [1.0], status="Stopped"),
        trial(5, None, status="Failed", retryable=True),
    ]
    best = best_of(trials, [up])
    assert best is not None
    assert best.number == 1
    assert [t.number for t in front_of(trials, [up, down])] == [1, 0]
    assert best_of(trials[4:], [up]) is None
    only = best_of([trials[3]], [up])
    assert only is trials[3]  # better one that breaks a constraint than none
    told = counters(trials)
    assert told["TrainingJobStatusCounters"] == {
        "Completed": 4, "InProgress": 0, "RetryableError": 1, "NonRetryableError": 0, "Stopped": 1,
    }  # fmt: skip
    assert told["ObjectiveStatusCounters"] == {"Succeeded": 5, "Pending": 0, "Failed": 1}
    rows = records(trials, ["x"], [up, down])
    assert rows[1]["FinalObjectiveValue:b"] == 3.0
    assert rows[5]["FinalObjectiveValue"] is None
    assert rows[0]["x"] == 0.0
    assert Trial.from_json(trials[0].to_json()) == trials[0]


def test_a_stopped_trial_brings_no_improvement() -> None:
    plan: Any = SimpleNamespace(
        completion=Completion(not_improving=3), objectives=[Objective("validation:auc", "maximize")], ranges={"x": 1}
    )
    trials = [Trial(n, f"s-{n}", {}, status="Completed" if n == 0 else "Stopped") for n in range(4)]
    final = {0: Known("Completed", (0.7,), 5)}
    assert completed(plan, final, trials[:3]) is None
    assert completed(plan, final, trials) == "NotImproving"
    trials[3].status = "Failed"
    assert completed(plan, final, trials) is None
    assert completed(plan, {}, trials[1:]) is None


def test_job_names() -> None:
    name = job_name("s" * 32, 7, {"x": 1})
    assert name == job_name("s" * 32, 7, {"x": 1})
    assert name.startswith("s" * 32 + "-007-")
    assert len(name) <= 63
    assert name != job_name("s" * 32, 7, {"x": 2})


def test_what_is_missing_is_named_where_no_range_is_left() -> None:
    with pytest.raises(UserError, match=r"kmeans needs .*k"):
        declared.default_ranges("kmeans", {})
