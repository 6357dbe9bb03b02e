"""What rules see, and what a rule is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Rule(Protocol):
    """Watches a run."""

    def see(self, step: int, metrics: Mapping[str, float | None]) -> str | None:
        """Look at the metrics of a step (None: not finite); return what is wrong, None as long as nothing is."""
        ...


def losses(metrics: Mapping[str, float | None], channel: str) -> dict[str, float]:
    """Return the finite losses of a channel, by name without the channel."""
    prefix = f"{channel}:"
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix) and name.endswith("loss") and value is not None
    }
