"""What runs beside a rank's training when its job asked for rules on time, or for a profile: see `windows` and `profiling`."""

from __future__ import annotations

from typing import final

from ..observing import Observer
from .profiling import Profile
from .windows import EVERY_SECONDS, Windows

_PROFILING_SECONDS = 0.005  # between looks, for a trace


@final
class Measuring:
    """Measures from now on what the observer wants.

    Args:
        observer: says what, and takes it.
    """

    def __init__(self, observer: Observer) -> None:
        self._profile = None if observer.profile is None else Profile(observer.profile, observer)
        self._windows: Windows | None = None
        if observer.wants("windows") or self._profile is not None:
            self._windows = Windows(
                rank=observer.rank,
                size=observer.size,
                tell=lambda window: observer.tell("windows", window),
                note=None if self._profile is None else self._profile.stretch,
                every_s=EVERY_SECONDS if self._profile is None else _PROFILING_SECONDS,
            )
            self._windows.start()

    def stepped(self, step: int) -> None:
        """A step was done; called by the thread that trains."""
        if self._profile is not None:
            self._profile.stepped(step)

    def close(self) -> None:
        """End all, and write what there is. Safe to call twice."""
        if self._windows is not None:
            self._windows.close()
            self._windows = None
        if self._profile is not None:
            self._profile.close()
            self._profile = None
