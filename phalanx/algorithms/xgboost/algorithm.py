"""XGBoost: gradient boosted trees (Chen and Guestrin, 2016), spread over workers by the library's own communicator.

Every worker holds its rows; `hist` adds up the workers' histograms, so all grow the same trees. Where rounds draw random
numbers, every chunk of rounds starts from a seed of its own, made of the job's seed and the round's number. A job that goes on
from a checkpoint repeats the rounds since the last chunk began, and ends with the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import scipy.sparse
import xgboost as xgb

from ... import observing
from ...contracts import Array, Csr, Entry, Features, Json, Records, Session, State
from ...errors import UserError, nearest
from . import shared
from .data import Intake, build_all, quantises
from .group import add_up, first_line, in_group, translated
from .hyperparameters import XGBoostHyperparameters
from .metrics import OWN_METRICS, evaluate, maximises
from .model import check_model
from .trees import tell_of

MODEL_FILE = "xgboost-model"
CARD_FILE = "xgboost.json"
# Rounds drawn from one seed. More: a resumed job repeats more of them. Fewer: new seeds cost up to a millisecond each. Dart's
# rounds change the weights of earlier trees, so none can be taken back: there every round has a seed of its own.
_CHUNK = 16


@dataclass(slots=True)
class _Best:
    """What early stopping remembers."""

    round: int = 0  # counted from 1; 0: none yet
    score: float | None = None

    def update(self, round: int, score: float, *, larger: bool) -> bool:
        """Take in the score of a round; return whether it is the best so far."""
        better = np.isfinite(score) and (self.score is None or (score > self.score if larger else score < self.score))
        if better:
            self.round, self.score = round, score
        return bool(better)


@final
class XGBoost:
    """`contracts.Algorithm`; the learnt model is an ordinary `xgboost.Booster`."""

    Hyperparameters: ClassVar[type] = XGBoostHyperparameters

    def __init__(self, hyperparameters: XGBoostHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self._booster: xgb.Booster | None = None
        self._rounds = 0  # that are done
        self._best = _Best()
        self._best_raw: bytes | None = None  # gblinear: the model of the best round, which cannot be cut out later

    @property
    def booster(self) -> xgb.Booster:
        """The learnt model.

        Raises:
            UserError: nothing was learnt yet.
        """
        if self._booster is None:
            raise UserError("this XGBoost has learnt nothing yet: call fit, or load a model")
        return self._booster

    @property
    def columns(self) -> int:
        """Features of a request."""
        return int(self.booster.num_features())

    @property
    def best_round(self) -> int:
        """The round early stopping chose, counted from 1; without it the last one."""
        return self._best.round or self._rounds

    def fit(self, session: Session) -> None:
        """Collective. Boost until `num_round` or early stopping; go on from restored rounds, if any."""
        session.restore({"algorithm": self})
        _check_channels(self.hyperparameters, session)
        if session.world.rank == 0:
            for note in self.hyperparameters.notes():
                print(f"note: {note}", flush=True)
        with tempfile.TemporaryDirectory(prefix="xgboost-", dir=session.output_data.parent) as cache:
            in_group(session.world, lambda: _Training(self, session, Path(cache)).run())

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return `score`: a probability, class, value or rank score (N,); class probabilities (N, K) for multi:softprob."""
        booster = self.booster
        try:
            with xgb.config_context(**({} if len(requests) else {"verbosity": 0})):  # to be asked nothing is no warning
                score = booster.predict(xgb.DMatrix(_request_matrix(requests, self.columns), missing=np.nan))
        except xgb.core.XGBoostError as error:
            raise translated(error) from error
        if self.hyperparameters.objective == "multi:softprob":
            score = score.reshape(len(requests), self.hyperparameters.num_class or 1)
        return {"score": score}

    def save(self, folder: Path) -> None:
        """Write `xgboost-model`, which `xgboost.Booster(model_file=…)` opens, and what it does not say of itself."""
        card = {
            "objective": self.hyperparameters.objective,
            "num_class": self.hyperparameters.num_class,
            "booster": self.hyperparameters.booster,
            "rounds": self._rounds,
            "best_round": self.best_round,
            "best_score": self._best.score,
        }
        (folder / MODEL_FILE).write_bytes(self.booster.save_raw(raw_format="ubj"))
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the file is damaged or crafted; the library's reader, which trusts it, does not see it then.
        """
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        settings = XGBoostHyperparameters(
            num_round=int(card["rounds"]),
            objective=card["objective"],
            num_class=card["num_class"],
            booster=card["booster"],
        )
        model = cls(settings)
        raw = (folder / MODEL_FILE).read_bytes()
        check_model(raw, MODEL_FILE)
        model._booster = xgb.Booster()
        try:
            model._booster.load_model(bytearray(raw))
        except xgb.core.XGBoostError as error:
            raise UserError(f"{MODEL_FILE} cannot be read by xgboost: {first_line(str(error))}") from error
        model._rounds = int(card["rounds"])
        model._best = _Best(int(card["best_round"]), card["best_score"])
        return model

    def state_dict(self) -> State:
        """Return the trees so far, the rounds done, and what early stopping remembers."""
        return {
            "booster": Entry(_bytes_array(None if self._booster is None else bytes(self._booster.save_raw(raw_format="ubj")))),
            "step": Entry(self._rounds),
            "best": Entry(asdict(self._best)),
            "best_booster": Entry(_bytes_array(self._best_raw)),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave; `fit` goes on from there."""
        raw, best_raw = (np.asarray(state[name].value, dtype=np.uint8).tobytes() for name in ("booster", "best_booster"))
        self._booster = xgb.Booster(model_file=bytearray(raw)) if raw else None
        self._rounds = int(state["step"].value)
        best: Json = state["best"].value
        self._best = _Best(int(best["round"]), best["score"])
        self._best_raw = best_raw or None


