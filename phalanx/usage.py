"""What a process uses of its machine: cores, memory, reading and writing, and a GPU where there is one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import final


@final
class Usage:
    """Reads what was used since it was read last.

    Args:
        clock: seconds.
        cpu: seconds that the process has computed.
        process: its number; "self": this one, whose GPU is looked at too.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        process: str = "self",
    ) -> None:
        self._clock, self._cpu, self._process = clock, cpu, process
        self._at, self._computed = clock(), cpu()
        self._moved = moved(process)

    def read(self) -> dict[str, float | None]:
        """Return cores (in use on average), memory (bytes), read and written (bytes a second), gpu and gpu_memory (percent)."""
        at, computed, bytes_moved = self._clock(), self._cpu(), moved(self._process)
        seconds = max(at - self._at, 1e-9)
        read, written = ((now - before) / seconds for now, before in zip(bytes_moved, self._moved, strict=True))
        cores = (computed - self._computed) / seconds
        self._at, self._computed, self._moved = at, computed, bytes_moved
        busy, memory = gpu() if self._process == "self" else (None, None)
        used = {"cores": round(cores, 3), "memory": resident(self._process), "read": round(read), "written": round(written)}
        return {**used, "gpu": busy, "gpu_memory": memory}


def resident(process: str = "self") -> float:
    """Return the bytes of memory that a process holds, 0 where the system does not tell."""
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return 0.0


def own_memory() -> int:
    """Return the bytes of memory of this process that stand for no file, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, held, of_files, *_ = map(int, file.read().split())
            return (held - of_files) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def computed(process: str) -> float | None:
    """Return the seconds that a process of this machine has computed, None where there is none, or the system does not tell."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def moved(process: str = "self") -> tuple[int, int]:
    """Return the bytes that a process has read and written, files, pipes and sockets alike; zeros if that is not told."""
    try:
        with open(f"/proc/{process}/io", encoding="ascii") as file:
            found = dict(line.split(": ") for line in file.read().splitlines())
        return int(found["rchar"]), int(found["wchar"])
    except (OSError, ValueError, KeyError):
        return 0, 0


def gpu() -> tuple[float | None, float | None]:
    """Return the use of this process's GPU and of its memory in percent; it is asked only where torch is loaded already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None, None
    free, total = torch.cuda.mem_get_info()
    memory = 100 * (1 - free / total)
    try:
        return float(torch.cuda.utilization()), memory
    except (ImportError, ModuleNotFoundError, RuntimeError):  # nvidia-ml-py is not there
        return None, memory
