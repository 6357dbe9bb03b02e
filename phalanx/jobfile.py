"""A job as a YAML file: read safely, described by a JSON schema that follows `TrainingJob` field by field."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from .data.channel import Channel
from .errors import UserError
from .job import TrainingJob
from .parallel.strategies import STRATEGIES
from .scripts.metrics import MAX_DEFINITIONS, MAX_NAME, MAX_REGEX

_METRIC: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "regex": {"type": "string", "minLength": 1, "maxLength": MAX_REGEX},
    },
    "required": ["name", "regex"],
    "additionalProperties": False,
}
_KINDS: dict[str, dict[str, Any]] = {
    "algorithm": {"type": ["string", "null"]},
    "hyperparameters": {"type": "object"},
    "workers": {"type": ["integer", "string"], "minimum": 1, "pattern": r"^\d+(:\d+)?$"},
    "output": {"type": "string"},
    "name": {"type": ["string", "null"], "maxLength": 63},
    "seed": {"type": "integer", "minimum": 0},
    "threads_per_worker": {"type": ["integer", "null"], "minimum": 1},
    "launcher": {"type": "string"},
    "max_restarts": {"type": "integer", "minimum": 0},
    "max_runtime_s": {"type": ["number", "null"], "exclusiveMinimum": 0},
    "checkpoints": {"type": ["string", "null"]},
    "checkpoint_every": {"type": ["integer", "string"], "minimum": 1},
    "keep": {"type": ["integer", "object"], "minimum": 1},
    "spot": {"type": ["object", "null"]},
    "resume": {"type": "boolean"},
    "hang_timeout_s": {"type": ["number", "null"], "exclusiveMinimum": 0},
    "environment": {"type": "object", "additionalProperties": {"type": "string"}},
    "script": {"type": ["string", "null"], "pattern": r"\.py$"},
    "source_dir": {"type": ["string", "null"]},
    "arguments": {"type": "array", "items": {"type": "string"}},
    "strategy": {"type": ["string", "null"], "pattern": f"^({'|'.join(STRATEGIES)})(:.*)?$"},
    "elastic": {"enum": [None, "exact"]},
    "micro_batches": {"type": "integer", "minimum": 1},
    "rules": {"type": "array", "items": {"type": "string"}},
    "sinks": {"type": "array", "items": {"type": "string"}},
    "profile": {"type": "boolean"},
    "cluster": {"type": ["object", "null"]},
    "metric_definitions": {"type": "array", "maxItems": MAX_DEFINITIONS, "items": _METRIC},
}


def read(path: Path) -> TrainingJob:
    """Return the job in a YAML file.

    Raises:
        UserError: no such file, no YAML (with the line), or a field that is not a job's.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no job file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    try:
        return TrainingJob.from_mapping(given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a job file."""
    urls = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    channel: dict[str, Any] = {"type": "object", "required": ["url"], "additionalProperties": False}
    channel["properties"] = {f.name: urls if f.name == "url" else {"type": ["string", "null"]} for f in fields(Channel)}
    kinds = {**_KINDS, "inputs": {"type": "object", "additionalProperties": {"anyOf": [*urls["anyOf"], channel]}}}
    properties: dict[str, Any] = {}
    for f in fields(TrainingJob):
        entry = dict(kinds[f.name])
        if f.default is not MISSING:
            entry["default"] = list(f.default) if isinstance(f.default, tuple) else f.default
        properties[f.name] = entry
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Phalanx training job",
        "type": "object",
        "properties": properties,
        "oneOf": [{"required": ["algorithm", "inputs"]}, {"required": ["script"]}],
        "additionalProperties": False,
    }
