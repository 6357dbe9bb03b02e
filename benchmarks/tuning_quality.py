"""Part of tuning.py: how good the proposals of sweeps are, on problems whose trials are cheap."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from sklearn import datasets
from sklearn.ensemble import ExtraTreesRegressor

import phalanx
from common import table
from phalanx.tuning import declared
from phalanx.tuning.ranges import Values, at
from phalanx.tuning.search import Known, Search, decoded, distribution
from phalanx.tuning.tuner import LAG

CORES = len(os.sched_getaffinity(0))
SPACE = {
    "eta": phalanx.Continuous(0.03, 0.5, "log"),
    "max_depth": phalanx.Integer(3, 8),
    "min_child_weight": phalanx.Continuous(0.5, 20, "log"),
    "subsample": phalanx.Continuous(0.5, 1.0),
}
DATA = ("iris", "wine", "breast_cancer", "digits", "diabetes")
ALGORITHMS = ("xgboost", "linear_learner", "kmeans")


class Forest:
    """The trees of a fitted forest side by side: a point goes down all at once, which suits proposals that come one by one."""

    def __init__(self, fitted: ExtraTreesRegressor) -> None:
        trees = [each.tree_ for each in fitted.estimators_]
        begin = np.cumsum([0, *(tree.node_count for tree in trees)])
        self._roots = begin[:-1]
        shift = np.repeat(begin[:-1], [tree.node_count for tree in trees])
        self._feature = np.concatenate([tree.feature for tree in trees])
        self._threshold = np.concatenate([tree.threshold for tree in trees])
        self._left = np.concatenate([tree.children_left for tree in trees]) + shift
        self._right = np.concatenate([tree.children_right for tree in trees]) + shift
        self._value = np.concatenate([tree.value[:, 0, 0] for tree in trees])

    def predict(self, points: np.ndarray) -> np.ndarray:
        """Return the mean of the trees, for points (N, D)."""
        points = points.astype(np.float32)
        at_node = np.tile(self._roots, (len(points), 1))
        rows = np.arange(len(points))[:, None]
        while True:
            feature = self._feature[at_node]
            inner = feature >= 0
            if not inner.any():
                return self._value[at_node].mean(axis=1)
            goes_left = points[rows, np.maximum(feature, 0)] <= self._threshold[at_node]
            at_node = np.where(inner, np.where(goes_left, self._left[at_node], self._right[at_node]), at_node)


@dataclass
class Problem:
    name: str
    ranges: dict[str, Any]
    first: Values
    forest: Forest
    best: float
    median: float

    def value(self, points: Sequence[Values]) -> np.ndarray:
        return self.forest.predict(np.array([encoded(self.ranges, point) for point in points]))


def encoded(ranges: dict[str, Any], point: Values) -> list[float]:
    found = []
    for name, r in ranges.items():
        if isinstance(r, phalanx.Categorical):
            found.append(float(r.values.index(point[name])))
        else:
            found.append(float(np.log(point[name])) if r.scale == "log" else float(point[name]))
    return found


def problem(name: str, algorithm: str, size: int, cache: Path) -> Problem:
    from phalanx import hyperparameters, registry
    from phalanx.testing.sessions import MemorySession, Rows

    features, label = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    features, label = features[order].astype(np.float32), label[order].astype(np.float32)
    cut = len(features) * 7 // 10
    classes = 0 if name == "diabetes" else len(np.unique(label))
    static: dict[str, Any]
    if algorithm == "xgboost":
        kind = {0: "reg:squarederror", 2: "binary:logistic"}.get(classes, "multi:softprob")
        static = {"objective": kind, **({"num_class": classes} if classes > 2 else {})}
        ranges = {**SPACE, "num_round": phalanx.Integer(5, 60, "log"), "reg_lambda": phalanx.Continuous(1e-3, 100, "log")}
        ranges["eta"] = phalanx.Continuous(0.01, 0.5, "log")
        if classes > 2:
            ranges["num_round"] = phalanx.Integer(3, 15, "log")
    elif algorithm == "linear_learner":
        kind = {0: "regressor", 2: "binary_classifier"}.get(classes, "multiclass_classifier")
        static = {"predictor_type": kind, "num_models": 1, "optimizer": "adam", "epochs": 8}
        static |= {"num_classes": classes} if classes > 2 else {}
        ranges = {
            "learning_rate": phalanx.Continuous(1e-5, 1.0, "log"),
            "wd": phalanx.Continuous(1e-7, 1.0, "log"),
            "l1": phalanx.Continuous(1e-7, 1.0, "log"),
            "mini_batch_size": phalanx.Integer(16, 256, "log"),
            "use_bias": phalanx.Categorical([True, False]),
        }
    else:
        static = {"k": 8}
        ranges = {
            "epochs": phalanx.Integer(1, 10),
            "extra_center_factor": phalanx.Integer(1, 10),
            "mini_batch_size": phalanx.Integer(20, 400, "log"),
            "init_method": phalanx.Categorical(["random", "kmeans++"]),
            "local_lloyd_max_iter": phalanx.Integer(1, 100, "log"),
            "local_lloyd_num_trials": phalanx.Integer(1, 5),
            "polish_steps": phalanx.Integer(0, 20),
        }
    cls = registry.load(algorithm)
    metric = "validation:" + next(iter(declared.objectives_of(algorithm, {**static, **at(ranges, [0.5] * len(ranges))})))

    def trained(point: Values) -> float:
        settings = hyperparameters.parse(cls.Hyperparameters, {**static, **point}, owner=algorithm)
        parts = {"train": slice(None, cut), "validation": slice(cut, None)}
        target = None if algorithm == "kmeans" else label
        rows = {key: Rows(features[part], None if target is None else target[part]) for key, part in parts.items()}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "output").mkdir()
            session = MemorySession({key: part.shard() for key, part in rows.items()}, Path(folder) / "output")
            cls(settings).fit(session)
        value = session.metrics[metric]
        return float(np.log(max(value, 1e-6))) if np.isfinite(value) else 20.0

    draws = np.random.default_rng(1)
    points = [at(ranges, draws.random(len(ranges)).tolist()) for _ in range(size)]
    stored = cache / f"{name}-{algorithm}-{size}.json"
    if not stored.exists():
        keep(stored, [trained(point) for point in points])
    values = np.array(json.loads(stored.read_text()))
    forest = ExtraTreesRegressor(40, min_samples_leaf=2, random_state=0, n_jobs=1)
    forest.fit(np.array([encoded(ranges, point) for point in points]), np.minimum(values, np.quantile(values, 0.95)))
    many = [at(ranges, draws.random(len(ranges)).tolist()) for _ in range(4000)]
    start = declared.defaults_point(algorithm, static, ranges)
    found = Problem(f"{name} x {algorithm}", ranges, start, Forest(forest), 0.0, 0.0)
    told = found.value(many)
    found.best, found.median = float(told.min()), float(np.median(told))
    return found


def keep(path: Path, value: object) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(value))
    partial.replace(path)


Method = Callable[[Problem, int, int, int], float]


def random_search(p: Problem, batches: int, width: int, seed: int) -> float:
    draws = np.random.default_rng([seed, 99])
    return float(p.value([at(p.ranges, draws.random(len(p.ranges)).tolist()) for _ in range(batches * width)]).min())


def bare_tpe(p: Problem, batches: int, width: int, seed: int) -> float:
    space = {name: distribution(name, found) for name, found in p.ranges.items()}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(batches):
        asked = [study.ask(space) for _ in range(width)]
        points = [{n: decoded(p.ranges[n], v) for n, v in trial.params.items()} for trial in asked]
        for trial, value in zip(asked, p.value(points), strict=True):
            study.tell(trial, float(value))
    return float(study.best_value)


def ours(p: Problem, batches: int, width: int, seed: int) -> float:
    search = Search(p.ranges, strategy="bayesian", directions=["minimize"], seed=seed, first=[p.first])
    values: list[float] = []
    for batch in range(batches):
        numbers = range(batch * width, (batch + 1) * width)
        points = [point for n in numbers if (point := search.propose(n)) is not None]
        for number, value in zip(numbers, p.value(points), strict=False):
            search.learn(number, Known("Completed", (float(value),), 1))
            values.append(float(value))
    return min(values)


def deterministic(p: Problem, batches: int, width: int, seed: int) -> float:
    """Proposals that are the same for any number of trials at once: each knows the results of those LAG and more before it."""
    search = Search(p.ranges, strategy="bayesian", directions=["minimize"], seed=seed, first=[p.first])
    values: list[float] = []
    for number in range(batches * width):
        if number >= LAG:
            search.learn(number - LAG, Known("Completed", (values[number - LAG],), 1))
        point = search.propose(number)
        if point is None:
            break
        values.append(float(p.value([point])[0]))
    return min(values)


METHODS: dict[str, Method] = {"random": random_search, "Optuna TPE": bare_tpe, "Phalanx": ours, "deterministic": deterministic}


@dataclass(frozen=True)
class Work:
    """What a process of the pool does: one problem, every budget, method and seed that is not in the cache yet."""

    name: str
    algorithm: str
    size: int
    seeds: int
    budgets: tuple[tuple[int, int], ...]
    cache: Path
    deadline: float
    methods: tuple[str, ...]

    def run(self) -> tuple[str, int, dict[tuple[str, str], list[float]]]:
        """Return the problem, what is left, and the regret of every seed, by budget and method."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        p = problem(self.name, self.algorithm, self.size, self.cache)
        stored = self.cache / f"{self.name}-{self.algorithm}-{self.size}-reached.json"
        reached: dict[str, float] = json.loads(stored.read_text()) if stored.exists() else {}
        keys = [(f"{b}x{w}", m, seed) for b, w in self.budgets for m in self.methods for seed in range(self.seeds)]
        for budget, method, seed in keys:
            if f"{budget} {method} {seed}" not in reached and time.monotonic() < self.deadline:
                batches, width = (int(part) for part in budget.split("x"))
                reached[f"{budget} {method} {seed}"] = METHODS[method](p, batches, width, seed)
                keep(stored, reached)
        left = sum(f"{b} {m} {s}" not in reached for b, m, s in keys)
        best = min([p.best, *reached.values()])
        scored: dict[tuple[str, str], list[float]] = {}
        for budget, method, seed in keys if not left else []:
            regret = (reached[f"{budget} {method} {seed}"] - best) / max(p.median - best, 1e-12)
            scored.setdefault((budget, method), []).append(regret)
        return p.name, left, scored


