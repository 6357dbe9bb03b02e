"""Stall and time of a save against torch.distributed.checkpoint: 500 MB of state on two ranks, hashing on.

    python benchmarks/checkpoint.py [--megabytes 500] [--rounds 5] [--folder DIR]

Rounds alternate between the contenders in the same two processes, so that a busy machine troubles all alike; the table has
medians and ratios. Two states: "sharded", half of it on each rank (FSDP, ZeRO), and "replicated", the same on both (DDP).

stall: what the step loop waits: `save()` of each. total: from the call until the checkpoint is committed and synced to the
disk. rate: steps of a small computation per second while a save is in flight, over those while nothing is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from common import machine, table, versions
from phalanx.checkpoint.background import BackgroundSave, SaveJob
from phalanx.checkpoint.place import StoragePlace
from phalanx.checkpoint.state import Copier
from phalanx.checkpoint.store import CheckpointStore
from phalanx.contracts import Entry, State
from phalanx.parallel.torch_collective import TorchCollective

_TENSORS = 50
_COLUMNS = 1024
Step = Callable[[int], tuple[float, Callable[[], object]]]  # begins a save; returns its stall and what waits for its end


class Module:
    """The state to save, as a part and as torch's dictionary; both look at the same memory."""

    def __init__(self, megabytes: int, kind: str, rank: int, size: int) -> None:
        rows = megabytes * 10**6 // (4 * _COLUMNS * _TENSORS) // size * size
        mine = rows // size if kind == "sharded" else rows
        generator = torch.Generator().manual_seed(rank if kind == "sharded" else 0)
        local = {f"w{i}": torch.rand(mine, _COLUMNS, generator=generator) for i in range(_TENSORS)}
        self._entries = {
            name: Entry(tensor.numpy(), "sharded", (rows, _COLUMNS), (rank * mine, 0))
            if kind == "sharded"
            else Entry(tensor.numpy())
            for name, tensor in local.items()
        }
        mesh = init_device_mesh("cpu", (size,))
        self.tensors: dict[str, Any] = {
            name: DTensor.from_local(tensor, mesh, [Shard(0)]) if kind == "sharded" else tensor
            for name, tensor in local.items()
        }

    def state_dict(self) -> State:
        return self._entries

    def load_state_dict(self, state: State) -> None:
        raise NotImplementedError("this benchmark only saves")


def ours(world: TorchCollective, folder: Path, module: Module) -> tuple[Step, Callable[[], None]]:
    store = CheckpointStore(str(folder / "ours"), world=world, job_id="benchmark")

    def step(number: int) -> tuple[float, Callable[[], object]]:
        stall_s = store.save(number, {"module": module})
        return stall_s, store.wait

    return step, store.close


def dcp_save(folder: Path, module: Module) -> Step:
    def step(number: int) -> tuple[float, Callable[[], object]]:
        begun = time.perf_counter()
        dcp.save(module.tensors, checkpoint_id=str(folder / f"dcp-{number}"))
        return time.perf_counter() - begun, lambda: None

    return step


def dcp_async(folder: Path, module: Module, group: Any) -> Step:
    def step(number: int) -> tuple[float, Callable[[], object]]:
        begun = time.perf_counter()
        future = dcp.async_save(module.tensors, checkpoint_id=str(folder / f"async-{number}"), process_group=group)
        return time.perf_counter() - begun, future.result

    return step


def compute_rate(is_over: Callable[[], bool], least_s: float = 0.3) -> float:
    """Return steps a second of a small computation in Python and torch until `is_over`."""
    a = torch.ones(64, 64)
    begun, count = time.perf_counter(), 0
    while count == 0 or not is_over() or time.perf_counter() - begun < least_s:
        a = (a @ a).clamp(0, 1)
        sum(range(200))
        count += 1
    return count / (time.perf_counter() - begun)


