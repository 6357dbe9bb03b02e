"""Strategies by name, loaded when they are asked for, and their options by name, as command lines and job files give them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

from ..contracts import Strategy
from ..errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Home:
    """Where a strategy lives and what it needs."""

    module: str  # of phalanx.parallel
    cls: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # modules that must be importable
    how: str = ""  # to get them


_DEEPSPEED = ("deepspeed",), "pip install 'phalanx-train[deepspeed]'"
STRATEGIES: Mapping[str, Home] = {
    "single": Home("ddp", "Single"),
    "ddp": Home("ddp", "DDP"),
    "exact": Home("exact", "Exact"),
    "horovod": Home("horovod", "Horovod", {}, ("horovod",), "scripts/install_horovod.sh builds it for the installed torch"),
    "zero1": Home("zero", "ZeRO", {"stage": 1}, *_DEEPSPEED),
    "zero2": Home("zero", "ZeRO", {"stage": 2}, *_DEEPSPEED),
    "zero3": Home("zero", "ZeRO", {"stage": 3}, *_DEEPSPEED),
    "fsdp": Home("fsdp", "FSDP"),
    "pipeline": Home("pipeline", "Pipeline", {}, *_DEEPSPEED),
    "tensor": Home("tensor", "Tensor"),
    "auto": Home("auto", "Auto"),
}


def strategy_of(given: str | Strategy, options: Mapping[str, Any] | None = None) -> Strategy:
    """Return the strategy of a name, with `options` of its class; an object is returned as it is.

    Options may stand behind the name too: "pipeline:stages=4,micro_batches=8".

    Raises:
        UserError: no such strategy or option (with the nearest name), or what it needs is not installed (with the command).
    """
    if not isinstance(given, str):
        if isinstance(given, type) or getattr(given, "prepare", None) is None:
            raise UserError(f"strategy must be a name or an object as phalanx.parallel.DDP(), not {given!r}")
        return given
    given, behind = parsed(given)
    options = {**behind, **(options or {})}
    home = STRATEGIES[given]
    missing = [module for module in home.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"strategy '{given}' needs {', '.join(missing)}: {home.how}")
    cls = getattr(importlib.import_module(f"{__package__}.{home.module}"), home.cls)
    known = {f.name for f in fields(cls)}
    for name in options:
        if name not in known:
            raise UserError(f"strategy '{given}' has no option '{name}'; {nearest(name, known)}")
    made: Strategy = cls(**{**home.options, **options})
    return made


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of "name" or "name:option=value,option=value"; values as YAML has them.

    Raises:
        UserError: no such strategy (with the nearest name), or something else stands behind the name.
    """
    name, colon, behind = text.partition(":")
    if name not in STRATEGIES:
        raise UserError(f"there is no strategy '{name}'; {nearest(name, STRATEGIES)}")
    options: dict[str, Any] = {}
    for item in behind.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"strategy '{text}': behind the name stand options as {name}:option=value,option=value, not '{item}'"
            )
        options[key.strip()] = yaml.safe_load(value)
    return name, options
