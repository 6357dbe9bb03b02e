"""What a job came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended."""

    name: str
    status: Literal["Completed", "Failed", "Stopped"]
    secondary_status: str  # also MaxRuntimeExceeded
    folder: str  # URL of the job's folder
    artifact: str | None  # URL of model.tar.gz
    metrics: Mapping[str, float | None]  # the last value of each
    step: int
    restarts: int
    training_seconds: float
    billable_seconds: float
    failure: str | None
