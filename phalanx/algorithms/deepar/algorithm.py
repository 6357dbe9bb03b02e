"""DeepAR (Salinas, Flunkert, Gasthaus and Januschowski, 2020): one network for all series, forecasts as sampled paths."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, final

import numpy as np

from ...contracts import Array, Entry, Features, Records, Session, State
from ...errors import AlgorithmError, UserError, nearest
from ...hyperparameters import parse, to_json
from .hyperparameters import DeepARHyperparameters

if TYPE_CHECKING:  # torch takes seconds to load: who only reads hyperparameters is spared
    from .forecast import Forecaster
    from .lstm import Runner
    from .network import Network
    from .reading import Shape
    from .series import Series
    from .training import Training

_SETTINGS = "deepar.json"
_WEIGHTS = "model.safetensors"
_HELD = 1 << 25  # numbers of paths that are held at once


@final
class DeepAR:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.

    Attributes:
        threads: that forecasts may use; they do not change an answer.
    """

    Hyperparameters: ClassVar[type] = DeepARHyperparameters
    columns: ClassVar[int | None] = None  # requests are series

    def __init__(self, hyperparameters: DeepARHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.threads = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
        self._shape: Shape | None = None
        self._network: Network | None = None  # once trained
        self._seed = 0
        self._training: Training | None = None
        self._restored: State | None = None
        self._forecaster: Forecaster | None = None

    def fit(self, session: Session) -> None:
        """Collective. Learn from the series of channel `train`; forecast the ends of those of channel `test`.

        Raises:
            UserError: on every rank, for records that are no series or do not fit.
            Stopped: the job was asked to stop.
        """
        from .lstm import Runner
        from .reading import read_channel, shape_of
        from .training import Training

        wanted = self.hyperparameters
        if "train" not in session.channels:
            raise UserError(f"deepar needs a channel 'train'; {nearest('train', session.channels)}")
        session.restore({"algorithm": self})
        series = read_channel(session, "train", wanted, None)
        if not series:
            raise UserError("channel 'train' has no series")
        self._shape, self._seed, self.threads = shape_of(series, wanted), session.seed, session.threads
        test = read_channel(session, "test", wanted, self._shape) if "test" in session.channels else []
        with Runner(session.threads) as runner:
            self._training = training = Training(session, wanted, series, self._shape, runner)
            try:
                self._learn(session, training, test, runner)
            finally:
                training.close()

    def _learn(self, session: Session, training: Training, test: list[Series], runner: Runner) -> None:
        from .backtest import backtest

        wanted = self.hyperparameters
        if self._restored is not None:
            training.load_state_dict(self._restored)
            self._restored = None
        done = training.done
        while not done:
            metrics = training.learn()
            done = training.done
            if done:
                self._take(training)
                metrics["train:final_loss"] = training.loss
                metrics |= backtest(session, wanted, self._forecasts(), test, runner)
            known = wanted.early_stopping_patience is None or done
            of = (training.step if done else training.steps) if known else None
            session.report(training.step, metrics, rows=wanted.mini_batch_size, of=of)
        self._take(training)

    def _take(self, training: Training) -> None:
        training.finish()
        self._network, self._forecaster = training.network, None

    def predict(self, requests: Features) -> dict[str, Array]:
        """Forecast series: records with `start`, `target`, and what the model was trained with of `cat` and `dynamic_feat`.

        A record may have a `configuration`: `num_samples` (100), `quantiles` (as trained for) and `output_types` of mean,
        quantiles and samples (the first two). An answer is drawn with its own number of samples; its columns are all that any
        request wants, and the samples of one that wants fewer end with NaN.

        Returns:
            `mean` (N, T) float32; `quantiles` (N,), a record array with a field (T,) for each quantile; `samples` (N, S, T).

        Raises:
            UserError: a request is no series, or does not fit.
        """
        from .forecast import summarised
        from .lstm import Runner
        from .reading import parsed
        from .requests import OUTPUTS, asked, seed_of

        if not isinstance(requests, Records):
            raise UserError("deepar answers series as JSON records, not rows of numbers")
        self._trained()
        wanted = self.hyperparameters
        assert self._shape is not None
        ahead = wanted.prediction_length
        series = parsed(requests.items, lambda row: f"request {row + 1}", wanted, self._shape, ahead=ahead)
        samples, quantiles, outputs = asked(requests, wanted)
        empty = next((row for row, one in enumerate(series) if np.isnan(one.target).all()), None)
        if empty is not None:
            raise UserError(f"request {empty + 1}: target holds no values; a forecast needs at least one")
        mean = np.zeros((len(series), ahead), dtype=np.float32)
        of = np.zeros(len(series), dtype=[(f"{q:g}", np.float32, (ahead,)) for q in quantiles])
        drawn = np.full((len(series), max(samples, default=0) if "samples" in outputs else 0, ahead), np.nan, dtype=np.float32)
        with Runner(self.threads) as runner:
            for number in sorted(set(samples)):
                rows = np.flatnonzero(np.array(samples) == number)
                block = max(1, _HELD // (number * ahead))
                for some in np.split(rows, range(block, len(rows), block)):
                    mine = [series[row] for row in some]
                    seeds = [seed_of(one, self._seed) for one in mine]
                    paths = self._forecasts().samples(mine, [len(one.target) for one in mine], number, seeds, runner)
                    mean[some], found = summarised(paths, quantiles, runner)
                    for k, q in enumerate(quantiles):
                        of[f"{q:g}"][some] = found[:, k]
                    if "samples" in outputs:
                        drawn[some, :number] = paths
        answers = {"mean": mean, "quantiles": of, "samples": drawn}
        return {name: answers[name] for name in OUTPUTS if name in outputs}

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `deepar.json`: hyperparameters, and what all series have in common."""
        from safetensors.torch import save_file

        network = self._trained()
        assert self._shape is not None
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / _WEIGHTS)
        settings = {
            "hyperparameters": to_json(self.hyperparameters),
            "cardinality": self._shape.cardinality,
            "dynamic_feat": self._shape.features,
            "inputs": network.inputs,
            "seed": self._seed,
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold one.
        """
        from safetensors.torch import load_file

        from .reading import Shape
        from .training import make_network

        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(DeepARHyperparameters, settings["hyperparameters"], owner="deepar"))
        model._shape = Shape(list(settings["cardinality"]), int(settings["dynamic_feat"]))
        model._seed = int(settings["seed"])
        network = make_network(model.hyperparameters, model._shape, int(settings["inputs"]), 0)
        try:
            network.load_state_dict(load_file(folder / _WEIGHTS))
        except RuntimeError as error:
            raise UserError(f"{_WEIGHTS} does not hold the network that {_SETTINGS} describes: {error}") from None
        model._network = network
        return model

    def state_dict(self) -> State:
        """Return what the next step depends on."""
        if self._training is None or not self._training.step:
            return {"step": Entry(0)}
        return self._training.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        self._network = self._forecaster = None
        self._restored = state if int(state["step"].value) else None

    def _forecasts(self) -> Forecaster:
        from .forecast import Forecaster

        if self._forecaster is None:
            self._forecaster = Forecaster(self._trained(), self.hyperparameters)
        return self._forecaster

    def _trained(self) -> Network:
        if self._network is None:
            raise AlgorithmError("this deepar model has not been trained yet: call fit or load first")
        return self._network
