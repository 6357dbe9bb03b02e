"""`Spot`: a job on machines that the platform may take away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True, slots=True)
class Spot:
    """How a job lives with interruptions.

    Args:
        grace_s: seconds that workers have between a notice and their end, to save a checkpoint.
        max_restarts: interruptions after which the job goes on; `max_restarts` of the job counts failures alone.
        max_wait_s: the job is stopped after so many seconds of running and waiting; None for no limit.
        notices: who is asked, while the job runs, whether the platform takes this machine: "aws", "gcp", "azure", "file:PATH".

    Raises:
        UserError: a value is not allowed.
    """

    grace_s: float = 30.0
    max_restarts: int = 10
    max_wait_s: float | None = None
    notices: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value, low in (("grace_s", self.grace_s, 0), ("max_wait_s", self.max_wait_s, 0)):
            wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or value <= low
            if value is not None and wrong:
                raise UserError(f"spot.{name}={value!r} is not allowed: it must be a number of seconds above 0")
        if isinstance(self.max_restarts, bool) or not isinstance(self.max_restarts, int) or self.max_restarts < 0:
            raise UserError(f"spot.max_restarts={self.max_restarts!r} is not allowed: it must be a whole number of at least 0")
        if isinstance(self.notices, str) or not all(isinstance(text, str) for text in self.notices):
            raise UserError(
                f"spot.notices={self.notices!r} is not allowed: it must be a list of texts, as ['aws', 'file:/run/notice']"
            )
