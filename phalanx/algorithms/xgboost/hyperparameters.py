"""Hyperparameters of XGBoost: what users may set, what they mean together, what the library is told."""
# ruff: noqa: RUF009  (`hyper` is a dataclass field)

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from ...errors import UserError, nearest
from ...hyperparameters import hyper
from .metrics import BINARY_METRICS, OWN_METRICS, maximises

Objective = Literal[
    "reg:squarederror",
    "reg:linear",
    "reg:logistic",
    "reg:gamma",
    "reg:tweedie",
    "reg:pseudohubererror",
    "reg:squaredlogerror",
    "reg:absoluteerror",
    "binary:logistic",
    "binary:logitraw",
    "binary:hinge",
    "count:poisson",
    "multi:softmax",
    "multi:softprob",
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
    "survival:aft",
    "survival:cox",
]
# Metrics of the library; those in _WITH_NUMBER may carry one: error@0.3, ndcg@10, ndcg@10-
_METRICS = (
    *("rmse", "rmsle", "mae", "mape", "mphe", "logloss", "error", "merror", "mlogloss", "auc", "aucpr", "pre", "ndcg", "map"),
    *("poisson-nloglik", "gamma-nloglik", "gamma-deviance", "tweedie-nloglik", "cox-nloglik", "aft-nloglik"),
    "interval-regression-accuracy",
)
_WITH_NUMBER = ("error", "pre", "ndcg", "map", "tweedie-nloglik")
_SHARED = ("eta", "reg_lambda", "alpha", "scale_pos_weight")
_TREE = (
    *("gamma", "max_depth", "min_child_weight", "max_delta_step", "num_parallel_tree", "refresh_leaf"),
    *("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode", "sampling_method"),
    *("tree_method", "grow_policy", "max_leaves", "max_bin"),
)
_DART = ("sample_type", "normalize_type", "rate_drop", "skip_drop", "one_drop")
_JUDGED_BY = {  # what the library reports when no eval_metric is asked for, where that is not rmse
    "reg:gamma": "gamma-nloglik",
    "reg:tweedie": "tweedie-nloglik",
    "reg:pseudohubererror": "mphe",
    "reg:squaredlogerror": "rmsle",
    "reg:absoluteerror": "mae",
    "binary:logistic": "logloss",
    "binary:logitraw": "logloss",
    "binary:hinge": "error",
    "count:poisson": "poisson-nloglik",
    "multi:softmax": "mlogloss",
    "multi:softprob": "mlogloss",
    "rank:pairwise": "ndcg",
    "rank:ndcg": "ndcg",
    "rank:map": "map",
    "survival:aft": "aft-nloglik",
    "survival:cox": "cox-nloglik",
}
_NAMES = {"reg_lambda": "lambda"}  # ours -> the library's, where they differ
_GONE = {  # no effect on a CPU, or none any more: said once, otherwise ignored
    "sketch_eps": "xgboost has no sketch_eps any more; max_bin sets how fine the splits are",
    "predictor": "xgboost chooses the predictor itself",
    "deterministic_histogram": "histograms are always deterministic here",
    "single_precision_histogram": "histograms are always in double precision",
    "lambda_bias": "xgboost has no lambda_bias any more",
}


