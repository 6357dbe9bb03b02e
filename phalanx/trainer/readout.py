"""Where the time of training goes: data wait, step, evaluation, report; samples per second, FLOP/s and MFU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final


@final
class Readout:
    """Adds up seconds and rows between two readings.

    Args:
        flops_per_row: floating point operations to learn from one row, forward and backward; None: not known.
        peak_flops: that the worker group's devices can do in a second; None: not known.
    """

    def __init__(self, flops_per_row: float | None = None, peak_flops: float | None = None) -> None:
        self._flops_per_row = flops_per_row
        self._peak_flops = peak_flops
        self._seconds: dict[str, float] = {}
        self._rows = 0
        self._begun = time.perf_counter()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Within: time counts for `phase`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - begun)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds for `phase`."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def rows(self, rows: int) -> None:
        """Count rows learned from, over all ranks."""
        self._rows += rows

    def read(self) -> dict[str, float]:
        """Return the metrics since the last reading, and begin anew.

        Keys: train:samples_per_second (of the time outside evaluations), train:seconds, train:seconds_PHASE, and where known
        train:flops_per_second and train:mfu (model FLOPs utilisation; Chowdhery et al., 2022).
        """
        seconds = time.perf_counter() - self._begun
        training = max(seconds - self._seconds.get("evaluation", 0.0), 1e-9)
        metrics = {"train:samples_per_second": self._rows / training, "train:seconds": seconds}
        metrics |= {f"train:seconds_{phase}": spent for phase, spent in self._seconds.items()}
        if self._flops_per_row is not None:
            metrics["train:flops_per_second"] = self._flops_per_row * self._rows / training
            if self._peak_flops:
                metrics["train:mfu"] = metrics["train:flops_per_second"] / self._peak_flops
        self._seconds, self._rows, self._begun = {}, 0, time.perf_counter()
        return metrics
