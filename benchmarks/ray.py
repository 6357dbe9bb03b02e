"""Jobs on a running Ray cluster, beside Ray's own TorchTrainer: until the first step, after a killed rank, and per step.

    python benchmarks/ray.py [--rounds 3] [--steps 300] [--parts first restart step]

Both train the same MLP with two ranks of a thread each (`ray_steps.py`); the cluster runs, and both have imported Ray, before
the clock does. "plain" are two processes that nobody supervises: what a step costs without a launcher.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this file has the name of the library that it measures

import argparse
import json
import logging
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from common import machine, table, versions
from phalanx import TrainingJob

HERE = Path(__file__).resolve().parent
Run = Callable[[Path, int, int], None]  # notes, steps, the step at which rank 1 dies (0: none)


def phalanx_job(notes: Path, count: int, dies_at: int) -> None:
    """Run a job of ours."""
    TrainingJob(
        script=str(_alone(notes) / "ray_steps.py"),
        arguments=[str(notes), str(count), str(dies_at)],
        workers=2,
        threads_per_worker=1,
        launcher="ray",
        max_restarts=2,
        output=str(notes / "runs"),
    ).run(progress=False)


def _alone(notes: Path) -> Path:
    """Return a folder with the script alone."""
    folder = notes / "code"
    folder.mkdir()
    (folder / "ray_steps.py").write_text((HERE / "ray_steps.py").read_text())
    return folder


def torch_trainer(notes: Path, count: int, dies_at: int) -> None:
    """Run Ray's."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    source = str(HERE)

    def loop(config: dict[str, Any]) -> None:
        import sys as workers_sys

        workers_sys.path.append(source)
        import ray_steps
        from ray import train

        context = train.get_context()
        attempt = 1 if (Path(config["notes"]) / "killed").exists() else 0
        rank, size = context.get_world_rank(), context.get_world_size()
        ray_steps.steps(Path(config["notes"]), rank, size, attempt, config["count"], config["dies_at"] or None)

    TorchTrainer(
        loop,
        train_loop_config={"notes": str(notes), "count": count, "dies_at": dies_at},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(notes / "runs"), failure_config=FailureConfig(max_failures=2)),
    ).fit()


def plain(notes: Path, count: int, dies_at: int) -> None:
    """Run two processes."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(HERE / "ray_steps.py"), str(notes), str(count), str(dies_at)]
    ranks = [subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank)}) for rank in range(2)]
    if any(rank.wait() for rank in ranks):
        raise RuntimeError("the plain processes failed")


def measured(run: Run, part: str, count: int) -> float:
    """Return seconds: to the first step, from the kill of a rank to the first step after it, or of the median step."""
    with tempfile.TemporaryDirectory(prefix="phalanx-bench-") as folder:
        notes = Path(folder)
        begun = time.time()
        run(notes, {"first": 5, "restart": 20, "step": count}[part], 10 if part == "restart" else 0)
        if part == "first":
            return float((notes / "first-0").read_text()) - begun
        if part == "restart":
            return float((notes / "first-1").read_text()) - float((notes / "killed").read_text())
        return float(json.loads((notes / "step").read_text()))


PARTS: dict[str, tuple[str, float, dict[str, Run], str, float]] = {  # its row, times what, who, against whom, the limit
    "first": ("run() to the first step, s", 1, {"Phalanx": phalanx_job, "TorchTrainer": torch_trainer}, "TorchTrainer", 0.5),
    "restart": (
        "killed rank to the next first step, s",
        1,
        {"Phalanx": phalanx_job, "TorchTrainer": torch_trainer},
        "TorchTrainer",
        0.5,
    ),
    "step": ("a step, ms", 1e3, {"Phalanx": phalanx_job, "TorchTrainer": torch_trainer, "plain": plain}, "plain", 1.01),
}


def main() -> None:
    """Measure in turns, say each figure when it is there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.disable(logging.WARNING)
    print(f"{machine()}; {versions('ray', 'torch')}; 2 ranks, medians of {given.rounds} rounds\n", flush=True)
    rows: list[list[object]] = []
    for part in given.parts:
        what, times, runs, peer, limit = PARTS[part]
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(given.rounds):
            for name, run in runs.items():
                found[name].append(times * measured(run, part, given.steps))
                print(f"{part}: {name} {found[name][-1]:.3f}", flush=True)
        middle = {name: statistics.median(seen) for name, seen in found.items()}
        ratio = statistics.median(ours / theirs for ours, theirs in zip(found["Phalanx"], found[peer], strict=True))
        rows.append([what, *(middle.get(name, "") for name in ("Phalanx", "TorchTrainer", "plain")), ratio, f"{limit:g}"])
    ray.shutdown()
    print("\n" + table(["", "Phalanx", "TorchTrainer", "plain", "ratio", "limit"], rows))


if __name__ == "__main__":
    main()
