"""When to save and what to keep: pure functions of what was measured.

`auto` follows J. W. Young, "A first order approximation to the optimum checkpoint interval" (1974) and J. T. Daly, "A higher
order estimate of the optimum checkpoint interval for restart dumps" (2006).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from ..errors import UserError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_PRIOR_MTBI_S = 900.0  # mean time between interruptions before any was seen: a short one costs little, and only at first
_FIRST_SAVE_S = 2.0  # `auto` saves so soon for the first time, to measure what a save costs
_INTERFERENCE = 0.25  # of its write time a save takes from the step loop: it shares processors and memory with it
_LARGEST_WRITING_SHARE = 0.5  # of all time that a save is in flight


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is, as rank 0 sees it."""

    step: int  # just done
    saved_step: int  # of the last save; 0: none yet
    since_save_s: float  # since the last save began, or since the start
    stall_s: float | None = None  # of a save, measured
    write_s: float | None = None
    running_s: float = 0.0  # of all attempts of the job
    interruptions: int = 0  # of all attempts


@dataclass(frozen=True, slots=True)
class EverySteps:
    """Save when the step is a multiple of `steps`: every rank knows it by itself."""

    steps: int

    def due(self, progress: Progress) -> bool:
        """Return whether to save now."""
        return progress.step % self.steps == 0 and progress.step != progress.saved_step


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """Save when `seconds` have gone by since the last save began."""

    seconds: float

    def due(self, progress: Progress) -> bool:
        """Return whether to save now."""
        return progress.since_save_s >= self.seconds and progress.step != progress.saved_step


@dataclass(frozen=True, slots=True)
class Auto:
    """Save at the interval that loses the least time: cost of saves plus work that an interruption loses."""

    mtbi_s: float | None = None  # mean time between interruptions where it is known; else it is observed

    def due(self, progress: Progress) -> bool:
        """Return whether to save now."""
        return progress.since_save_s >= self.interval_s(progress) and progress.step != progress.saved_step

    def interval_s(self, progress: Progress) -> float:
        """Return the seconds between saves, from what is known by now."""
        if progress.stall_s is None or progress.write_s is None:
            return _FIRST_SAVE_S
        mtbi = observed_mtbi_s(progress.running_s, progress.interruptions) if self.mtbi_s is None else self.mtbi_s
        cost = progress.stall_s + _INTERFERENCE * progress.write_s
        return max(young_daly_s(cost, mtbi), (progress.stall_s + progress.write_s) / _LARGEST_WRITING_SHARE)


When = EverySteps | EverySeconds | Auto


def parse_when(text: str | int) -> When:
    """Return what `--checkpoint-every` means: "100" steps, "60s", "5m", "2h", or "auto".

    Raises:
        UserError: it is none of these.
    """
    given = str(text).strip().lower()
    if given == "auto":
        return Auto()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", given)
    if match and match[2] and float(match[1]) > 0:
        return EverySeconds(float(match[1]) * _UNITS[match[2]])
    if match and not match[2] and "." not in match[1] and int(match[1]) > 0:
        return EverySteps(int(match[1]))
    raise UserError(f"checkpoints every '{text}': give a number of steps as 100, a time as 60s, 5m or 2h, or auto")


def young_daly_s(cost_s: float, mtbi_s: float) -> float:
    """Return the interval between the ends of saves that loses the least time (Daly 2006, equation 37).

    Args:
        cost_s: of a save to the step loop.
        mtbi_s: mean time between interruptions.
    """
    if cost_s <= 0:
        return 0.0
    if cost_s >= 2 * mtbi_s:
        return mtbi_s
    ratio = cost_s / (2 * mtbi_s)
    return math.sqrt(2 * cost_s * mtbi_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def observed_mtbi_s(running_s: float, interruptions: int) -> float:
    """Return the mean time between interruptions as it was seen; a quarter of an hour and what was run where none was seen."""
    return running_s / interruptions if interruptions else running_s + _PRIOR_MTBI_S


@final
class Schedule:
    """Keeps what a `When` needs to know. Every rank has one and is told the same; only rank 0's clock decides.

    Where `needs_agreement`, rank 0 asks `due` and the others save when they learn of it (a vote of the step before, a
    broadcast); else all ranks ask.

    Args:
        when: the rule.
        clock: seconds that never go back.
        stall_s: of a save of an earlier attempt; None: unknown.
        write_s: the same.
        running_s: of earlier attempts.
        interruptions: of earlier attempts.
    """

    def __init__(
        self,
        when: When,
        *,
        clock: Callable[[], float] = time.monotonic,
        stall_s: float | None = None,
        write_s: float | None = None,
        running_s: float = 0.0,
        interruptions: int = 0,
    ) -> None:
        self._when = when
        self._clock = clock
        self._stall_s = stall_s
        self._write_s = write_s
        self._earlier_s = running_s
        self._interruptions = interruptions
        self._begun = self._last = clock()
        self._saved_step = 0

    @property
    def needs_agreement(self) -> bool:
        """Whether the rule depends on a clock, so that ranks must be told what rank 0 decides."""
        return not isinstance(self._when, EverySteps)

    def progress(self, step: int) -> Progress:
        """Return what the rule is given after step `step`."""
        now = self._clock()
        return Progress(
            step,
            self._saved_step,
            now - self._last,
            self._stall_s,
            self._write_s,
            self._earlier_s + now - self._begun,
            self._interruptions,
        )

    def due(self, step: int) -> bool:
        """Return whether the rule wants a save after step `step`."""
        return self._when.due(self.progress(step))

    def saved(self, step: int) -> None:
        """A save of step `step` begins."""
        self._saved_step = step
        self._last = self._clock()

    def measured(self, stall_s: float, write_s: float) -> None:
        """A save ended: `auto` follows the newest measurements, each half as much as what it knew."""
        self._stall_s = stall_s if self._stall_s is None else (self._stall_s + stall_s) / 2
        self._write_s = write_s if self._write_s is None else (self._write_s + write_s) / 2


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep. A checkpoint that any of these keeps stays; the newest that verifies always does."""

    last: int = 3  # newest ones
    best: str | None = None  # name of a metric
    mode: Literal["min", "max"] = "min"  # of `best`
    best_count: int = 1
    every: int | None = None  # steps that are a multiple of this

    def __post_init__(self) -> None:
        if self.last < 1 or self.best_count < 1 or (self.every is not None and self.every < 1):
            raise UserError(f"keep last={self.last}, best_count={self.best_count}, every={self.every}: each must be 1 or more")


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint as `kept` weighs it."""

    step: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)


def kept(checkpoints: Sequence[Kept], retention: Retention) -> set[int]:
    """Return the steps that stay, of checkpoints that are whole. Steps decide, never clocks."""
    newest_first = sorted((found.step for found in checkpoints), reverse=True)
    stays = set(newest_first[: retention.last])
    if retention.every is not None:
        stays |= {step for step in newest_first if step % retention.every == 0}
    if retention.best is not None:
        sign = 1 if retention.mode == "min" else -1
        scored = [(value, found.step) for found in checkpoints if (value := found.metrics.get(retention.best)) is not None]
        ranked = sorted(scored, key=lambda item: (sign * item[0], -item[1]))  # of equals the newer
        stays |= {step for _, step in ranked[: retention.best_count]}
    return stays
