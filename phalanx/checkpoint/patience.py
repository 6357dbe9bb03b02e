"""Waiting for something that takes as long as it takes, without falling silent to the other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..contracts import Collective

T = TypeVar("T")
SIGN_OF_LIFE_S = 5.0  # well below the time limit of a collective call
_FIRST_SIGN_S = 0.02  # the others learn soon of one that has failed


def settle(
    world: Collective,
    join: Callable[[float], bool],
    timeout_s: float | None = None,
    *,
    failed: Callable[[], bool] = lambda: False,
    cancel: Callable[[], None] = lambda: None,
) -> bool:
    """Collective. Wait until `join(seconds)` is true on every rank; return whether it is.

    Args:
        world: the ranks.
        join: waits at most so long and says whether this rank's is done.
        timeout_s: longest to wait, by rank 0's count; no limit where None.
        failed: whether this rank's is done and failed.
        cancel: called on all ranks once one has failed: nobody need wait for it.
    """
    left, pause = timeout_s, _FIRST_SIGN_S
    while True:
        pause = pause if left is None else min(left, pause)
        states = world.all_gather([bool(join(pause)), failed()])
        if all(done for done, _ in states):
            return True
        if any(has_failed for _, has_failed in states):
            cancel()
        if left is not None:
            left = float(world.broadcast(left - pause))
            if left <= 0:
                return False
        pause = min(2 * pause, SIGN_OF_LIFE_S)


def patiently(world: Collective, action: Callable[[], T]) -> T:
    """Collective. Run `action`, which makes no collective calls and may take long, and return or raise what it does."""
    if world.size == 1:
        return action()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="checkpoint-reader")
    thread.start()

    def join(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    settle(world, join)
    if errors:
        raise errors[0]
    return results[0]
