"""Profiler rules: how ranks and their machines spend their time. They need the windows of `phalanx.trainer.windows`.

Where there is no GPU, the device is the processor while it computes steps: its use is the share of time in which it does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from .seen import Window

_FIRST_STEPS = 5  # in which one rank may load or compile what the others have


@final
@dataclass(slots=True)
class CPUBottleneck:
    """Devices wait while the processor is busy with data.

    Args:
        threshold: percent of the samples in which it is so.
        gpu_threshold: percent: a device with less use waits.
        cpu_threshold: percent of a rank's time (without a GPU) or of all cores (with one) in which the processor is busy.
        patience: samples of each rank, of 10 ms each, before anything is said.
    """

    watches: ClassVar[str] = (
        "in over `threshold` % of the samples the devices are used less than `gpu_threshold` % while preparing "
        "data takes over `cpu_threshold` %"
    )
    sees: ClassVar[tuple[type, ...]] = (Window,)
    threshold: float = 50.0
    gpu_threshold: float = 10.0
    cpu_threshold: float = 90.0
    patience: int = 1000
    _counts: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    def see(self, seen: Window) -> str | None:
        """See `Rule`."""
        busy = 100 * seen.loading if seen.gpu is None else seen.cpu
        bad = device_use(seen) < self.gpu_threshold and busy > self.cpu_threshold
        share = _counted(self._counts, seen, bad=bad, patience=self.patience)
        if share is not None and 100 * share > self.threshold:
            return f"devices wait while the processors prepare data, in {100 * share:.0f} % of the samples"
        return None


@final
@dataclass(slots=True)
class IOBottleneck:
    """Devices wait for data that storage or the network does not bring in time.

    Args:
        threshold: percent of the samples in which it is so.
        gpu_threshold: percent: a device with less use waits.
        io_threshold: percent of a rank's time in which it waits for data.
        patience: samples of each rank, of 10 ms each, before anything is said.
    """

    watches: ClassVar[str] = (
        "in over `threshold` % of the samples the devices are used less than `gpu_threshold` % while the rank "
        "waits for data for over `io_threshold` % of its time"
    )
    sees: ClassVar[tuple[type, ...]] = (Window,)
    threshold: float = 50.0
    gpu_threshold: float = 70.0
    io_threshold: float = 50.0
    patience: int = 1000
    _counts: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    def see(self, seen: Window) -> str | None:
        """See `Rule`."""
        bad = device_use(seen) < self.gpu_threshold and 100 * seen.data > self.io_threshold
        share = _counted(self._counts, seen, bad=bad, patience=self.patience)
        if share is not None and 100 * share > self.threshold:
            return f"devices wait for data that does not come in time, in {100 * share:.0f} % of the samples"
        return None


@final
@dataclass(slots=True)
class LoadBalancing:
    """One rank keeps the others waiting, after the first steps.

    Args:
        threshold: share of the slowest rank's working time that the others, on average, do not work.
        patience: windows (a quarter of a second each) before anything is said: in both halves of them the rank is slow.
    """

    watches: ClassVar[str] = (
        "over `patience` quarters of a second the ranks other than the slowest work less than 1 - `threshold` of "
        "its time: names the slow rank; the first five steps do not count"
    )
    sees: ClassVar[tuple[type, ...]] = (Window,)
    threshold: float = 0.5
    patience: int = 20
    _slots: dict[int, dict[int, Window]] = field(default_factory=dict, init=False)
    _recent: deque[dict[int, float]] = field(default_factory=lambda: deque(maxlen=1), init=False)
    _judged: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self._recent = deque(maxlen=self.patience)

    def see(self, seen: Window) -> str | None:
        """See `Rule`."""
        if seen.size < 2 or seen.slot <= self._judged or seen.step < _FIRST_STEPS:
            return None
        slot = self._slots.setdefault(seen.slot, {})
        slot[seen.rank] = seen
        if len(slot) < seen.size:
            return None
        for number in [number for number in self._slots if number <= seen.slot]:
            del self._slots[number]
        self._judged = seen.slot
        if self._recent and len(self._recent[-1]) != seen.size:  # a group of another size
            self._recent.clear()
        if max(window.stall for window in slot.values()) == 0:  # who saves keeps the others waiting, as it must
            self._recent.append({rank: working(window) for rank, window in slot.items()})
        if len(self._recent) < self.patience:
            return None
        windows, half = list(self._recent), max(1, self.patience // 2)
        worked = _mean_of(windows)
        slow = slow_rank(worked, self.threshold)
        halves = {slow_rank(_mean_of(part), self.threshold) for part in (windows[:half], windows[-half:])}
        if slow is None or halves != {slow}:
            return None
        others = _mean_of_others(worked, slow)
        return f"rank {slow} is slow: it works {100 * worked[slow]:.0f} % of the time, the others {100 * others:.0f} %"


@final
@dataclass(slots=True)
class LowGPUUtilization:
    """A GPU is used little, or by fits and starts.

    Args:
        threshold_p95: percent: its 95th percentile is below this.
        threshold_p5: percent: or else its 5th percentile is below this.
        window: newest samples that are looked at; there are four a second.
        patience: samples before anything is said.
    """

    watches: ClassVar[str] = (
        "of the last `window` samples of a GPU's use the 95th percentile is below `threshold_p95`, or the 5th "
        "below `threshold_p5`"
    )
    sees: ClassVar[tuple[type, ...]] = (Window,)
    threshold_p95: float = 70.0
    threshold_p5: float = 10.0
    window: int = 500
    patience: int = 1000
    _recent: dict[int, _Recent] = field(default_factory=dict, init=False)

    def see(self, seen: Window) -> str | None:
        """See `Rule`."""
        if seen.gpu is None:
            return None
        uses, number = self._recent.setdefault(seen.rank, _Recent(self.window)).add(seen.gpu)
        if number < self.patience or (number - self.patience) % 20:
            return None
        ordered = sorted(uses)
        low, high = ordered[int(0.05 * (len(ordered) - 1))], ordered[int(0.95 * (len(ordered) - 1))]
        if high < self.threshold_p95:
            return f"the GPU of rank {seen.rank} is used little: 95 % of the time less than {high:.0f} %"
        if low < self.threshold_p5:
            return f"the GPU of rank {seen.rank} is used by fits and starts: from {low:.0f} % to {high:.0f} %"
        return None


@final
@dataclass(slots=True)
class GPUMemoryIncrease:
    """The memory that is used on a GPU grows and grows.

    Args:
        increase: percentage points between two windows.
        window: samples whose mean is compared with that of the first ones after `patience`; there are four a second.
        patience: samples before it is looked at.
    """

    watches: ClassVar[str] = (
        "the mean of `window` samples of a GPU's memory in use is `increase` percentage points above that of the "
        "first `window` after `patience`"
    )
    sees: ClassVar[tuple[type, ...]] = (Window,)
    increase: float = 10.0
    patience: int = 1000
    window: int = 10
    _recent: dict[int, _Recent] = field(default_factory=dict, init=False)
    _base: dict[int, float] = field(default_factory=dict, init=False)

    def see(self, seen: Window) -> str | None:
        """See `Rule`."""
        if seen.gpu_memory is None:
            return None
        uses, number = self._recent.setdefault(seen.rank, _Recent(self.window)).add(seen.gpu_memory)
        if number < self.patience or len(uses) < self.window:
            return None
        mean = sum(uses) / len(uses)
        base = self._base.setdefault(seen.rank, mean)
        if mean - base > self.increase:
            return f"the GPU memory in use on rank {seen.rank} grew from {base:.0f} % to {mean:.0f} %"
        return None


@final
class _Recent:
    """The newest values of one rank, and how many there have been.

    Args:
        most: values that are kept.
    """

    def __init__(self, most: int) -> None:
        self._values: deque[float] = deque(maxlen=most)
        self._number = 0

    def add(self, value: float) -> tuple[deque[float], int]:
        """Take a value; return those that are kept, and the number of all."""
        self._values.append(value)
        self._number += 1
        return self._values, self._number


def slow_rank(worked: Mapping[int, float], threshold: float) -> int | None:
    """Return the rank that keeps the others waiting, None where there is none.

    Args:
        worked: rank -> share of its time in which it works.
        threshold: share of the slowest rank's working time that the others, on average, must not work.
    """
    if len(worked) < 2:
        return None
    slow = max(worked, key=lambda rank: worked[rank])
    return slow if 1 - _mean_of_others(worked, slow) / max(worked[slow], 1e-9) > threshold else None


def _mean_of(windows: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {rank: sum(window[rank] for window in windows) / len(windows) for rank in windows[0]}


def _mean_of_others(worked: Mapping[int, float], rank: int) -> float:
    return (sum(worked.values()) - worked[rank]) / (len(worked) - 1)


def device_use(seen: Window) -> float:
    """Return the percent in which a rank's device is used: the GPU, or without one the time in which steps are computed."""
    return 100 * seen.compute if seen.gpu is None else seen.gpu


def working(seen: Window) -> float:
    """Return the share of its time in which a rank does not wait for others."""
    return seen.compute + seen.data + seen.loading


def _counted(counts: dict[int, tuple[int, int]], seen: Window, *, bad: bool, patience: int) -> float | None:
    """Count a window's samples; return the share of bad ones on average over ranks, None before each has `patience`.

    One rank alone that waits is not the job's bottleneck: it is a slow rank, if it keeps the others waiting.
    """
    total, found = counts.get(seen.rank, (0, 0))
    counts[seen.rank] = total + seen.samples, found + (seen.samples if bad else 0)
    if len(counts) < seen.size or min(total for total, _ in counts.values()) < patience:
        return None
    return sum(found / total for total, found in counts.values()) / len(counts)
