"""What a user may say of a sweep besides its ranges: when it is complete, what earlier sweeps it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from ..errors import UserError

MAX_PARENTS = 5
LEAST_NOT_IMPROVING = 3
KINDS = ("identical_data_and_algorithm", "transfer_learning")


@final
@dataclass(frozen=True, slots=True)
class Completion:
    """When a sweep ends before `max_jobs`.

    Args:
        target: a finished trial's objective is at least as good.
        not_improving: so many trials in a row, at least 3, brought no better objective.
        max_runtime_s: seconds of the whole sweep, over all its resumptions; running trials are stopped then.
        on_convergence: less than 1 % more is to be expected, going by the last trials.

    Raises:
        UserError: a value that is not allowed.
    """

    target: float | None = None
    not_improving: int | None = None
    max_runtime_s: float | None = None
    on_convergence: bool = False

    def __post_init__(self) -> None:
        if self.target is not None and not _finite(self.target):
            raise UserError(f"completion.target={self.target!r} is not allowed: it must be a number")
        count = self.not_improving
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < LEAST_NOT_IMPROVING):
            raise UserError(f"completion.not_improving={count!r} is not allowed: it must be at least {LEAST_NOT_IMPROVING}")
        limit = self.max_runtime_s
        if limit is not None and not (_finite(limit) and limit > 0):
            raise UserError(f"completion.max_runtime_s={limit!r} is not allowed: it must be a number of seconds above 0")


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@final
@dataclass(frozen=True, slots=True)
class WarmStart:
    """Earlier sweeps that a new one learns from.

    Args:
        parents: 1 to 5 folders (or URLs) of sweeps that have ended.
        kind: "identical_data_and_algorithm": their trials count as if they were this sweep's own, and the best of all is shown;
            "transfer_learning": the data may be another, so only their best points are tried first.

    Raises:
        UserError: a value that is not allowed.
    """

    parents: Sequence[str]
    kind: Literal["identical_data_and_algorithm", "transfer_learning"] = "identical_data_and_algorithm"

    def __post_init__(self) -> None:
        if isinstance(self.parents, str) or not 0 < len(self.parents) <= MAX_PARENTS:
            raise UserError(
                f"warm_start.parents={self.parents!r} is not allowed: a list of 1 to {MAX_PARENTS} folders of sweeps"
            )
        if str(self.kind).lower() not in KINDS:
            raise UserError(f"warm_start.kind='{self.kind}' is not allowed: {' or '.join(KINDS)}")
        object.__setattr__(self, "kind", str(self.kind).lower())
