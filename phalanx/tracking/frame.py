"""Jobs as a table: one row a job, its last metrics and hyperparameters as columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .reading import TrackedJob, jobs, load_job

if TYPE_CHECKING:
    import pandas

_PLAIN = ("status", "step", "restarts", "created", "ended", "training_seconds", "billable_seconds", "failure")


def dataframe(url: str = "runs") -> pandas.DataFrame:
    """Return the jobs below a folder, one row each, the newest first.

    Columns: name, algorithm, url, what status.json says, `metric.NAME` (its last value), `best.NAME`, `hyperparameter.NAME`.

    Args:
        url: folder or URL.

    Raises:
        UserError: pandas is not installed, or there is no such folder.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("a dataframe needs pandas: pip install 'phalanx-train[tune]', or use phalanx.tracking.jobs()") from None
    return pandas.DataFrame([row_of(load_job(job.url)) for job in jobs(url)])


def row_of(job: TrackedJob) -> dict[str, Any]:
    """Return one job's row."""
    status = job.status
    row: dict[str, Any] = {"name": job.name, "algorithm": job.algorithm, "url": job.url}
    row |= {key: status.get(key) for key in _PLAIN}
    row |= {f"best.{name}": found["value"] for name, found in (status.get("best") or {}).items()}
    row |= {f"metric.{name}": value for name, value in (status.get("metrics") or {}).items()}
    return row | {f"hyperparameter.{name}": value for name, value in (job.request.get("hyperparameters") or {}).items()}
