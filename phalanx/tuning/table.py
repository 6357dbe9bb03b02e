"""A sweep as a table: the best trials, rows for terminals, the data frame that users of managed tuning know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..contracts import Json
from ..errors import UserError
from .declared import Objective
from .trial import Trial


def best_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Trial | None:
    """Return the best completed trial by the first objective, of those that keep the constraints if any does."""
    good = [t for t in trials if t.status == "Completed" and t.objective]
    good = [t for t in good if t.feasible] or good
    first = objectives[0]
    return max(good, key=lambda t: (first.sign * (t.objective or [0.0])[0], -t.number), default=None)


def front_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the completed trials that no other beats in every objective, the best by the first one first."""
    good = [t for t in trials if t.status == "Completed" and t.objective and t.feasible]
    scores = {t.number: [o.sign * v for o, v in zip(objectives, t.objective or [], strict=True)] for t in good}

    def beaten(mine: list[float]) -> bool:
        return any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in scores.values())

    return sorted((t for t in good if not beaten(scores[t.number])), key=lambda t: (-scores[t.number][0], t.number))


def counters(trials: Sequence[Trial]) -> dict[str, dict[str, int]]:
    """Return how many trials are in which state."""
    failed = [t for t in trials if t.status == "Failed"]
    jobs = {
        "Completed": sum(t.status == "Completed" for t in trials),
        "InProgress": sum(t.status == "InProgress" for t in trials),
        "RetryableError": sum(t.retryable for t in failed),
        "NonRetryableError": sum(not t.retryable for t in failed),
        "Stopped": sum(t.status == "Stopped" for t in trials),
    }
    objective = {
        "Succeeded": sum(t.status != "InProgress" and bool(t.objective) for t in trials),
        "Pending": jobs["InProgress"],
        "Failed": sum(t.status != "InProgress" and not t.objective for t in trials),
    }
    return {"TrainingJobStatusCounters": jobs, "ObjectiveStatusCounters": objective}


def records(trials: Sequence[Trial], names: Sequence[str], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Return a row for every trial: each tuned hyperparameter, then the columns of managed tuning's analytics.

    Args:
        trials: all of them.
        names: of the hyperparameters.
        objectives: beyond the first each has a column named FinalObjectiveValue:METRIC.
    """
    rows = []
    for trial in trials:
        row: dict[str, Any] = {name: _cell(trial.values.get(name)) for name in names}
        values: list[float | None] = [*(trial.objective or []), *([None] * len(objectives))]
        row |= {
            "TrainingJobName": trial.job,
            "TrainingJobStatus": trial.status,
            "FinalObjectiveValue": values[0],
            "TrainingStartTime": _time(trial.started),
            "TrainingEndTime": _time(trial.ended),
            "TrainingElapsedTimeSeconds": trial.seconds,
        }
        for objective, value in list(zip(objectives, values, strict=False))[1:]:
            row[f"FinalObjectiveValue:{objective.metric}"] = value
        rows.append(row)
    return rows


def dataframe(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return `records` as a pandas data frame.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("a data frame needs pandas: pip install 'phalanx-train[tune]'") from None
    return pandas.DataFrame(list(rows))


def terminal_rows(sweep: Mapping[str, Json], *, most_columns: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of a sweep.json's trials, the best first.

    Args:
        sweep: what sweep.json holds.
        most_columns: of hyperparameters; more of them stand together in one.
    """
    objectives = objectives_of(sweep)
    trials = trials_of(sweep)
    names = list(sweep["ranges"])
    together = most_columns is not None and len(names) > most_columns
    headers = ["trial", "status", *(o.metric for o in objectives), "step", "seconds"]
    headers += ["hyperparameters"] if together else names

    def rank(trial: Trial) -> tuple[bool, float, int]:
        value = objectives[0].sign * trial.objective[0] if trial.objective else float("-inf")
        return (trial.status != "Completed", -value, trial.number)

    rows = []
    for trial in sorted(trials, key=rank):
        values = [number_text(v) for v in trial.objective or []]
        values += ["-"] * (len(objectives) - len(values))
        cells = [values_text(trial)] if together else [cell_text(trial.values.get(name)) for name in names]
        rows.append([str(trial.number), trial.status, *values, str(trial.step), f"{trial.seconds:.1f}", *cells])
    return headers, rows


def objectives_of(sweep: Mapping[str, Json]) -> list[Objective]:
    """Return the objectives in a sweep.json."""
    return [Objective(o["metric"], o["direction"]) for o in sweep["objectives"]]


def trials_of(sweep: Mapping[str, Json]) -> list[Trial]:
    """Return the trials in a sweep.json."""
    return [Trial.from_json(given) for given in sweep["trials"]]


def number_text(value: float | None) -> str:
    """Return a value as a person reads it."""
    return "-" if value is None else f"{value:.6g}"


def first_text(trial: Trial) -> str:
    """Return a trial's first objective as a person reads it."""
    return number_text(trial.objective[0] if trial.objective else None)


def cell_text(value: Any) -> str:
    """Return a hyperparameter's value as a person reads it; nothing where a trial has none."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def values_text(trial: Trial) -> str:
    """Return a trial's point in one line."""
    return " ".join(f"{name}={cell_text(value)}" for name, value in trial.values.items())


def _cell(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
