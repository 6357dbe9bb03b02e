"""In which phase a rank is: read off what its main thread does, so that it is the same for every algorithm and script.

compute        the step itself
data           it waits for what storage, the network or a loader's process does not bring: idle anywhere but among ranks
loading        it computes data: decodes, parses, puts batches together
communication  it waits for other ranks: in a collective of ours, or idle inside a library in which ranks meet
stall          it saves a checkpoint or the model

Nothing of the training is changed for it. What a single look says of a step shorter than the time between looks is chance; sums
over many looks are what counts. A thread that waits only because other processes have the cores is not idle (Linux tells the
time spent so).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from types import FrameType
from typing import final

from . import pulse

PHASES = ("compute", "data", "loading", "communication", "stall")
_IDLE = 0.3  # share of a core: less is waiting
_DEEPEST = 64  # frames that are looked through
_DATA = ("/phalanx/data/", "/phalanx/trainer/feeding.py", "/phalanx/trainer/sources.py", "/torch/utils/data/", "/torchdata/")


@final
class Looks:
    """Looks at this process's main thread."""

    def __init__(self) -> None:
        main = threading.main_thread()
        self._ident = main.ident or 0
        self._processor = Processor(main.native_id)

    def look(self, seconds: float) -> str:
        """Return the phase of the `seconds` since the look before."""
        idle = self._processor.idle(seconds)
        return phase_of(sys._current_frames().get(self._ident), idle=idle)

    def close(self) -> None:
        """Give back what the system lent."""
        self._processor.close()


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
    if idle and _meets(frame.f_code.co_filename):
        return "compute" if pulse.now.alone else "communication"  # alone it waits for threads of its own
    at: FrameType | None = frame
    for _ in range(_DEEPEST):
        if at is None:
            break
        if _loads(at.f_code.co_filename):
            return "data" if idle else "loading"
        at = at.f_back
    return "data" if idle else "compute"


@functools.cache
def _meets(file: str) -> bool:
    return any(place in file for place in pulse.MEETING_PLACES)


@functools.cache
def _loads(file: str) -> bool:
    return any(place in file for place in _DATA)