@final
class _Training:
    """One call of `fit`, inside the communicator."""

    def __init__(self, algorithm: XGBoost, session: Session, cache: Path) -> None:
        self._algorithm = algorithm
        self._session = session
        self._settings = settings = algorithm.hyperparameters
        self._parameters = settings.parameters(device=session.device, threads=session.threads, seed=session.seed)
        self._seed = int(self._parameters["seed"])
        self._chunk = 0 if not settings.samples() else 1 if settings.booster == "dart" else _CHUNK
        self._own = [name for name in settings.metrics() if name in OWN_METRICS]
        quantile = quantises(settings)
        kept = shared.find(session.channels, settings, quantile=quantile)
        self._matrices, intakes = kept or build_all(
            session.channels, settings, parameters=self._parameters, quantile=quantile, cache=cache
        )
        if self._matrices["train"].num_row() == 0:
            self._parameters["verbosity"] = 0  # the library warns of a worker without rows; here that is in order
        _check_width(settings, intakes[0].width)
        self._settle_labels(intakes)
        self._labels = {name: matrix.get_label() for name, matrix in self._matrices.items()} if self._own else {}
        self._watched: list[str] = [name for name in ("train", "validation") if name in self._matrices]  # evaluated every round
        self._order = {metric: place for place, metric in enumerate(settings.metrics())}

    def run(self) -> None:
        """Collective. Boost round by round."""
        model, settings = self._algorithm, self._settings
        booster = model._booster = self._new_booster(model._booster)
        rows = self._session.channels["train"].rows
        try:
            while not self._is_over():
                number = model._rounds  # of this round, counted from 0
                self._boost(booster, number)
                model._rounds = number + 1
                metrics = self._metrics(booster, self._watched, number)
                self._remember_best(booster, metrics)
                if self._is_over():
                    booster = self._cut_to_best(booster)
                    rest = [name for name in self._matrices if name not in self._watched]
                    metrics |= self._metrics(booster, rest, number)
                self._session.report(model._rounds, metrics, rows=rows, of=settings.num_round)
                self._show_trees(booster)  # after what validation says of them
            self._cut_to_best(booster)  # for a job restored after its last round
        finally:
            model.booster.reset()  # lets go of the data

    def _new_booster(self, restored: xgb.Booster | None) -> xgb.Booster:
        """Collective. Return a booster that has done the rounds of the restored one, and draws what that would have drawn."""
        booster = xgb.Booster(self._parameters, list(self._matrices.values()))
        rounds = self._algorithm._rounds
        begin = rounds if self._is_over() or not self._chunk else rounds - rounds % self._chunk
        if restored is not None and begin > 0:
            kept = restored if begin == rounds else restored[:begin]
            booster.load_model(kept.save_raw(raw_format="ubj"))
            booster.set_param(_pairs(self._parameters))
        for number in range(begin, rounds):
            self._boost(booster, number)
        return booster

    def _boost(self, booster: xgb.Booster, number: int) -> None:
        """Collective. Do one round, counted from 0."""
        if self._chunk and number % self._chunk == 0:
            _renew(booster, self._parameters, _seed_of_round(self._seed, number))
        booster.update(self._matrices["train"], number)

    def _metrics(self, booster: xgb.Booster, names: list[str], round: int) -> dict[str, float]:
        """Collective. Return `channel:metric` -> value, in the order the user gave the metrics."""
        if not names:
            return {}
        found: dict[str, dict[str, float]] = {name: {} for name in names}
        if "disable_default_eval_metric" not in self._parameters:
            text = booster.eval_set([(self._matrices[name], str(number)) for number, name in enumerate(names)], round)
            for item in text.split("\t")[1:]:
                place, _, value = item.rpartition(":")
                number, _, metric = place.partition("-")
                found[names[int(number)]][metric] = float(value)
        if self._own:
            for name in names:
                found[name] |= evaluate(
                    self._own,
                    booster.predict(self._matrices[name]),
                    self._labels[name],
                    objective=self._settings.objective,
                    classes=self._settings.num_class or 2,
                    add=add_up,
                )
        return {
            f"{name}:{metric}": values[metric]
            for name, values in found.items()
            for metric in sorted(values, key=lambda metric: self._order.get(metric, -1))
        }

    def _show_trees(self, booster: xgb.Booster) -> None:
        """Let the job's rules look at the trees, where they want to and it is time."""
        rounds, observer = self._algorithm._rounds, observing.now
        if self._session.world.rank or self._settings.booster == "gblinear" or not observer.due("trees", rounds):
            return
        with observer.looking("trees", rounds):
            train = self._session.channels["train"]
            rows = round(train.rows * self._settings.subsample)
            have = booster_rounds(booster, rounds)
            observer.tell("trees", tell_of(booster, have, columns=train.columns or 0, rows=rows))

    def _remember_best(self, booster: xgb.Booster, metrics: Mapping[str, float]) -> None:
        if self._settings.early_stopping_rounds is None:
            return
        name = [key for key in metrics if key.startswith("validation:")][-1]
        model = self._algorithm
        larger = maximises(name.partition(":")[2])
        if model._best.update(model._rounds, metrics[name], larger=larger) and self._settings.booster == "gblinear":
            model._best_raw = bytes(booster.save_raw(raw_format="ubj"))

    def _is_over(self) -> bool:
        model, patience = self._algorithm, self._settings.early_stopping_rounds
        stale = patience is not None and model._rounds - model._best.round >= patience
        return model._rounds >= self._settings.num_round or stale

    def _cut_to_best(self, booster: xgb.Booster) -> xgb.Booster:
        """Return the model of the best round, which becomes the algorithm's."""
        model = self._algorithm
        best = model._best.round
        if best == 0 or best >= booster_rounds(booster, model._rounds):
            return booster
        if self._session.world.rank == 0:
            print(
                f"early stopping: round {best} of {model._rounds} is the best, {model._best.score:g}; its model is kept",
                flush=True,
            )
        if model._best_raw is not None:
            booster.load_model(bytearray(model._best_raw))
        else:
            booster = booster[:best]
        model._booster = booster
        return booster

    def _settle_labels(self, intakes: list[Intake]) -> None:
        """Collective. Say once that -1 was read as 0; refuse channels that hold both."""
        for intake in intakes:
            minus, other = add_up(np.array([intake.saw_minus, intake.saw_other])) > 0
            if minus and other:
                raise UserError(
                    f"channel '{intake.name}' has labels -1 and others than -1 and 1; "
                    f"objective={self._settings.objective} needs 0 and 1, or -1 and 1"
                )
            if minus and self._session.world.rank == 0:
                print(f"note: channel '{intake.name}': labels -1 and 1 are read as 0 and 1", flush=True)


