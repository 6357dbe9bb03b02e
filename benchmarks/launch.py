"""From `job.run()` to the first step, against `torchrun` starting an empty script that joins the same group.

    python benchmarks/launch.py [--workers 2] [--rounds 3] [--later 10]

Every round starts a fresh process for Phalanx (first job, then later ones of the same process) and one torchrun, alternating.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from common import machine, table, versions

EMPTY = "import torch.distributed as d; d.init_process_group('gloo'); d.barrier(); d.destroy_process_group()\n"


class FirstStep:
    """A progress that notes when the first step was heard of."""

    def __init__(self) -> None:
        self.at: float | None = None

    def started(self, name: str, headline: str) -> None: ...
    def status(self, secondary: str, message: str) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        if self.at is None:
            self.at = time.perf_counter()


def jobs(algorithm: str, workers: int, later: int, data: Path) -> list[tuple[float, float]]:
    """Run 1 + `later` jobs in this process; return (seconds to the first step, seconds in all) of each."""
    import phalanx

    settings = {"kmeans": {"k": 10}, "xgboost": {"num_round": 3}}[algorithm]
    label = {"kmeans": "text/csv;label_size=1", "xgboost": "text/csv"}[algorithm]
    result = []
    with tempfile.TemporaryDirectory() as output:
        for number in range(1 + later):
            channel = phalanx.Channel(url=str(data / "train.csv"), content_type=label)
            job = phalanx.TrainingJob(
                algorithm=algorithm,
                inputs={"train": channel},
                hyperparameters=settings,
                workers=workers,
                output=output,
                name=f"j{number}",
            )
            heard = FirstStep()
            begun = time.perf_counter()
            job.run(progress=heard)
            assert heard.at is not None
            result.append((heard.at - begun, time.perf_counter() - begun))
    return result


def torchrun(workers: int, folder: Path) -> float:
    """Return the seconds that torchrun takes from its start to the end of an empty script."""
    (folder / "empty.py").write_text(EMPTY)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(workers),
        "--standalone",
        str(folder / "empty.py"),
    ]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--later", type=int, default=10)
    parser.add_argument("--child", choices=["kmeans", "xgboost"], help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(jobs(given.child, given.workers, given.later, given.samples)))
        return
    from phalanx.data.samples import write_sample

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_sample("breast_cancer", data)
        peers: list[float] = []
        ours: dict[str, list[list[tuple[float, float]]]] = {"kmeans": [], "xgboost": []}
        for _ in range(given.rounds):
            peers.append(torchrun(given.workers, data))
            for name, runs in ours.items():
                extra = ["--later", str(given.later), "--workers", str(given.workers), "--samples", str(data)]
                ran = subprocess.run(
                    [sys.executable, __file__, "--child", name, *extra], check=True, capture_output=True, text=True
                )
                runs.append(json.loads(ran.stdout))
    peer = statistics.median(peers)
    rows: list[list[object]] = [["torchrun, empty script", peer, 1.0, "-"]]
    for name, runs in ours.items():
        first = statistics.median(run[0][0] for run in runs)
        later = statistics.median(step for run in runs for step, _ in run[1:])
        whole = statistics.median(total for run in runs for _, total in run[1:])
        rows.append([f"phalanx {name}, first job: to the first step", first, first / peer, "at most 1.0 of torchrun"])
        rows.append([f"phalanx {name}, later jobs: to the first step", later, later / peer, "at most 0.3 s"])
        rows.append([f"phalanx {name}, later jobs: until run() returns", whole, whole / peer, "-"])
    print(
        f"{machine()}; {versions('torch')}; {given.workers} workers, {given.rounds} rounds of 1 + {given.later} jobs, medians\n"
    )
    print(table(["", "seconds", "ratio to torchrun", "must reach"], rows))


if __name__ == "__main__":
    main()
