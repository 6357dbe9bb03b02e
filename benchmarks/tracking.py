"""What rules, statistics of tensors and profiles cost, as ratios of the time without them.

    python benchmarks/tracking.py [--seconds 40] [--models mlp cnn gpt] [--rounds 5] [--parts trainer jobs rules]

trainer: two equal Trainers in one process take turns in blocks of steps, one of them with all rules on: statistics at the
default interval, classes, and the thread that looks at phases; seconds are those of the processor, on one thread. jobs: whole
jobs by turns, plain, with `rules=["all"]`, and with `profile`. rules: microseconds that all rules together take of the job's
process for a step.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import Gpt
from torch import nn

import phalanx
from common import machine, table, versions
from phalanx import observing
from phalanx.testing.sessions import MemorySession
from phalanx.tracking.rules import observations, rules_of
from phalanx.tracking.watching import RuleWatch
from phalanx.trainer.trainer import Trainer
from phalanx.trainer.windows import Windows

ALL = observations(rules_of(["all"]))


class Clock:
    """Seconds that pass while one of the two trains."""

    def __init__(self) -> None:
        self._before = 0.0
        self._begun: float | None = None

    def __call__(self) -> float:
        return self._before + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    def run(self) -> None:
        self._begun = time.perf_counter()

    def halt(self) -> None:
        self._before, self._begun = self(), None


def mlp() -> tuple[nn.Module, Any, Any, int]:
    """784-256-256-10 with batches of 128."""
    net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return net, torch.randn(4096, 784), torch.randint(10, (4096,)), 128


def cnn() -> tuple[nn.Module, Any, Any, int]:
    """Three convolutions of images of 28 x 28, batches of 32."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return (
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 10)),
        torch.randn(1024, 1, 28, 28),
        torch.randint(10, (1024,)),
        32,
    )


def gpt() -> tuple[nn.Module, Any, Any, int]:
    """10 million parameters, 4 x 64 tokens."""
    x = torch.randint(512, (256, 64))
    return Gpt(), x, x, 4


MODELS = {"mlp": mlp, "cnn": cnn, "gpt": gpt}


def trainer_cost(name: str, seconds: float, folder: Path, *, tensors_only: bool) -> list[object]:
    """Return the row of a model: seconds of a step, ratio over all blocks, median of the blocks' ratios, looks, cost of one."""
    trainers = []
    for _ in range(2):
        torch.manual_seed(0)
        net, x, y, batch = MODELS[name]()
        session = MemorySession({}, folder)
        optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)  # noqa: E731
        trainers.append(Trainer(net, nn.functional.cross_entropy, optimizer=optimizer, session=session, seed=0))
    plain, watched = trainers
    nothing, clock = observing.Observer({}), Clock()
    sent: list[Mapping[str, Any]] = []
    wanted = {**ALL, "kinds": ["tensors"]} if tensors_only else ALL
    observer = observing.Observer(wanted, send=sent.append, clock=clock)

    def block(trainer: Trainer, steps: int) -> float:
        begun = time.process_time()
        trainer.fit((x, y), steps=steps, batch_size=batch)
        return time.process_time() - begun

    def watched_block(steps: int) -> float:
        windows = Windows(rank=0, size=1, tell=lambda window: observer.tell("windows", window))
        observing.now = observer
        if not tensors_only:
            windows.start()
        clock.run()
        try:
            return block(watched, steps)
        finally:
            clock.halt()
            windows.close()
            observing.now = nothing

    block(plain, 5)
    each = block(plain, 10) / 10
    steps = max(3, int(0.3 / each))
    block(watched, 15)
    ratios, totals = [], [0.0, 0.0]
    while sum(totals) < seconds:
        first = len(ratios) % 2 == 0
        times = [block(plain, steps), watched_block(steps)] if first else [watched_block(steps), block(plain, steps)][::-1]
        ratios.append(times[1] / times[0])
        totals = [totals[0] + times[0], totals[1] + times[1]]
    looks = [event for event in sent if event["what"] == "tensors"]
    cost = observer.spent("tensors") / max(1, len(looks))
    done = len(ratios) * steps
    step = totals[0] / done
    watcher = "rules on tensors" if tensors_only else "all rules"
    ratio, share = totals[1] / totals[0], cost / step
    between = f"{done / max(1, len(looks)):.0f}"
    return [
        *(name, watcher, f"{1e3 * step:.2f}", ratio, statistics.median(ratios)),
        *(between, f"{share:.2f}", f"{share / 5:.2f} %"),
    ]


