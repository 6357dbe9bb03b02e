"""The safetensors layout, written and read without copying: eight bytes of length, a JSON header, the arrays' bytes.

The safetensors library reads these files and this module reads its. Arrays that numpy has no type for travel as a structured
type of one field that is named as torch names the type: `np.dtype([("bfloat16", "<u2")])`; their shape, slices and item size
are those of the tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..contracts import Array, Json
from ..errors import AlgorithmError
from .manifest import DamagedError

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
FLOAT8_E4M3 = np.dtype([("float8_e4m3fn", "u1")])
FLOAT8_E5M2 = np.dtype([("float8_e5m2", "u1")])
_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    **{f"{letter}{8 * size}": np.dtype(f"<{letter.lower()}{size}") for letter in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "C64": np.dtype("<c8"),
    "BF16": BFLOAT16,
    "F8_E4M3": FLOAT8_E4M3,
    "F8_E5M2": FLOAT8_E5M2,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_BY_NAME = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}  # of the package ml_dtypes
_ALIGNMENT = 64
_LENGTH = 8  # bytes of the header's length
_LONGEST_HEADER = 100_000_000  # as the library has it


@dataclass(frozen=True, slots=True)
class Layout:
    """Where arrays lie in a file that is still to be filled."""

    head: bytes
    spans: Mapping[str, tuple[int, int]]  # first byte and end in the file
    size: int  # of the whole file, bytes


def code_of(name: str, value: Array) -> str:
    """Return safetensors' name of the array's type.

    Raises:
        AlgorithmError: it has none: objects, text, dates, complex128, longdouble.
    """
    code = _CODES.get(value.dtype.newbyteorder("<")) or _BY_NAME.get(value.dtype.name)
    if code is None:
        raise AlgorithmError(f"'{name}' is an array of {value.dtype}, which no checkpoint holds; allowed: {', '.join(_DTYPES)}")
    return code


def layout(arrays: Mapping[str, Array]) -> Layout:
    """Return where `arrays` lie in one file: widest items first, so that all are aligned."""
    order = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    relative: dict[str, tuple[int, int]] = {}
    end = 0
    for key in order:
        start, end = end, end + arrays[key].nbytes
        relative[key] = (start, end)
        header[key] = {"dtype": code_of(key, arrays[key]), "shape": arrays[key].shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    head = len(text).to_bytes(_LENGTH, "little") + text
    return Layout(head, {key: (len(head) + a, len(head) + b) for key, (a, b) in relative.items()}, len(head) + end)


def fill(target: Array, plan: Layout, arrays: Mapping[str, Array]) -> None:
    """Copy `arrays` into `target` (size,) uint8 as `plan` says; other threads run meanwhile."""
    target[: len(plan.head)] = np.frombuffer(plan.head, dtype=np.uint8)
    for key, value in arrays.items():
        start, end = plan.spans[key]
        dtype = _DTYPES[code_of(key, value)]
        if value.dtype != dtype and value.dtype.kind == "V":  # of ml_dtypes: the same bits by another name
            value = value.view(dtype)
        np.copyto(target[start:end].view(dtype).reshape(value.shape), value)


def parse(data: Array) -> dict[str, Array]:
    """Return the arrays in a file's bytes (size,) uint8, as views of them.

    Raises:
        DamagedError: it is no safetensors file.
    """
    try:
        length = int.from_bytes(data[:_LENGTH].tobytes(), "little")
        if not 0 < length <= min(_LONGEST_HEADER, len(data) - _LENGTH):
            raise ValueError("its header has no possible length")
        header = json.loads(data[_LENGTH : _LENGTH + length].tobytes())
        header.pop("__metadata__", None)
        body = data[_LENGTH + length :]
        return {key: _view(body, found) for key, found in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"is no readable safetensors file: {error}") from None


def _view(body: Array, found: Mapping[str, Json]) -> Array:
    start, end = found["data_offsets"]
    dtype = _DTYPES[found["dtype"]]
    raw = body[start:end]
    if len(raw) != end - start:
        raise ValueError("it is cut short")
    if raw.ctypes.data % dtype.alignment:  # written by somebody who does not align
        raw = raw.copy()
    return raw.view(dtype).reshape(found["shape"])
