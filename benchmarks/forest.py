"""Random cut forests of Phalanx against krcf (AWS's own, in Rust), rrcf and scikit-learn's IsolationForest, on NAB's series.

    python benchmarks/forest.py --data DIR [--seeds N] [--shingles 1 8] [--series N] [--scoring] [--picture FILE.svg]

`--data` takes a folder with nab/nab.tar.xz: the folders `data` and `labels` of the Numenta Anomaly Benchmark
(github.com/numenta/NAB), of which the 52 series with labelled windows count. 100 trees of 256 rows on all sides; peers that
are not installed (pip install krcf rrcf) are left out. Quality is the mean over series, after the first 15 % (at most 750
rows): area under the ROC curve of score against window, precision of the 5 highest peaks that are half a window's length
apart, share of windows that hold one of these. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from common import machine, table, versions
from phalanx.algorithms.random_cut_forest.algorithm import RandomCutForest, RandomCutForestHyperparameters
from phalanx.algorithms.random_cut_forest.sample import windows_of
from phalanx.contracts import Array
from phalanx.data.memory import array_shard
from phalanx.testing.sessions import MemorySession

TREES, ROWS = 100, 256
HEADERS = ["shingle", "forest", "AUC", "precision@5", "windows hit", "points per CPU-s", "against", "must reach", "reached"]
SCORING_ROUNDS = 7  # in turns
RRCF_POINTS = 300  # it is written in Python: enough for its speed


@dataclass(frozen=True)
class Series:
    """A series and which of its rows lie in each labelled window."""

    name: str
    values: Array  # (N, 1) float32
    windows: list[Array]  # (N,) bool each

    @property
    def counted(self) -> int:
        """The first row that counts."""
        return int(min(0.15 * len(self.values), 750))


def series_of(folder: Path) -> list[Series]:
    """Return the series that have windows."""
    found = []
    with tarfile.open(folder / "nab" / "nab.tar.xz") as archive:
        files = {Path(member.name).as_posix(): member for member in archive.getmembers() if member.isfile()}

        def text(name: str) -> str:
            file = archive.extractfile(files[name])
            assert file is not None
            return file.read().decode()

        labels: dict[str, list[tuple[str, str]]] = json.loads(text("labels/combined_windows.json"))
        for name, windows in sorted(labels.items()):
            if windows:
                rows = list(csv.reader(io.StringIO(text(f"data/{name}"))))[1:]
                when = np.array([np.datetime64(row[0]) for row in rows])
                ends = [tuple(np.datetime64(end.split(".")[0]) for end in window) for window in windows]
                values = np.array([[float(row[1])] for row in rows], np.float32)
                found.append(Series(name, values, [(when >= first) & (when <= last) for first, last in ends]))
    return found


def judged(series: Series, scores: Array) -> list[float]:
    """Return AUC, precision of five peaks, share of windows hit."""
    start, inside = series.counted, np.any(series.windows, axis=0)
    auc = float(roc_auc_score(inside[start:], scores[start:])) if inside[start:].any() else np.nan
    apart = max(1, int(0.1 * len(scores) / len(series.windows)) // 2)
    left, peaks = np.array(scores, dtype=np.float64), list[int]()
    left[:start] = -np.inf
    while len(peaks) < 5 and np.isfinite(left.max()):
        peaks.append(int(left.argmax()))
        left[max(0, peaks[-1] - apart) : peaks[-1] + apart + 1] = -np.inf
    hit = [bool(window[peaks].any()) for window in series.windows if window[start:].any()]
    return [auc, float(inside[peaks].mean()), float(np.mean(hit)) if hit else np.nan]


def phalanx_stream(values: Array, shingle: int, seed: int) -> Array:
    """Score and learn row by row, as one call."""
    wanted = RandomCutForestHyperparameters(num_trees=TREES, num_samples_per_tree=ROWS, shingle_size=shingle)
    return RandomCutForest.begin(wanted, 1, seed=seed).update_and_score(values)["score"]


def phalanx_batch(values: Array, shingle: int, seed: int) -> Array:
    """Train on a series, then score it."""
    wanted = RandomCutForestHyperparameters(num_trees=TREES, num_samples_per_tree=ROWS, shingle_size=shingle)
    model = RandomCutForest(wanted)
    model.fit(MemorySession({"train": array_shard(values, None)}, Path("/nonexistent"), seed=seed))
    return model.predict(values)["score"]


def krcf_stream(values: Array, shingle: int, seed: int) -> Array:
    """Score, then learn, row by row."""
    krcf: Any = importlib.import_module("krcf")

    options = {"dimensions": 1, "shingle_size": shingle, "num_trees": TREES, "sample_size": ROWS, "random_seed": seed,
               "output_after": 1}  # fmt: skip
    forest = krcf.RandomCutForest(options)
    scores = np.zeros(len(values))
    for i, row in enumerate(values.tolist()):
        scores[i] = forest.score(row)
        forest.update(row)
    return scores


def isolation_batch(values: Array, shingle: int, seed: int) -> Array:
    """Fit on all windows, then score them; windows of the first rows share the first whole one's score."""
    windows = windows_of(values, shingle)
    scores = -IsolationForest(n_estimators=TREES, max_samples=ROWS, random_state=seed).fit(windows).score_samples(windows)
    return np.concatenate([np.repeat(scores[:1], shingle - 1), scores])


