"""What the benchmarks share: the machine's description and tables that can go into docs/benchmarks.md as they are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence


def machine() -> str:
    """Return processor, cores and Python in one line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def versions(*distributions: str) -> str:
    """Return "numpy 2.4.6, torch 2.13.0"."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    lines += ["| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def seconds(action: Callable[[], object]) -> float:
    """Return how long `action` takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
