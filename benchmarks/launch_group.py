"""Starting a worker group whose ranks do nothing: from a warm server, as fresh interpreters, as commands.

    python benchmarks/launch_group.py [--workers 2] [--groups 20]

"started" is until every worker has a process, "ended" until the last has ended; the first group of a server loads its modules.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from common import machine, table, versions
from phalanx.contracts import Exit, WorkerContext, WorkerSpec
from phalanx.launch.local import LocalLauncher
from phalanx.launch.warm import close_servers

TORCH = ("numpy", "torch", "torch.distributed")
ALL = (
    *TORCH,
    "phalanx.worker",
    "phalanx.data.kernels",
    "phalanx.parallel.torch_collective",
    "phalanx.algorithms.kmeans.algorithm",
)


def nothing(context: WorkerContext) -> None:
    """Do nothing."""


def group(launcher: LocalLauncher, spec: WorkerSpec) -> tuple[float, float]:
    """Return the seconds until a group has started and until it has ended."""
    begun = time.perf_counter()
    workers = launcher.start(spec)
    started = time.perf_counter() - begun
    left = spec.workers
    while left:
        left -= sum(isinstance(happened, Exit) for happened in workers.poll(10.0))
    workers.close()
    return started, time.perf_counter() - begun


def measure(
    folder: Path,
    method: Literal["fork", "spawn"],
    preload: Sequence[str],
    command: Sequence[str] | None,
    workers: int,
    groups: int,
) -> list[object]:
    """Return the cells of one row."""
    target = None if command else "launch_group:nothing"
    modules = preload if command else (*preload, "launch_group")
    spec = WorkerSpec(workers, folder, 0, target, command, preload=modules)
    launcher = LocalLauncher(method)
    try:
        first = group(launcher, spec)
        later = [group(launcher, spec) for _ in range(groups)]
    finally:
        close_servers()
    started, ended = (statistics.median(column) for column in zip(*later, strict=True))
    return [first[0], first[1], started, ended, max(ended for _, ended in later)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--groups", type=int, default=20)
    given = parser.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, method, preload, command in (
            ("forked, numpy", "fork", ("numpy",), None),
            ("forked, numpy and torch.distributed", "fork", TORCH, None),
            ("forked, all that a k-means job needs", "fork", ALL, None),
            ("fresh interpreters", "spawn", (), None),
            ("the command `true`", "fork", (), ["true"]),
        ):
            rows.append([name, *measure(Path(folder), method, preload, command, given.workers, given.groups)])  # type: ignore[arg-type]
    print(f"{machine()}; {versions('torch', 'numpy')}; {given.workers} workers, 1 + {given.groups} groups, seconds, medians\n")
    print(table(["workers", "first started", "first ended", "later started", "later ended", "slowest"], rows))


if __name__ == "__main__":
    main()
