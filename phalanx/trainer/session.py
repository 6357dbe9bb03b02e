"""The one seam between an algorithm and the job around it: what `fit` sees of the world."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from .. import pulse
from ..contracts import Collective, Json, Shard, Stateful
from ..errors import AlgorithmError, Stopped
from .measuring import Measuring
from .saving import Saver

_VOTE_MICROS = 100_000  # between two votes
_MOST_STEPS = 32
_SAVE, _STOP = 1 << 32, 1 << 33  # added to a rank's vote, which is otherwise the microseconds of a step


@final
class WorkerSession:
    """`contracts.Session` inside a worker of a job.

    Args:
        world: the ranks of the group.
        channels: the job's channels as this rank sees them.
        seed: the job's seed, the same on every rank.
        threads: that this rank may use.
        device: torch's name of the device to compute on.
        output_data: folder for files a user wants beside the artifact.
        send: takes an event to the supervisor.
        stop_requested: whether this rank has been told to stop.
        saver: takes the job's checkpoints; None: there are none.
        measuring: is told of every step; None: nothing is measured.
        keeps_state: the one who reports may have state of its own, and go on from any step without `restore`.
    """

    def __init__(
        self,
        *,
        world: Collective,
        channels: Mapping[str, Shard],
        seed: int,
        threads: int,
        device: str,
        output_data: Path,
        send: Callable[[Mapping[str, Json]], None],
        stop_requested: Callable[[], bool],
        saver: Saver | None = None,
        measuring: Measuring | None = None,
        keeps_state: bool = False,
    ) -> None:
        self.world = world
        self.channels = channels
        self.seed = seed
        self.threads = threads
        self.device = device
        self.output_data = output_data
        self._send = send
        self._stop_requested = stop_requested
        self._saver = saver
        self._measuring = measuring
        self._may_go_on = keeps_state
        self._last_step = 0
        self._next_vote = 0
        self._voted_at, self._voted_step = time.monotonic(), 0

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Collective. See `contracts.Session.restore`."""
        if self._saver is not None:
            self._last_step = self._saver.restore(parts)
            self._next_vote = self._voted_step = self._last_step
            self._may_go_on = False
        return self._last_step

    def _go_on_after(self, step: int) -> None:
        self._last_step = self._next_vote = self._voted_step = step
        if self.world.rank == 0:
            self._send({"kind": "restored", "step": step, "passed_over": []})

    def report(self, step: int, metrics: Mapping[str, float], *, rows: int = 0, of: int | None = None) -> None:
        """Collective. See `contracts.Session.report`."""
        if self._may_go_on and step > 1:
            self._go_on_after(step - 1)
        self._may_go_on = False
        if step != self._last_step + 1:
            raise AlgorithmError(
                f"step {step} was reported after step {self._last_step}; steps are reported once each, in order"
            )
        self._last_step = step
        pulse.now.stepped(step)
        if self._measuring is not None:
            self._measuring.stepped(step)
        if self.world.rank == 0:
            finite = {name: _finite(value) for name, value in metrics.items()}
            self._send({"kind": "step", "step": step, "time": time.time(), "metrics": finite, "rows": rows, "of": of})
        word = self._agreed(step)
        stopping = word >= _STOP
        if self._saver is not None:
            pulse.now.phase = "Checkpointing"
            self._saver.step(step, metrics, agreed=word >= _SAVE, stopping=stopping)
            pulse.now.phase = "Training"
        if stopping:
            raise Stopped(f"stopped in order after step {step}")

    def _agreed(self, step: int) -> int:
        """Collective. Return what the ranks agreed on: the same on all at the same step.

        Ranks vote a few times a second, not at every step: each vote carries the duration of a step as well, from
        whose maximum all derive the number of steps until the next. A rank that is alone has nobody to ask whether to stop.
        """
        if self.world.size == 1 and self._stop_requested():
            return _STOP
        if step < self._next_vote:
            return 0
        now = time.monotonic()
        micros = int((now - self._voted_at) / max(1, step - self._voted_step) * 1e6)
        self._voted_at, self._voted_step = now, step
        wish = _STOP if self._stop_requested() else _SAVE if self._saver is not None and self._saver.wants(step) else 0
        word = self.world.vote(wish + min(max(micros, 1), _SAVE - 1))
        slowest = word & (_SAVE - 1)
        self._next_vote = step + max(1, min(_MOST_STEPS, int(_VOTE_MICROS / slowest) if slowest else 1))
        return word


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
