"""All strategies on the same model and data: samples/s, peak memory of a rank, bytes exchanged, loss after 50 steps.

    python benchmarks/strategies.py [--workers 2] [--steps 50] [--strategies ddp zero2 …]

Every strategy runs in a group of its own, started by torchrun. Memory is the peak resident set of the largest rank above what
the process had before the model was made; bytes are those sent over the loopback interface while training, by all ranks
together. The optimizer is SGD: Adam turns differences of rounding in gradients near zero into steps of full size.
The losses' relative difference from one process must be at most 1e-5.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library, which DeepSpeed loads

import argparse
import json
import resource
import subprocess
import time
from pathlib import Path

import psutil
import torch
from torch import nn

from common import machine, table, versions

STRATEGIES = ("single", "ddp", "horovod", "zero1", "zero2", "zero3", "fsdp", "pipeline", "tensor")
WIDTH, LAYERS, LENGTH, VOCABULARY, BATCH = 256, 4, 32, 512, 16


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tokens(x) + self.places


def model() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(LAYERS)]
    return nn.Sequential(Embedding(), *blocks, nn.Linear(WIDTH, VOCABULARY))


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def memory() -> float:
    """Return the peak resident set of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(strategy: str, steps: int) -> None:
    """Run on every rank; rank 0 prints what was found as JSON."""
    import phalanx

    session = phalanx.session()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, VOCABULARY, (BATCH * 10, LENGTH), generator=generator)
    before = memory()
    trainer = phalanx.Trainer(
        model(), loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), strategy=strategy, accumulate=2, seed=0
    )
    data = (rows, rows.roll(-1, 1))
    trainer.fit(data, steps=2, batch_size=BATCH)
    session.world.barrier(60)
    sent, begun = psutil.net_io_counters(pernic=True)["lo"].bytes_sent, time.perf_counter()
    history = trainer.fit(data, steps=steps - 2, batch_size=BATCH)
    session.world.barrier(60)
    seconds = time.perf_counter() - begun
    sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - sent
    peaks = session.world.all_gather(memory() - before)
    if session.world.rank == 0:
        found = {
            "samples": (steps - 2) * BATCH / seconds,
            "memory": max(peaks),
            "bytes": sent / (steps - 2) / 2**20,
            "loss": history.losses[-1],
        }
        print("FOUND " + json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.steps)
        return
    rows = []
    first: float | None = None
    for strategy in arguments.strategies:
        workers = 1 if strategy == "single" else arguments.workers
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers), "--standalone"]
        command += [str(Path(__file__).resolve()), "--steps", str(arguments.steps), "--measure", strategy]
        done = subprocess.run(command, capture_output=True, text=True)
        found = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
        if found is None:
            told = (done.stderr or done.stdout).strip().splitlines() or ["?"]
            error = next((line for line in reversed(told) if "Error" in line), told[-1])
            rows.append([strategy, workers, "failed: " + error[-120:], "", "", "", ""])
            continue
        got = json.loads(found[6:])
        first = got["loss"] if first is None else first
        numbers = [f"{got['samples']:.1f}", f"{got['memory']:.0f}", f"{got['bytes']:.2f}", f"{got['loss']:.6f}"]
        rows.append([strategy, workers, *numbers, f"{abs(got['loss'] - first) / abs(first):.1e}"])
    parameters = sum(p.numel() for p in model().parameters())
    print(
        f"{machine()}; {versions('torch', 'deepspeed')}; {parameters / 1e6:.1f} M parameters, fp32, batch {BATCH} x {LENGTH}\n"
    )
    print(table(["strategy", "workers", "samples/s", "MiB a rank", "MiB sent a step", "loss", "relative difference"], rows))


if __name__ == "__main__":
    main()
