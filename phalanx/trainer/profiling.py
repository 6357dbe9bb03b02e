"""A rank's profile: a trace for Perfetto or chrome://tracing, and sums for the summary.

The trace holds the phases of the step loop (`phases`, looked at every 5 ms) for as long as the job runs, the steps, and, for
code that uses torch, what `torch.profiler` records of a few steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ..observing import Observer
from ..phases import PHASES

SKIPPED = 3  # steps before torch's profiler begins: the first ones are not like the others
RECORDED = 5
_MOST = 100_000  # stretches and steps in a trace
_OPERATORS = 15


@final
class Profile:
    """Collects and writes.

    Args:
        given: "folder" of the traces.
        observer: whose rank it is; takes the sums as an event "profile".
    """

    def __init__(self, given: Mapping[str, Any], observer: Observer) -> None:
        self._folder = Path(str(given["folder"]))
        self._observer = observer
        self._stretches: list[tuple[str, float, float, int]] = []
        self._steps: list[tuple[int, float]] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._done = 0
        self._first: float | None = None
        self._last = 0.0
        self._torch: Any = None  # torch's profiler while it runs
        self._recorded: dict[str, Any] | None = None  # its trace
        self._operators: list[dict[str, Any]] = []

    def stretch(self, phase: str, begin: float, end: float, step: int) -> None:
        """Take a stretch of time that was of one phase; called by the thread that looks."""
        if len(self._stretches) < _MOST:
            self._stretches.append((phase, begin, end, step))
        if step > 0:
            self._seconds[phase] += end - begin

    def stepped(self, step: int) -> None:
        """Take a step, and begin or end torch's profiler."""
        self._last = now = time.time()
        self._first = now if self._first is None else self._first
        if len(self._steps) < _MOST:
            self._steps.append((step, now))
        self._done += 1
        if self._done == SKIPPED:
            self._begin_torch()
        elif self._torch is not None and self._done >= SKIPPED + RECORDED:
            self._end_torch()

    def close(self) -> None:
        """Write the trace, send the sums."""
        if self._torch is not None:
            self._end_torch()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank-{self._observer.rank}.trace.json"
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(self._trace()), encoding="utf-8")
        os.replace(partial, path)
        self._observer.send(
            {
                "kind": "profile",
                "rank": self._observer.rank,
                "trace": path.name,
                "steps": self._done,
                "seconds": 0.0 if self._first is None else round(self._last - self._first, 6),
                "phases": {phase: round(seconds, 6) for phase, seconds in self._seconds.items()},
                "operators": self._operators,
                "process_seconds": round(time.process_time(), 3),
            }
        )

    def _begin_torch(self) -> None:
        if "torch" not in sys.modules:
            return
        import torch

        # not torch.profiler.profile: its start loads torch's compiler, seconds in which the other ranks wait
        profiler = torch.autograd.profiler.profile(
            use_device="cuda" if torch.cuda.is_available() else None, record_shapes=True, use_kineto=True
        )
        try:
            profiler.__enter__()  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # the script profiles itself
            print(f"note: torch's profiler is not in the profile: {error}", flush=True)
            return
        self._torch = profiler

    def _end_torch(self) -> None:
        profiler, self._torch = self._torch, None
        profiler.__exit__(None, None, None)
        path = self._folder / f".rank-{self._observer.rank}.torch.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        with path.open(encoding="utf-8") as file:
            self._recorded = json.load(file)
        path.unlink()
        totals = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        self._operators = [
            {"name": event.key, "self_cpu_ms": round(event.self_cpu_time_total / 1e3, 3), "calls": event.count}
            for event in totals[:_OPERATORS]
        ]

    def _trace(self) -> dict[str, Any]:
        """Return the trace in Chrome's format; times are microseconds since `baseTimeNanoseconds`."""
        whole = self._recorded or {"baseTimeNanoseconds": 0, "traceEvents": []}
        base = int(whole.get("baseTimeNanoseconds") or 0) / 1e3
        place = {"pid": f"rank {self._observer.rank}"}
        events = [
            {"ph": "M", "name": "thread_name", "tid": 0, "args": {"name": "phases"}, **place},
            {"ph": "M", "name": "thread_name", "tid": 1, "args": {"name": "steps"}, **place},
        ]
        for phase, begin, end, step in self._stretches:
            span = {"ph": "X", "ts": begin * 1e6 - base, "dur": (end - begin) * 1e6, **place}
            events.append({"name": phase, "cat": "phase", "tid": 0, "args": {"step": step}, **span})
        for (_, begin), (step, end) in zip(self._steps, self._steps[1:], strict=False):
            span = {"ph": "X", "ts": begin * 1e6 - base, "dur": (end - begin) * 1e6, **place}
            events.append({"name": f"step {step}", "cat": "step", "tid": 1, **span})
        return {**whole, "displayTimeUnit": "ms", "traceEvents": [*whole["traceEvents"], *events]}
