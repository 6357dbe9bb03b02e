"""`phalanx.session()`: the seam of a user's own script, under `phalanx run`, under torchrun, and alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from .. import environment
from ..contracts import Json
from ..parallel.process_group import default_device, world_of_environment
from .session import WorkerSession

_current: list[WorkerSession] = []


def session() -> WorkerSession:
    """Collective at its first call. Return this process's session: its world, channels, `restore` and `report`.

    All ranks call it. It joins the group that torchrun, Slurm or Phalanx started, through torch's default process group, which
    it makes unless the script has.
    """
    if not _current:
        _current.append(_open())
    return _current[0]


def _open() -> WorkerSession:
    stop = threading.Event()
    _listen(stop)
    return WorkerSession(
        world=world_of_environment(),
        channels={},
        seed=0,
        threads=int(environment.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        device=str(default_device()),
        output_data=Path(environment.get("SM_OUTPUT_DATA_DIR") or "output"),
        send=_sender(),
        stop_requested=stop.is_set,
    )


def _listen(stop: threading.Event) -> None:
    """Note SIGTERM, and stop at the next report; a script's own handler is left in place."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, note)


def _sender() -> Any:
    """Return what takes an event to the supervisor; without one, events go nowhere."""
    fd = environment.get(environment.EVENTS_FD)

    def send(event: Mapping[str, Json]) -> None:
        if fd is not None:
            with contextlib.suppress(OSError):
                os.write(int(fd), json.dumps(event).encode() + b"\n")

    return send