def job_costs(rounds: int, folder: Path) -> list[list[object]]:
    """Return rows of whole jobs: seconds plain, ratio with all rules, ratio with a profile."""
    generator = np.random.default_rng(0)
    np.savetxt(folder / "points.csv", generator.normal(size=(40_000, 16)), delimiter=",", fmt="%.4f")
    labels = generator.integers(2, size=(20_000, 1))
    np.savetxt(
        folder / "rows.csv", np.hstack([labels, generator.normal(size=(20_000, 16)) + labels]), delimiter=",", fmt="%.4f"
    )
    unlabelled = phalanx.Channel(url=str(folder / "points.csv"), content_type="text/csv;label_size=0")
    jobs: dict[str, dict[str, Any]] = {
        "kmeans, 4,000 steps": {
            "algorithm": "kmeans", "inputs": {"train": unlabelled},
            "hyperparameters": {"k": 20, "mini_batch_size": 100, "epochs": 10},
        },
        "xgboost, 300 rounds": {
            "algorithm": "xgboost", "inputs": {"train": str(folder / "rows.csv")},
            "hyperparameters": {"num_round": 300, "objective": "binary:logistic"},
        },
        "linear learner, 2 workers": {
            "algorithm": "linear_learner", "inputs": {"train": str(folder / "rows.csv")}, "workers": 2,
            "hyperparameters": {"predictor_type": "binary_classifier", "optimizer": "adam", "epochs": 20},
        },
    }  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "rules": {"rules": ["all"]}, "profile": {"profile": True}}
    rows = []
    for name, options in jobs.items():
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 1):
            for kind, more in kinds.items():
                job = phalanx.TrainingJob(**options, **more, output=str(folder), checkpoint_every="never")
                result = job.run(progress=False)
                if number:  # the first of each warms up
                    found[kind].append(result.training_seconds)
        plain = statistics.median(found["plain"])
        ratios = [
            statistics.median(a / b for a, b in zip(found[kind], found["plain"], strict=True)) for kind in ("rules", "profile")
        ]
        rows.append([name, f"{plain:.2f}", *ratios])
    return rows


def rule_costs(folder: Path) -> list[list[object]]:
    """Return microseconds of the job's process for a step, a window, and a look at tensors."""

    def timed(action: Callable[[int], None], number: int) -> float:
        begun = time.perf_counter()
        for i in range(1, number + 1):
            action(i)
        return 1e6 * (time.perf_counter() - begun) / number

    watch = RuleWatch(["all"], folder, lambda text: None, lambda text: None)
    metrics = {"train:loss": 1.0, "train:grad_norm": 1.0}
    step = timed(lambda i: watch.step(i, {**metrics, "train:loss": 1 / i}, i / 100), 20_000)
    return [["a step, all rules", f"{step:.1f}"]]


def main() -> None:
    """Measure what was asked for, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["trainer", "jobs", "rules"], choices=["trainer", "jobs", "rules"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; {versions('torch', 'xgboost-cpu')}\n")
    with tempfile.TemporaryDirectory(prefix="phalanx-benchmark-") as scratch:
        if "trainer" in options.parts:
            rows = [
                trainer_cost(name, options.seconds, Path(scratch), tensors_only=only)
                for name in options.models
                for only in (True, False)
            ]
            heads = [
                "model",
                "watched by",
                "ms a step",
                "watched / not",
                "median block",
                "steps a look",
                "look / step",
                "at every=500",
            ]
            print(table(heads, rows) + "\n")
        if "jobs" in options.parts:
            heads = ["job", "seconds plain", "all rules / none", "profile / none"]
            print(table(heads, job_costs(options.rounds, Path(scratch))) + "\n")
        if "rules" in options.parts:
            print(table(["in the job's process", "microseconds"], rule_costs(Path(scratch))))


if __name__ == "__main__":
    main()
