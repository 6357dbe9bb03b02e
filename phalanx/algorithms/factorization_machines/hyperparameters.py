"""Hyperparameters of factorization machines: what users may set, and what `auto` stands for."""
# ruff: noqa: RUF009  (`hyper` is a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...hyperparameters import hyper

Auto = Literal["auto"]
Init = Literal["normal", "uniform", "constant"]
Named = Literal["adam", "sgd", "adagrad", "ftrl"]
_RANGE = (1e-8, 512.0)  # that sweeps search
_STEPS = ((10_000, 40), (1_000, 100))  # of solver=auto: steps to take, and most epochs for that
_FEWEST_EPOCHS = 8  # of solver=auto
_RATES = (0.02, 0.2)  # of solver=auto where steps are many, and where they are few
_WAY = 10.0  # sum of solver=auto's first step size over all steps, at least, within _RATES
_STRENGTH = (0.0, 1.0)  # of solver=auto's prior on bias and linear weights, over the rows
_SPREAD = 0.1  # of solver=auto's first factors, at most
_ENTRIES = 20.0  # in a row, from where on solver=auto's steps are shorter


@dataclass(frozen=True, slots=True)
class Part:
    """How the bias, the linear weights or the factors are learnt."""

    rate: float
    decay: float  # L2 penalty decay/2·|w|² beside the mean loss
    method: Init
    spread: float  # deviation, half the range, or the constant


