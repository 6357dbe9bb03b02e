"""Where a worker is, noted by whoever knows (the collective, the session); `heartbeat` and `phases` read it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

MEETING_PLACES = (  # code in which ranks wait for each other
    *("/torch/distributed/", "/torch/autograd/", "/torch/nn/parallel/"),
    *("/deepspeed/", "/horovod/", "/xgboost/", "/phalanx/parallel/"),
)


@final
@dataclass(slots=True)
class Pulse:
    """Where this process is; plain assignments, so that noting costs nothing and needs no lock.

    Attributes:
        phase: "Training", "Checkpointing" (a save may make one rank slower than the others), "Saving" (the model).
        step: the job's last step.
        steps: done by this process.
        calls: collective calls that were waited for.
        waiting: the collective that is being waited for, and since when (monotonic seconds).
        last: the last collective that was waited for.
        alone: there are no other ranks.
    """

    phase: str = "Training"
    step: int = 0
    steps: int = 0
    calls: int = 0
    waiting: tuple[str, float] | None = None
    last: str | None = None
    alone: bool = False

    def reset(self) -> None:
        """Nothing has been noted, as at the start of the process."""
        self.phase, self.step, self.steps, self.calls = "Training", 0, 0, 0
        self.waiting, self.last, self.alone = None, None, False

    def stepped(self, step: int) -> None:
        """A step was done."""
        self.step = step
        self.steps += 1

    def wait(self, what: str) -> None:
        """The wait for a collective begins."""
        self.waiting = (what, time.monotonic())

    def waited(self) -> None:
        """The wait is over."""
        if self.waiting is not None:
            self.last = self.waiting[0]
        self.waiting = None
        self.calls += 1


now = Pulse()
