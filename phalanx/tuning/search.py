"""Proposals: what the next trial shall try, from the seed, its number and what earlier trials came to.

A proposal is a function of (seed, number, what is known), nothing else: the model is an Optuna study in memory, and its sampler
is made anew for every proposal. So a sweep that was killed goes on as if it had not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc

from .ranges import Continuous, Integer, Range, Values, active, at, contains, grid, size

Strategy = Literal["bayesian", "random", "grid", "hyperband"]
Directions = Sequence[Literal["minimize", "maximize"]]
_FEWEST_KNOWN, _MOST_KNOWN = 4, 10  # results before the model is asked, two for each range; until then points are spread evenly
_AGAIN = 16  # tries to find a point of a countable space that no trial has had
_REVERSED = "1 - "
_CONSTRAINT = "constraints:"  # what Optuna's own names of them begin with


@dataclass(frozen=True, slots=True)
class Known:
    """What a finished trial came to, as the model is told."""

    state: Literal["Completed", "Stopped", "Failed"]
    values: Sequence[float] = ()  # one for each objective
    step: int = 0  # at which a stopped trial had them
    constraints: Mapping[str, float] | None = None  # above 0: violated


@final
class Search:
    """Proposes trials in order of their numbers.

    Args:
        ranges: the space, as `ranges.checked` orders it.
        strategy: how.
        directions: one for each objective.
        seed: of all proposals.
        first: points to try before all others (defaults of the algorithm, the best of earlier sweeps).
        observed: trials of earlier sweeps on the same data: points and what they came to.
    """

    def __init__(
        self,
        ranges: Mapping[str, Range],
        *,
        strategy: Strategy,
        directions: Directions,
        seed: int,
        first: Sequence[Values] = (),
        observed: Sequence[tuple[Values, Known]] = (),
    ) -> None:
        self._ranges = ranges
        self._strategy = strategy
        self._seed = seed
        self._first = list(first)
        self._grid = grid(ranges) if strategy == "grid" else []
        self._size = size(ranges)
        self._conditional = any(found.only_if for found in ranges.values())
        self._startup = min(_MOST_KNOWN, max(_FEWEST_KNOWN, 2 * len(ranges)))
        self._directions = list(directions)
        self._observed = [(values, known) for values, known in observed if known.state == "Completed"]
        self._tried: dict[int, Values] = {}
        self._learnt: dict[int, Known] = {}
        self._distributions = {name: distribution(name, found) for name, found in ranges.items()}
        self._ids: dict[int, int] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = self._rebuilt()

    def propose(self, number: int) -> Values | None:
        """Return the point of trial `number`, None where all points of the space have been tried."""
        values = self._proposed(number)
        if values is not None:
            self.took(number, values)
        return values

    def took(self, number: int, values: Values) -> None:
        """Note that trial `number` tries this point, as it did before a sweep was interrupted."""
        self._tried[number] = values
        self._add(self._study, number)

    def learn(self, number: int, known: Known) -> None:
        """Take in what trial `number` came to; again, when a stopped one has gone on since. Failures teach nothing."""
        before = self._learnt.get(number)
        if before == known:
            return
        self._learnt[number] = known
        if before is not None:  # a study's trial that has ended cannot be changed
            self._study = self._rebuilt()
            return
        place = self._ids[number]
        trial = self._study.get_trials(deepcopy=False)[place]
        storage, trial_id = self._study._storage, trial._trial_id
        if not _teaches(known):
            self._study.tell(place, state=TrialState.FAIL)
            return
        for name, value in (known.constraints or {}).items():
            storage.set_trial_system_attr(trial_id, _CONSTRAINT + name, value)
        if _is_pruned(known):
            storage.set_trial_intermediate_value(trial_id, known.step, known.values[0])
            self._study.tell(place, state=TrialState.PRUNED)
        else:
            self._study.tell(place, list(known.values))

    def _rebuilt(self) -> optuna.Study:
        """Return a study of all that is known, in the order in which trials came."""
        study = optuna.create_study(directions=self._directions)
        for values, known in self._observed:
            study.add_trial(self._frozen(values, known))
        for number in self._tried:
            self._add(study, number)
        return study

    def _add(self, study: optuna.Study, number: int) -> None:
        study.add_trial(self._frozen(self._tried[number], self._learnt.get(number)))
        self._ids[number] = len(study.get_trials(deepcopy=False)) - 1

    def _results(self) -> int:
        """Return how many trials have taught something."""
        return len(self._observed) + sum(_teaches(known) for known in self._learnt.values())

    def _proposed(self, number: int) -> Values | None:
        if self._strategy == "grid":
            return self._grid[number] if number < len(self._grid) else None
        if self._size is not None and len({repr(values) for values in self._tried.values()}) >= self._size:
            return None
        if number < len(self._first):
            return self._first[number]
        values: Values = {}
        for again in range(_AGAIN):
            values = self._point(number, again)
            if self._size is None or values not in self._tried.values():
                break
        return values

    def _point(self, number: int, again: int) -> Values:
        width = len(self._ranges)
        if self._strategy == "random" or again >= _AGAIN // 2:
            return at(self._ranges, np.random.default_rng([self._seed, number, again]).random(width).tolist())
        if self._results() < self._startup:
            points = qmc.Sobol(width, seed=np.random.default_rng([self._seed, again]))
            if number:
                points.fast_forward(number)
            return at(self._ranges, points.random(1)[0].tolist())
        return self._modelled(number, again)

    def _modelled(self, number: int, again: int) -> Values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=int(np.random.default_rng([self._seed, number, again]).integers(1 << 31)),
                n_startup_trials=_FEWEST_KNOWN,
                multivariate=True,
                group=self._conditional,
                constant_liar=True,
            )
        trial = self._study.ask()
        values: Values = {}
        for name, found in self._ranges.items():
            if active(found, values):
                values[name] = decoded(found, _suggested(trial, coded_name(name, found), self._distributions[name]))
        self._study.tell(trial, state=TrialState.FAIL)  # its place is taken by `took`; a failed trial teaches nothing
        return values

    def _frozen(self, values: Values, known: Known | None) -> optuna.trial.FrozenTrial:
        """Return a trial as a study holds it; None: it runs."""
        names = [name for name in self._ranges if name in values and contains(self._ranges[name], values[name])]
        told: dict[str, Any] = {"state": TrialState.RUNNING}
        if known is not None and not _teaches(known):
            told = {"state": TrialState.FAIL}
        elif known is not None:
            told = {"system_attrs": {_CONSTRAINT + name: value for name, value in (known.constraints or {}).items()}}
            if _is_pruned(known):
                told |= {"state": TrialState.PRUNED, "intermediate_values": {known.step: known.values[0]}}
            else:
                told |= {"state": TrialState.COMPLETE, "values": list(known.values)}
        return create_trial(
            params={coded_name(n, self._ranges[n]): coded(self._ranges[n], values[n]) for n in names},
            distributions={coded_name(n, self._ranges[n]): self._distributions[n] for n in names},
            **told,
        )


def _teaches(known: Known) -> bool:
    return known.state != "Failed" and bool(known.values)


def _is_pruned(known: Known) -> bool:
    return known.state == "Stopped" and len(known.values) == 1


def distribution(name: str, found: Range) -> BaseDistribution:
    """Return Optuna's name for a range; a reverse-log scale is a log scale of 1 - value."""
    if isinstance(found, Continuous):
        if found.scale == "reverse-log":
            return FloatDistribution(1 - found.high, 1 - found.low, log=True)
        return FloatDistribution(found.low, found.high, log=found.scale == "log")
    if isinstance(found, Integer):
        return IntDistribution(found.low, found.high, log=found.scale == "log")
    return CategoricalDistribution(found.values)


def coded_name(name: str, found: Range) -> str:
    """Return what a hyperparameter is called in the study."""
    return _REVERSED + name if isinstance(found, Continuous) and found.scale == "reverse-log" else name


def coded(found: Range, value: Any) -> Any:
    """Return a value as the study holds it."""
    if isinstance(found, Continuous):
        value = float(value)
        return min(max(1 - value, 1 - found.high), 1 - found.low) if found.scale == "reverse-log" else value
    return int(value) if isinstance(found, Integer) else value


def decoded(found: Range, value: Any) -> Any:
    """Return the value that `coded` was given."""
    if isinstance(found, Continuous) and found.scale == "reverse-log":
        return min(max(1 - value, found.low), found.high)
    return value


def _suggested(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> Any:
    if isinstance(wanted, FloatDistribution):
        return trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log)
    if isinstance(wanted, IntDistribution):
        return trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log)
    return trial.suggest_categorical(name, wanted.choices)
