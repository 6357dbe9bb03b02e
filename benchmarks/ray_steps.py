"""What `ray.py` trains: an MLP under DDP, by `steps`; as a script it is a rank of whoever set RANK and MASTER_ADDR."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def steps(notes: Path, rank: int, size: int, attempt: int, count: int, dies_at: int | None) -> None:
    """Train; rank 0 notes when its first step was done and how long the median one took.

    Args:
        notes: folder for notes, which all see.
        rank: this rank; the process group is open.
        size: of the group.
        attempt: 0, then one more for every restart.
        count: steps.
        dies_at: step at which rank 1 of the first attempt kills itself.
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)]
    model: Any = torch.nn.Sequential(*layers)
    if size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(256, 256), torch.randint(10, (256,))
    took = []
    for step in range(1, count + 1):
        begun = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        took.append(time.perf_counter() - begun)
        if rank == 0 and step == 1:
            (notes / f"first-{attempt}").write_text(repr(time.time()))
        if rank == 1 and attempt == 0 and step == dies_at:
            (notes / "killed").write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        took = sorted(took[count // 10 :])
        (notes / "step").write_text(json.dumps(took[len(took) // 2]))


def main() -> None:
    """Be a rank."""
    import torch.distributed as dist

    notes, count, dies_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    steps(notes, dist.get_rank(), dist.get_world_size(), attempt, count, dies_at or None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
