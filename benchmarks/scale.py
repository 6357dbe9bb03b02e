"""Weak scaling: measured from one worker to two with a thread each, and predicted up to 1,024 by a model fitted to that.

    python benchmarks/scale.py [--rounds 5] [--gigabits 25] [--hop-us 20] [--plot scale.png]

Measured: jobs with the same rows for every worker, started in turns with one worker and with two; seconds a step are from the
job's own metrics, without the first tenth. Efficiency is the step of one worker over the step of two, limit 0.9. `alone twice`
is the same for two jobs of one worker side by side, which share nothing but the machine: what it leaves of its own speed.

Predicted: step(W) = compute * straggle(W) + the sum of its calls, each call(bytes, W).
  compute    seconds a step of one worker
  straggle   the slowest of W: compute times are taken as log-normal, with the spread that the steps of one worker have
  calls      collectives a step and their bytes, counted in a run of one worker
  call       a ring, as gloo's: 2 (W - 1) hops, and 2 (W - 1) / W of the bytes; or a tree, which NCCL has too: 2 log2(W) hops,
             and the same bytes. Votes (one int64, at most ten a second) count as calls.
Once with hop and bandwidth of this machine's loopback, fitted to all-reduces of two processes (to be compared with the measured
step of two workers), and once with those of the network that is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import phalanx
from common import machine, table, versions
from phalanx import registry
from phalanx.parallel.collective import Solo
from phalanx.testing.sessions import MemorySession, Rows

WORLDS = [2**n for n in range(11)]
ROWS, COLUMNS = 40_000, 32  # of a worker
VOTES_A_SECOND = 10
NET = {"width": 512, "inputs": 256, "batch": 256, "steps": 120}
SCRIPT = """
import sys, torch, phalanx
from torch import nn
width, inputs, batch, steps = map(int, sys.argv[1:])
session = phalanx.session()
size = session.world.size
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
x, y = torch.randn(batch * size * 8, inputs), torch.randint(0, 10, (batch * size * 8,))
trainer = phalanx.Trainer(module, nn.functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
trainer.fit((x, y), epochs=steps // 8, batch_size=batch * size)
"""


@dataclass
class Case:
    """What is scaled: how its job is made, and what it exchanges a step."""

    name: str
    job: Callable[[int, Path], phalanx.TrainingJob]
    exchanged: Callable[[], list[int]]  # bytes of every collective of a step
    singles: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)
    besides: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)


class Counted:
    """A world of one that notes the bytes of every call."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._solo = Solo()
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._solo, name)

        def noted(*given: Any, **options: Any) -> Any:
            if name != "vote" and name != "close":
                self.calls.append(sum(a.nbytes for a in given if isinstance(a, np.ndarray)) or 64)
            return call(*given, **options)

        return noted


def table_of(workers: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    x = generator.standard_normal((ROWS * workers, COLUMNS), dtype=np.float32)
    label = (x[:, :4].sum(1) + generator.standard_normal(len(x)) > 0).astype(np.float32)
    return x, label


def counted(algorithm: str, given: dict[str, Any]) -> list[int]:
    """Return the bytes of every collective of a step, from a run of one rank."""
    cls = registry.load(algorithm)
    x, label = table_of(1)
    world, steps = Counted(), 0

    def on_report(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            world.calls.clear()  # what precedes is the start

    session = MemorySession(
        {"train": Rows(x, label).shard()},
        Path(tempfile.mkdtemp()),
        world=world,
        on_report=on_report,  # type: ignore[arg-type]
    )
    from phalanx import hyperparameters

    cls(hyperparameters.parse(cls.Hyperparameters, given, owner=algorithm)).fit(session)
    every = max(1, round(len(world.calls) / max(1, steps - 4)))
    return world.calls[:every]


def algorithm_case(name: str, algorithm: str, given: Callable[[int], dict[str, Any]], data: Path) -> Case:
    def job(workers: int, runs: Path) -> phalanx.TrainingJob:
        channel = phalanx.Channel(url=str(data / f"{workers}.parquet"), content_type="application/x-parquet;label_size=1")
        return phalanx.TrainingJob(
            algorithm=algorithm,
            inputs={"train": channel},
            hyperparameters=given(workers),
            workers=workers,
            threads_per_worker=1,
            output=str(runs),
            checkpoint_every="never",
            hang_timeout_s=None,
        )

    return Case(name, job, lambda: counted(algorithm, given(1)))


def ddp_case(folder: Path) -> Case:
    script = folder / "ddp.py"
    script.write_text(SCRIPT)

    def job(workers: int, runs: Path) -> phalanx.TrainingJob:
        return phalanx.TrainingJob(
            script=str(script),
            arguments=[str(value) for value in NET.values()],
            strategy="ddp",
            workers=workers,
            threads_per_worker=1,
            output=str(runs),
            checkpoint_every="never",
            hang_timeout_s=None,
        )

    parameters = NET["inputs"] * NET["width"] + NET["width"] ** 2 + NET["width"] * 10 + 2 * NET["width"] + 10
    return Case("DDP", job, lambda: [4 * parameters, 8])  # gradients in one bucket, and the loss


def steps_of(job: phalanx.TrainingJob) -> list[float]:
    """Return the seconds of every step of a job but for its first tenth."""
    result = job.run(progress=False)
    lines = [json.loads(line) for line in (Path(result.folder) / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines][max(1, len(lines) // 10) :]
    return [after - before for before, after in itertools.pairwise(times)]


def measure(case: Case, runs: Path, rounds: int) -> None:
    for _ in range(rounds):
        alone = steps_of(case.job(1, runs))
        case.singles.append(statistics.fmean(alone))
        middle = statistics.median(alone)
        case.spread.append(statistics.median(abs(math.log(max(step, 1e-9) / middle)) for step in alone) * 1.4826)
        case.pairs.append(statistics.fmean(steps_of(case.job(2, runs))))
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: statistics.fmean(steps_of(case.job(1, runs))), range(2)))
        case.besides.append(statistics.fmean(both))


_ECHO = """
import json, sys, time, numpy as np
from phalanx.parallel.torch_collective import TorchCollective
rank, port = int(sys.argv[1]), int(sys.argv[2])
world = TorchCollective.open(rank, 2, "127.0.0.1", port)
found = []
for size in (8, 1024, 16384, 262144, 1048576, 4194304):
    x = np.zeros(size // 8)
    times = []
    for _ in range(60 if size < 1000000 else 15):
        world.barrier(60)
        begun = time.perf_counter()
        world.all_reduce(x)
        times.append(time.perf_counter() - begun)
    found.append([size, sorted(times)[len(times) // 2]])
world.close()
if rank == 0:
    print(json.dumps(found))
"""


def loopback() -> tuple[float, float]:
    """Return the seconds of a hop and the bytes a second that all-reduces of two processes come to."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, "-c", _ECHO, str(rank), str(port)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    sizes, times = np.array(json.loads(said[0])).T
    weight = 1 / times  # relative errors count
    slope, base = np.polyfit(sizes, times, 1, w=weight)
    return max(base, 1e-6) / 2, 1 / max(slope, 1e-15)  # two hops a call; a ring of two sends all bytes once


def call_seconds(bytes_: float, workers: int, hop: float, bandwidth: float, tree: bool) -> float:
    if workers == 1:
        return 0.0
    hops = 2 * math.ceil(math.log2(workers)) if tree else 2 * (workers - 1)
    return hops * hop + 2 * (workers - 1) / workers * bytes_ / bandwidth


def predicted(case: Case, calls: list[int], workers: int, hop: float, bandwidth: float, tree: bool) -> float:
    """Return the efficiency of `workers`."""
    compute = statistics.median(case.singles)
    spread = statistics.median(case.spread)
    quantile = statistics.NormalDist().inv_cdf(1 - 1 / (workers + 1)) if workers > 1 else 0.0
    votes = VOTES_A_SECOND * compute
    talk = sum(call_seconds(size, workers, hop, bandwidth, tree) for size in calls)
    talk += min(1.0, votes) * call_seconds(8, workers, hop, bandwidth, tree)
    return compute / (compute * math.exp(spread * max(0.0, quantile)) + talk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabits", type=float, default=25.0, help="Of the network between machines, a second.")
    parser.add_argument("--hop-us", type=float, default=20.0, help="Microseconds from one machine to another.")
    parser.add_argument("--cases", nargs="*", default=["k-means", "linear learner", "DDP"])
    parser.add_argument("--plot", help="Write the predictions as a picture.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder)
        batch = ROWS // 8
        cases = [
            algorithm_case("k-means", "kmeans", lambda w: {"k": 64, "mini_batch_size": batch * w, "epochs": 12}, folder),
            algorithm_case(
                "linear learner",
                "linear_learner",
                lambda w: {
                    "predictor_type": "binary_classifier",
                    "optimizer": "adam",
                    "num_models": 8,
                    "mini_batch_size": batch * w,
                    "epochs": 12,
                    "early_stopping_patience": 100,
                },
                folder,
            ),
            ddp_case(folder),
        ]
        cases = [case for case in cases if case.name in given.cases]
        for case in cases:
            measure(case, folder / "runs", given.rounds)
        report(cases, given)


def write_data(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for workers in (1, 2):
        x, label = table_of(workers)
        columns = {"label": label, **{f"x{n}": x[:, n] for n in range(COLUMNS)}}
        pq.write_table(pa.table(columns), folder / f"{workers}.parquet", row_group_size=10_000)


def report(cases: list[Case], given: argparse.Namespace) -> None:
    hop, bandwidth = loopback()
    net_hop, net_bandwidth = given.hop_us / 1e6, given.gigabits * 1e9 / 8
    print(f"{machine()}; {versions('torch', 'numpy', 'numba')}; {time.strftime('%Y-%m-%d')}\n")
    rows, curves = [], {}
    for case in cases:
        calls = case.exchanged()
        ratios = [one / two for one, two in zip(case.singles, case.pairs, strict=True)]
        beside = [one / two for one, two in zip(case.singles, case.besides, strict=True)]
        model = predicted(case, calls, 2, hop, bandwidth, tree=False)
        step = statistics.median(case.singles)
        measured = statistics.median(ratios)
        rows.append([case.name, f"{step * 1e3:.2f}", len(calls), sum(calls), measured, statistics.median(beside), model])
        for tree in (False, True):
            curves[case.name, tree] = [predicted(case, calls, w, net_hop, net_bandwidth, tree) for w in WORLDS]
    heads = ["what", "ms a step", "calls", "bytes", "efficiency of 2", "alone twice", "model for 2"]
    print(table(heads, rows))
    print(f"\nLoopback: {hop * 1e6:.0f} us a hop, {bandwidth / 1e9:.2f} GB/s.")
    print(f"\nPredicted efficiency with {given.gigabits:g} Gbit/s and {given.hop_us:g} us a hop:\n")
    names = [f"{name}, {'tree' if tree else 'ring'}" for name, tree in curves]
    print(table(["workers", *names], [[w, *(curve[i] for curve in curves.values())] for i, w in enumerate(WORLDS)]))
    if given.plot:
        plot(curves, given.plot)


def plot(curves: dict[tuple[str, bool], list[float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, tree), curve in curves.items():
        axes.plot(WORLDS, curve, linestyle="--" if tree else "-", marker=".", label=f"{name}, {'tree' if tree else 'ring'}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="workers", ylabel="efficiency", ylim=(0, 1.05))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
