"""How a job is asked to stop: by a call, or by Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from ..errors import EXIT_SIGINT, EXIT_SIGTERM

POLL_SECONDS = 0.1


@final
class StopRequest:
    """Asks a running job to stop, from any thread or a signal handler; a second request does not wait for the workers.

    There is no lock in it: a handler may run while its own thread would hold one.

    Attributes:
        echo_s: seconds in which what follows a request is taken for the same one: a starter passes on what its processes have
            got from the terminal or the scheduler already.
    """

    def __init__(self) -> None:
        self.echo_s = 0.0
        self._requests: list[tuple[str, int]] = []
        self._asked_at = 0.0

    @property
    def reason(self) -> str | None:
        """What asked first, None while nobody has."""
        return self._requests[0][0] if self._requests else None

    @property
    def exit_code(self) -> int:
        """The exit code of a job that is stopped."""
        return self._requests[0][1] if self._requests else EXIT_SIGTERM

    @property
    def urgent(self) -> bool:
        """Whether somebody asked again."""
        return len(self._requests) > 1

    @property
    def times(self) -> int:
        """How often somebody asked."""
        return len(self._requests)

    def request(self, reason: str, exit_code: int) -> None:
        """Ask; the first reason stays."""
        now = time.monotonic()
        if not self._requests or now - self._asked_at >= self.echo_s:
            self._asked_at = now
            self._requests.append((reason, exit_code))

    def requested(self) -> bool:
        """Return whether somebody asked."""
        return bool(self._requests)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for a request; return whether there is one."""
        end = time.monotonic() + seconds
        while not self._requests and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return self.requested()


@contextmanager
def stopping_on_signals(stop: StopRequest, then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM stop in order; a second one does not wait. Only the main thread can listen.

    Args:
        stop: is asked.
        then: called in the handler afterwards, to wake who waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        code = EXIT_SIGINT if number == signal.SIGINT else EXIT_SIGTERM
        stop.request(f"stopped by {signal.Signals(number).name}", code)
        then()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