def rrcf_stream(values: Array, shingle: int, seed: int) -> Array:
    """Insert, score and forget row by row, as rrcf's documentation does."""
    rrcf: Any = importlib.import_module("rrcf")

    np.random.seed(seed)  # what rrcf draws from
    trees, windows = [rrcf.RCTree() for _ in range(TREES)], windows_of(values, shingle)
    scores = np.zeros(len(windows))
    for i, window in enumerate(windows):
        for tree in trees:
            if len(tree.leaves) > ROWS:
                tree.forget_point(i - ROWS)
            tree.insert_point(window, index=i)
            scores[i] += tree.codisp(i) / TREES
    return np.concatenate([np.repeat(scores[:1], shingle - 1), scores])


Side = Callable[[Array, int, int], Array]


def measured(side: Side, series: list[Series], shingle: int, seeds: int) -> tuple[Array, float]:
    """Return the three qualities, and points per CPU second."""
    quality, took = [], 0.0
    for seed in range(seeds):
        for one in series:
            start = time.process_time()
            scores = side(one.values, shingle, seed)
            took += time.process_time() - start
            quality.append(judged(one, scores))
    points = seeds * sum(len(one.values) for one in series)
    return np.nanmean(quality, axis=0), points / took


def compare(series: list[Series], shingle: int, seeds: int) -> list[list[object]]:
    """Return the rows of the table for one shingle."""
    ours, our_speed = measured(phalanx_stream, series, shingle, seeds)
    batch, batch_speed = measured(phalanx_batch, series, shingle, seeds)
    isolated, isolated_speed = measured(isolation_batch, series, shingle, seeds)
    ratio = batch_speed / isolated_speed
    rows: list[list[object]] = []
    if _installed("krcf"):
        theirs, their_speed = measured(krcf_stream, series, shingle, seeds)
        speed_up = our_speed / their_speed
        rows.append([shingle, "krcf, stream", *theirs.tolist(), round(their_speed), "", "", ""])
        good = [bool(a >= b) for a, b in zip(ours, theirs, strict=True)]
        reached = f"AUC {_yes(good[0])}, precision {_yes(good[1])}, windows {_yes(good[2])}, speed {_yes(speed_up >= 2)}"
        mark = [f"{speed_up:.2f}x krcf", "its quality, 2x its speed", reached]
    else:
        mark = ["krcf is not installed", "", ""]
    rows.append([shingle, "Phalanx, stream", *ours.tolist(), round(our_speed), *mark])
    rows.append([shingle, "IsolationForest, fit and score", *isolated.tolist(), round(isolated_speed), "", "", ""])
    rows.append(
        [shingle, "Phalanx, fit and score", *batch.tolist(), round(batch_speed), f"{ratio:.2f}x IsolationForest",
         "2x its speed", _yes(ratio >= 2)]
    )  # fmt: skip
    if _installed("rrcf"):
        first = series[0].values[:RRCF_POINTS]
        start = time.process_time()
        rrcf_stream(first, shingle, 0)
        speed = RRCF_POINTS / (time.process_time() - start)
        rows.append([shingle, f"rrcf, stream ({RRCF_POINTS} points)", "", "", "", round(speed), "", "", ""])
    return rows


