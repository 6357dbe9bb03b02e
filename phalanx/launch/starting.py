"""Starting a group in a thread of its own: a warm server may take long to load, and a stop must not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import final

from ..contracts import Launcher, Workers, WorkerSpec


@final
class Starting:
    """A group on its way. One that comes when nobody waits any more is closed at once."""

    def __init__(self, launcher: Launcher, spec: WorkerSpec) -> None:
        self._launcher = launcher
        self._spec = spec
        self._lock = threading.Lock()
        self._abandoned = False
        self._workers: Workers | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._start, name="phalanx-start", daemon=True)
        self._thread.start()

    def wait(self, enough: Callable[[], bool], every_s: float) -> Workers | None:
        """Return the group, None when it was `enough` before it came.

        Raises:
            PhalanxError: what the launcher raised.
        """
        try:
            while self._thread.is_alive() and not enough():
                self._thread.join(every_s)
        finally:
            with self._lock:
                self._abandoned = self._workers is None
        if self._error is not None:
            raise self._error
        return self._workers

    def _start(self) -> None:
        try:
            workers = self._launcher.start(self._spec)
        except BaseException as error:
            self._error = error  # raised by whoever waits
            return
        with self._lock:
            self._workers = None if self._abandoned else workers
            late = self._abandoned
        if late:
            workers.close()
