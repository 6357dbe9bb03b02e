"""What starts the same command on several ranks, as srun does: each gets the variables of its rank, and the worst code counts.

with Step([sys.executable, "-m", "phalanx.cli", "train", …], ranks=2, job="7") as step:
    codes = step.codes()

python starting.py -n 2 phalanx train …    # as `srun` in a script
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

PATIENCE_S = 100.0


def slurm(rank: int, size: int, job: str, restarts: int = 0) -> dict[str, str]:
    """Return what srun sets for a task of a step on one node (as recorded from Slurm 22.05)."""
    host = socket.gethostname()
    found = {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(size),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": host,
        "SLURM_STEP_TASKS_PER_NODE": str(size),
        "SLURM_CPUS_PER_TASK": "1",
    }
    return {**found, "SLURM_RESTART_COUNT": str(restarts)} if restarts else found


class Step:
    """A running step; ends its processes on the way out."""

    def __init__(self, command: Sequence[str], ranks: int, job: str, restarts: int = 0, **how: object) -> None:
        self._tasks = [
            subprocess.Popen(
                list(command),
                env={**os.environ, **slurm(rank, ranks, job, restarts)},
                text=True,
                start_new_session=True,
                **how,  # type: ignore[call-overload]
            )
            for rank in range(ranks)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            if task.poll() is None:
                task.kill()
            task.wait()
            for pipe in (task.stdout, task.stderr):
                if pipe is not None:
                    pipe.close()

    def kill(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one task."""
        self._tasks[rank].send_signal(number)

    def ended(self) -> list[tuple[int, str, str]]:
        """Wait for all; return code, output and errors of each."""
        told = [task.communicate(timeout=PATIENCE_S) for task in self._tasks]
        return [(task.returncode, out, err) for task, (out, err) in zip(self._tasks, told, strict=True)]

    def codes(self) -> list[int]:
        """Wait for all; return their exit codes."""
        return [task.wait(PATIENCE_S) for task in self._tasks]


def install(folder: Path, name: str = "srun") -> Path:
    """Write a command of this name that starts steps into a folder for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, folder / "starting.py")
    script = folder / name
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "starting.py"}" "$@"\n')
    script.chmod(0o755)
    return folder


def main(arguments: list[str]) -> int:
    """Be srun: options that name tasks are read, the rest is the command."""
    ranks = int(os.environ.get("SLURM_NTASKS", "1"))
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option in ("-n", "--ntasks"):
            ranks = int(arguments.pop(0))
    job, restarts = os.environ.get("SLURM_JOB_ID", "1"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with Step(arguments, ranks, job, restarts) as step:
        signal.signal(signal.SIGTERM, lambda number, frame: [step.kill(rank, signal.SIGTERM) for rank in range(ranks)])
        return max(code if code >= 0 else 128 - code for code in step.codes())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
