"""Hyperparameters of the linear learner: what users may set, and what the values mean together."""
# ruff: noqa: RUF009  (`hyper` is a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...errors import UserError
from ...hyperparameters import hyper

Auto = Literal["auto"]
BINARY_LOSSES = ("logistic", "hinge_loss")
REGRESSION_LOSSES = (
    "squared_loss",
    "absolute_loss",
    "eps_insensitive_squared_loss",
    "eps_insensitive_absolute_loss",
    "quantile_loss",
    "huber_loss",
)
LOSSES = {"binary_classifier": BINARY_LOSSES, "multiclass_classifier": ("softmax_loss",), "regressor": REGRESSION_LOSSES}
SMOOTH = ("logistic", "softmax_loss", "squared_loss", "huber_loss")  # for which the solver is made
_MOST_MODELS = 32


@dataclass(frozen=True)
class LinearLearnerHyperparameters:
    """Names, defaults and ranges as users of the managed linear learner know them."""

    IN_SWEEP: ClassVar[dict[str, int]] = {"num_models": 1}  # the sweep itself looks for the best candidate

    predictor_type: Literal["binary_classifier", "multiclass_classifier", "regressor"] = hyper(help="what is predicted")
    num_classes: int | None = hyper(
        None, low=3, high=1_000_000, help="classes of a multiclass_classifier, labels are 0 to num_classes-1; required there"
    )
    feature_dim: int | Auto = hyper("auto", low=1, help="number of features; auto: taken from the data")
    mini_batch_size: int = hyper(
        1000, low=1, tunable=(100, 5000), help="rows of a step of sgd, adam and rmsprop, over all workers"
    )
    epochs: int = hyper(15, low=1, help="most passes over the training data of sgd, adam and rmsprop")
    max_passes: int = hyper(200, low=1, help="most passes of the solver (optimizer=auto with a smooth loss)")
    solver_tolerance: float = hyper(
        1e-4, low=0, help="the solver ends when five passes lower the objective by less than this share of it"
    )
    num_models: int | Auto = hyper(
        "auto", low=1, help="candidates trained at once; auto: 32 with a channel 'validation' to choose by, otherwise 1"
    )
    num_calibration_samples: int = hyper(10_000_000, low=1, help="most rows that the decision threshold is calibrated on")
    optimizer: Literal["auto", "sgd", "adam", "rmsprop"] = hyper(
        "auto", help="auto: L-BFGS on full passes for smooth losses, otherwise adam"
    )
    loss: Literal[
        "auto",
        "logistic",
        "hinge_loss",
        "softmax_loss",
        "squared_loss",
        "absolute_loss",
        "eps_insensitive_squared_loss",
        "eps_insensitive_absolute_loss",
        "quantile_loss",
        "huber_loss",
    ] = hyper("auto", help="auto: logistic, softmax_loss or squared_loss by predictor_type")
    learning_rate: float | Auto = hyper(
        "auto", low=0, open_low=True, tunable=(1e-5, 1), help="first step size of sgd, adam and rmsprop; auto: a grid"
    )
    l1: float | Auto = hyper("auto", low=0, tunable=(1e-7, 1), help="L1 penalty on the weights; auto: 0")
    wd: float | Auto = hyper(
        "auto", low=0, tunable=(1e-7, 1), help="L2 penalty wd/2·|w|² beside the mean loss; auto: 1/rows, and a grid around it"
    )
    momentum: float | Auto = hyper("auto", low=0, high=1, open_high=True, help="of sgd; auto: 0.9")
    beta_1: float | Auto = hyper("auto", low=0, high=1, open_high=True, help="adam's decay of means; auto: 0.9")
    beta_2: float | Auto = hyper(
        "auto", low=0, high=1, open_high=True, help="adam's and rmsprop's decay of squares; auto: 0.999"
    )
    bias_lr_mult: float | Auto = hyper("auto", low=0, open_low=True, help="step size of the bias over the weights'; auto: 1")
    bias_wd_mult: float | Auto = hyper("auto", low=0, help="L2 penalty of the bias over the weights'; auto: 0")
    use_bias: bool = hyper(True, tunable=("true", "false"), help="learn a bias term")
    use_lr_scheduler: bool = hyper(True, help="lower the step size while sgd, adam and rmsprop go on")
    lr_scheduler_step: int | Auto = hyper("auto", low=1, help="steps after which it is lowered; auto: a hundredth of all")
    lr_scheduler_factor: float | Auto = hyper(
        "auto", low=0, high=1, open_low=True, open_high=True, help="what it is multiplied with; auto: down to 1 % at the end"
    )
    lr_scheduler_minimum_lr: float | Auto = hyper("auto", low=0, open_low=True, help="it never falls below this; auto: 1e-5")
    normalize_data: bool = hyper(True, help="divide features by their standard deviation")
    normalize_label: bool | Auto = hyper("auto", help="divide labels by their standard deviation; auto: for regression")
    unbias_data: bool | Auto = hyper("auto", help="subtract features' means; auto: true; sparse rows are only scaled")
    unbias_label: bool | Auto = hyper("auto", help="subtract the labels' mean; auto: for regression")
    num_point_for_scaler: int = hyper(10_000, low=1, help="first rows that means and standard deviations are taken from")
    early_stopping_patience: int = hyper(3, low=1, help="epochs without gain after which a candidate is trained no further")
    early_stopping_tolerance: float = hyper(0.001, low=0, help="relative fall of the loss that counts as a gain")
    margin: float = hyper(1.0, low=0, help="of hinge_loss")
    quantile: float = hyper(0.5, low=0, high=1, open_low=True, open_high=True, help="of quantile_loss")
    loss_insensitivity: float = hyper(
        0.01, low=0, open_low=True, help="ε of the eps_insensitive losses, in units of the normalised label"
    )
    huber_delta: float = hyper(1.0, low=0, help="δ of huber_loss, in units of the normalised label")
    positive_example_weight_mult: float | Literal["balanced", "auto"] = hyper(
        1.0,
        low=0,
        open_low=True,
        tunable=(1e-5, 1e5),
        help="weight of positive rows; balanced: negatives/positives; auto: candidates differ in it",
    )
    balance_multiclass_weights: bool = hyper(False, help="give every class the same total weight")
    binary_classifier_model_selection_criteria: Literal[
        "accuracy",
        "f1",
        "f_beta",
        "precision_at_target_recall",
        "recall_at_target_precision",
        "cross_entropy_loss",
        "loss_function",
    ] = hyper("accuracy", help="by which the best candidate and the decision threshold are chosen")
    target_recall: float = hyper(0.8, low=0, high=1, open_low=True, open_high=True, help="of precision_at_target_recall")
    target_precision: float = hyper(0.8, low=0, high=1, open_low=True, open_high=True, help="of recall_at_target_precision")
    f_beta: float = hyper(1.0, low=0, open_low=True, help="weight of recall over precision in f_beta")
    accuracy_top_k: int = hyper(3, low=1, high=1_000_000, help="k of multiclass_top_k_accuracy")
    init_method: Literal["uniform", "normal"] = hyper(
        "uniform", help="how weights begin for sgd, adam and rmsprop; the solver begins at zero"
    )
    init_scale: float = hyper(0.07, low=0, help="uniform weights begin in (-init_scale, init_scale)")
    init_sigma: float = hyper(0.01, low=0, help="standard deviation of normal beginnings")
    init_bias: float = hyper(0.0, help="first bias")

    def check(self) -> None:
        """Raise `UserError` where values do not fit each other."""
        multiclass = self.predictor_type == "multiclass_classifier"
        if multiclass and self.num_classes is None:
            raise UserError("predictor_type=multiclass_classifier needs num_classes: set it with --set num_classes=N")
        if not multiclass and self.num_classes is not None:
            raise UserError(f"num_classes={self.num_classes} belongs to predictor_type=multiclass_classifier; leave it out")
        allowed = LOSSES[self.predictor_type]
        if self.loss != "auto" and self.loss not in allowed:
            raise UserError(f"loss={self.loss} is not allowed for predictor_type={self.predictor_type}: {', '.join(allowed)}")
        if self.positive_example_weight_mult != 1.0 and self.predictor_type != "binary_classifier":
            raise UserError("positive_example_weight_mult belongs to predictor_type=binary_classifier; leave it out")
        if self.balance_multiclass_weights and not multiclass:
            raise UserError("balance_multiclass_weights belongs to predictor_type=multiclass_classifier; leave it out")
        criterion = self.binary_classifier_model_selection_criteria
        if criterion == "cross_entropy_loss" and self.loss == "hinge_loss":
            raise UserError("cross_entropy_loss needs probabilities, which loss=hinge_loss has not; use loss_function")

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better.

        Losses of jobs with different `positive_example_weight_mult` cannot be compared: where that is set, they come last.
        """
        shared: dict[str, Literal["minimize", "maximize"]] = {"objective_loss": "minimize"}
        if self.predictor_type == "regressor":
            return {**shared, "mse": "minimize", "rmse": "minimize", "absolute_loss": "minimize"}
        kind = "binary" if self.predictor_type == "binary_classifier" else "multiclass"
        names = {
            "binary": (
                "binary_classification_accuracy",
                "binary_f_beta",
                "precision",
                "recall",
                "balanced_accuracy",
                "roc_auc_score",
            ),
            "multiclass": (
                *("multiclass_accuracy", "multiclass_top_k_accuracy", "dcg"),
                *("macro_f_beta", "macro_precision", "macro_recall"),
            ),
        }[kind]
        if self.positive_example_weight_mult != 1.0:
            return {"roc_auc_score": "maximize", **dict.fromkeys(names, "maximize"), **shared}
        return {**shared, **dict.fromkeys(names, "maximize")}

    @property
    def loss_name(self) -> str:
        """The loss, `auto` resolved."""
        return LOSSES[self.predictor_type][0] if self.loss == "auto" else self.loss

    @property
    def outputs(self) -> int:
        """Scores of a row: one for each class of a multiclass_classifier, otherwise 1."""
        return self.num_classes or 1

    @property
    def solves(self) -> bool:
        """Whether the solver trains rather than mini-batches."""
        return self.optimizer == "auto" and self.loss_name in SMOOTH

    def models(self, *, validated: bool) -> int:
        """Return the number of candidates."""
        if self.num_models == "auto":
            return _MOST_MODELS if validated else 1
        return self.num_models
