"""What is known of a trial from its job's folder, and what is said of trials that fail."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from .. import storage
from ..errors import AlgorithmError, PhalanxError, error_of_kind
from .plan import Plan
from .trial import Trial


def fill_in(trial: Trial, status: Mapping[str, Any]) -> None:
    """Take over what a job's status.json says."""
    trial.metrics = dict(status.get("metrics") or trial.metrics)
    trial.seconds = float(status.get("training_seconds") or trial.seconds)
    trial.step = max(trial.step, int(status.get("step") or 0), trial.curve.steps[-1] if trial.curve.steps else 0)
    trial.started = trial.started or status.get("created")
    trial.ended = status.get("ended")
    if status["status"] == "Completed":
        trial.curve.ended = True


def recorded_error(folder: str, trial: Trial, status: Mapping[str, Any]) -> PhalanxError:
    """Return the error of a job that failed while nobody was there to learn it."""
    text = str(status.get("failure") or "it failed")
    with contextlib.suppress(PhalanxError):
        head = storage.read_bytes(storage.join(folder, trial.job, "failure")).decode("utf-8", "replace")
        return error_of_kind(head.partition(":")[0], text)
    return AlgorithmError(text)


def never_reported(metric: str, plan: Plan, trial: Trial) -> str:
    reported = ", ".join(sorted(trial.metrics)) or "nothing"
    hint = ""
    channel = metric.partition(":")[0]
    if channel in ("validation", "test") and channel not in plan.job.inputs:
        hint = f"; the job has no channel '{channel}'"
    return f"the objective '{metric}' was never reported: the first trial reported {reported}{hint}"
