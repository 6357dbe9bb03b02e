"""Sweeps: what a trial costs as a job, how good the proposals are, what early stopping saves.

    python benchmarks/tuning.py overhead [--trials 16] [--rows 8000] [--rounds 100]
    python benchmarks/tuning.py quality [--seeds 10] [--table 200] [--problems 15] [--budgets 16x8,100x1] [--cache DIR]
    python benchmarks/tuning.py stopping [--seeds 3] [--trials 30]

overhead: bare Optuna calls xgboost in its own process, on a matrix built once, against jobs of `phalanx.Tuner`; the same space,
number of trials and rounds. Bare runs the trials that the tuner proposed, for deeper trees take longer: one at a time with all
cores, and as many as there are cores with one thread each; the faster one counts. Beside it: trials of its own choice.
quality: every problem is a data set of scikit-learn's and an algorithm. Its table holds real trainings at random points;
forests fitted to them stand in for training, so that many trials are cheap. Regret is 0 at the best value known of a
problem, 1 at the median of random points. A budget of 16x8 is 16 batches of 8 proposals made without each other's results.
stopping: the same sweep with early stopping and without, seconds of training and best score.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

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
from common import machine, table, versions
from phalanx.tuning import declared
from phalanx.tuning.ranges import Values, at
from phalanx.tuning.search import Known, Search, decoded, distribution

CORES = len(os.sched_getaffinity(0))
SPACE = {
    "eta": phalanx.Continuous(0.03, 0.5, "log"),
    "max_depth": phalanx.Integer(3, 8),
    "min_child_weight": phalanx.Continuous(0.5, 20, "log"),
    "subsample": phalanx.Continuous(0.5, 1.0),
}
DATA = ("iris", "wine", "breast_cancer", "digits", "diabetes")
ALGORITHMS = ("xgboost", "linear_learner", "kmeans")


def made(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return datasets.make_classification(rows, 30, n_informative=12, flip_y=0.1, class_sep=0.6, random_state=seed)


def write_csv(folder: Path, features: np.ndarray, label: np.ndarray) -> dict[str, str]:
    cut = len(features) * 3 // 4
    both = np.column_stack([label, features])
    for name, part in (("train", both[:cut]), ("validation", both[cut:])):
        np.savetxt(folder / f"{name}.csv", part, delimiter=",", fmt="%.7g")
    return {name: str(folder / f"{name}.csv") for name in ("train", "validation")}


# what a trial costs


def bare(features: np.ndarray, label: np.ndarray, points: Sequence[Values], trials: int, rounds: int, at_once: int) -> float:
    """Return the seconds of Optuna alone; it tries the given points first, then its own."""
    import xgboost

    cut = len(features) * 3 // 4
    begun = time.perf_counter()
    train = xgboost.QuantileDMatrix(features[:cut].astype(np.float32), label[:cut])
    validation = xgboost.QuantileDMatrix(features[cut:].astype(np.float32), label[cut:], ref=train)

    def objective(trial: optuna.Trial) -> float:
        given = {
            "objective": "binary:logistic",
            "nthread": CORES // at_once,
            "eta": trial.suggest_float("eta", 0.03, 0.5, log=True),
            "max_depth": trial.suggest_int("max_depth", 3, 8),
            "min_child_weight": trial.suggest_float("min_child_weight", 0.5, 20, log=True),
            "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        }
        told: dict[str, Any] = {}
        evaluated = [(train, "train"), (validation, "validation")]
        xgboost.train(given, train, rounds, evals=evaluated, evals_result=told, verbose_eval=False)
        return float(told["validation"]["logloss"][-1])

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for point in points:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=trials, n_jobs=at_once)
    return time.perf_counter() - begun


def swept(inputs: dict[str, str], trials: int, rounds: int, output: Path, **more: Any) -> tuple[float, phalanx.Tuner]:
    job = phalanx.TrainingJob(
        algorithm="xgboost", inputs=inputs, hyperparameters={"num_round": rounds, "objective": "binary:logistic"}
    )
    given: dict[str, Any] = {
        "ranges": SPACE,
        "early_stopping": "off",
        "strategy": "bayesian",
        "max_parallel_jobs": CORES,
        **more,
    }
    tuner = phalanx.Tuner(job, output=str(output), objective="validation:logloss", max_jobs=trials, **given)
    begun = time.perf_counter()
    tuner.run(progress=False)
    return time.perf_counter() - begun, tuner


def overhead(options: argparse.Namespace) -> None:
    features, label = made(options.rows, 0)
    seconds: dict[str, list[float]] = {}
    beside = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_csv(Path(folder), features, label)
        warm_s, _ = swept(inputs, 1, 2, Path(folder), name="warm")
        for again in range(options.repeats):
            ours, tuner = swept(inputs, options.trials, options.rounds, Path(folder), name=f"ours-{again}")
            trials = tuner.trials()
            points = [trial.values for trial in trials]
            beside.append((ours * CORES - sum(trial.seconds for trial in trials)) / options.trials)
            found = {f"Phalanx, {CORES} jobs at once": ours}
            for at_once, how in ((1, "one at a time, all cores"), (CORES, f"{CORES} threads at once")):
                found[f"Optuna, the same trials, {how}"] = bare(
                    features, label, points, options.trials, options.rounds, at_once
                )
            own = bare(features, label, [], options.trials, options.rounds, CORES)
            found[f"Optuna, trials of its own, {CORES} threads at once"] = own
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(value for name, value in median.items() if "the same trials" in name)
    rows = [[name, value, value / best] for name, value in median.items()]
    print(table(["sweep", "seconds", "of the faster Optuna with the same trials"], rows))
    print(f"\n{options.trials} trials, median of {options.repeats} sweeps")
    print(f"{statistics.median(beside):.3f} s of a slot beside training a trial")
    print(f"the first sweep of a process starts the warm server: {warm_s:.1f} s for a trial of 2 rounds")


# how good the proposals are


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

    random = np.random.default_rng(1)
    points = [at(ranges, random.random(len(ranges)).tolist()) for _ in range(size)]
    stored = cache / f"{name}-{algorithm}-{size}.json"
    if not stored.exists():
        keep(stored, [trained(point) for point in points])
    values = np.array(json.loads(stored.read_text()))
    forest = ExtraTreesRegressor(40, min_samples_leaf=2, random_state=0, n_jobs=1)
    forest.fit(np.array([encoded(ranges, point) for point in points]), np.minimum(values, np.quantile(values, 0.95)))
    many = [at(ranges, random.random(len(ranges)).tolist()) for _ in range(4000)]
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
    random = np.random.default_rng([seed, 99])
    return float(p.value([at(p.ranges, random.random(len(p.ranges)).tolist()) for _ in range(batches * width)]).min())


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


METHODS: dict[str, Method] = {"random": random_search, "Optuna TPE": bare_tpe, "Phalanx": ours}


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

    def run(self) -> tuple[str, int, dict[tuple[str, str], list[float]]]:
        """Return the problem, what is left, and the regret of every seed, by budget and method."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        p = problem(self.name, self.algorithm, self.size, self.cache)
        stored = self.cache / f"{self.name}-{self.algorithm}-{self.size}-reached.json"
        reached: dict[str, float] = json.loads(stored.read_text()) if stored.exists() else {}
        keys = [(f"{b}x{w}", m, seed) for b, w in self.budgets for m in METHODS for seed in range(self.seeds)]
        for budget, method, seed in keys:
            if f"{budget} {method} {seed}" not in reached and time.monotonic() < self.deadline:
                batches, width = (int(part) for part in budget.split("x"))
                reached[f"{budget} {method} {seed}"] = METHODS[method](p, batches, width, seed)
                keep(stored, reached)
        left = sum(f"{b} {m} {s}" not in reached for b, m, s in keys)
        best = min(p.best, *reached.values())
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
    with contextlib.ExitStack() as stack:
        cache = Path(options.cache or stack.enter_context(tempfile.TemporaryDirectory()))
        cache.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 60 * options.minutes
        work = [Work(name, algorithm, options.table, options.seeds, budgets, cache, deadline) for name, algorithm in chosen]
        pool = stack.enter_context(get_context("spawn").Pool(CORES))
        found = sorted(pool.imap_unordered(worked, work))
    left = sum(each[1] for each in found)
    if left:
        print(f"{left} searches are left: run it again with the same --cache")
        return
    shown = [f"{b}x{w}" for b, w in budgets]
    columns = [(budget, method) for budget in shown for method in METHODS]
    rows: list[list[object]] = [[name, *(statistics.fmean(told[c]) for c in columns)] for name, _, told in found]
    by_seed = {c: [statistics.fmean(told[c][seed] for _, _, told in found) for seed in range(options.seeds)] for c in columns}
    rows.append(["mean", *(statistics.fmean(by_seed[c]) for c in columns)])
    rows.append(["least of a seed", *(min(by_seed[c]) for c in columns)])
    rows.append(["most of a seed", *(max(by_seed[c]) for c in columns)])
    print(f"normalised regret, {options.seeds} seeds\n")
    print(table(["problem", *(f"{m} {b}" for b, m in columns)], rows))
    for budget in shown:
        for other in ("Optuna TPE", "random"):
            less = [a - b for a, b in zip(by_seed[budget, "Phalanx"], by_seed[budget, other], strict=True)]
            error = statistics.stdev(less) / len(less) ** 0.5 if len(less) > 1 else math.nan
            print(f"{budget}: Phalanx - {other} {statistics.fmean(less):+.4f}, standard error over seeds {error:.4f}")


