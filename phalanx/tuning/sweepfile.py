"""A sweep as a YAML file: a job, and the fields of `phalanx.Tuner` beside it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, nearest
from ..job import TrainingJob
from ..request import options
from .options import Completion, WarmStart
from .ranges import from_json
from .tuner import Tuner


def read(path: Path, changes: Mapping[str, Any] | None = None) -> Tuner:
    """Return the sweep in a YAML file.

    Args:
        path: of the file.
        changes: fields that the command line sets.

    Raises:
        UserError: no such file, no YAML, a field that is not a sweep's, or a sweep that cannot work.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no sweep file at {path}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    try:
        return from_mapping(given, changes or {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_mapping(given: Any, changes: Mapping[str, Any]) -> Tuner:
    """Return the sweep that a mapping describes.

    Raises:
        UserError: as `read`.
    """
    known = [name for name in inspect.signature(Tuner.__init__).parameters if name not in ("self", "resume")]
    if not isinstance(given, Mapping):
        raise UserError(f"a sweep is a mapping with {', '.join(known)}, not {type(given).__name__}")
    for key in given:
        if key not in known:
            raise UserError(f"a sweep has no field '{key}'; {nearest(str(key), known)}")
    for key in ("job", "name"):
        if key not in {**given, **changes}:
            raise UserError(f"a sweep needs the field '{key}'")
    values = {**given, **changes}
    values["job"] = TrainingJob.from_mapping(values["job"])
    if isinstance(values["name"], int):
        values["name"] = str(values["name"])  # YAML reads 2024 as a number
    if values.get("early_stopping") is False:
        values["early_stopping"] = "off"  # which YAML reads as a truth value
    ranges = values.get("ranges")
    if ranges is not None:
        if not isinstance(ranges, Mapping):
            raise UserError("ranges must be a mapping of hyperparameters to ranges")
        values["ranges"] = {str(name): from_json(str(name), found) for name, found in ranges.items()}
    for name, kind in (("completion", Completion), ("warm_start", WarmStart)):
        if values.get(name) is not None:
            values[name] = options(kind, name, values[name])
    return Tuner(**values)