@dataclass(frozen=True)
class FactorizationMachinesHyperparameters:
    """Names, defaults and ranges as users of the managed factorization machines know them."""

    predictor_type: Literal["binary_classifier", "regressor"] = hyper(help="what is predicted")
    num_factors: int = hyper(64, low=2, high=1000, help="length of the vector that each feature gets")
    feature_dim: int | Auto = hyper("auto", low=1, help="number of features; auto: taken from the data")
    solver: Literal["auto", "adam", "sgd", "adagrad", "ftrl"] = hyper(
        "auto",
        aliases=("_optimizer",),
        help="auto: adam on scaled features with falling step sizes and a prior; the others as named, on the rows as they are",
    )
    epochs: int | Auto = hyper(
        "auto",
        low=1,
        tunable=(1, 1000),
        help="passes over the training data, the most of them with a channel 'validation'; auto: 1 for a named solver, "
        "8 to 100 for auto",
    )
    mini_batch_size: int = hyper(1000, low=1, tunable=(100, 10_000), help="rows of a step, over all workers")
    early_stopping_patience: int = hyper(
        5, low=1, help="epochs without a lower loss on the channel 'validation' after which training ends"
    )
    clip_gradient: float | None = hyper(None, low=0, open_low=True, help="gradients are cut to plus and minus this")
    rescale_grad: float | None = hyper(
        None, low=0, open_low=True, help="what the sum of the rows' gradients is multiplied with; none: 1 / rows of the step"
    )
    eps: float | None = hyper(None, low=0, open_low=True, help="keeps adam and adagrad from dividing by zero; none: 1e-8")
    use_bias: bool = hyper(True, help="learn a bias term")
    use_linear: bool = hyper(True, help="learn linear weights")
    bias_lr: float | Auto = hyper(
        "auto",
        low=0,
        tunable=_RANGE,
        help="step size of the bias; auto: 0.1, solver=auto: 0.02 to 0.2, less for rows of more than 20 entries",
    )
    linear_lr: float | Auto = hyper(
        "auto",
        low=0,
        tunable=_RANGE,
        help="step size of linear weights; auto: 0.001, solver=auto: 0.02 to 0.2, less for rows of more than 20 entries",
    )
    factors_lr: float | Auto = hyper(
        "auto",
        low=0,
        tunable=_RANGE,
        help="step size of factors; auto: 0.0001, solver=auto: 0.02 to 0.2, less for rows of more than 20 entries",
    )
    bias_wd: float | Auto = hyper("auto", low=0, tunable=_RANGE, help="L2 penalty of the bias; auto: 0.01, solver=auto: 0")
    linear_wd: float | Auto = hyper(
        "auto", low=0, tunable=_RANGE, help="L2 penalty of linear weights; auto: 0.001, solver=auto: 1/rows"
    )
    factors_wd: float | Auto = hyper(
        "auto",
        low=0,
        tunable=_RANGE,
        help="L2 penalty of factors; auto: 0.00001, solver=auto: 30/rows, of up to 8,192 rows less where held-out rows say so",
    )
    bias_init_method: Init = hyper("normal", help="how the bias begins")
    bias_init_sigma: float | Auto = hyper(
        "auto", low=0, tunable=_RANGE, help="standard deviation of a normal beginning; auto: 0.01, solver=auto: 0"
    )
    bias_init_scale: float | None = hyper(None, low=0, tunable=_RANGE, help="uniform begins in (-scale, scale); none: as sigma")
    bias_init_value: float | None = hyper(None, tunable=_RANGE, help="of a constant beginning; none: 0")
    linear_init_method: Init = hyper("normal", help="how linear weights begin")
    linear_init_sigma: float | Auto = hyper(
        "auto", low=0, tunable=_RANGE, help="standard deviation of a normal beginning; auto: 0.01, solver=auto: 0"
    )
    linear_init_scale: float | None = hyper(
        None, low=0, tunable=_RANGE, help="uniform begins in (-scale, scale); none: as sigma"
    )
    linear_init_value: float | None = hyper(None, tunable=_RANGE, help="of a constant beginning; none: 0")
    factors_init_method: Init = hyper("normal", help="how factors begin; a constant keeps them all alike")
    factors_init_sigma: float | Auto = hyper(
        "auto",
        low=0,
        tunable=_RANGE,
        help="standard deviation of a normal beginning; auto: 0.001, solver=auto: 0.1, less for long rows",
    )
    factors_init_scale: float | None = hyper(
        None, low=0, tunable=_RANGE, help="uniform begins in (-scale, scale); none: as sigma"
    )
    factors_init_value: float | None = hyper(None, tunable=_RANGE, help="of a constant beginning; none: 0")

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better."""
        if self.predictor_type == "regressor":
            return {"rmse": "minimize", "mse": "minimize", "absolute_loss": "minimize"}
        return {
            "binary_classification_cross_entropy": "minimize",
            "binary_classification_accuracy": "maximize",
            "binary_f_beta": "maximize",
        }

    def check(self) -> None:
        """Raise `UserError` where values do not fit each other."""
        for part in ("bias", "linear", "factors"):
            method = getattr(self, f"{part}_init_method")
            for option, needed in (("scale", "uniform"), ("value", "constant")):
                value = getattr(self, f"{part}_init_{option}")
                if value is not None and method != needed:
                    raise UserError(
                        f"{part}_init_{option}={value:g} belongs to {part}_init_method={needed}; "
                        f"leave it out, or set {part}_init_method={needed}"
                    )

    @property
    def classifies(self) -> bool:
        """Whether labels are classes."""
        return self.predictor_type == "binary_classifier"

    @property
    def method(self) -> Named:
        """The update rule."""
        return "adam" if self.solver == "auto" else self.solver

    def passes(self, rows: int) -> int:
        """Return the number of epochs, at most, over a channel of `rows` rows."""
        if self.epochs != "auto":
            return self.epochs
        if self.solver != "auto":
            return 1
        wanted = [min(steps * self.mini_batch_size // max(rows, 1), most) for steps, most in _STEPS]
        return max(*wanted, _FEWEST_EPOCHS)

    @property
    def chooses_penalty(self) -> bool:
        """Whether the penalty on factors may be chosen by held-out rows."""
        return self.solver == "auto" and self.factors_wd == "auto"

    def parts(self, rows: int, entries: float, strength: float) -> tuple[Part, Part, Part]:
        """Return how bias, linear weights and factors are learnt, `auto` resolved.

        Args:
            rows: of the channel.
            entries: numbers of a row.
            strength: of solver=auto's prior on factors, over the rows.
        """
        auto = self.solver == "auto"
        decays = tuple(of / max(rows, 1) for of in (*_STRENGTH, strength)) if auto else (0.01, 0.001, 0.00001)
        steps = self.passes(rows) * -(-rows // self.mini_batch_size)
        first = min(max(_WAY / max(steps, 1), _RATES[0]), _RATES[1])
        first *= min(1.0, _ENTRIES / max(entries, 1.0))  # a step moves all weights of a row at once
        rates = (first,) * 3 if auto else (0.1, 0.001, 0.0001)
        even = (max(entries, 1.0) * (2 * self.num_factors) ** 0.5) ** -0.5  # first scores deviate by a half
        spreads = (0.0, 0.0, min(_SPREAD, even)) if auto else (0.01, 0.01, 0.001)
        bias = Part(
            _or(self.bias_lr, rates[0]) if self.use_bias else 0.0,
            _or(self.bias_wd, decays[0]),
            self.bias_init_method,
            _spread(self.bias_init_method, self.bias_init_sigma, self.bias_init_scale, self.bias_init_value, spreads[0]),
        )
        linear = Part(
            _or(self.linear_lr, rates[1]) if self.use_linear else 0.0,
            _or(self.linear_wd, decays[1]),
            self.linear_init_method,
            _spread(
                self.linear_init_method, self.linear_init_sigma, self.linear_init_scale, self.linear_init_value, spreads[1]
            ),
        )
        factors = Part(
            _or(self.factors_lr, rates[2]),
            _or(self.factors_wd, decays[2]),
            self.factors_init_method,
            _spread(
                self.factors_init_method, self.factors_init_sigma, self.factors_init_scale, self.factors_init_value, spreads[2]
            ),
        )
        return bias, linear, factors


def _or(value: float | str, default: float) -> float:
    return default if isinstance(value, str) else value


def _spread(method: Init, sigma: float | Auto, scale: float | None, value: float | None, default: float) -> float:
    if method == "constant":
        return 0.0 if value is None else value
    if method == "uniform" and scale is not None:
        return scale
    return _or(sigma, default)