def scoring_alone(series: list[Series], shingle: int) -> str:
    """Return one line on scoring by forests that are there, the largest series' windows."""
    values = max(series, key=lambda one: len(one.values)).values
    windows = np.ascontiguousarray(windows_of(values, shingle))
    wanted = RandomCutForestHyperparameters(num_trees=TREES, num_samples_per_tree=ROWS)
    model: Any = RandomCutForest(wanted)
    model.fit(MemorySession({"train": array_shard(windows, None)}, Path("/nonexistent")))
    forest = IsolationForest(n_estimators=TREES, max_samples=ROWS, random_state=0).fit(windows)
    took: list[list[float]] = [[], []]
    for _ in range(SCORING_ROUNDS):
        for side, score in zip(took, (model.predict, forest.score_samples), strict=True):
            start = time.process_time()
            score(windows)
            side.append(time.process_time() - start)
    ours, theirs = (len(windows) / float(np.median(side)) for side in took)
    return (
        f"Scoring alone, shingle {shingle}, {len(windows)} windows, medians of {SCORING_ROUNDS} rounds: {ours:.0f} windows per "
        f"CPU-s, IsolationForest {theirs:.0f}: {ours / theirs:.2f}x"
    )


def growth() -> str:
    """Return how the time of a stream grows: log-log slopes against rows, columns and trees."""

    def took(rows: int, columns: int, trees: int) -> float:
        values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
        model = RandomCutForest.begin(RandomCutForestHyperparameters(num_trees=trees), columns)
        start = time.process_time()
        model.update_and_score(values)
        return time.process_time() - start

    base = took(4000, 16, 100)
    slopes = [np.log(took(*sizes) / base) / np.log(4) for sizes in ((16000, 16, 100), (4000, 64, 100), (4000, 16, 400))]
    return "Growth of a stream's time (log-log slope): rows {:.2f}, columns {:.2f}, trees {:.2f}.".format(*slopes)


def picture(series: list[Series], file: Path) -> None:
    """Draw New York's taxi passengers, the labelled windows and the scores, as an svg."""
    one = next(one for one in series if one.name.endswith("nyc_taxi.csv"))
    values, scores = one.values[:, 0], phalanx_stream(one.values, 48, 0)

    def line(numbers: Array, top: float, height: float, most: float) -> str:
        each = 8  # rows a point: their mean would hide a peak, their largest keeps it
        largest = [float(numbers[i : i + each].max()) for i in range(0, len(numbers), each)]
        return " ".join(
            f"{900 * i * each / len(numbers):.0f},{top + height * (1 - y / most):.0f}" for i, y in enumerate(largest)
        )

    rects = []
    for window in one.windows:
        rows = np.flatnonzero(window)
        first, width = 900 * rows[0] / len(values), 900 * len(rows) / len(values)
        rects.append(f'<rect x="{first:.0f}" y="20" width="{width:.0f}" height="280" fill="#f6c6c0"/>')
    file.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 310" font-family="sans-serif" font-size="12">\n'
        '<rect width="900" height="310" fill="white"/>\n' + "\n".join(rects) + "\n"
        f'<polyline fill="none" stroke="#44607c" points="{line(values, 25, 130, float(values.max()))}"/>\n'
        f'<polyline fill="none" stroke="#b03020" points="{line(scores, 165, 130, float(scores.max()))}"/>\n'
        '<text x="4" y="14">Taxi passengers in New York (blue), anomaly score (red), labelled windows (shaded)</text>\n'
        "</svg>\n",
        encoding="utf-8",
    )


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:  # rrcf 0.4.4 also needs setuptools < 81
        return False
    return True


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with nab/nab.tar.xz")
    parser.add_argument("--shingles", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seeds", type=int, default=1, help="runs of every series with other draws, whose means count")
    parser.add_argument("--series", type=int, default=None, help="only the first so many")
    parser.add_argument("--scoring", action="store_true", help="only what scoring alone takes")
    parser.add_argument("--picture", type=Path, default=None, help="only draw the picture of the documentation")
    options = parser.parse_args()
    series = series_of(options.data)
    if options.picture is not None:
        picture(series, options.picture)
        return
    series = series[: options.series]
    if options.scoring:
        print(f"{machine()}; {versions('numpy', 'numba', 'scikit-learn')}")
        print(*map(partial(scoring_alone, series), options.shingles), sep="\n")
        return
    peers = [name for name in ("krcf", "rrcf") if _installed(name)]
    print(f"{machine()}; {versions('numpy', 'numba', 'scikit-learn', *peers)}; seeds: {options.seeds}")
    print(f"{len(series)} series, {sum(len(one.values) for one in series)} points\n")
    print(table(HEADERS, [row for shingle in options.shingles for row in compare(series, shingle, options.seeds)]))
    print()
    for shingle in options.shingles:
        print(scoring_alone(series, shingle))
    print(growth())


if __name__ == "__main__":
    main()
