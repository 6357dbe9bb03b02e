"""Rules on the course of losses. Names and thresholds are those of SageMaker Debugger.

They are meant to stay silent on a run that goes well, also one that has converged: a loss that stands still after it has come
down is none of their business, as is a validation loss that is merely higher than that of the training data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

from .course import Course, InARow, Means, Noise
from .seen import Step, goal_of, is_smooth, losses

_FINER = 10  # a training loss that still learns may do so in small steps
_WINDOWS = 5  # in which a loss must have come down at all
_SLOW = 5  # times as much as in five windows it must have come down in twice as many and more, noise taken away


@final
@dataclass(slots=True)
class LossNotDecreasing:
    """The training loss rises above where it began, or does not come down in 5 windows.

    A loss whose noise hides that it stands is looked at again in 10, 20, 40, … windows, until it has come down once: it must
    then be `5 * diff_percent` lower in the last half of them. Of a job that goes on, only a rise is judged.

    Args:
        num_steps: a window, whose mean is judged.
        diff_percent: by which it must have come down.
        increase_threshold_percent: above the first window, in two windows in a row, beyond the noise of its steps.
    """

    watches: ClassVar[str] = "the training loss rises above where it began, or has not come down in five windows or more"
    sees: ClassVar[tuple[type, ...]] = (Step,)
    num_steps: int = 10
    diff_percent: float = 0.1
    increase_threshold_percent: float = 5.0
    _courses: dict[str, Course] = field(default_factory=dict, init=False)
    _begun: bool | None = field(default=None, init=False)  # whether the first step was seen
    _learnt: set[str] = field(default_factory=set, init=False)  # losses that have come down

    def see(self, seen: Step) -> str | None:
        """See `Rule`."""
        self._begun = seen.step == 1 if self._begun is None else self._begun
        for name, value in losses(seen, "train").items():
            if not is_smooth(name):
                continue
            course = self._courses.setdefault(name, Course(self.num_steps))
            if not course.add(value):
                continue
            risen = course.risen(self.increase_threshold_percent)
            if risen is not None:
                return f"train:{name} rose by {risen:.3g} %, from {course.means[0]:.6g} to {course.means[-1]:.6g}"
            number, rest = divmod(len(course.means), _WINDOWS)
            if self._begun and not rest and number.bit_count() == 1 and name not in self._learnt:
                steps = len(course.means) * self.num_steps
                if self._stands(name, course):
                    least = self.diff_percent * (1 if number == 1 else _SLOW)
                    return f"train:{name} has not come down by {least:.3g} % in {steps} steps: it is {course.means[-1]:.6g}"
        return None

    def _stands(self, name: str, course: Course) -> bool:
        """Return whether a loss has never come down; keep in mind that it has."""
        if abs(course.means[0]) <= 1e-9:
            return False
        if len(course.means) == _WINDOWS:
            return course.stands(self.diff_percent)
        fallen = course.fallen(_SLOW * self.diff_percent)
        if fallen:
            self._learnt.add(name)
        return fallen is False


@final
@dataclass(slots=True)
class Overfit:
    """The validation loss rises from its best while the training loss goes on falling.

    Args:
        start_step: before which nothing is judged.
        patience: evaluations in a row before it is said.
        ratio_threshold: by which the validation loss is above its best and above the training loss.
    """

    watches: ClassVar[str] = "a validation loss rises from its best, and above the training loss, while that goes on falling"
    sees: ClassVar[tuple[type, ...]] = (Step,)
    start_step: int = 0
    patience: int = 1
    ratio_threshold: float = 0.1
    _train: Means = field(default_factory=Means, init=False)  # since the last evaluation
    _best: dict[str, tuple[float, float]] = field(
        default_factory=dict, init=False
    )  # validation loss, lowest training loss since
    _noise: dict[str, Noise] = field(default_factory=dict, init=False)
    _waited: InARow = field(default_factory=InARow, init=False)

    def see(self, seen: Step) -> str | None:
        """See `Rule`."""
        self._train.add(losses(seen, "train"))
        for name, value in _judged(losses(seen, "validation")).items():
            train = self._train.take(name)
            if train is None or seen.step < self.start_step:
                continue
            noise = self._noise.setdefault(name, Noise()).add(value)
            best, lowest = self._best.get(name, (value, train))
            if value <= best:
                best, lowest = value, train
            self._best[name] = best, min(lowest, train)
            room = self.ratio_threshold
            above = value - best > max(room * max(abs(best), 1e-12), noise)
            rises = above and value - train > room * max(abs(train), 1e-12)
            if rises and train >= lowest:  # it may rise for a while on its way down: no evidence, for or against
                continue
            if self._waited.count(name, rises) > self.patience:
                sign = goal_of(name, seen.goals)
                now = f"validation:{name} went from {sign * best:.6g} to {sign * value:.6g}"
                return f"{now} while train:{name} improved to {sign * train:.6g}"
        return None


def _judged(found: Mapping[str, float]) -> Mapping[str, float]:
    """Return the losses proper among metrics; shares of rows, which move in jumps, only where there is nothing else."""
    return {name: value for name, value in found.items() if is_smooth(name)} or found


@final
@dataclass(slots=True)
class Overtraining:
    """Neither loss gets better any more, the validation loss is worse than its best, and the training goes on.

    Args:
        patience_train: evaluations in which the training loss has not improved on its best.
        patience_validation: evaluations in which the validation loss has not been as good as its best.
        delta: share of its best by which the validation loss is worse; a tenth of it makes a better training loss.
    """

    watches: ClassVar[str] = "a validation loss has been worse than its best for long, and the training loss improves no more"
    sees: ClassVar[tuple[type, ...]] = (Step,)
    patience_train: int = 5
    patience_validation: int = 10
    delta: float = 0.01
    _train: Means = field(default_factory=Means, init=False)  # since the last evaluation
    _train_best: dict[str, tuple[float, int]] = field(default_factory=dict, init=False)  # the best, evaluations since
    _best: dict[str, float] = field(default_factory=dict, init=False)
    _noise: dict[str, Noise] = field(default_factory=dict, init=False)
    _since: dict[str, deque[float]] = field(default_factory=dict, init=False)

    def see(self, seen: Step) -> str | None:
        """See `Rule`."""
        self._train.add(losses(seen, "train"))
        for name, value in _judged(losses(seen, "validation")).items():
            learns = self._learns(name)
            noise = self._noise.setdefault(name, Noise()).add(value)
            best = self._best.get(name, value)
            since = self._since.setdefault(name, deque(maxlen=self.patience_validation))
            if value <= best:
                self._best[name] = value
                since.clear()
                continue
            since.append(value)
            full = len(since) == self.patience_validation
            gap = sum(since) / len(since) - best
            if full and not learns and gap > max(self.delta * max(abs(best), 1e-12), noise):
                sign = goal_of(name, seen.goals)
                long = f"validation:{name} has been worse than its best, {sign * best:.6g}, for {len(since)} evaluations"
                return f"{long}: it is {sign * value:.6g}"
        return None

    def _learns(self, name: str) -> bool:
        """Return whether the training loss, where it is known, has improved in the last evaluations."""
        value = self._train.take(name)
        if value is None:
            return False
        best, since = self._train_best.get(name, (value, 0))
        better = value < best - self.delta / _FINER * max(abs(best), 1e-12)
        self._train_best[name] = (value, 0) if better else (best, since + 1)
        return self._train_best[name][1] < self.patience_train
