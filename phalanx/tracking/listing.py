"""A job as a row of a list, as the terminal and the page show it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from .reading import TrackedJob


def row_of(job: TrackedJob) -> dict[str, Any]:
    """Return name, algorithm, status, step, metric, created, seconds, billable, interruptions and url of a job."""
    status = job.status
    metrics = status.get("metrics") or {}
    name = next((n for n in metrics if n.startswith("validation:")), next(iter(metrics), None))
    created, ended = status.get("created"), status.get("ended")
    transitions = status.get("transitions") or []
    seconds = None if created is None else (ended or time.time()) - created
    return {
        "name": job.name,
        "algorithm": job.algorithm,
        "status": job.state,
        "step": status.get("step"),
        "metric": None if name is None else f"{name}={text(metrics[name])}",
        "created": None if created is None else datetime.fromtimestamp(created).isoformat(" ", "seconds"),
        "seconds": None if seconds is None else round(seconds, 1),
        "billable": status.get("billable_seconds"),
        "interruptions": sum(t.get("status") == "Interrupted" for t in transitions if isinstance(t, dict)),
        "url": job.url,
    }


def text(value: Any) -> str:
    """Return a cell as a person reads it."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
