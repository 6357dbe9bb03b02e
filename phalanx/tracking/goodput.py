"""Where a job's time went: training that counts, stalls of saves, work that was lost, starting and restarting."""

from __future__ import annotations

from typing import final


@final
class Goodput:
    """Follows the steps of a job over its attempts."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}  # step -> when it was done, of the history that counts
        self._useful = 0.0
        self._stall = 0.0
        self._lost = 0.0
        self._begun: float | None = None  # when the first step of the attempt was done
        self._interruptions = 0

    def step(self, step: int, when: float) -> None:
        """A step was done."""
        if self._begun is None:
            self._begun = when
        self._times[step] = when

    def saved(self, stall_s: float) -> None:
        """A checkpoint was saved, and the step loop waited so long for it."""
        self._stall += stall_s

    def lost(self, when: float) -> None:
        """The group was lost; how much of its work with it is known when the next one has restored."""
        self._interruptions += 1
        if self._begun is not None:
            self._useful += max(0.0, when - self._begun)
        self._begun = None

    def restored(self, step: int) -> None:
        """An attempt goes on after `step`: what was done after it counts for nothing."""
        if not self._times:
            return
        last = max(self._times)
        kept = self._times.get(step, self._times[min(self._times)] if step == 0 else None)
        if kept is not None and step < last:
            gone = self._times[last] - kept
            self._lost += gone
            self._useful -= gone
        self._times = {done: when for done, when in self._times.items() if done <= step}

    def read(self, begun: float, now: float) -> dict[str, float]:
        """Return seconds of wall, training, stall, lost_work and restart (also the start), and the share of training."""
        useful = self._useful + (max(0.0, now - self._begun) if self._begun is not None else 0.0)
        wall = max(now - begun, 1e-9)
        training = max(0.0, useful - self._stall)
        restart = max(0.0, wall - useful - self._lost)
        return {
            "wall_s": round(wall, 3),
            "training_s": round(training, 3),
            "stall_s": round(self._stall, 3),
            "lost_work_s": round(self._lost, 3),
            "restart_s": round(restart, 3),
            "goodput": round(training / wall, 4),
        }
