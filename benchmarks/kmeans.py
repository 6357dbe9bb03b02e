"""K-means of Phalanx against scikit-learn, its MiniBatchKMeans and faiss: time to the same loss, and memory.

    python benchmarks/kmeans.py --data DIR [--clusters 100 256] [--repeats N] [--floats]

`--data` takes a folder with fashion-mnist (idx files). Every side runs in a process of its own, whose peak memory
(resident, with the pages of libraries) counts, on rows in memory: the peers on float32 in [0, 1], Phalanx on the bytes as
the file has them, which it takes as they are (losses are those of [0, 1]). Reading is not timed nor, in seconds by the clock,
importing; the fastest run counts. For each peer Phalanx (solver=lloyd) makes as few passes over all rows as bring it to the
peer's loss: scikit-learn's within 0.2 %, that of others outright. Loss is the mean squared distance of all rows to their
nearest centre, computed by the same function for all. Peers: pip install faiss-cpu scikit-learn; a peer that is not installed
is left out.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import machine, table, versions
from phalanx.contracts import Array

HEADERS = [
    "k",
    "peer",
    "peer s",
    "Phalanx s",
    "ratio",
    "must reach",
    "peer CPU s",
    "Phalanx CPU s",
    "peer loss",
    "Phalanx loss",
    "ratio",
    "peer MiB",
    "Phalanx MiB",
]
MODULES = {
    "phalanx": ["phalanx.algorithms.kmeans.batch", "phalanx.testing.sessions"],
    "scikit-learn": ["sklearn.cluster"],
    "MiniBatchKMeans": ["sklearn.cluster"],
    "faiss": ["faiss"],
}
PEERS = {"scikit-learn": (0.1, 1.002), "faiss": (0.5, 1.0), "MiniBatchKMeans": (1.0, 1.0)}  # share of time, of loss


def pictures(folder: Path) -> Array:
    """Return the 60,000 training pictures (N, 784) uint8."""
    rows = np.empty((60_000, 784), dtype=np.uint8)
    with gzip.open(folder / "fashion-mnist" / "train-images-idx3-ubyte.gz") as file:
        file.read(16)
        for part in np.split(rows, 60):  # little by little: reading must not be what memory peaks at
            part[:] = np.frombuffer(file.read(part.size), dtype=np.uint8).reshape(part.shape)
    return rows


def scaled(folder: Path) -> Array:
    """Return the same in [0, 1], float32, as the peers need them."""
    rows = np.empty((60_000, 784), dtype=np.float32)
    with gzip.open(folder / "fashion-mnist" / "train-images-idx3-ubyte.gz") as file:
        file.read(16)
        for part in np.split(rows, 60):
            np.divide(np.frombuffer(file.read(part.size), dtype=np.uint8).reshape(part.shape), np.float32(255), out=part)
    return rows


def loss(rows: Array, centers: Array) -> float:
    """Return the mean squared distance of pictures (N, D) uint8 to their nearest centre, both in [0, 1]."""
    total = 0.0
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096].astype(np.float64) / 255
        scores = part @ centers.T.astype(np.float64) * -2 + (centers.astype(np.float64) ** 2).sum(axis=1)
        total += float((scores.min(axis=1) + (part**2).sum(axis=1)).sum())
    return total / len(rows)


def scikit(rows: Array, k: int, seed: int) -> tuple[float, Array]:
    """Run KMeans: one start, 20 iterations."""
    from sklearn.cluster import KMeans

    model = KMeans(k, n_init=1, max_iter=20, random_state=seed)
    begun = time.perf_counter()
    model.fit(rows)
    return time.perf_counter() - begun, model.cluster_centers_


def mini_batch(rows: Array, k: int, seed: int) -> tuple[float, Array]:
    """Run MiniBatchKMeans with its defaults."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(k, random_state=seed)
    begun = time.perf_counter()
    model.fit(rows)
    return time.perf_counter() - begun, model.cluster_centers_


def faiss(rows: Array, k: int, seed: int) -> tuple[float, Array]:
    """Run faiss on all rows, 20 iterations."""
    import faiss as library  # type: ignore[import-not-found,import-untyped,unused-ignore]

    model = library.Kmeans(rows.shape[1], k, niter=20, max_points_per_centroid=len(rows), seed=seed + 1)
    begun = time.perf_counter()
    model.train(rows)
    return time.perf_counter() - begun, np.asarray(model.centroids)


