"""Where a job's time went: training that counts, stalls of saves, work that was lost, starting and restarting."""

from __future__ import annotations

from typing import final


@final
class Goodput:
    """Follows the steps of a job over its attempts.

    Every second belongs to one of four: a step of the history that counts, waiting for a save within such a step, work that was
    lost (steps after the checkpoint that the next attempt went on from, and the step under way when the group was lost), and
    the rest: starting, restoring and publishing.
    """

    def __init__(self) -> None:
        self._spent: dict[int, float] = {}  # step -> seconds it took, of the history that counts
        self._stalls: dict[int, float] = {}
        self._lost = 0.0
        self._mark: float | None = None  # since when the step under way is being worked on

    def began(self, when: float) -> None:
        """An attempt begins to train."""
        self._mark = when

    def step(self, step: int, when: float) -> None:
        """A step was done."""
        if self._mark is not None:
            self._spent[step] = max(0.0, when - self._mark)  # a clock that goes back makes no time
        self._mark = when

    def saved(self, step: int, stall_s: float) -> None:
        """A checkpoint was saved after `step`, and the step loop waited so long for it."""
        self._stalls[step] = stall_s

    def lost(self, when: float) -> None:
        """The group was lost; how much of its work with it is known when the next one has restored."""
        if self._mark is not None:
            self._lost += max(0.0, when - self._mark)
        self._mark = None

    def restored(self, step: int, when: float) -> None:
        """An attempt goes on after `step`: what was done after it counts for nothing."""
        self._lost += sum(seconds for done, seconds in self._spent.items() if done > step)
        self._spent = {done: seconds for done, seconds in self._spent.items() if done <= step}
        self._stalls = {done: seconds for done, seconds in self._stalls.items() if done <= step}
        self._mark = when

    def read(self, begun: float, now: float) -> dict[str, float]:
        """Return seconds of wall, training, stall, lost_work and restart (with the start), and the share of training."""
        useful = sum(self._spent.values())
        stall = min(sum(self._stalls.values()), useful)
        wall = max(now - begun, 1e-9)
        training = useful - stall
        return {
            "wall_s": round(wall, 3),
            "training_s": round(training, 3),
            "stall_s": round(stall, 3),
            "lost_work_s": round(self._lost, 3),
            "restart_s": round(max(0.0, wall - useful - self._lost), 3),
            "goodput": round(training / wall, 4),
        }
