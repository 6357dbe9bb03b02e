"""A launcher around another, for groups whose workers may outlive their end: each attempt shuts those before out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from ..contracts import Launcher, Workers, WorkerSpec


@final
class FencingLauncher:
    """`contracts.Launcher`.

    Args:
        inner: who starts the group.
        fence: lets only the attempt of this number commit from now on.
    """

    def __init__(self, inner: Launcher, fence: Callable[[int], None]) -> None:
        self._inner = inner
        self._fence = fence

    def prepare(self, preload: Sequence[str]) -> None:
        """See `contracts.Launcher`."""
        self._inner.prepare(preload)

    def start(self, spec: WorkerSpec) -> Workers:
        """See `contracts.Launcher`."""
        self._fence(spec.attempt)
        return self._inner.start(spec)
