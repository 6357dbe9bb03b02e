"""Where a rank's time goes, by looking every few milliseconds at what its main thread does.

compute        the step itself
data           it waits for what storage, the network or a loader's process does not bring: idle anywhere but among ranks
loading        it computes data: decodes, parses, puts batches together
communication  it waits for other ranks: in a collective of ours, or idle inside a library in which ranks meet
stall          it saves a checkpoint

Nothing of the training is changed for it, so that it is the same for every algorithm, strategy and script. What a single look
says of a step shorter than that is chance; sums over many looks are what counts. A thread that waits only because other
processes have the cores is not idle (Linux tells the time spent so).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, final

from .. import pulse, usage
from ..observing import PHASES

EVERY_SECONDS = 0.01
SLOTS_PER_SECOND = 4
_IDLE = 0.3  # share of a core: less is waiting
_DEEPEST = 64  # frames that are looked through
_MOST = 5000  # windows that wait for the next step
_DATA = ("/phalanx/data/", "/phalanx/trainer/feeding.py", "/phalanx/trainer/sources.py", "/torch/utils/data/", "/torchdata/")


@final
class Phases:
    """A thread that looks.

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
        self._main = threading.main_thread()
        self._cpu = Processor(self._main.native_id)
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
            self._cpu.close()

    def _run(self) -> None:
        owner, before = os.getpid(), time.time()
        while not self._over.wait(self._every_s) and os.getpid() == owner:
            now = time.time()
            self._look(before, now)
            before = now
        self._cut(time.time(), None)

    def _look(self, before: float, now: float) -> None:
        idle = self._cpu.idle(now - before)
        phase = phase_of(sys._current_frames().get(self._main.ident or 0), idle=idle)
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
                    "samples": max(1, round(total / EVERY_SECONDS)),
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
class Processor:
    """How much this process computes, and how long its main thread waits for a core.

    Args:
        thread: the main thread's number in the system.
    """

    def __init__(self, thread: int | None) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._before = self._used()

    def idle(self, seconds: float) -> bool:
        """Return whether, in the `seconds` since the last call, this process has hardly computed nor wanted to."""
        used = self._used()
        busy, self._before = used - self._before, used
        return busy < _IDLE * seconds

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _used(self) -> float:
        waited = 0.0
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited = int(os.pread(self._file, 100, 0).split()[1]) / 1e9
        return time.process_time() + waited


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


def phase_of(frame: FrameType | None, *, idle: bool) -> str:
    """Return in which phase a thread is.

    Args:
        frame: where it is.
        idle: whether it has hardly computed of late.
    """
    if pulse.now.phase != "Training":
        return "stall"
    if pulse.now.waiting is not None:
        return "communication"
    if frame is None:
        return "compute"
    if idle and _within(frame.f_code.co_filename, pulse.MEETING_PLACES):
        return "communication"
    at: FrameType | None = frame
    for _ in range(_DEEPEST):
        if at is None:
            break
        if _within(at.f_code.co_filename, _DATA):
            return "data" if idle else "loading"
        at = at.f_back
    return "data" if idle else "compute"


def _within(file: str, places: tuple[str, ...]) -> bool:
    return any(place in file for place in places)


def _cores() -> tuple[int, int]:
    """Return (all, idle) ticks of all cores so far; zeros where the system does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks), ticks[3] + ticks[4]