def booster_rounds(booster: xgb.Booster, rounds: int) -> int:
    """Return the rounds a booster holds; linear ones do not know and hold all `rounds`."""
    return int(booster.num_boosted_rounds()) or rounds


def _pairs(parameters: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return parameters as `Booster.set_param` takes them: a list's items one by one."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in parameters.items()}
    return [(name, item) for name, items in lists.items() for item in items]


def _renew(booster: xgb.Booster, parameters: Mapping[str, Any], seed: int) -> None:
    """Make the booster draw from `seed` on.

    A new seed alone does not reach the generators inside the tree updaters. Updaters are made anew when their sequence
    changes, so it is changed and changed back; unlike reloading the booster that keeps its cached predictions.
    """
    if "updater" in parameters:
        name, real = "updater", str(parameters["updater"])
        other = "grow_histmaker" if real != "grow_histmaker" else "grow_quantile_histmaker"
    else:
        name, real = "tree_method", str(parameters.get("tree_method", "hist"))
        real = "hist" if real == "auto" else real
        other = "approx" if real == "hist" else "hist"
    booster.set_param({name: other, "seed": seed})
    booster.num_features()  # any question makes the booster take its parameters in
    booster.set_param({name: real})


def _seed_of_round(seed: int, round: int) -> int:
    return int(np.random.SeedSequence([seed, round]).generate_state(1)[0]) & 0x7FFFFFFF


def _check_channels(settings: XGBoostHyperparameters, session: Session) -> None:
    if "train" not in session.channels:
        raise UserError(f"xgboost needs a channel 'train'; {nearest('train', session.channels)}")
    if settings.early_stopping_rounds is not None and "validation" not in session.channels:
        raise UserError("early_stopping_rounds needs a channel 'validation': give one with --validation URL")
    for name, value, instead in (
        ("tree_method", "exact", "tree_method=hist"),
        ("objective", "survival:cox", "objective=survival:aft"),
        ("booster", "gblinear", "booster=gbtree"),
    ):
        if session.world.size > 1 and getattr(settings, name) == value:
            raise UserError(f"{name}={value} works on one worker only, this job has {session.world.size}; use {instead}")
    if settings.tree_method == "gpu_hist" and not session.device.startswith("cuda"):
        raise UserError("tree_method=gpu_hist needs a GPU, and this job has none; use tree_method=hist")


def _check_width(settings: XGBoostHyperparameters, columns: int) -> None:
    """Raise `UserError` for constraints that name columns the data does not have."""
    given = settings.parameters(device="cpu", threads=1, seed=0)
    monotone = given.get("monotone_constraints")
    if monotone is not None and monotone.count(",") + 1 != columns:
        raise UserError(
            f"monotone_constraints has {monotone.count(',') + 1} entries, but channel 'train' has {columns} features"
        )
    groups = json.loads(given.get("interaction_constraints", "[]"))
    highest = max((column for group in groups for column in group), default=0)
    if highest >= columns:
        raise UserError(f"interaction_constraints names column {highest}, but channel 'train' has columns 0 to {columns - 1}")


def _request_matrix(requests: Features, columns: int) -> Any:
    if isinstance(requests, Records):
        raise UserError("xgboost answers rows of numbers, not records")
    width = requests.columns if isinstance(requests, Csr) else requests.shape[1]
    if isinstance(requests, Csr) and width <= columns:
        return scipy.sparse.csr_matrix((requests.values, requests.indices, requests.indptr), shape=(len(requests), columns))
    if width != columns:
        raise UserError(f"the requests have {width} features, but the model was trained on {columns}")
    return requests


def _bytes_array(raw: bytes | None) -> Array:
    return np.frombuffer(raw or b"", dtype=np.uint8).copy()
