"""Weak scaling: measured from one worker to two with a thread each, and predicted up to 1,024 by a model fitted to that.

    python benchmarks/scale.py [--rounds 5] [--cases NAME …] [--gigabits 25] [--hop-us 20] [--plot scale.png]

Measured: jobs with the same rows for every worker, started in turns with one worker and with two; seconds a step are from the
job's own metrics, without the first tenth and the last, which ends the job as well. Rows a step are those that a job has where
nobody says otherwise, and DDP's are such as a script may have; what is shorter or longer stands beside it. Efficiency is the
step of one worker over the step of two, limit 0.9. `alone twice` is the same for two jobs of one worker side by side, which
share nothing but the machine: what it leaves of its own speed.

Predicted: step(W) = compute * straggle(W) + the sum of its calls, each call(bytes, W).
  compute    seconds a step of one worker; for two on this machine, of one beside another
  straggle   the slowest of W: compute times are taken as log-normal, with the spread that the steps of one worker have
  calls      collectives a step and their bytes, counted in a run of one worker
  call       on one machine, through shared memory: a hop, and the bytes; both fitted to all-reduces of two processes.
             Between machines a ring, as gloo's: 2 (W - 1) hops, and 2 (W - 1) / W of the bytes; or a tree, which NCCL has
             too: 2 log2(W) hops, and the same bytes. A hop is what gloo takes here between two processes, where no network
             is in between, and the network's own. Votes (one int64, at most ten a second) count as calls.
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
FEW_ROWS, COLUMNS = 100_000, 32
VOTES_A_SECOND = 10
NET = {"width": 512, "inputs": 256}
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


def table_of(rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    x = generator.standard_normal((rows, COLUMNS), dtype=np.float32)
    label = (x[:, :4].sum(1) + generator.standard_normal(len(x)) > 0).astype(np.float32)
    return x, label


def counted(algorithm: str, given: dict[str, Any]) -> list[int]:
    """Return the bytes of every collective of a step, from a run of one rank."""
    cls = registry.load(algorithm)
    x, label = table_of(FEW_ROWS)
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


def ddp_case(name: str, batch: int, steps: int, folder: Path) -> Case:
    script = folder / "ddp.py"
    script.write_text(SCRIPT)

    def job(workers: int, runs: Path) -> phalanx.TrainingJob:
        return phalanx.TrainingJob(
            script=str(script),
            arguments=[str(value) for value in (NET["width"], NET["inputs"], batch, steps)],
            strategy="ddp",
            workers=workers,
            threads_per_worker=1,
            output=str(runs),
            checkpoint_every="never",
            hang_timeout_s=None,
        )

    parameters = NET["inputs"] * NET["width"] + NET["width"] ** 2 + NET["width"] * 10 + 2 * NET["width"] + 10
    return Case(name, job, lambda: [4 * parameters + 4])  # gradients and the loss, in one bucket


def all_cases(folder: Path) -> list[Case]:
    """Return what can be measured."""
    classifier = {"predictor_type": "binary_classifier", "early_stopping_patience": 100}
    mini = {**classifier, "optimizer": "adam"}

    def k_means(rows: int, epochs: int) -> Callable[[int], dict[str, Any]]:
        return lambda workers: {"k": 64, "mini_batch_size": rows * workers, "epochs": epochs}

    def adam(rows: int, epochs: int) -> Callable[[int], dict[str, Any]]:
        return lambda workers: {**mini, "mini_batch_size": rows * workers, "epochs": epochs}

    return [
        algorithm_case("k-means, 5,000 rows (default)", "kmeans", k_means(5000, 10), folder),
        algorithm_case("k-means, 25,000 rows", "kmeans", k_means(25_000, 20), folder),
        algorithm_case("linear learner, a pass (default)", "linear_learner", lambda _: classifier, folder),
        algorithm_case(
            "linear learner, adam, 1,000 rows (default)",
            "linear_learner",
            adam(1000, 3),
            folder,
        ),
        algorithm_case(
            "linear learner, adam, 5,000 rows",
            "linear_learner",
            adam(5000, 8),
            folder,
        ),
        ddp_case("DDP, 64 rows", 64, 400, folder),
        ddp_case("DDP, 256 rows", 256, 200, folder),
        ddp_case("DDP, 1,024 rows", 1024, 80, folder),
    ]


def steps_of(job: phalanx.TrainingJob) -> list[float]:
    """Return the seconds of every step of a job but for its first tenth and the last."""
    result = job.run(progress=False)
    lines = [json.loads(line) for line in (Path(result.folder) / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines][max(1, len(lines) // 10) : -1]
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
from phalanx.parallel.joining import open_world
from phalanx.parallel.torch_collective import TorchCollective
rank, port, opened = int(sys.argv[1]), int(sys.argv[2]), {"gloo": TorchCollective.open, "shared": open_world}[sys.argv[3]]
world = opened(rank, 2, "127.0.0.1", port)
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


def loopback(way: str) -> tuple[float, float]:
    """Return the seconds of a hop and the bytes a second of all-reduces of two processes, by gloo or shared memory."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, "-c", _ECHO, str(rank), str(port), way], stdout=subprocess.PIPE, text=True)
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
    """Return the efficiency of `workers`, each on a machine of its own."""
    compute = statistics.median(case.singles)
    return compute / (compute * straggle(case, workers) + talk(calls, compute, workers, hop, bandwidth, tree))


