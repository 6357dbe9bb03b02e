"""Rules on the weights of a `phalanx.Trainer`'s module and how they change. They need its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from .course import Course, InARow
from .seen import FINITE, Step, Tensors, is_smooth, losses

_SAMPLES = 3  # looks in a row


@final
@dataclass(slots=True)
class PoorWeightInitialization:
    """The first steps do not bring the loss down, and the weights or gradients show why.

    Args:
        threshold: largest ratio of two layers' variances (times their fan-in) at the first look.
        distribution_range: least distance of the 5th and the 95th percentile of a weight's gradient.
        patience: windows in which the loss has not come down.
        steps: of a window.
    """

    watches: ClassVar[str] = (
        "the loss does not come down in `patience` windows of `steps`, and the first weights or gradients are out "
        "of proportion or all alike"
    )
    sees: ClassVar[tuple[type, ...]] = (Step, Tensors)
    threshold: float = 10.0
    distribution_range: float = 0.001
    patience: int = 5
    steps: int = 10
    _why: str | None = field(default=None, init=False)
    _looked: bool = field(default=False, init=False)
    _courses: dict[str, Course] = field(default_factory=dict, init=False)

    def see(self, seen: Step | Tensors) -> str | None:
        """See `Rule`."""
        if isinstance(seen, Tensors):
            if not self._looked and seen.step <= self.steps:
                self._looked, self._why = True, self._judged(seen)
            return None
        for name, value in losses(seen, "train").items():
            if not is_smooth(name):
                continue
            course = self._courses.setdefault(name, Course(self.steps))
            if course.add(value) and len(course.means) == self.patience and self._why and course.stands(0.1):
                return f"train:{name} has not come down in {self.patience * self.steps} steps: {self._why}"
        return None

    def _judged(self, seen: Tensors) -> str | None:
        matrices = {name: found for name, found in seen.weights.items() if found["axes"] >= 2}
        alike = [name for name, found in matrices.items() if found["alike"]]
        if alike:
            return f"all rows of {alike[0]} were the same at the start"
        scales = {name: found["scale"] for name, found in matrices.items() if found["scale"] > 0}
        if scales:
            least, most = min(scales, key=lambda name: scales[name]), max(scales, key=lambda name: scales[name])
            if scales[most] > self.threshold * scales[least]:
                return f"the weights of {most} were {scales[most] / scales[least]:.3g} times as spread as those of {least}"
        for name, found in seen.gradients.items():
            if found["axes"] >= 2 and found["spread"] is not None and found["spread"] < self.distribution_range:
                return f"the first gradients of {name} lay within {found['spread']:.3g}"
        return None


@final
@dataclass(slots=True)
class WeightUpdateRatio:
    """A step changes a weight by too much, or by next to nothing, compared with its size.

    Args:
        large_threshold: norm of the change / norm of the weight, in one look.
        small_threshold: below it in 3 looks in a row.
        epsilon: added to the weight's norm.
        num_steps: steps between looks; 0: as the statistics are taken.
    """

    watches: ClassVar[str] = (
        "norm of a step's change / norm of a weight is above `large_threshold`, or below `small_threshold` for 3 looks"
    )
    sees: ClassVar[tuple[type, ...]] = (Tensors,)
    large_threshold: float = 10.0
    small_threshold: float = 1e-8
    epsilon: float = 1e-9
    num_steps: int = 0
    _small: InARow = field(default_factory=InARow, init=False)
    _last: int | None = field(default=None, init=False)

    def see(self, seen: Tensors) -> str | None:
        """See `Rule`."""
        if self._last is not None and seen.step != self._last and seen.step - self._last < self.num_steps:
            return None
        self._last = seen.step
        for name, found in seen.weights.items():
            change, norm = found["change"], found["norm"]
            if change is None or found["axes"] < 2 or norm == 0:  # a weight that is born as 0 may go anywhere
                continue
            if found["nan"] or found["inf"] or abs(change) >= FINITE:  # which is another rule's
                continue
            ratio = change / (norm + self.epsilon)
            if ratio > self.large_threshold:
                return f"a step changed {name} by {ratio:.3g} times its size"
            if self._small.count(f"{seen.rank} {name}", ratio < self.small_threshold) >= _SAMPLES:
                return f"steps change {name} by {ratio:.3g} of its size"
        return None


@final
@dataclass(slots=True)
class AllZero:
    """A weight, its gradient or a layer's output is 0 all over, for 3 looks in a row.

    Args:
        threshold: percent of the entries.
    """

    watches: ClassVar[str] = "`threshold` % of a weight, of its gradient or of a layer's output is 0, for 3 looks"
    sees: ClassVar[tuple[type, ...]] = (Tensors,)
    threshold: float = 100.0
    _zero: InARow = field(default_factory=InARow, init=False)

    def see(self, seen: Tensors) -> str | None:
        """See `Rule`."""
        shares: dict[str, float] = {}
        for what, tensors in (("weight", seen.weights), ("gradient of", seen.gradients)):
            shares |= {f"the {what} {name}": found["zero"] for name, found in tensors.items() if found["axes"] >= 2}
        shares |= {f"the output of {name}": found["zero"] for name, found in seen.activations.items()}
        for name, share in shares.items():
            if self._zero.count(f"{seen.rank} {name}", share * 100 >= self.threshold) >= _SAMPLES:
                return f"{name} is 0 in {100 * share:.4g} % of its entries, {_SAMPLES} times in a row"
        return None


@final
@dataclass(slots=True)
class TensorVariance:
    """The variance of a weight leaves its range; without a range it says nothing.

    Args:
        max_threshold: largest variance; None: any.
        min_threshold: least variance; None: any.
    """

    watches: ClassVar[str] = "the variance of a weight is above `max_threshold` or below `min_threshold`, where these are given"
    sees: ClassVar[tuple[type, ...]] = (Tensors,)
    max_threshold: float | None = None
    min_threshold: float | None = None

    def see(self, seen: Tensors) -> str | None:
        """See `Rule`."""
        for name, found in seen.weights.items():
            variance = found["std"] ** 2
            if found["axes"] < 2:
                continue
            if self.max_threshold is not None and variance > self.max_threshold:
                return f"the variance of {name} is {variance:.3g}, above {self.max_threshold:g}"
            if self.min_threshold is not None and variance < self.min_threshold:
                return f"the variance of {name} is {variance:.3g}, below {self.min_threshold:g}"
        return None


@final
@dataclass(slots=True)
class UnchangedTensor:
    """A weight that is to be learnt does not change, as `numpy.allclose` has it.

    Args:
        num_steps: looks in a row.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    watches: ClassVar[str] = "a weight is the same (`numpy.allclose`) as at the look before, `num_steps` times in a row"
    sees: ClassVar[tuple[type, ...]] = (Tensors,)
    num_steps: int = 3
    rtol: float = 1e-5
    atol: float = 1e-8
    _same: InARow = field(default_factory=InARow, init=False)

    def measured_with(self) -> Mapping[str, Any]:
        """Return what the worker must know to measure it."""
        return {"unchanged": [self.rtol, self.atol]}

    def see(self, seen: Tensors) -> str | None:
        """See `Rule`."""
        for name, found in seen.weights.items():
            if found["axes"] < 2 or found["same"] is None:
                continue
            if self._same.count(f"{seen.rank} {name}", found["same"]) >= self.num_steps:
                return f"{name} has not changed for {self.num_steps} looks"
        return None
