"""Rows and requests written as JSON: dense, sparse, or records of another kind.

A row is `{"features": [1.5, 16]}`, `{"data": {"features": {"values": [1.5, 16]}}}`, the same with `keys` and `shape` for a
sparse one, or whatever else: a record that an algorithm reads itself. A channel's rows may have `label` and `weight`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..contracts import Array, Csr, Features, Json, Records
from ..errors import UserError

Kind = Literal["dense", "sparse", "records"]
Where = Callable[[int], str]
_MAX_COLUMNS = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class _Sparse:
    keys: list[int]
    values: list[float]
    columns: int


def parse_json(text: str | bytes, where: str) -> Json:
    """Return the value of a JSON text.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where} is no valid JSON: {error}") from None


def kind_of(row: Json) -> Kind:
    """Return what a row is."""
    found = _features_of(row)
    if found is None:
        return "records"
    return "sparse" if isinstance(found, dict) and "keys" in found else "dense"


def features_of(rows: Sequence[Json], where: Where, columns: int | None) -> Features:
    """Return rows of one kind, the first one's.

    Args:
        rows: decoded objects, at least one.
        where: says where row i is, for errors.
        columns: the width; None: the first row's (dense) or the largest (sparse).

    Raises:
        UserError: a row of another kind or width, or with something that is no number.
    """
    kind = kind_of(rows[0])
    if kind == "records":
        return Records(list(rows))
    if kind == "sparse":
        return _sparse([_as_sparse(row, where, i) for i, row in enumerate(rows)], where, columns)
    dense = [_as_dense(row, where, i) for i, row in enumerate(rows)]
    width = len(dense[0]) if columns is None else columns
    for i, values in enumerate(dense):
        if len(values) != width:
            raise UserError(f"{where(i)} has {len(values)} features where {width} are expected")
    return np.array(dense, dtype=np.float64).astype(np.float32).reshape(len(dense), width)


def column_of(rows: Sequence[Json], name: str, where: Where) -> Array:
    """Return `label` or `weight` of all rows.

    Raises:
        UserError: a row lacks it, or it is no finite number.
    """
    out = np.empty(len(rows), dtype=np.float32)
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or name not in row:
            raise UserError(f"{where(i)} has no {name}")
        value = _number(row[name])
        if value is None or not math.isfinite(value):
            raise UserError(f"{where(i)}: the {name} must be a finite number, not {row[name]!r:.60}")
        out[i] = value
    return out


def _features_of(row: Json) -> Any:
    """Return the part of a row that holds numbers, None where it is a record of another kind."""
    if isinstance(row, list):
        return row
    if not isinstance(row, dict):
        return None
    found = row.get("features")
    if found is None and isinstance(row.get("data"), dict):
        found = row["data"].get("features")
    return found if isinstance(found, (list, dict)) else None


def _as_dense(row: Json, where: Where, i: int) -> list[float]:
    found = _features_of(row)
    values = found.get("values") if isinstance(found, dict) else found
    if not isinstance(values, list) or (isinstance(found, dict) and "keys" in found):
        raise UserError(f"{where(i)} is not dense as the first row: it needs a list of features")
    numbers = [_number(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        if number is None:
            raise UserError(f"{where(i)}: {value!r:.60} is no number")
    return [number for number in numbers if number is not None]


def _as_sparse(row: Json, where: Where, i: int) -> _Sparse:
    found = _features_of(row)
    if not isinstance(found, dict) or "keys" not in found:
        raise UserError(f"{where(i)} is not sparse as the first row: it needs features with keys, values and shape")
    keys, values = found.get("keys"), found.get("values")
    shape = found.get("shape")
    size = shape[-1] if isinstance(shape, list) and shape else shape
    if not isinstance(keys, list) or not isinstance(values, list) or len(keys) != len(values):
        raise UserError(f"{where(i)}: keys and values must be lists of the same length")
    if not all(isinstance(key, int) and not isinstance(key, bool) and 0 <= key < _MAX_COLUMNS for key in keys):
        raise UserError(f"{where(i)}: keys must be whole numbers of at least 0")
    if size is not None and not (isinstance(size, int) and 0 < size <= _MAX_COLUMNS):
        raise UserError(f"{where(i)}: shape must hold the number of columns, not {shape!r:.60}")
    numbers = [_number(value) for value in values]
    if any(number is None for number in numbers):
        raise UserError(f"{where(i)}: a value is no number")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    ordered = [keys[k] for k in order]
    if len(set(ordered)) != len(ordered):
        raise UserError(f"{where(i)} names a key twice")
    if size is not None and ordered and ordered[-1] >= size:
        raise UserError(f"{where(i)} has the key {ordered[-1]}, beyond its shape of {size} columns")
    return _Sparse(ordered, [numbers[k] or 0.0 for k in order], size or (ordered[-1] + 1 if ordered else 0))


def _sparse(rows: list[_Sparse], where: Where, columns: int | None) -> Csr:
    width = max(row.columns for row in rows) if columns is None else columns
    for i, row in enumerate(rows):
        if row.keys and row.keys[-1] >= width:
            raise UserError(f"{where(i)} has the key {row.keys[-1]}, beyond the {width} columns of the data")
    indptr = np.concatenate([[0], np.cumsum([len(row.keys) for row in rows])]).astype(np.int64)
    indices = np.array([key for row in rows for key in row.keys], dtype=np.int64)
    return Csr(indptr, indices, np.array([v for row in rows for v in row.values], dtype=np.float32), width)


def _number(value: Json) -> float | None:
    """Return a JSON number; null, "NaN" and the like are missing values."""
    if value is None:
        return math.nan
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float, str)):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return None
    return None