# what early stopping saves


def stopping(options: argparse.Namespace) -> None:
    rows = []
    for seed in range(options.seeds):
        features, label = made(options.rows, seed)
        with tempfile.TemporaryDirectory() as folder:
            inputs = write_csv(Path(folder), features, label)
            for kind in ("off", "median", "auto"):
                wall, tuner = swept(
                    inputs, options.trials, options.rounds, Path(folder), name=f"s-{kind}", early_stopping=kind, seed=seed
                )
                trials = tuner.trials()
                seconds = sum(trial.seconds for trial in trials)
                steps = sum(trial.step for trial in trials)
                if kind == "off":
                    base, whole, score = seconds, steps, tuner.best().objective
                ratio = tuner.best().objective / score
                stopped = sum(t.status == "Stopped" for t in trials)
                rows.append([seed, kind, stopped, wall, seconds, seconds / base, steps / whole, ratio])
    head = ["seed", "early stopping", "stopped", "wall s", "training s", "s of off", "steps of off", "best logloss of off"]
    for kind in ("median", "auto"):
        own = [row for row in rows if row[1] == kind]
        rows.append(["mean", kind, *("" for _ in range(3)), *(statistics.fmean(row[n] for row in own) for n in (5, 6, 7))])
    print(table(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overhead", "quality", "stopping"])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--table", type=int, default=200)
    parser.add_argument("--problems", type=int, default=15)
    parser.add_argument("--budgets", default="16x8,100x1")
    parser.add_argument("--cache", help="quality: folder of tables and results, from which a second run goes on")
    parser.add_argument("--minutes", type=float, default=math.inf, help="quality: begin no search after so long")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{machine()}; {versions('optuna', 'xgboost-cpu', 'numpy')}\n")
    {"overhead": overhead, "quality": quality, "stopping": stopping}[options.part](options)


if __name__ == "__main__":
    main()
