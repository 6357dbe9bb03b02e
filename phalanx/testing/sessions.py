"""`MemorySession`: what an algorithm's `fit` is given in a test, without a job around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from ..contracts import Algorithm, Array, Collective, Csr, Features, Shard, State, Stateful
from ..data.memory import array_shard
from ..errors import AlgorithmError, Stopped
from ..parallel.collective import Solo
from ..parallel.threads import run_threads


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a channel in memory."""

    features: Features
    label: Array | None = None
    weight: Array | None = None
    group: Array | None = None

    def shard(self, *, rank: int, size: int, seed: int, replicate: bool) -> Shard:
        """Return the channel as rank `rank` of `size` sees it."""
        return array_shard(
            self.features, self.label, self.weight, self.group, rank=rank, size=size, seed=seed, replicate=replicate
        )


@dataclass(frozen=True, slots=True)
class Reported:
    """One report of a step."""

    step: int
    metrics: dict[str, float]
    rows: int
    of: int | None


@final
class MemorySession:
    """`contracts.Session` that keeps what is reported, in `reports`.

    Args:
        channels: by name.
        output_data: folder for an algorithm's own files.
        world: the ranks; one where none is given.
        seed: of the job.
        threads: that this rank may use.
        stop_at: step whose report raises `Stopped`.
        restored: the state that `restore` puts back into the part "algorithm".
        on_report: called after each report, for a look at the algorithm in between.
    """

    def __init__(
        self,
        channels: Mapping[str, Shard],
        output_data: Path,
        *,
        world: Collective | None = None,
        seed: int = 0,
        threads: int = 1,
        stop_at: int | None = None,
        restored: State | None = None,
        on_report: Callable[[int], None] | None = None,
    ) -> None:
        self.world: Collective = Solo() if world is None else world
        self.channels = channels
        self.seed = seed
        self.threads = threads
        self.device = "cpu"
        self.output_data = output_data
        self.reports: list[Reported] = []
        self.first_step = 1
        self._stop_at = stop_at
        self._restored = restored
        self._on_report = on_report

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Put the given state back; return its entry "step", 0 where there is none."""
        if self.reports:
            raise AlgorithmError("restore was called after a step was reported; it comes first")
        if self._restored is None:
            return 0
        parts["algorithm"].load_state_dict(self._restored)
        step = int(self._restored["step"].value)
        self.first_step = step + 1
        return step

    def report(self, step: int, metrics: Mapping[str, float], *, rows: int = 0, of: int | None = None) -> None:
        """Keep the report; see `contracts.Session.report`."""
        expected = self.first_step + len(self.reports)
        if step != expected:
            raise AlgorithmError(
                f"step {step} was reported where step {expected} was due; steps are reported once each, in order"
            )
        if of is not None and step > of:
            raise AlgorithmError(f"step {step} was reported of {of}")
        self.reports.append(Reported(step, {name: float(value) for name, value in metrics.items()}, rows, of))
        if self._on_report is not None:
            self._on_report(step)
        if self._stop_at == step:
            raise Stopped(f"stopped in order after step {step}")

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of every metric."""
        return {name: value for report in self.reports for name, value in report.metrics.items()}
