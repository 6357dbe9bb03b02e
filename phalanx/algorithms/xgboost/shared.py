"""Matrices that the trials of a sweep share: built once in the process that they are forked from, and never written to.

A quantised matrix depends on the data, `max_bin`, and on how labels, weights and groups are read: a trial that differs in these
builds its own. Nothing here is made by more than one thread, for a forked copy of a process has none of its others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import xgboost as xgb

from ...contracts import Shard
from .data import Intake, build_all, quantises
from .hyperparameters import XGBoostHyperparameters


@final
@dataclass(slots=True)
class _Kept:
    key: tuple[object, ...] = ()
    channels: Mapping[str, Shard] = field(default_factory=dict)
    matrices: dict[str, xgb.DMatrix] = field(default_factory=dict)
    intakes: list[Intake] = field(default_factory=list)


_kept = _Kept()


def prepare(channels: Mapping[str, Shard], settings: XGBoostHyperparameters) -> None:
    """Build the matrices of these channels, for jobs whose settings read them in the same way."""
    parameters = settings.parameters(device="cpu", threads=1, seed=0)
    quantile = quantises(settings)
    with tempfile.TemporaryDirectory(prefix="xgboost-") as cache:
        matrices, intakes = build_all(channels, settings, parameters=parameters, quantile=quantile, cache=Path(cache))
    _kept.key, _kept.channels = _key(settings, quantile), dict(channels)
    _kept.matrices, _kept.intakes = matrices, intakes


def find(
    channels: Mapping[str, Shard], settings: XGBoostHyperparameters, *, quantile: bool
) -> tuple[dict[str, xgb.DMatrix], list[Intake]] | None:
    """Return the matrices of these very channels as these settings read them, None where there are none."""
    same = set(channels) == set(_kept.channels) and all(shard is _kept.channels[name] for name, shard in channels.items())
    if not same or not _kept.matrices or _kept.key != _key(settings, quantile):
        return None
    return dict(_kept.matrices), list(_kept.intakes)


def _key(settings: XGBoostHyperparameters, quantile: bool) -> tuple[object, ...]:
    """Return all that `build_all` looks at."""
    bins = settings.parameters(device="cpu", threads=1, seed=0).get("max_bin")
    return (settings.objective, settings.num_class, settings.csv_weights, settings.tree_method, quantile, bins)
