"""What workers use of this machine that tell nothing of it themselves: scripts that never call `phalanx.session()`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import final

from .. import usage
from .record import JobRecord


@final
class Outside:
    """Reads it from the system, where that is Linux; called every few seconds by one thread.

    Args:
        record: knows the workers, and takes what they use.
        computed: returns the seconds that a process has computed, None where it is not there.
    """

    def __init__(self, record: JobRecord, computed: Callable[[str], float | None] = usage.computed) -> None:
        self._record = record
        self._computed = computed
        self._host = socket.gethostname()
        self._known: dict[str, tuple[usage.Usage, float]] = {}  # process -> since when it is looked at

    def look(self) -> None:
        """Record what each has used since the look before."""
        for rank, host, process in self._record.silent_workers():
            if host != self._host or self._computed(process) is None:
                continue
            now = time.time()
            if process in self._known:
                used, before = self._known[process]
                self._record.used(rank, now, {"seconds": round(now - before, 3), **used.read()}, outside=True)
                self._known[process] = used, now
            else:
                self._known[process] = self._usage(process), now

    def _usage(self, process: str) -> usage.Usage:
        newest = 0.0

        def cpu() -> float:
            nonlocal newest
            found = self._computed(process)
            newest = newest if found is None else found
            return newest

        return usage.Usage(cpu=cpu, process=process)
