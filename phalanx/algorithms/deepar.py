"""DeepAR (Salinas, Flunkert, Gasthaus and Januschowski, 2020): one network for all series, forecasts as sampled paths."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np

from ..contracts import Array, Entry, Features, Json, Records, Session, State
from ..errors import AlgorithmError, UserError, nearest
from ..hyperparameters import parse, to_json
from .deepar_hyperparameters import DeepARHyperparameters

if TYPE_CHECKING:  # torch takes seconds to load: who only reads hyperparameters is spared
    from .deepar_forecast import Forecaster
    from .deepar_network import Network
    from .deepar_reading import Shape
    from .deepar_series import Series
    from .deepar_training import Training
    from .deepar_windows import Prepared

_SETTINGS = "deepar.json"
_WEIGHTS = "model.safetensors"
_FORECASTS = "forecasts.jsonl"
_OUTPUTS = ("mean", "quantiles", "samples")
_SAMPLES = 100  # of a request that does not say
_MOST_SAMPLES = 100_000
_HELD = 1 << 25  # numbers of paths that are held at once


@final
class DeepAR:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.
    """

    Hyperparameters: ClassVar[type] = DeepARHyperparameters
    columns: ClassVar[int | None] = None  # requests are series

    def __init__(self, hyperparameters: DeepARHyperparameters) -> None:
        self.hyperparameters = hyperparameters
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
        from .deepar_reading import read_channel, shape_of
        from .deepar_training import Training

        wanted = self.hyperparameters
        if "train" not in session.channels:
            raise UserError(f"deepar needs a channel 'train'; {nearest('train', session.channels)}")
        session.restore({"algorithm": self})
        series = read_channel(session, "train", wanted, None)
        if not series:
            raise UserError("channel 'train' has no series")
        self._shape, self._seed = shape_of(series, wanted), session.seed
        test = read_channel(session, "test", wanted, self._shape) if "test" in session.channels else []
        self._training = training = Training(session, wanted, series, self._shape)
        if self._restored is not None:
            training.load_state_dict(self._restored)
            self._restored = None
        done = training.done
        while not done:
            metrics = training.learn()
            done = training.done
            if done:
                training.finish()
                self._network = training.network
                metrics["train:final_loss"] = training.loss
                metrics |= self._test(session, test)
            known = wanted.early_stopping_patience is None or done
            of = (training.step if done else training.steps) if known else None
            session.report(training.step, metrics, rows=wanted.mini_batch_size, of=of)
        training.finish()
        self._network = training.network

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
        from .deepar_reading import parsed

        if not isinstance(requests, Records):
            raise UserError("deepar answers series as JSON records, not rows of numbers")
        self._trained()
        wanted = self.hyperparameters
        assert self._shape is not None
        ahead = wanted.prediction_length
        series = parsed(requests.items, lambda row: f"request {row + 1}", wanted, self._shape, ahead=ahead)
        samples, quantiles, outputs = _asked(requests, wanted)
        empty = next((row for row, one in enumerate(series) if np.isnan(one.target).all()), None)
        if empty is not None:
            raise UserError(f"request {empty + 1}: target holds no values; a forecast needs at least one")
        seeds = [zlib.crc32(_canonical(item)) ^ (self._seed & 0xFFFFFFFF) for item in requests.items]
        mean = np.zeros((len(series), ahead), dtype=np.float32)
        of = np.zeros(len(series), dtype=[(f"{q:g}", np.float32, (ahead,)) for q in quantiles])
        drawn = np.full((len(series), max(samples, default=0) if "samples" in outputs else 0, ahead), np.nan, dtype=np.float32)
        for number in sorted(set(samples)):
            rows = np.flatnonzero(np.array(samples) == number)
            block = max(1, _HELD // (number * ahead))
            for some in np.split(rows, range(block, len(rows), block)):
                mine = [series[row] for row in some]
                begin = [len(one.target) for one in mine]
                paths = self._sampled(self._prepared(mine), begin, number, [seeds[row] for row in some])
                mean[some] = paths.mean(axis=1)
                for q in quantiles:
                    of[f"{q:g}"][some] = np.quantile(paths, q, axis=1)
                if "samples" in outputs:
                    drawn[some, :number] = paths
        found = {"mean": mean, "quantiles": of, "samples": drawn}
        return {name: found[name] for name in _OUTPUTS if name in outputs}

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

        from .deepar_reading import Shape
        from .deepar_training import make_network

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

    def _test(self, session: Session, test: list[Series]) -> dict[str, float]:
        """Collective. Forecast the withheld ends of series; return the measures, none without such series."""
        from .deepar_forecast import Errors, measures

        wanted, world = self.hyperparameters, session.world
        ahead, quantiles = wanted.prediction_length, np.array(wanted.quantiles)
        test = [one for one in test if len(one.target) > ahead]
        if not test:
            return {}
        self._forecaster = None
        errors = Errors()
        own = list(range(len(test)))[world.rank :: world.size]
        mine = [test[number] for number in own]
        paths, truth = np.zeros((0, wanted.num_eval_samples, ahead), np.float32), np.zeros((0, ahead), np.float32)
        if mine:
            begin = [len(one.target) - ahead for one in mine]
            prepared = self._prepared(mine)
            paths = self._sampled(prepared, begin, wanted.num_eval_samples, [number ^ self._seed for number in own])
            truth = prepared.truth(np.arange(len(mine)), np.array(begin))
            errors.add(truth, paths, quantiles)
        self._publish(session, own, mine, truth, paths)
        return measures(world.all_reduce(errors.sums(len(quantiles))), wanted.quantiles)

    def _publish(self, session: Session, numbers: list[int], series: list[Series], truth: Array, paths: Array) -> None:
        """Write this rank's forecasts of channel test beside the artifact."""
        quantiles = self.hyperparameters.quantiles
        session.output_data.mkdir(parents=True, exist_ok=True)
        with (session.output_data / f"{session.world.rank}-{_FORECASTS}").open("w", encoding="utf-8") as file:
            for number, one, actual, drawn in zip(numbers, series, truth, paths, strict=True):
                record = {
                    "series": number,
                    "start": str(one.start).replace("T", " "),
                    "length": len(one.target),
                    "actual": [None if np.isnan(value) else float(value) for value in actual],
                    "mean": drawn.mean(axis=0).tolist(),
                    "quantiles": {f"{q:g}": np.quantile(drawn, q, axis=0).tolist() for q in quantiles},
                }
                file.write(json.dumps(record) + "\n")

    def _prepared(self, series: list[Series]) -> Prepared:
        from .deepar_calendar import Frequency
        from .deepar_windows import Prepared

        wanted = self.hyperparameters
        return Prepared(series, Frequency.parse(wanted.time_freq), wanted.context_length, wanted.prediction_length)

    def _sampled(self, prepared: Prepared, begin: list[int], paths: int, seeds: list[int]) -> Array:
        from .deepar_forecast import Forecaster

        if self._forecaster is None:
            self._forecaster = Forecaster(self._trained(), self.hyperparameters)
        return self._forecaster.samples(prepared, list(range(len(begin))), begin, paths, seeds)

    def _trained(self) -> Network:
        if self._network is None:
            raise AlgorithmError("this deepar model has not been trained yet: call fit or load first")
        return self._network


def _asked(requests: Records, wanted: DeepARHyperparameters) -> tuple[list[int], list[float], set[str]]:
    """Return the samples that each request asks for, and the quantiles and outputs that all do together."""
    samples, quantiles, outputs = [], set(), set()
    for row, item in enumerate(requests.items, 1):
        given: Any = item.get("configuration") or {}
        if not isinstance(given, dict):
            raise UserError(f"request {row}: configuration must be an object")
        number = given.get("num_samples", _SAMPLES)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _MOST_SAMPLES:
            allowed = f"a whole number from 1 to {_MOST_SAMPLES}"
            raise UserError(f"request {row}: num_samples={number!r:.40} is not allowed: it must be {allowed}")
        samples.append(number)
        for text in _list(given, "quantiles", wanted.quantiles, row):
            quantiles.add(_quantile(text, row))
        for output in _list(given, "output_types", ["mean", "quantiles"], row):
            if output not in _OUTPUTS:
                raise UserError(f"request {row}: output_types knows no {output!r:.40}; {nearest(str(output), _OUTPUTS)}")
            outputs.add(output)
    if not requests.items:
        return [], wanted.quantiles, {"mean", "quantiles"}
    return samples, sorted(quantiles), outputs


def _list(given: dict[str, Json], name: str, default: list[Any], row: int) -> list[Any]:
    found = given.get(name, default)
    if not isinstance(found, list):
        raise UserError(f"request {row}: {name} must be a list, not {found!r:.40}")
    return found


def _quantile(given: Json, row: int) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value < 1:
        raise UserError(f"request {row}: the quantile {given!r:.40} is not allowed: it must be above 0 and below 1")
    return value


def _canonical(item: Json) -> bytes:
    return json.dumps({key: value for key, value in item.items() if key != "configuration"}, sort_keys=True).encode()