def worked(work: Work) -> tuple[str, int, dict[tuple[str, str], list[float]]]:
    return work.run()


def quality(options: argparse.Namespace) -> None:
    budgets = tuple((int(b), int(w)) for b, w in (text.split("x") for text in options.budgets.split(",")))
    chosen = [(name, algorithm) for algorithm in ALGORITHMS for name in DATA][:: max(1, 15 // options.problems)]
    methods = tuple(name for name in METHODS if name != "deterministic" or options.deterministic)
    with contextlib.ExitStack() as stack:
        cache = Path(options.cache or stack.enter_context(tempfile.TemporaryDirectory()))
        cache.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 60 * options.minutes
        work = [
            Work(name, algorithm, options.table, options.seeds, budgets, cache, deadline, methods) for name, algorithm in chosen
        ]
        pool = stack.enter_context(get_context("spawn").Pool(CORES))
        found = sorted(pool.imap_unordered(worked, work))
    left = sum(each[1] for each in found)
    if left:
        print(f"{left} searches are left: run it again with the same --cache")
        return
    shown = [f"{b}x{w}" for b, w in budgets]
    columns = [(budget, method) for budget in shown for method in methods]
    rows: list[list[object]] = [[name, *(statistics.fmean(told[c]) for c in columns)] for name, _, told in found]
    by_seed = {c: [statistics.fmean(told[c][seed] for _, _, told in found) for seed in range(options.seeds)] for c in columns}
    rows.append(["mean", *(statistics.fmean(by_seed[c]) for c in columns)])
    rows.append(["least of a seed", *(min(by_seed[c]) for c in columns)])
    rows.append(["most of a seed", *(max(by_seed[c]) for c in columns)])
    print(f"normalised regret, {options.seeds} seeds\n")
    print(table(["problem", *(f"{m} {b}" for b, m in columns)], rows))
    for budget in shown:
        for mine, other in (("Phalanx", "Optuna TPE"), ("Phalanx", "random"), ("deterministic", "Phalanx"))[: len(methods) - 1]:
            less = [a - b for a, b in zip(by_seed[budget, mine], by_seed[budget, other], strict=True)]
            error = statistics.stdev(less) / len(less) ** 0.5 if len(less) > 1 else math.nan
            print(f"{budget}: {mine} - {other} {statistics.fmean(less):+.4f}, standard error over seeds {error:.4f}")
