"""Step time of `phalanx.Trainer` against a hand-written loop with the same model, data and ranks.

    python benchmarks/overhead.py [--workers 2] [--models mlp gpt] [--strategies ddp zero2] [--blocks 12]

Both loops live in the same processes and alternate in blocks of steps; the median of the blocks' ratios counts. The
hand-written loops are those of the tutorials: DistributedDataParallel or a deepspeed engine, `backward()`, `step()`.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library, which DeepSpeed loads

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine, table, versions

LIMITS = {"mlp": 1.10, "gpt": 1.01}


class Block(nn.Module):
    """One layer of a GPT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = (p.view(rows, length, self.heads, -1).transpose(1, 2) for p in self.qkv(self.first(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, length, width)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Gpt(nn.Module):
    """A GPT of about 10 million parameters."""

    def __init__(self, vocabulary: int = 512, width: int = 320, layers: int = 8, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 5) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).transpose(1, 2)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def make(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, int, int]:
    """Return (module, inputs, targets, global batch, steps a block)."""
    torch.manual_seed(0)
    if name == "mlp":
        return mlp(), torch.randn(64 * 100, 64), torch.randint(0, 10, (64 * 100,)), 64, 100
    return Gpt(), torch.randint(0, 512, (8 * 3, 64)), torch.randint(0, 512, (8 * 3, 64)), 8, 3


def by_hand(name: str, strategy: str, rank: int, size: int) -> Any:
    """Return a function that runs one block of steps of a hand-written loop."""
    module, inputs, target, batch, steps = make(name)
    own = batch // size
    if strategy == "zero2":
        import deepspeed

        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        config = {
            "train_batch_size": batch,
            "train_micro_batch_size_per_gpu": own,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 2},
        }
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)

        def block() -> None:
            for step in range(steps):
                rows = slice(step * batch + rank * own, step * batch + (rank + 1) * own)
                loss = nn.functional.cross_entropy(engine(inputs[rows]), target[rows])
                engine.backward(loss)
                engine.step()

        return block
    wrapped = nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)

    def block() -> None:
        for step in range(steps):
            rows = slice(step * batch + rank * own, step * batch + (rank + 1) * own)
            loss = nn.functional.cross_entropy(wrapped(inputs[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return block


def measure(name: str, strategy: str, blocks: int) -> None:
    """Run on every rank; rank 0 prints the two medians and the ratio as JSON."""
    import phalanx

    session = phalanx.session()
    module, inputs, target, batch, steps = make(name)
    trainer = phalanx.Trainer(
        module, nn.functional.cross_entropy, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), strategy=strategy
    )
    data = (inputs, target)
    trainer.fit(data, steps=steps, batch_size=batch, shuffle=False)
    block = by_hand(name, strategy, session.world.rank, session.world.size)
    block()
    ours, theirs = [], []
    for number in range(blocks):
        for which in (0, 1) if number % 2 else (1, 0):
            session.world.barrier(60)
            begun = time.perf_counter()
            if which:
                trainer.fit(data, steps=steps, batch_size=batch, shuffle=False)
            else:
                block()
            session.world.barrier(60)
            (ours if which else theirs).append((time.perf_counter() - begun) / steps)
    ratios = [o / t for o, t in zip(ours, theirs, strict=True)]
    if session.world.rank == 0:
        found = {"ours": statistics.median(ours), "theirs": statistics.median(theirs), "ratio": statistics.median(ratios)}
        print("FOUND " + json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["mlp", "gpt"], choices=list(LIMITS))
    parser.add_argument("--strategies", nargs="+", default=["ddp", "zero2"])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, arguments.blocks)
        return
    rows = []
    for model in arguments.models:
        for strategy in arguments.strategies:
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node",
                str(arguments.workers),
                "--standalone",
            ]
            command += [str(Path(__file__).resolve()), "--blocks", str(arguments.blocks), "--measure", model, strategy]
            done = subprocess.run(command, capture_output=True, text=True)
            found = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
            if found is None:
                sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
            got = json.loads(found[6:])
            numbers = [f"{1e3 * got['theirs']:.3f}", f"{1e3 * got['ours']:.3f}", f"{got['ratio']:.3f}"]
            rows.append([model, strategy, *numbers, f"at most {LIMITS[model]:.2f}"])
    print(f"{machine()}; {versions('torch', 'deepspeed')}; {arguments.workers} workers, median of {arguments.blocks} blocks\n")
    print(table(["model", "strategy", "by hand, ms a step", "Trainer, ms a step", "ratio", "must reach"], rows))


if __name__ == "__main__":
    main()
