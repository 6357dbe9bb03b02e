"""What a worker measures of itself where the rules or the profile of its job ask for it; without them it measures nothing.

`now` is asked by whoever could measure something: is it wanted, and is it time again? What was seen goes to the job as an
event, whose body a rule's `see` is given (`phalanx.tracking.rules.seen`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

SHARE = 0.005  # of the time that looks may cost
_CREDIT_SECONDS = 0.05  # that they may cost beyond it at the start, when most goes wrong
_APART = {"tensors": 10, "labels": 20, "trees": 10}  # steps between two looks at least; at tensors fewer in the first steps


@final
class Observer:
    """Says what is to be measured, and sends it.

    Args:
        given: "kinds" (tensors, labels, trees, windows), "every" (steps between looks, None: as their cost allows), "measure"
            (what rules want to be measured with), "profile" (of `phalanx.trainer.profiling`); {} for nothing.
        rank: of this worker.
        size: of its group.
        send: takes an event to the job.
        clock: seconds.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        rank: int = 0,
        size: int = 1,
        send: Callable[[Mapping[str, Any]], None] = lambda event: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.rank, self.size = rank, size
        self.measure: Mapping[str, Any] = given.get("measure") or {}
        self.profile: Mapping[str, Any] | None = given.get("profile")
        self._kinds = frozenset(given.get("kinds") or ())
        self._every: int | None = given.get("every")
        self._send = send
        self._clock = clock
        self._begun = clock()
        self._looked: dict[tuple[str, str], int] = {}  # kind, of what -> step
        self._spent: dict[str, float] = {}

    def wants(self, kind: str) -> bool:
        """Return whether something of a kind is to be measured."""
        return kind in self._kinds

    def due(self, kind: str, step: int, of: str = "") -> bool:
        """Return whether it is time to look: at the first step, then as often as was said, or as the cost so far allows.

        Args:
            kind: what is looked at.
            step: number of the step.
            of: which of several that are looked at in turn.
        """
        if kind not in self._kinds:
            return False
        last = self._looked.get((kind, of))
        if last is None or step < last:  # nothing yet, or another training
            return True
        if self._every is not None:
            return step - last >= self._every
        apart = min(_APART[kind], max(1, last // 3)) if kind == "tensors" else _APART[kind]
        if step - last < apart:
            return False
        return sum(self._spent.values()) <= _CREDIT_SECONDS + SHARE * (self._clock() - self._begun)

    @contextmanager
    def looking(self, kind: str, step: int) -> Iterator[None]:
        """Within: the time counts as the cost of a look."""
        begun = self._clock()
        try:
            yield
        finally:
            self.cost(kind, step, self._clock() - begun)

    def cost(self, kind: str, step: int, seconds: float, of: str = "") -> None:
        """Note a look and what it cost."""
        self._looked[kind, of] = step
        self._spent[kind] = self._spent.get(kind, 0.0) + seconds

    def spent(self, kind: str) -> float:
        """Return the seconds that looks of a kind have cost."""
        return self._spent.get(kind, 0.0)

    def tell(self, kind: str, seen: Mapping[str, Any]) -> None:
        """Send what was seen."""
        self._send({"kind": "observed", "what": kind, "seen": seen})

    def send(self, event: Mapping[str, Any]) -> None:
        """Send an event of another kind."""
        self._send(event)


now = Observer({})


def start(given: Mapping[str, Any], *, rank: int, size: int, send: Callable[[Mapping[str, Any]], None]) -> Observer:
    """Make `now` measure what is given, for this process; return it."""
    global now
    now = Observer(given, rank=rank, size=size, send=send)
    return now


def stop() -> None:
    """Make `now` measure nothing again."""
    global now
    now = Observer({})
