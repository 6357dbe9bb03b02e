"""Rules on how time passes between steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

from .seen import Step, Tick

_WARM_UP, _QUICK = 20, 16  # first steps, and how many of them, the quickest, say what a step usually takes


@final
@dataclass(slots=True)
class StalledTraining:
    """No step has been done for long.

    Args:
        threshold: seconds.
    """

    watches: ClassVar[str] = "no step for `threshold` seconds, once there has been one"
    sees: ClassVar[tuple[type, ...]] = (Tick,)
    threshold: float = 1800.0

    def see(self, seen: Tick) -> str | None:
        """See `Rule`."""
        if seen.stepped is None or seen.begun is None:
            return None
        quiet = seen.now - max(seen.stepped, seen.begun)
        return f"there has been no step for {quiet:.0f} seconds" if quiet > self.threshold else None


@final
@dataclass(slots=True)
class MaxInitializationTime:
    """The first step of a worker group takes too long to come.

    Args:
        threshold: minutes.
    """

    watches: ClassVar[str] = "the first step comes more than `threshold` minutes after the workers were started"
    sees: ClassVar[tuple[type, ...]] = (Tick, Step)
    threshold: float = 20.0
    _begun: float | None = field(default=None, init=False)

    def see(self, seen: Tick | Step) -> str | None:
        """See `Rule`."""
        if isinstance(seen, Step):
            now, begun, self._begun = seen.time, self._begun, None
        elif seen.stepped is not None and (seen.begun is None or seen.stepped >= seen.begun):
            return None
        else:
            now, begun = seen.now, seen.begun
            self._begun = seen.begun
        if begun is not None and now - begun > self.threshold * 60:
            return f"{(now - begun) / 60:.3g} minutes have gone by before the first step"
        return None


@final
@dataclass(slots=True)
class StepOutlier:
    """Single steps take far longer than the others, and cost the run a good part of its time.

    Args:
        stddev: standard deviations above the mean that make a step one of them.
        n_outliers: how many there may be.
        share: of the time that they take beyond that of a usual step.
        min_seconds: less than this above the mean counts for nothing.
    """

    watches: ClassVar[str] = (
        "more than `n_outliers` steps took `stddev` standard deviations (and `min_seconds`) above the mean, and "
        "together `share` of the time; steps with an evaluation or a checkpoint do not count"
    )
    sees: ClassVar[tuple[type, ...]] = (Step,)
    stddev: float = 5.0
    n_outliers: int = 10
    share: float = 0.1
    min_seconds: float = 0.1
    _last: float | None = field(default=None, init=False)
    _first: list[float] = field(default_factory=list, init=False)
    _usual: int = field(default=0, init=False)
    _mean: float = field(default=0.0, init=False)
    _squares: float = field(default=0.0, init=False)  # sum of squared deviations (Welford, 1962)
    _outliers: int = field(default=0, init=False)
    _excess: float = field(default=0.0, init=False)
    _total: float = field(default=0.0, init=False)

    def see(self, seen: Step) -> str | None:
        """See `Rule`."""
        before, self._last = self._last, None if seen.busy else seen.time
        if before is None or seen.busy:
            return None
        took = seen.time - before
        self._total += took
        if self._usual:
            spread = math.sqrt(self._squares / (self._usual - 1))
            if took - self._mean > max(self.stddev * spread, self.min_seconds):
                self._outliers += 1
                self._excess += took - self._mean
                if self._outliers > self.n_outliers and self._excess > self.share * self._total:
                    return (
                        f"{self._outliers} steps took far longer than the usual {self._mean:.3g} s: {self._excess:.3g} s in all"
                    )
                return None
            self._add(took)
            return None
        self._first.append(took)
        if len(self._first) == _WARM_UP:
            for usual in sorted(self._first)[:_QUICK]:
                self._add(usual)
        return None

    def _add(self, took: float) -> None:
        """Take a step into what is usual."""
        self._usual += 1
        delta = took - self._mean
        self._mean += delta / self._usual
        self._squares += delta * (took - self._mean)