@dataclass(frozen=True)
class XGBoostHyperparameters:
    """Names, defaults and ranges as users of managed XGBoost know them."""

    num_round: int = hyper(low=1, help="boosting rounds", aliases=("num_boost_round", "n_estimators"), tunable=(1, 4000))
    objective: Objective = hyper("reg:squarederror", help="what is learnt; reg:linear is the old name of reg:squarederror")
    num_class: int | None = hyper(
        None, low=2, help="classes of a multi:* objective, labels are 0 to num_class-1; required there"
    )
    booster: Literal["gbtree", "gblinear", "dart"] = hyper("gbtree", help="trees, linear functions, or trees with dropout")
    eta: float = hyper(0.3, low=0, high=1, help="shrinkage of every round", aliases=("learning_rate",), tunable=(0.1, 0.5))
    gamma: float = hyper(0.0, low=0, help="loss reduction a split must bring", aliases=("min_split_loss",), tunable=(0, 5))
    max_depth: int = hyper(6, low=0, help="depth of a tree; 0 is no limit", tunable=(0, 10))
    min_child_weight: float = hyper(1.0, low=0, help="sum of hessians a leaf must have", tunable=(0, 120))
    max_delta_step: float = hyper(0.0, low=0, help="largest step of a leaf; 0 is no limit", tunable=(0, 10))
    subsample: float = hyper(1.0, low=0, high=1, open_low=True, help="rows a round draws", tunable=(0.5, 1))
    colsample_bytree: float = hyper(1.0, low=0, high=1, open_low=True, help="columns a tree draws", tunable=(0.5, 1))
    colsample_bylevel: float = hyper(1.0, low=0, high=1, open_low=True, help="columns a level draws", tunable=(0.1, 1))
    colsample_bynode: float = hyper(1.0, low=0, high=1, open_low=True, help="columns a split draws", tunable=(0.1, 1))
    reg_lambda: float = hyper(1.0, low=0, help="L2 penalty on weights", aliases=("lambda",), tunable=(0, 1000))
    alpha: float = hyper(0.0, low=0, help="L1 penalty on weights", aliases=("reg_alpha",), tunable=(0, 1000))
    tree_method: Literal["auto", "exact", "approx", "hist", "gpu_hist"] = hyper(
        "auto", help="how splits are found; auto is hist; exact works on one worker only; gpu_hist is hist on a GPU"
    )
    grow_policy: Literal["depthwise", "lossguide"] = hyper("depthwise", help="where a tree grows next")
    max_leaves: int = hyper(0, low=0, help="leaves of a tree; 0 is no limit")
    max_bin: int = hyper(256, low=2, help="histogram bins of a column (hist, approx)")
    scale_pos_weight: float = hyper(1.0, low=0, open_low=True, help="weight of the positive class")
    num_parallel_tree: int = hyper(1, low=1, help="trees a round grows")
    base_score: float | None = hyper(
        None, low=0, help="prediction before the first round; unset: estimated from the labels (0.5 in old versions)"
    )
    eval_metric: list[str] | None = hyper(
        None, help="metrics of every round, with commas; the last one decides about early stopping; unset: the objective's own"
    )
    early_stopping_rounds: int | None = hyper(
        None, low=1, help="stop after so many rounds without gain on channel 'validation'; the best model is kept"
    )
    seed: int | None = hyper(None, low=0, help="seed of sampling; unset: the job's")
    nthread: int | None = hyper(None, low=1, help="threads of a worker; unset: its share of the cores")
    verbosity: int = hyper(1, low=0, high=3, help="0 silent, 1 warnings, 2 information, 3 all")
    csv_weights: int = hyper(0, low=0, high=1, help="1: the second column of csv files is the row's weight")
    save_model_on_termination: bool = hyper(False, help="keep the model of the rounds so far when the job is stopped")
    monotone_constraints: list[int] | str | None = hyper(
        None, help="1, 0 or -1 for every column, as (1,0,-1): predictions rise, are free, or fall with it"
    )
    interaction_constraints: list[list[int]] | str | None = hyper(
        None, help="columns that may meet in one branch, as [[0,1],[2,3,4]]"
    )
    updater: str | None = hyper(None, help="comma list of tree or linear updaters, for experts; unset: by tree_method")
    refresh_leaf: int = hyper(1, low=0, high=1, help="updater refresh: 1 also refreshes leaves")
    process_type: Literal["default", "update"] = hyper("default", help="update would need a model to start from: refused")
    sample_type: Literal["uniform", "weighted"] = hyper("uniform", help="dart: how dropped trees are chosen")
    normalize_type: Literal["tree", "forest"] = hyper("tree", help="dart: how new trees are weighted")
    rate_drop: float = hyper(0.0, low=0, high=1, help="dart: share of trees dropped in a round")
    skip_drop: float = hyper(0.0, low=0, high=1, help="dart: probability of a round without dropout")
    one_drop: int = hyper(0, low=0, high=1, help="dart: 1 drops at least one tree")
    lambda_bias: float = hyper(0.0, low=0, high=1, help="no effect: xgboost has none any more")
    tweedie_variance_power: float = hyper(
        1.5, low=1, high=2, open_low=True, open_high=True, help="reg:tweedie: near 2 is gamma, near 1 Poisson"
    )
    aft_loss_distribution: Literal["normal", "logistic", "extreme"] = hyper("normal", help="survival:aft: of the noise")
    aft_loss_distribution_scale: float = hyper(1.0, low=0, open_low=True, help="survival:aft: scale of the noise")
    sampling_method: Literal["uniform", "gradient_based"] = hyper(
        "uniform", help="how subsample draws; gradient_based needs a GPU"
    )
    sketch_eps: float = hyper(0.03, low=0, high=1, open_low=True, open_high=True, help="no effect: use max_bin")
    predictor: Literal["auto", "cpu_predictor", "gpu_predictor"] = hyper("auto", help="no effect: chosen by xgboost")
    deterministic_histogram: bool = hyper(True, help="no effect: always deterministic")
    single_precision_histogram: bool = hyper(False, help="no effect: always double precision")
    dsplit: Literal["row", "col"] = hyper("row", help="no effect: rows are split over workers; col is refused")
    use_dask_gpu_training: bool = hyper(False, help="refused when true: workers are Phalanx's own")
    kfold: int | None = hyper(None, low=2, aliases=("_kfold",), help="cross-validation inside a job: refused, not there yet")
    num_cv_round: int | None = hyper(None, low=1, aliases=("_num_cv_round",), help="repeats of kfold: refused, not there yet")
    tuning_objective_metric: str | None = hyper(
        None, aliases=("_tuning_objective_metric",), help="a metric that a sweep looks at; added to eval_metric"
    )

    def check(self) -> None:
        """Raise `UserError` where values do not fit each other."""
        self._check_refused()
        multi = self.objective.startswith("multi:")
        if multi and self.num_class is None:
            raise UserError(f"objective={self.objective} needs num_class, the number of classes: set it with --set num_class=N")
        if not multi and self.num_class is not None:
            raise UserError(
                f"num_class={self.num_class} belongs to objectives multi:softmax and multi:softprob, not {self.objective}"
            )
        for metric in self.metrics():
            _check_metric(metric, multi=multi)
        if self.booster == "gblinear" and self.objective in ("survival:aft", "reg:absoluteerror"):
            raise UserError(f"booster=gblinear cannot learn objective={self.objective}; use booster=gbtree")
        if self.tree_method == "exact" and self.colsample_bynode < 1:
            raise UserError("tree_method=exact cannot sample columns by node: set colsample_bynode=1 or tree_method=hist")
        if self.max_depth == 0 and self.tree_method == "exact":
            raise UserError("max_depth=0 (no limit) does not go with tree_method=exact; use tree_method=hist")
        _parsed_constraints(self)

    def metrics(self) -> list[str]:
        """Return the metrics asked for, each once, in order; none: the objective's own."""
        wanted = [*(self.eval_metric or []), *([self.tuning_objective_metric] if self.tuning_objective_metric else [])]
        names = (name.removeprefix("validation:").removeprefix("train:") for name in wanted)
        power = f"{self.tweedie_variance_power:g}"
        return list(dict.fromkeys(f"{name}@{power}" if name == "tweedie-nloglik" else name for name in names))

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better; what this job reports comes first."""
        asked = [name.partition("@")[0] for name in self.metrics()]
        names = dict.fromkeys([*asked[-1:], _JUDGED_BY.get(self.objective, "rmse"), *_METRICS, *OWN_METRICS])
        return {name: "maximize" if maximises(name) else "minimize" for name in names}

    def samples(self) -> bool:
        """Return whether rounds draw random numbers."""
        drawn = (self.subsample, self.colsample_bytree, self.colsample_bylevel, self.colsample_bynode)
        return self.booster != "gblinear" and (
            min(drawn) < 1 or (self.booster == "dart" and self.rate_drop + self.one_drop > 0)
        )

    def notes(self) -> list[str]:
        """Return a sentence for every value that was given and has no effect."""
        known = {f.name: f.default for f in fields(self)}
        changed = {name for name, default in known.items() if getattr(self, name) != default}
        said = [text for name, text in _GONE.items() if name in changed]
        foreign = {"gbtree": _DART, "gblinear": (*_TREE, *_DART), "dart": ()}[self.booster]
        said += [
            f"{name}={getattr(self, name)} has no effect with booster={self.booster}" for name in foreign if name in changed
        ]
        return said

    def parameters(self, *, device: str, threads: int, seed: int) -> dict[str, Any]:
        """Return what the library's `Booster` is given.

        Args:
            device: torch's name of the job's device.
            threads: of this worker, unless nthread says otherwise.
            seed: the job's, unless seed says otherwise.
        """
        names = (*_SHARED, *{"gbtree": _TREE, "dart": (*_TREE, *_DART), "gblinear": ()}[self.booster])
        defaults = {f.name: f.default for f in fields(self)}
        given = {_NAMES.get(n, n): getattr(self, n) for n in names if getattr(self, n) != defaults[n]}
        given |= {"booster": self.booster, "objective": self.objective.replace("reg:linear", "reg:squarederror")}
        given |= {"seed": self.seed if self.seed is not None else seed, "nthread": self.nthread or threads}
        given["verbosity"] = self.verbosity
        given |= _parsed_constraints(self)
        if self.tree_method == "gpu_hist" or device.startswith("cuda"):
            given["device"] = "cuda"
        if self.tree_method == "gpu_hist":
            given["tree_method"] = "hist"
        for name in ("num_class", "base_score"):
            if getattr(self, name) is not None:
                given[name] = getattr(self, name)
        if self.updater is not None:
            given["updater"] = self.updater
        elif self.booster == "gblinear":
            given["updater"] = "coord_descent"  # the default, shotgun, gives another model on every run
        if self.objective == "reg:tweedie":
            given["tweedie_variance_power"] = self.tweedie_variance_power
        if self.objective == "survival:aft":
            given["aft_loss_distribution"] = self.aft_loss_distribution
            given["aft_loss_distribution_scale"] = self.aft_loss_distribution_scale
        own = [name for name in self.metrics() if name in OWN_METRICS]
        theirs = [name for name in self.metrics() if name not in OWN_METRICS]
        if theirs:
            given["eval_metric"] = theirs
        elif own:
            given["disable_default_eval_metric"] = 1
        return given

    def _check_refused(self) -> None:
        refused = {
            "kfold and num_cv_round (cross-validation inside a job) are not there yet; run one job a fold": (
                self.kfold is not None or self.num_cv_round is not None
            ),
            "process_type=update needs a model to start from, which a job cannot be given yet; use process_type=default": (
                self.process_type == "update"
            ),
            "use_dask_gpu_training=true is not supported: Phalanx starts the workers itself; leave it false": (
                self.use_dask_gpu_training
            ),
            "dsplit=col is not supported: rows are split over workers; use dsplit=row": self.dsplit == "col",
            "sampling_method=gradient_based needs tree_method=gpu_hist; use sampling_method=uniform": (
                self.sampling_method == "gradient_based" and self.tree_method != "gpu_hist"
            ),
        }
        for sentence, holds in refused.items():
            if holds:
                raise UserError(sentence)


def _check_metric(name: str, *, multi: bool) -> None:
    stem, _, number = name.partition("@")
    if name in OWN_METRICS:
        if multi and name in BINARY_METRICS:
            raise UserError(f"eval_metric={name} is for two classes; with a multi:* objective use {BINARY_METRICS[name]}")
        return
    if stem not in _METRICS:
        raise UserError(f"xgboost has no eval_metric '{name}'; {nearest(name, [*_METRICS, *OWN_METRICS])}")
    if number and (stem not in _WITH_NUMBER or not re.fullmatch(r"\d*\.?\d+-?", number)):
        raise UserError(f"eval_metric={name} is not allowed: after @ comes a number, with {', '.join(_WITH_NUMBER)} only")
    if stem in ("ndcg", "map", "pre") and number and "." in number:
        raise UserError(f"eval_metric={name} is not allowed: after {stem}@ comes a whole number of ranks, as {stem}@10")


def _parsed_constraints(given: XGBoostHyperparameters) -> dict[str, str]:
    """Return both constraints as the library reads them."""
    result = {}
    monotone = given.monotone_constraints
    if isinstance(monotone, str):
        try:
            monotone = [int(sign) for sign in monotone.strip().strip("()[]").split(",")]
        except ValueError:
            raise UserError(
                f"monotone_constraints={monotone} is not allowed: write 1, 0 or -1 for every column, as (1,0,-1)"
            ) from None
    if monotone is not None:
        if not monotone or not set(monotone) <= {-1, 0, 1}:
            raise UserError(f"monotone_constraints={monotone} is not allowed: write 1, 0 or -1 for every column, as (1,0,-1)")
        result["monotone_constraints"] = "(" + ",".join(map(str, monotone)) + ")"
    groups = given.interaction_constraints
    if groups is not None:
        try:
            groups = json.loads(groups) if isinstance(groups, str) else groups
            result["interaction_constraints"] = json.dumps([[_column(column) for column in group] for group in groups])
        except (ValueError, TypeError):
            raise UserError(
                f"interaction_constraints={groups} is not allowed: write lists of column numbers, as [[0,1],[2,3,4]]"
            ) from None
    return result


def _column(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value
