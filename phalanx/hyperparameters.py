"""Declared hyperparameters: one field with its type, default, range and meaning, from which everything else follows.

An algorithm writes

    @dataclass(frozen=True)
    class KMeansHyperparameters:
        k: int = hyper(low=1, help="number of clusters")
        init_method: Literal["random", "kmeans++"] = hyper("random", help="…")

and gets parsing of what a user typed (`parse`), help, a JSON schema (`json_schema`) and a table (`describe`). A field without
a default is required. Cross-field rules go into a `check(self) -> None` method that raises `UserError`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from .errors import UserError, nearest

H = TypeVar("H")
_KEY = "phalanx"


@dataclass(frozen=True, slots=True)
class _Declared:
    """What `hyper` adds to a dataclass field."""

    help: str
    low: float | None
    high: float | None
    open_low: bool
    open_high: bool
    aliases: tuple[str, ...]
    tunable: tuple[float, float] | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One declared hyperparameter, described for people and programs."""

    name: str
    type: str  # as a user reads it: int, float, bool, text, list, one of …
    default: Any
    required: bool
    range: str  # "[1, inf)", "" where there is none
    choices: tuple[str, ...]
    help: str
    aliases: tuple[str, ...]
    tunable: tuple[float, float] | tuple[str, ...] | None


