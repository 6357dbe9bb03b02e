"""What a worker tells of itself while it lives: where it is, in which collective it waits, and since when.

`now` is noted by whoever knows (the collective, the session), and sent by one thread every few seconds, as an event of the kind
"alive". `launch.hangs` judges from these which rank the others wait for.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, final

from .usage import Usage

KIND = "alive"
_IDLE = 0.2  # cores: a process that uses less while it is in one of the meeting places waits for its peers
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
    """

    phase: str = "Training"
    step: int = 0
    steps: int = 0
    calls: int = 0
    waiting: tuple[str, float] | None = None
    last: str | None = None

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


@final
class Reader:
    """Makes the events: what was noted, and waits that nobody notes, as those inside a library's backward pass.

    Args:
        pulse: what was noted.
        place: returns the library in which the main thread is, None where it is elsewhere.
        clock: monotonic seconds.
        cpu: seconds that this process has computed.
    """

    def __init__(
        self,
        pulse: Pulse,
        place: Callable[[], str | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._pulse = pulse
        self._place = place
        self._clock = clock
        self._cpu = cpu
        self._read_at, self._computed = clock(), cpu()
        self._idle: tuple[tuple[int, int, str], float] | None = None  # where it is idle, and since when

    def read(self) -> dict[str, Any]:
        """Return the next event."""
        pulse, at, waiting = self._pulse, self._clock(), self._pulse.waiting
        idle = self._idle_since(at)
        what, since = waiting if waiting is not None else idle if idle is not None else (None, at)
        return {
            "kind": KIND,
            "phase": pulse.phase,
            "step": pulse.step,
            "steps": pulse.steps,
            "calls": pulse.calls,
            "waiting": what,
            "waited_s": round(at - since, 3),
            "noted": waiting is not None,
            "last": pulse.last,
        }

    def _idle_since(self, at: float) -> tuple[str, float] | None:
        """Return in which library this process has been idle, and since when."""
        computed, before = self._cpu(), self._read_at
        share = (computed - self._computed) / max(at - before, 1e-9)
        self._read_at, self._computed = at, computed
        place = self._place() if share < _IDLE else None
        if place is None:
            self._idle = None
            return None
        key = (self._pulse.steps, self._pulse.calls, place)
        if self._idle is None or self._idle[0] != key:
            self._idle = (key, before if self._idle is None else at)
        return place, self._idle[1]


def start(send: Callable[[Mapping[str, Any]], None], every_s: float) -> None:
    """Begin to send an event every `every_s` seconds; from now on SIGUSR1 writes the stacks of all threads to stderr."""
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # else the script has a use for it
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    main, owner = threading.main_thread().ident, os.getpid()
    reader = Reader(now, lambda: _place(sys._current_frames().get(main or 0)))
    used = Usage()

    def beat() -> None:
        while os.getpid() == owner:
            time.sleep(every_s)
            send({**reader.read(), "used": used.read()})

    threading.Thread(target=beat, name="phalanx-pulse", daemon=True).start()


def _place(frame: FrameType | None) -> str | None:
    """Return the function in which a thread is, if that belongs to a library in which ranks wait for each other."""
    if frame is None:
        return None
    code = frame.f_code
    for place in MEETING_PLACES:
        if place in code.co_filename:
            return f"{code.co_name} ({place.strip('/').replace('/', '.')})"
    return None