def worker(rank: int, size: int, options: argparse.Namespace, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    behind = dist.new_group(backend="gloo")  # async_save makes collective calls of its own in a thread
    world = TorchCollective.open(rank, size, "127.0.0.1", port + 1)
    rows: list[dict[str, Any]] = []
    for kind in ("sharded", "replicated"):
        module = Module(options.megabytes, kind, rank, size)
        place = Path(folder) / kind
        our_step, close = ours(world, place, module)
        contenders: dict[str, Step] = {
            "phalanx": our_step,
            "DCP save": dcp_save(place, module),
            "DCP async_save": dcp_async(place, module, behind),
        }
        for number in range(1, options.rounds + 2):
            for name, step in contenders.items():
                dist.barrier()
                begun = time.perf_counter()
                stall_s, wait = step(number)
                wait()
                dist.barrier()
                rows.append(
                    {"kind": kind, "name": name, "round": number, "stall": stall_s, "total": time.perf_counter() - begun}
                )
                if rank == 0:
                    for old in place.iterdir():
                        if old.name != "ours":
                            shutil.rmtree(old)
                    for old in (place / "ours").glob("*"):
                        shutil.rmtree(old)
                dist.barrier()
        close()
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    world.close()
    dist.destroy_process_group()


def other_process(megabytes: int, folder: str, ready: Any, go: Any, over: Any, rounds: int) -> None:
    """Write the same as the thread does, in a process that shares nothing with the one that computes."""
    values = np.random.default_rng(0).random(megabytes * 10**6 // 8)
    snapshot = Copier().copy({"part": {"w": Entry(values)}}, 0)
    for number in range(1, rounds + 1):
        ready.set()
        go.wait()
        go.clear()
        job = SaveJob(number, f"{number}/0-x-0", snapshot, 0, 1, "b", 0, ("part",), {}, 60)
        BackgroundSave(StoragePlace(folder), job).join(None)
        over.set()


def interference(megabytes: int, folder: Path, rounds: int) -> list[list[object]]:
    """Return how fast a rank computes while a save is written by a thread of it, and by another process."""
    values = np.random.default_rng(0).random(megabytes * 10**6 // 8)
    snapshot = Copier().copy({"part": {"w": Entry(values)}}, 0)
    context = mp.get_context("spawn")
    ready, go, over = context.Event(), context.Event(), context.Event()
    process = context.Process(target=other_process, args=(megabytes, str(folder / "process"), ready, go, over, rounds))
    process.start()
    rates: dict[str, list[float]] = {"thread": [], "process": []}
    for number in range(1, rounds + 1):
        ready.wait()
        ready.clear()
        alone = compute_rate(lambda: True)
        job = SaveJob(number, f"{number}/0-x-0", snapshot, 0, 1, "b", 0, ("part",), {}, 60)
        flying = BackgroundSave(StoragePlace(str(folder / "thread")), job)
        rates["thread"].append(compute_rate(lambda f=flying: f.join(0), 0.0) / alone)
        alone = compute_rate(lambda: True)
        go.set()
        rates["process"].append(compute_rate(over.is_set, 0.0) / alone)
        over.clear()
    process.join()
    return [[name, statistics.median(found)] for name, found in rates.items()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to measure; default: the system's temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        port = int(np.random.default_rng().integers(20_000, 30_000))
        mp.spawn(worker, args=(2, options, port, folder), nprocs=2)
        rows = json.loads(Path(folder, "rows.json").read_text())
        print(
            f"{machine()}; {versions('phalanx-train', 'torch')}; {options.megabytes} MB on 2 ranks, {options.rounds} rounds\n"
        )
        lines = []
        for kind in ("sharded", "replicated"):
            found = {
                (name, what): [row[what] for row in rows if (row["kind"], row["name"]) == (kind, name) and row["round"] > 1]
                for name in ("phalanx", "DCP save", "DCP async_save")
                for what in ("stall", "total")
            }
            for name in ("phalanx", "DCP save", "DCP async_save"):
                ratios = [
                    statistics.median(a / b for a, b in zip(found["phalanx", what], found[name, what], strict=True))
                    for what in ("stall", "total")
                ]
                medians = [statistics.median(found[name, what]) for what in ("stall", "total")]
                lines.append([kind, name, *medians, *ratios])
        print(table(["state", "saved by", "stall s", "total s", "phalanx's stall / its", "phalanx's total / its"], lines))
        print("\nA rank's computing while its save is written behind, over computing alone:\n")
        print(table(["written by", "rate"], interference(options.megabytes, Path(folder), options.rounds)))


if __name__ == "__main__":
    sys.exit(main())
