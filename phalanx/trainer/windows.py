"""What a rank and its machine do in every quarter of a second, for rules on time and profiles; see `phalanx.phases`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, final

from .. import pulse, usage
from ..phases import PHASES, Looks

EVERY_SECONDS = 0.02
SAMPLE_SECONDS = 0.01  # that rules count time in
SLOTS_PER_SECOND = 4
_MOST = 5000  # windows that wait for the next step


@final
class Windows:
    """A thread that looks at this rank's phase, and tells of every quarter of a second.

    Args:
        rank: of this worker.
        size: of its group.
        tell: is given a window's `Window` as a mapping, once a step has been done after it.
        note: is given (phase, begin, end, step) of every stretch of one phase, in seconds since 1970; None: nobody asks.
        every_s: seconds between looks.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        tell: Callable[[Mapping[str, Any]], None],
        note: Callable[[str, float, float, int], None] | None = None,
        every_s: float = EVERY_SECONDS,
    ) -> None:
        self._rank, self._size = rank, size
        self._tell, self._note = tell, note
        self._every_s = every_s
        self._looks = Looks()
        self._machine = Machine()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._slot = int(time.time() * SLOTS_PER_SECOND)
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._held: list[dict[str, Any]] = []
        self._steps = 0
        self._stretch: tuple[str, float, int] | None = None  # phase, begin, step

    def start(self) -> None:
        """Begin."""
        self._steps = pulse.now.steps
        self._thread = threading.Thread(target=self._run, name="phalanx-phases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; what came after the last step is nobody's."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._looks.close()

    def _run(self) -> None:
        owner, before = os.getpid(), time.time()
        while not self._over.wait(self._every_s) and os.getpid() == owner:
            now = time.time()
            self._look(before, now)
            before = now
        self._cut(time.time(), None)

    def _look(self, before: float, now: float) -> None:
        phase = self._looks.look(now - before)
        if self._note is not None and (
            self._stretch is None or self._stretch[0] != phase or self._stretch[2] != pulse.now.step
        ):
            self._cut(now, (phase, before, pulse.now.step))
        slot = int(now * SLOTS_PER_SECOND)
        if slot != self._slot:
            self._end_window()
            self._slot = slot
        self._spent[phase] += now - before
        if pulse.now.steps != self._steps:
            first = self._steps == 0
            self._steps = pulse.now.steps
            for window in self._held if not first else ():
                self._tell(window)
            self._held.clear()

    def _end_window(self) -> None:
        total = sum(self._spent.values())
        if total > 0 and len(self._held) < _MOST:
            shares = {phase: round(spent / total, 4) for phase, spent in self._spent.items()}
            self._held.append(
                {
                    "rank": self._rank,
                    "size": self._size,
                    "slot": self._slot,
                    "samples": max(1, round(total / SAMPLE_SECONDS)),
                    "step": pulse.now.step,
                    **shares,
                    **self._machine.read(),
                }
            )
        self._spent = dict.fromkeys(PHASES, 0.0)

    def _cut(self, now: float, following: tuple[str, float, int] | None) -> None:
        """End the stretch under way, and begin the next."""
        if self._stretch is not None and self._note is not None:
            phase, begin, step = self._stretch
            self._note(phase, begin, now if following is None else following[1], step)
        self._stretch = following


@final
class Machine:
    """What the machine does: its cores, and its GPU where there is one."""

    def __init__(self) -> None:
        self._before = _cores()

    def read(self) -> dict[str, float | None]:
        """Return percent since the last call: cpu, gpu, gpu_memory (None without a GPU); and memory of this process, bytes."""
        now = _cores()
        total, idle = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        gpu, gpu_memory = usage.gpu()
        cpu = round(100 * (1 - idle / total), 1) if total > 0 else 0.0
        return {"cpu": cpu, "gpu": gpu, "gpu_memory": gpu_memory, "memory": usage.resident()}


def _cores() -> tuple[int, int]:
    """Return (all, idle) ticks of all cores so far; zeros where the system does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks), ticks[3] + ticks[4]