def hyper(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # what it means, in one line
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    aliases: tuple[str, ...] = (),
    tunable: tuple[float, float] | tuple[str, ...] | None = None,
) -> Any:
    """Return a dataclass field for a hyperparameter.

    Args:
        default: its value when the user gives none; left out: the hyperparameter is required. A list is copied.
        help: what it means, in one line.
        low: smallest allowed number; excluded with `open_low`.
        high: largest allowed number; excluded with `open_high`.
        open_low: `low` itself is not allowed.
        open_high: `high` itself is not allowed.
        aliases: other names users know it by.
        tunable: the range, or the categories, that a sweep searches when none is given.
    """
    metadata = {_KEY: _Declared(help, low, high, open_low, open_high, aliases, tunable)}
    if default is dataclasses.MISSING:
        return dataclasses.field(kw_only=True, metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), kw_only=True, metadata=metadata)
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def parse(cls: type[H], given: Mapping[str, Any], *, owner: str) -> H:
    """Return `cls` filled from what a user gave: typed values or their text.

    Args:
        cls: a dataclass of `hyper` fields.
        given: name or alias -> value.
        owner: whose hyperparameters these are, for error texts (the algorithm's name).

    Raises:
        UserError: an unknown name (with the nearest known one), a value of the wrong type or out of range, a required one
            that is missing, the same one given twice under two names.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    names = {alias: f.name for f in fields.values() for alias in (f.name, *_declared(f).aliases)}
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in given.items():
        key = str(key)  # YAML may make a number of a name
        if key not in names:
            raise UserError(f"{owner} has no hyperparameter '{key}'; {nearest(key, names)}")
        name = names[key]
        if name in values:
            raise UserError(f"{owner}: '{key}' and '{name}' are the same hyperparameter and both were given; give one")
        values[name] = _convert(name, hints[name], value, _declared(fields[name]))
    missing = [name for name, f in fields.items() if name not in values and _is_required(f)]
    if missing:
        listed = "; ".join(f"{name} ({_declared(fields[name]).help})" for name in missing)
        raise UserError(
            f"{owner} needs the hyperparameter{'s' * (len(missing) > 1)} {listed}; set it with --set {missing[0]}=VALUE"
        )
    result = cls(**values)
    check = getattr(result, "check", None)
    if check is not None:
        check()
    return result


def to_json(hyperparameters: Any) -> dict[str, Any]:
    """Return all values, defaults included, as JSON values."""
    return {f.name: getattr(hyperparameters, f.name) for f in dataclasses.fields(hyperparameters)}


def describe(cls: type) -> list[Hyperparameter]:
    """Return every hyperparameter of `cls` in the order of declaration."""
    hints = _hints(cls)
    result = []
    for f in dataclasses.fields(cls):
        declared = _declared(f)
        default = None if _is_required(f) else _default(f)
        kinds = _alternatives(hints[f.name])
        choices = tuple(str(c) for kind in kinds for c in _choices(kind))
        result.append(
            Hyperparameter(
                name=f.name,
                type=" or ".join(dict.fromkeys(_type_name(kind) for kind in kinds if kind is not types.NoneType)),
                default=default,
                required=_is_required(f),
                range=_range_text(declared),
                choices=choices,
                help=declared.help,
                aliases=declared.aliases,
                tunable=declared.tunable,
            )
        )
    return result


def json_schema(cls: type) -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of the object that `parse` takes."""
    hints = _hints(cls)
    properties: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        declared = _declared(f)
        options = [_schema_of(kind, declared) for kind in _alternatives(hints[f.name])]
        entry: dict[str, Any] = dict(options[0]) if len(options) == 1 else {"anyOf": options}
        entry["description"] = declared.help
        if not _is_required(f):
            entry["default"] = _default(f)
        properties[f.name] = entry
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Return the types of the fields; to evaluate them takes several milliseconds, and forked workers inherit the result."""
    return typing.get_type_hints(cls)


def _declared(field: dataclasses.Field[Any]) -> _Declared:
    declared = field.metadata.get(_KEY)
    if not isinstance(declared, _Declared):
        raise TypeError(f"field {field.name} must be declared with hyper(...)")
    return declared


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@functools.cache
def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(c) for c in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return "list of " + _type_name(get_args(kind)[0])
    return {int: "int", float: "float", bool: "bool", str: "text"}.get(kind, str(kind))


def _range_text(declared: _Declared) -> str:
    if declared.low is None and declared.high is None:
        return ""
    left = "(-inf" if declared.low is None else f"{'(' if declared.open_low else '['}{declared.low:g}"
    right = "inf)" if declared.high is None else f"{declared.high:g}{')' if declared.open_high else ']'}"
    return f"{left}, {right}"


def _convert(name: str, hint: Any, value: Any, declared: _Declared) -> Any:
    kinds = _alternatives(hint)
    for kind in kinds:
        try:
            converted = _as(kind, value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
        if kind in (int, float):
            _check_range(name, converted, value, declared)
        elif get_origin(kind) is list and get_args(kind)[0] in (int, float):
            for item in converted:
                _check_range(name, item, value, declared)
        return converted
    allowed = " or ".join("none" if kind is types.NoneType else _type_name(kind) for kind in kinds)
    extent = _range_text(declared)
    raise UserError(
        f"{name}={_shown(value)} is not allowed: it must be {allowed}{f' in {extent}' if extent else ''} ({declared.help})"
    )


def _as(kind: Any, value: Any) -> Any:
    """Return `value`, or what its text means, as `kind`; raise ValueError where it is not one."""
    if kind is types.NoneType:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null")):
            return None
        raise ValueError
    if kind is bool:
        return _as_bool(value)
    if kind is int:
        return _as_int(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
            raise ValueError
        return float(value)
    if kind is str:
        if isinstance(value, str):
            return value
        raise ValueError
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if value == choice or (isinstance(value, str) and value.strip() == str(choice)):
                return choice
        raise ValueError
    if get_origin(kind) is list:
        return [_as(get_args(kind)[0], item) for item in _as_items(value)]
    raise TypeError(f"hyperparameters of type {kind} are not supported")


def _as_bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, str)):
        raise ValueError
    number = int(cast(Any, value))
    if not isinstance(value, str) and number != value:
        raise ValueError
    return number


def _as_items(value: Any) -> list[Any]:
    """Return the items of a list given as a list, as JSON text, or as text with commas."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if text.startswith("["):
        items = json.loads(text)
        if not isinstance(items, list):
            raise ValueError
        return items
    return [item.strip() for item in text.split(",") if item.strip()]


def _check_range(name: str, number: float, given: Any, declared: _Declared) -> None:
    low, high = declared.low, declared.high
    too_low = low is not None and (number < low or (declared.open_low and number == low))
    too_high = high is not None and (number > high or (declared.open_high and number == high))
    if (isinstance(number, float) and not math.isfinite(number)) or too_low or too_high:
        extent = _range_text(declared)
        allowed = f"in {extent}" if extent else "a finite number"
        raise UserError(f"{name}={_shown(given)} is not allowed: it must be {allowed} ({declared.help})")


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else text[:77] + "..."


def _schema_of(kind: Any, declared: _Declared) -> dict[str, Any]:
    if kind is types.NoneType:
        return {"type": "null"}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is list:
        return {"type": "array", "items": _schema_of(get_args(kind)[0], declared)}
    name = {int: "integer", float: "number", bool: "boolean", str: "string"}[kind]
    schema: dict[str, Any] = {"type": name}
    if name in ("integer", "number"):
        if declared.low is not None:
            schema["exclusiveMinimum" if declared.open_low else "minimum"] = declared.low
        if declared.high is not None:
            schema["exclusiveMaximum" if declared.open_high else "maximum"] = declared.high
    return schema