def phalanx(rows: Array, k: int, seed: int, threads: int, settings: dict[str, Any]) -> tuple[float, Array, list[float]]:
    """Run Phalanx; also return the loss before every pass over all rows."""
    from phalanx import hyperparameters
    from phalanx.algorithms.kmeans.algorithm import KMeans
    from phalanx.data.memory import array_shard
    from phalanx.testing.sessions import MemorySession

    model = KMeans(hyperparameters.parse(KMeans.Hyperparameters, {"k": k, "solver": "lloyd", **settings}, owner="kmeans"))
    with tempfile.TemporaryDirectory() as folder:
        session = MemorySession({"train": array_shard(rows)}, Path(folder), threads=threads, seed=seed)
        begun = time.perf_counter()
        model.fit(session)
        took = time.perf_counter() - begun
    assert model.centers is not None
    return took, model.centers, [r.metrics["train:msd"] for r in session.reports if r.rows == len(rows)]


def side(options: argparse.Namespace) -> None:
    """Run one side in this process; print its figures as JSON."""
    begun = time.process_time()
    for module in MODULES[options.side]:
        importlib.import_module(module)
    imported = time.process_time() - begun
    as_bytes = options.side == "phalanx" and not options.floats
    rows = pictures(options.data) if as_bytes else scaled(options.data)
    trace: list[float] = []
    begun = time.process_time()
    if options.side == "phalanx":
        took, centers, trace = phalanx(rows, options.k, options.seed, options.threads, json.loads(options.settings))
    else:
        run = {"scikit-learn": scikit, "MiniBatchKMeans": mini_batch, "faiss": faiss}[options.side]
        took, centers = run(rows, options.k, options.seed)
    cpu = time.process_time() - begun + imported
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if as_bytes:
        centers, trace = centers / np.float32(255), [value / 255**2 for value in trace]
    del rows
    print(json.dumps({"seconds": took, "loss": loss(pictures(options.data), centers), "mib": peak, "cpu": cpu, "trace": trace}))


def best(options: argparse.Namespace, name: str, k: int, settings: dict[str, float], repeats: int) -> Any:
    """Return the figures of the fastest of several runs, each in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--data",
        str(options.data),
        "--side",
        name,
        "--k",
        str(k),
        "--seed",
        str(options.seed),
    ]
    command += ["--threads", str(options.threads), "--settings", json.dumps(settings)]
    command += ["--floats"] if options.floats else []
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            for _ in range(repeats)]  # fmt: skip
    return min(runs, key=lambda run: run["seconds"])


def compare(options: argparse.Namespace, k: int) -> list[list[object]]:
    """Return the rows of the table for k clusters."""
    trace: list[float] = best(options, "phalanx", k, {"local_lloyd_tol": 0.0, "local_lloyd_max_iter": 25}, 1)["trace"]
    lines: list[list[object]] = []
    for name in options.peers:
        module = "faiss" if name == "faiss" else "sklearn"
        if importlib.util.find_spec(module) is None:
            continue
        most_time, most_loss = PEERS[name]
        peer: dict[str, float] = best(options, name, k, {}, options.repeats)
        wanted = peer["loss"] * most_loss
        # a pass reports the loss of the centres before it, so one less will do
        passes = next((number for number, value in enumerate(trace) if value <= wanted), len(trace))
        settings = {"local_lloyd_tol": 0.0, "local_lloyd_max_iter": max(passes, 1)}
        own: dict[str, float] = best(options, "phalanx", k, settings, options.repeats)
        lines.append(
            [k, name, peer["seconds"], own["seconds"], own["seconds"] / peer["seconds"],
             f"{most_time} at {most_loss} of the loss", peer["cpu"], own["cpu"],
             peer["loss"], own["loss"], f"{own['loss'] / peer['loss']:.4f}",
             round(peer["mib"]), round(own["mib"])]
        )  # fmt: skip
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the set")
    parser.add_argument("--clusters", nargs="*", type=int, default=[100, 256])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--floats", action="store_true", help="Phalanx too is given float32 rows")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--k", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--settings", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options)
        return
    print(f"{machine()}; {versions('numpy', 'scikit-learn', 'numba')}; {options.threads} threads; fashion-mnist 60,000 x 784\n")
    print(table(HEADERS, [line for k in options.clusters for line in compare(options, k)]))


if __name__ == "__main__":
    main()
