"""A job as a row of a list, as the terminal and the page show it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .reading import TrackedJob

HEADERS = ("name", "algorithm", "status", "step", "metric", "best", "created", "seconds", "billable", "interruptions")
_SILENT_SECONDS = 60.0  # without a sign of life, after which a job that runs is told to be silent


def row_of(job: TrackedJob) -> dict[str, Any]:
    """Return name, algorithm, status, silent_s, step, metric, best, created, seconds, billable, interruptions, url of a job.

    `metric` is the one to judge it by, `best` the best value that it has had: its last one where nobody knows which way is
    better.
    """
    status = job.status
    best, last = status.get("best") or {}, status.get("metrics") or {}
    metric = next(iter(best), None) or next((n for n in last if n.startswith("validation:")), next(iter(last), None))
    created, ended = status.get("created"), status.get("ended")
    silent_s = job.silent_s
    seconds = None if created is None else (ended or (status.get("updated") if silent_s else None) or time.time()) - created
    return {
        "name": job.name,
        "algorithm": job.algorithm,
        "status": job.state,
        "silent_s": round(silent_s) if silent_s is not None and silent_s > _SILENT_SECONDS else None,
        "step": status.get("step"),
        "metric": metric,
        "best": None if metric is None else best[metric]["value"] if metric in best else last[metric],
        "created": None if created is None else datetime.fromtimestamp(created).isoformat(" ", "seconds"),
        "seconds": None if seconds is None else round(seconds, 1),
        "billable": status.get("billable_seconds"),
        "interruptions": sum(entry["status"] == "Interrupted" for entry in status.get("transitions") or []),
        "url": job.url,
    }


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return rows as a person reads them, under `HEADERS`."""
    found = []
    for row in rows:
        silent = "" if row["silent_s"] is None else f", silent for {duration(row['silent_s'])}"
        told = {**row, "status": row["status"] + silent, "step": row["step"] or None}
        found.append([text(told[header]) for header in HEADERS])
    return found


def duration(seconds: float) -> str:
    """Return a duration as a person reads it: 12 s, 3 min, 5 h, 2 days."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def text(value: Any) -> str:
    """Return a cell as a person reads it."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
