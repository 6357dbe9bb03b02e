"""Waiting for something that takes as long as it takes, without falling silent to the other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..contracts import Collective

T = TypeVar("T")
SIGN_OF_LIFE_S = 5.0  # well below the time limit of a collective call


def settle(world: Collective, join: Callable[[float], bool], timeout_s: float | None = None) -> bool:
    """Collective. Wait until `join(seconds)` is true on every rank; return whether it is.

    Args:
        world: the ranks.
        join: waits at most so long and says whether this rank's is done.
        timeout_s: longest that rank 0 waits; no limit where None.
    """
    left = timeout_s
    while True:
        pause = SIGN_OF_LIFE_S if left is None else min(left, SIGN_OF_LIFE_S)
        states = world.all_gather(bool(join(pause)))
        if all(states):
            return True
        if left is not None:
            left = float(world.broadcast(left - pause))
            if left <= 0:
                return False


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
