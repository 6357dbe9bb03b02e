"""Names to classes, lazily: an entry says where the class is, what it needs, and how to get that.

Packages outside Phalanx add algorithms through the entry point group `phalanx.algorithms`:

    [project.entry-points."phalanx.algorithms"]
    my_algorithm = "my_package.my_module:MyAlgorithm"
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from .errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an algorithm lives and what it needs."""

    path: str  # "package.module:Class"
    help: str
    hyperparameters: str | None = None  # "package.module:Class" of its hyperparameters, where they are lighter to load alone
    extra: str | None = None  # of phalanx, to install
    needs: tuple[str, ...] = ()  # modules that must be importable; also preloaded by the warm server
    preload: tuple[str, ...] = ()  # further modules worth preloading
    prepares: str | None = None  # "package.module:function" that makes of opened channels what workers of a sweep share
    index_base: int = 1  # of libsvm files, unless the content type says
    lasts: bool = False  # training leaves its process as it found it: another job may follow in the same one
    elastic: bool = False  # learns the same bits whatever the number of workers
    answers: str = "predictions"  # what a JSON document calls the list of its answers


_BUILT_IN = {
    "blazingtext": Entry(
        "phalanx.algorithms.blazingtext.algorithm:BlazingText",
        "word vectors, and classifying lines of text",
        hyperparameters="phalanx.algorithms.blazingtext.hyperparameters:BlazingTextHyperparameters",
        preload=("phalanx.algorithms.blazingtext.vectors", "phalanx.algorithms.kernels.blazingtext"),
    ),
    "deepar": Entry(
        "phalanx.algorithms.deepar.algorithm:DeepAR",
        "probabilistic forecasts of time series, one network for all of them",
        hyperparameters="phalanx.algorithms.deepar.hyperparameters:DeepARHyperparameters",
        preload=("phalanx.algorithms.deepar.training", "phalanx.algorithms.deepar.forecast"),
    ),
    "factorization_machines": Entry(
        "phalanx.algorithms.factorization_machines.algorithm:FactorizationMachines",
        "linear weights and interactions of all pairs of features, for sparse rows",
        hyperparameters="phalanx.algorithms.factorization_machines.hyperparameters:FactorizationMachinesHyperparameters",
        preload=("phalanx.algorithms.factorization_machines.algorithm", "phalanx.algorithms.factorization_machines.fit"),
        lasts=True,
        elastic=True,
    ),
    "kmeans": Entry(
        "phalanx.algorithms.kmeans.algorithm:KMeans",
        "k-means clustering: web-scale mini-batches, or passes over all rows",
        preload=("phalanx.algorithms.kmeans.algorithm", "phalanx.algorithms.kmeans.batch"),
        lasts=True,
        elastic=True,
    ),
    "linear_learner": Entry(
        "phalanx.algorithms.linear_learner.algorithm:LinearLearner",
        "linear models for classes and numbers, many candidates in one pass",
        hyperparameters="phalanx.algorithms.linear_learner.hyperparameters:LinearLearnerHyperparameters",
        preload=("phalanx.algorithms.linear_learner.fit",),
        lasts=True,
        elastic=True,
    ),
    "random_cut_forest": Entry(
        "phalanx.algorithms.random_cut_forest.algorithm:RandomCutForest",
        "anomaly scores from trees of random cuts; time series and streams too",
        preload=("phalanx.algorithms.random_cut_forest.algorithm", "phalanx.algorithms.random_cut_forest.stream"),
        lasts=True,
        elastic=True,
        answers="scores",
    ),
    "xgboost": Entry(
        "phalanx.algorithms.xgboost.algorithm:XGBoost",
        "gradient boosted trees",
        hyperparameters="phalanx.algorithms.xgboost.hyperparameters:XGBoostHyperparameters",
        extra="xgboost",
        needs=("xgboost",),
        index_base=0,
        preload=("xgboost", "phalanx.algorithms.xgboost.algorithm"),
        prepares="phalanx.algorithms.xgboost.shared:prepare",
        lasts=True,
    ),
}
ALGORITHMS = MappingProxyType(_BUILT_IN)


def algorithms() -> dict[str, Entry]:
    """Return all algorithms by name: the built-in ones and those of installed packages."""
    found = dict(_BUILT_IN)
    for point in importlib.metadata.entry_points(group="phalanx.algorithms"):
        found.setdefault(point.name, Entry(point.value, f"from {point.dist.name if point.dist else point.module}"))
    return found


def entry(name: str) -> Entry:
    """Return the entry of the algorithm `name`.

    Raises:
        UserError: no such algorithm (with the nearest name), or what it needs is not installed (with the command).
    """
    found = _BUILT_IN.get(name)
    if found is None:  # only now: looking at all installed packages takes a while
        known = algorithms()
        if name not in known:
            raise UserError(f"there is no algorithm '{name}'; {nearest(name, known)}")
        found = known[name]
    missing = [module for module in found.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"the algorithm '{name}' needs {', '.join(missing)}: pip install 'phalanx-train[{found.extra}]'")
    return found


def load(name: str) -> Any:
    """Return the class of the algorithm `name`.

    Raises:
        UserError: as `entry`; or an outside package's entry point does not load.
    """
    return _load(name, entry(name).path)


def hyperparameters_of(name: str) -> type:
    """Return the dataclass of the hyperparameters of the algorithm `name`, without loading the algorithm where that can be.

    Raises:
        UserError: as `entry`.
    """
    found = entry(name)
    if found.hyperparameters is not None:
        return cast(type, _load(name, found.hyperparameters))
    return cast(type, _load(name, found.path).Hyperparameters)


def _load(name: str, path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the algorithm '{name}' ({path}) cannot be loaded: {error}") from error
