"""Hyperparameters of DeepAR: names, defaults and meanings as users of the managed original know them."""
# ruff: noqa: RUF009  (`hyper` is a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...hyperparameters import hyper
from .calendar import Frequency

Likelihood = Literal["gaussian", "beta", "negative-binomial", "student-T", "deterministic-L1"]


@dataclass(frozen=True)
class DeepARHyperparameters:
    """`test_windows`, `batches_per_epoch` and `strategy` are ours."""

    time_freq: str = hyper(help="the distance between values: min, H, D, W or M, with a number before it as in 15min")
    prediction_length: int = hyper(low=1, high=10_000, help="values to forecast")
    context_length: int = hyper(low=1, high=10_000, tunable=(1, 200), help="values that the network sees before it forecasts")
    epochs: int = hyper(low=1, tunable=(1, 1000), help="passes of batches_per_epoch steps")
    mini_batch_size: int = hyper(128, low=1, tunable=(32, 1028), help="windows of a step, over all workers")
    learning_rate: float = hyper(
        1e-3, low=0, open_low=True, tunable=(1e-5, 1e-1), help="step size of Adam; it falls to a hundredth in the last half"
    )
    likelihood: Likelihood = hyper(
        "student-T",
        help="of a value: gaussian (numbers), student-T (numbers in bursts), beta (from 0 to 1), negative-binomial (counts), "
        "deterministic-L1 (no distribution: one forecast)",
    )
    num_layers: int = hyper(2, low=1, high=32, tunable=(1, 8), help="layers of the LSTM")
    num_cells: int = hyper(40, low=1, high=4096, tunable=(30, 200), help="cells of each layer")
    embedding_dimension: int = hyper(10, low=1, high=1024, tunable=(1, 50), help="most numbers that stand for a category")
    dropout_rate: float = hyper(
        0.1, low=0, high=1, open_high=True, tunable=(0, 0.2), help="of the outputs of each layer but in forecasts"
    )
    early_stopping_patience: int | None = hyper(
        None, low=1, help="stop after so many epochs without a lower loss, and keep the best epoch's network"
    )
    num_eval_samples: int = hyper(100, low=1, help="paths that a forecast of channel test is drawn with")
    test_quantiles: list[float] | None = hyper(
        None,
        low=0,
        open_low=True,
        high=1,
        open_high=True,
        help="quantiles that channel test is measured at, and requests are answered with; default: 0.1, 0.2, … 0.9",
    )
    test_windows: int = hyper(
        1, low=1, high=1000, help="runs of prediction_length values at the ends of channel test, forecast one after another"
    )
    num_dynamic_feat: int | Literal["auto", "ignore", ""] = hyper(
        "auto", low=0, help="features that change with time: auto, ignore, how many there must be; empty: none may be there"
    )
    cardinality: str = hyper("auto", help="values that each category has: auto, ignore, or how many there may be as [5,3]")
    batches_per_epoch: int | Literal["auto"] = hyper(
        "auto", low=1, help="steps of an epoch; auto: 50, or as many as it takes to come by every series"
    )

    strategy: Literal["sum", "ddp", "horovod"] = hyper(
        "sum", help="how several workers add gradients: sum (one exchange a step, any launcher), or a strategy of the Trainer"
    )

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better."""
        return {"RMSE": "minimize", "mean_wQuantileLoss": "minimize", "final_loss": "minimize"}

    def check(self) -> None:
        """Raise `UserError` where values are not allowed."""
        Frequency.parse(self.time_freq)
        self.cardinalities()

    @property
    def quantiles(self) -> list[float]:
        """Those asked for, ascending."""
        return sorted(set(self.test_quantiles or [i / 10 for i in range(1, 10)]))

    def cardinalities(self) -> list[int] | None:
        """Return how many values each category may have, None where the data says.

        Raises:
            UserError: it cannot be read.
        """
        text = self.cardinality.strip()
        if text in ("auto", "ignore"):
            return None
        parts = [part.strip() for part in text.strip("[]").split(",") if part.strip()]
        if not all(part.isdigit() and int(part) > 0 for part in parts):
            raise UserError(f"cardinality={text:.60} is not allowed: it must be auto, ignore, or numbers above 0 as [5,3]")
        return [int(part) for part in parts]
