"""Checkpoints as a session takes them: restored once at the beginning, saved when they are due and when the job is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, final

from ..checkpoint.policy import Retention, Schedule, parse_when
from ..checkpoint.store import CheckpointStore
from ..contracts import Collective, Json, Stateful


@final
class Saver:
    """The checkpoints of one attempt of a job. Making one is Collective.

    Args:
        given: what the job says of its checkpoints: url, job, every ("100", "60s", "auto"), keep (fields of `Retention`),
            when the job began (seconds since the epoch), and the run whose fence it minds, where there is one.
        world: the ranks.
        attempt: 0, then one more for every restart.
        send: takes an event to the supervisor.
    """

    def __init__(
        self, given: Mapping[str, Json], *, world: Collective, attempt: int, send: Callable[[Mapping[str, Json]], None]
    ) -> None:
        self._store = CheckpointStore(
            str(given["url"]),
            world=world,
            job_id=str(given["job"]),
            attempt=attempt,
            keep=Retention(**given["keep"]),
            fence=given.get("fence"),
        )
        self.schedule = Schedule(
            parse_when(given["every"]),
            running_s=max(0.0, time.time() - float(given["begun"])),
            interruptions=attempt,
        )
        self._rank = world.rank
        self._send = send
        self._parts: Mapping[str, Stateful] | None = None
        self._saved_step = 0

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Collective. Put the newest checkpoint that verifies back; return its step, 0 where there is none."""
        self._parts = dict(parts)
        step = self._store.restore(parts)
        self._saved_step = step
        if step:
            self.schedule.saved(step)
        passed = [asdict(found) for found in self._store.restored.passed_over]
        if self._rank == 0:
            metrics = dict(self._store.restored.metrics)
            self._send({"kind": "restored", "step": step, "passed_over": passed, "metrics": metrics})
        return step

    def wants(self, step: int) -> bool:
        """Return whether this rank's clock wants a save after `step`; only rank 0's counts, and the others learn of it."""
        return self._rank == 0 and self.schedule.needs_agreement and self._parts is not None and self.schedule.due(step)

    def step(self, step: int, metrics: Mapping[str, float], *, agreed: bool, stopping: bool) -> None:
        """Collective. Save after `step` if that is due, agreed, or the last chance; `stopping`: until it is committed."""
        if self._parts is None:
            return
        by_count = not self.schedule.needs_agreement and self.schedule.due(step)
        if (by_count or agreed or stopping) and step != self._saved_step:
            self.schedule.saved(step)
            self._saved_step = step
            self._store.save(step, self._parts, metrics=metrics)
        self._tell()
        if stopping:
            self.finish()

    def finish(self) -> None:
        """Collective. Wait until the save in flight is committed."""
        self._store.wait()
        self._tell()

    def close(self) -> None:
        """Give up what is in flight; safe to call twice."""
        self._store.close()

    def _tell(self) -> None:
        """Pass on what saves cost."""
        for report in self._store.take_reports():
            self.schedule.measured(report.stall_s, report.write_s)
            if self._rank == 0:
                self._send({"kind": "saved", **_plain(asdict(report))})


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in report.items()}
