"""What a worker tells of itself every few seconds while it lives: in which collective it waits, what it does, what it uses.

`launch.hangs` judges from these events (of the kind "alive") which rank the others wait for; the job keeps their `used` in
resources.jsonl.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, final

from .phases import PHASES, Looks
from .pulse import MEETING_PLACES, Pulse, now
from .usage import Usage

KIND = "alive"
_IDLE = 0.2  # cores: a process that uses less while it is in one of the meeting places waits for its peers
_LOOK_SECONDS = 0.1


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


@final
class Heartbeat:
    """A thread that sends an event every `every_s` seconds, and a last one when it is closed.

    From its start on SIGUSR1 writes the stacks of all threads to stderr, unless the script has a use for it.
    """

    def __init__(self, send: Callable[[Mapping[str, Any]], None], every_s: float) -> None:
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        main = threading.main_thread().ident or 0
        self._send, self._every_s = send, every_s
        self._owner = os.getpid()
        self._reader = Reader(now, lambda: _place(sys._current_frames().get(main)))
        self._usage, self._looks = Usage(), Looks()
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="phalanx-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; safe to call twice, and in a process that was forked from this one."""
        if os.getpid() == self._owner and not self._over.is_set():
            self._over.set()
            self._thread.join()
            self._looks.close()

    def _run(self) -> None:
        before = time.monotonic()
        due = before + self._every_s
        while os.getpid() == self._owner:
            over = self._over.wait(min(_LOOK_SECONDS, self._every_s))
            at = time.monotonic()
            self._spent[self._looks.look(at - before)] += at - before
            before = at
            if over or at >= due:
                due = at + self._every_s
                self._send({**self._reader.read(), "used": {**self._used(), **self._usage.read()}})
            if over:
                return

    def _used(self) -> dict[str, float]:
        """Return seconds since the last call, and the share of them that was spent in each phase."""
        seconds = sum(self._spent.values())
        shares = {phase: round(spent / max(seconds, 1e-9), 3) for phase, spent in self._spent.items()}
        self._spent = dict.fromkeys(PHASES, 0.0)
        return {"seconds": round(seconds, 3), **shares}


def _place(frame: FrameType | None) -> str | None:
    """Return the function in which a thread is, if that belongs to a library in which ranks wait for each other."""
    if frame is None:
        return None
    code = frame.f_code
    for place in MEETING_PLACES:
        if place in code.co_filename:
            return f"{code.co_name} ({place.strip('/').replace('/', '.')})"
    return None
