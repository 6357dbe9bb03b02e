"""Jobs side by side: where their hyperparameters differ, and where their metrics ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UserError, nearest
from .reading import TrackedJob

_POINTS = 200  # of a curve in the answer, at most
_MISSING = "-"


def compared(jobs: Sequence[TrackedJob], metric: str | None = None) -> dict[str, Any]:
    """Return {"jobs", "differing", "metrics", "curves"}.

    `differing` maps a hyperparameter (also workers, seed, strategy) to each job's value, those that are alike left out;
    `metrics` maps a name to each job's last, least and largest value; `curves` holds each job's points of `metric`, thinned.

    Args:
        jobs: at least two.
        metric: whose curves are wanted; None: none.

    Raises:
        UserError: fewer than two jobs, or no job has the metric.
    """
    if len(jobs) < 2:
        raise UserError("give at least two jobs to compare")
    settings = [_settings(job) for job in jobs]
    keys = list(dict.fromkeys(key for found in settings for key in found))
    differing = {key: [found.get(key, _MISSING) for found in settings] for key in keys}
    differing = {key: values for key, values in differing.items() if any(value != values[0] for value in values)}
    curves = [job.curves() for job in jobs]
    names = list(dict.fromkeys(name for found in curves for name in found))
    if metric is not None and metric not in names:
        raise UserError(f"none of these jobs has a metric '{metric}'; {nearest(metric, names)}")
    metrics = {name: [_ends(found[name].values) if name in found else None for found in curves] for name in names}
    drawn = []
    for found in curves if metric is not None else ():
        thin = found[metric].thinned(_POINTS) if metric in found else None
        drawn.append([] if thin is None else [[int(s), _number(v)] for s, v in zip(thin.steps, thin.values, strict=True)])
    return {"jobs": [job.name for job in jobs], "differing": differing, "metrics": metrics, "curves": drawn}


def _settings(job: TrackedJob) -> dict[str, Any]:
    own = {key: job.request[key] for key in ("algorithm", "script", "workers", "seed", "strategy") if key in job.request}
    return own | dict(job.request.get("hyperparameters") or {})


def _ends(values: Any) -> dict[str, float | None]:
    finite = values[values == values]
    if not len(finite):
        return {"last": None, "min": None, "max": None}
    return {"last": _number(values[-1]), "min": float(finite.min()), "max": float(finite.max())}


def _number(value: Any) -> float | None:
    return float(value) if value == value else None
