"""What is whole in files that may be half written, damaged, or of another version: readers need look no further."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any], Any]  # returns the value, what is whole of it, or None


def number(value: Any) -> float | int | None:
    """Return a finite number, None for all else."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    return value if whole else None


def text(value: Any) -> str | None:
    """Return a text, None for all else."""
    return value if isinstance(value, str) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping, an empty one for all else."""
    return value if isinstance(value, dict) else {}


def status(value: Any) -> dict[str, Any]:
    """Return what is whole of a status.json; what is not is left out."""
    return _checked(mapping(value), _STATUS)


def request(value: Any) -> dict[str, Any]:
    """Return what is whole of a job.json."""
    found = mapping(value)
    return {**found, **{key: mapping(found[key]) for key in ("hyperparameters", "inputs", "provenance") if key in found}}


def lines(data: bytes, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the mappings in lines of JSON that have finite numbers of these names."""
    found = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and all(number(value.get(name)) is not None for name in numbers):
            found.append(value)
    return found


def _checked(value: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    found = {key: checks[key](entry) if key in checks else entry for key, entry in value.items()}
    return {key: entry for key, entry in found.items() if entry is not None or value[key] is None}


def _each(check: Check) -> Check:
    """Return a check of a list that leaves out entries which are not whole."""

    def checked(value: Any) -> list[Any]:
        return [found for entry in value if (found := check(entry)) is not None] if isinstance(value, list) else []

    return checked


def _named(check: Check) -> Check:
    """Return a check of a mapping that leaves out entries which are not whole; None stays."""

    def checked(value: Any) -> dict[str, Any]:
        found = {name: None if entry is None else check(entry) for name, entry in mapping(value).items()}
        return {name: entry for name, entry in found.items() if entry is not None or value[name] is None}

    return checked


def _numbers(*names: str) -> Check:
    """Return a check of a mapping that must have finite numbers of these names."""

    def checked(value: Any) -> dict[str, Any] | None:
        whole = isinstance(value, dict) and all(number(value.get(name)) is not None for name in names)
        return dict(value) if whole else None

    return checked


def _transition(value: Any) -> dict[str, Any] | None:
    found = mapping(value)
    if text(found.get("status")) is None or number(found.get("start")) is None:
        return None
    return {**found, "end": number(found.get("end")), "message": text(found.get("message")) or ""}


_STATUS: dict[str, Check] = {
    **dict.fromkeys(("name", "algorithm", "status", "secondary_status", "failure"), text),
    **dict.fromkeys(("created", "ended", "updated", "step", "restarts", "resumed_from_step"), number),
    **dict.fromkeys(("training_seconds", "billable_seconds"), number),
    "metrics": _named(number),
    "best": _named(_numbers("value", "step")),
    "transitions": _each(_transition),
    "workers": _each(mapping),
    "passed_over": _each(_numbers("step")),
    "checkpoint": _numbers("step", "bytes", "stall_s", "write_s"),
    "goodput": _numbers("wall_s", "goodput", "training_s", "stall_s", "lost_work_s", "restart_s"),
    "cost": _numbers("spot", "on_demand", "saved"),
}