def on_one_machine(case: Case, calls: list[int], hop: float, bandwidth: float) -> float:
    """Return the efficiency of two workers on this machine."""
    compute, beside = statistics.median(case.singles), statistics.median(case.besides)
    return compute / (beside * straggle(case, 2) + talk(calls, beside, 2, hop, bandwidth, tree=False))


def straggle(case: Case, workers: int) -> float:
    quantile = statistics.NormalDist().inv_cdf(1 - 1 / (workers + 1)) if workers > 1 else 0.0
    return math.exp(statistics.median(case.spread) * max(0.0, quantile))


def talk(calls: list[int], compute: float, workers: int, hop: float, bandwidth: float, tree: bool) -> float:
    """Return the seconds that the exchanges of a step take."""
    votes = min(1.0, VOTES_A_SECOND * compute)
    return sum(call_seconds(size, workers, hop, bandwidth, tree) for size in calls) + votes * call_seconds(
        8, workers, hop, bandwidth, tree
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=FEW_ROWS, help="Of a worker's part of the table.")
    parser.add_argument("--gigabits", type=float, default=25.0, help="Of the network between machines, a second.")
    parser.add_argument("--hop-us", type=float, default=20.0, help="Microseconds from one machine to another.")
    parser.add_argument("--cases", nargs="*", default=[""], help="Beginnings of their names.")
    parser.add_argument("--plot", help="Write the predictions as a picture.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, given.rows)
        cases = [case for case in all_cases(folder) if case.name.startswith(tuple(given.cases))]
        print(f"{machine()}; {versions('torch', 'numpy', 'numba')}; {time.strftime('%Y-%m-%d')}\n", flush=True)
        for case in cases:
            measure(case, folder / "runs", given.rounds)
            print(f"{case.name}: efficiency of 2 {efficiency(case):.3f}", flush=True)
        report(cases, given)


def write_data(folder: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for workers in (1, 2):
        x, label = table_of(rows * workers)
        columns = {"label": label, **{f"x{n}": x[:, n] for n in range(COLUMNS)}}
        pq.write_table(pa.table(columns), folder / f"{workers}.parquet", row_group_size=10_000)


def efficiency(case: Case) -> float:
    return statistics.median(one / two for one, two in zip(case.singles, case.pairs, strict=True))


def report(cases: list[Case], given: argparse.Namespace) -> None:
    hop, bandwidth = loopback("shared")
    gloo_hop, gloo_bandwidth = loopback("gloo")
    net_hop, net_bandwidth = gloo_hop + given.hop_us / 1e6, min(given.gigabits * 1e9 / 8, gloo_bandwidth)
    rows, curves = [], {}
    for case in cases:
        calls = case.exchanged()
        beside = statistics.median(one / two for one, two in zip(case.singles, case.besides, strict=True))
        model = on_one_machine(case, calls, hop, bandwidth)
        step = statistics.median(case.singles)
        rows.append([case.name, f"{step * 1e3:.2f}", len(calls), sum(calls), efficiency(case), beside, model])
        for tree in (False, True):
            curves[case.name, tree] = [predicted(case, calls, w, net_hop, net_bandwidth, tree) for w in WORLDS]
    heads = ["what", "ms a step", "calls", "bytes", "efficiency of 2", "alone twice", "model for 2"]
    print("\n" + table(heads, rows))
    print(f"\nShared memory: {hop * 1e6:.0f} us a hop, {bandwidth / 1e9:.2f} GB/s. ", end="")
    print(f"Gloo on loopback: {gloo_hop * 1e6:.0f} us a hop, {gloo_bandwidth / 1e9:.2f} GB/s.")
    print(
        f"\nPredicted efficiency, a worker a machine, {net_bandwidth * 8 / 1e9:.3g} Gbit/s and {net_hop * 1e6:.0f} us a hop "
        f"(gloo's own and {given.hop_us:g} us of the network):\n"
    )
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
