"""`Spot`: a job on machines that the platform may take away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        prices: of one worker an hour, such a machine's and that of one that is never taken; the job's record then says what was
            saved.

    Raises:
        UserError: a value is not allowed.
    """

    grace_s: float = 30.0
    max_restarts: int = 10
    max_wait_s: float | None = None
    notices: Sequence[str] = ()
    prices: tuple[float, float] | None = None

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
        if self.prices is not None and not _are_prices(self.prices):
            raise UserError(
                f"spot.prices={self.prices!r} is not allowed: it must be two numbers above 0, of a worker an hour: [0.12, 0.4]"
            )

    def cost(self, workers: int, billable_s: float, goodput: Mapping[str, float], restarts: int) -> dict[str, float] | None:
        """Return what a job cost, what it would have cost where no worker is taken, and the share saved; None without prices.

        Undisturbed it would have taken the training that counts, the stalls of saves, and one of its starts.

        Args:
            workers: of the job.
            billable_s: seconds that it had them.
            goodput: where the time went, as in status.json.
            restarts: of the group.
        """
        if self.prices is None:
            return None
        undisturbed_s = goodput["training_s"] + goodput["stall_s"] + goodput["restart_s"] / (restarts + 1)
        paid, otherwise = (
            workers * seconds / 3600 * price for seconds, price in zip((billable_s, undisturbed_s), self.prices, strict=True)
        )
        return {"spot": round(paid, 6), "on_demand": round(otherwise, 6), "saved": round(1 - paid / max(otherwise, 1e-12), 4)}


def _are_prices(given: object) -> bool:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return False
    return all(isinstance(p, (int, float)) and not isinstance(p, bool) and 0 < p < float("inf") for p in given)
