"""`application/x-recordio-protobuf`: records of managed training, read and written.

Framing: per record the magic number 0xCED7230A and the length (both uint32, little-endian), the payload, zeros up to 4 bytes.
The upper 3 bits of the length mark a record in several parts. Payload: the protobuf message Record with the maps `features` (1)
and `label` (2) of Value; a Value is a tensor of float32 (2), float64 (3) or int32 (7): `values` (1), `keys` (2), `shape` (3).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import BinaryIO, final

import numpy as np

from ...contracts import Array, Csr, Features
from ...errors import UserError
from ..format import STRIDE, Options, RowIndex, Table, place_after, place_before
from ..recordio_kernels import (
    BAD_KEYS,
    COLUMNS,
    KEY_RANGE,
    KEYS,
    LABEL_KIND,
    MAGIC,
    NO_FEATURES,
    OK,
    SEVERAL,
    SHAPE,
    UNSUPPORTED,
    VALUES,
    WIDTH,
    describe,
    fill_dense,
    fill_labels,
    fill_sparse,
    frames,
)
from ..source import CHUNK, Source

_HEADER = struct.Struct("<II")
_MAX_RECORD = 1 << 29
_MAX_COLUMNS = (1 << 31) - 1
_AT_ONCE = 1 << 14  # records
_RUN = 1 << 19  # bytes of dense records that are decoded at a time
_INT32 = np.iinfo(np.int32)


@final
class RecordIO:
    """Dense and sparse records; a label is taken where there is one."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`."""
        walk = _Walk(source.name, options.label_size == 1)
        offset, rest = 0, bytearray()
        while True:
            data = source.read(offset + len(rest), max(CHUNK, len(rest)))  # a long record is looked at a few times only
            rest += data
            if not rest:
                break
            used = walk.take(rest, offset)
            rest, offset = rest[used:], offset + used
            if not data and rest:
                raise UserError(f"{source.name} record {walk.rows + 1}: cut short")
            if len(rest) > _MAX_RECORD + 8:
                raise UserError(f"{source.name} record {walk.rows + 1}: longer than {_MAX_RECORD >> 20} MiB")
        columns = walk.columns if options.columns is None or not walk.sparse else options.columns
        places = np.append(walk.places, offset).astype(np.int64)
        return RowIndex(walk.rows, places, columns if walk.rows else None, sparse=walk.sparse, labelled=walk.labelled)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        size = place_after(index, stop) - place_before(index, start)[1]
        width = index.columns or 0
        # a dense value takes a byte at least: with fewer, a record is short; reading in one go names it before memory is taken
        if index.sparse or size < 2 * _RUN or (stop - start) * width > size:
            return _read_run(source, index, start, stop, options, None)
        features = np.empty((stop - start, width), dtype=np.float32)
        label = np.empty(stop - start, dtype=np.float32) if index.labelled else None
        strides = max(1, _RUN * (stop - start) // (size * STRIDE))
        edges = [start, *range((start // STRIDE + 1) * STRIDE, stop, strides * STRIDE), stop]
        for first, last in pairwise(edges):  # in runs that stay in the processor's cache from reading to decoding
            part = _read_run(source, index, first, last, options, features[first - start : last - start])
            if label is not None:
                label[first - start : last - start] = part.label
        return Table(features, label)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} record {row + 1}"


def write_dense(file: BinaryIO, features: Array, label: Array | None = None) -> None:
    """Write rows (N, D), with labels (N,) where given; int arrays become int32 tensors, float64 and float32 stay what they are.

    Raises:
        UserError: another dtype, whole numbers beyond int32, features that are no matrix, a label that is not as long.
    """
    if features.ndim != 2:
        raise UserError(f"features must have the shape (rows, columns), not {features.shape}")
    _check_label(len(features), label)
    if all(array is None or array.dtype in (np.float32, np.float64) for array in (features, label)):
        step = max(1, CHUNK // (features.shape[1] + 1) // 8)
        for start in range(0, len(features), step):
            part = slice(start, start + step)
            tensors = [(1, "values", features[part])]
            if label is not None:
                tensors.append((2, "values", label[part, None]))
            file.write(_alike(tensors))
        return
    for number, row in enumerate(features):
        _write_record(file, _tensor(row), None if label is None else _tensor(label[number : number + 1]))


def write_sparse(file: BinaryIO, features: Csr, label: Array | None = None) -> None:
    """Write sparse rows, with labels (N,) where given."""
    _check_label(len(features), label)
    shape = np.array([features.columns], dtype=np.uint64)
    for number in range(len(features)):
        part = slice(int(features.indptr[number]), int(features.indptr[number + 1]))
        tensor = _tensor(features.values[part], features.indices[part], shape)
        _write_record(file, tensor, None if label is None else _tensor(label[number : number + 1]))


def encode_label_records(columns: Mapping[str, Array]) -> bytes:
    """Return a response: a record a row, every column (N,) or (N, K) a float32 entry of its label map.

    Raises:
        UserError: a column that holds no numbers, or is not as long as the others.
    """
    tensors = []
    for name, column in columns.items():
        if np.asarray(column).dtype.kind not in "biuf":
            raise UserError(
                f"'{name}' holds no numbers: recordio-protobuf cannot carry it; ask for application/json or text/csv"
            )
        values = np.asarray(column, dtype=np.float32)
        tensors.append((2, name, values.reshape(len(values), -1) if values.size else values.reshape(len(values), 0)))
    if len({len(values) for _, _, values in tensors}) > 1:
        raise UserError(f"columns differ in length: {', '.join(f'{name} {len(values)}' for _, name, values in tensors)}")
    return _alike(tensors)


def decode_records(body: bytes, columns: int | None) -> Features:
    """Return the features of a request's records.

    Raises:
        UserError: damaged records, or no records.
    """
    name = "the request"
    data, begins, ends = _frames(body, name, 0, len(body) // 8 + 1)
    if not len(begins):
        raise UserError(f"{name} holds no records")
    descriptions = _describe(data, begins, ends, name, 0)
    width = columns if columns is not None else _width(descriptions, name, 0)
    return _features(data, descriptions, width, _sparse(descriptions), name, 0)


@final
class _Walk:
    """Counts records and notes where every STRIDE-th one is."""

    def __init__(self, name: str, labels: bool) -> None:
        self._name = name
        self._labels = labels
        self.rows = 0
        self.places: list[int] = []
        self.columns = 0
        self.sparse = False
        self.labelled = False

    def take(self, piece: bytearray, offset: int) -> int:
        """Walk the whole records in `piece`, which lies at `offset`; return how many bytes they take."""
        data = np.frombuffer(piece, dtype=np.uint8)
        begins, ends = np.empty(_AT_ONCE, dtype=np.int64), np.empty(_AT_ONCE, dtype=np.int64)
        used, count = 0, _AT_ONCE
        while count == _AT_ONCE:
            count, used, code = frames(data, used, begins, ends)
            self._note(data, begins[:count], ends[:count], offset + begins[:count] - 8)
            if code != OK:
                raise _no_record(self._name, self.rows)
        return int(used)

    def _note(self, data: Array, begins: Array, ends: Array, places: Array) -> None:
        if not len(begins):
            return
        descriptions = _describe(data, begins, ends, self._name, self.rows)
        self.sparse = self.sparse or _sparse(descriptions)
        self._note_labels(descriptions)
        self.columns = max(self.columns, _width(descriptions, self._name, self.rows))
        self.places += places[(-self.rows) % STRIDE :: STRIDE].tolist()
        self.rows += len(begins)

    def _note_labels(self, descriptions: Array) -> None:
        """All records have labels or none has."""
        if not self._labels:
            return
        has = descriptions[:, LABEL_KIND] != 0
        if self.rows == 0:
            self.labelled = bool(has[0])
        if (has != self.labelled).any():
            record = self.rows + int(np.argmax(has != self.labelled)) + 1
            states = ("has no label", "has a label") if self.labelled else ("has a label", "has none")
            raise UserError(f"{self._name} record {record} {states[0]} where record 1 {states[1]}")


def _read_run(source: Source, index: RowIndex, start: int, stop: int, options: Options, out: Array | None) -> Table:
    """Return rows [start, stop); dense ones in `out` where it is given."""
    first, place = place_before(index, start)
    piece = source.read(place, place_after(index, stop) - place)
    data, begins, ends = _frames(piece, source.name, first, stop - first + STRIDE)
    begins, ends = begins[start - first : stop - first], ends[start - first : stop - first]
    if len(begins) != stop - start:
        raise UserError(f"{source.name} has changed while it was read")
    descriptions = _describe(data, begins, ends, source.name, start)
    columns = index.columns if options.columns is None or not index.sparse else options.columns
    features = _features(data, descriptions, columns or 0, index.sparse, source.name, start, out)
    return Table(features, _labels(data, descriptions, source.name, start) if index.labelled else None)


def _frames(piece: bytes, name: str, first: int, limit: int) -> tuple[Array, Array, Array]:
    """Return data, and begin and end of every payload in it: at most `limit` records, numbered from `first`."""
    data = np.frombuffer(bytearray(piece), dtype=np.uint8)
    begins, ends = np.empty(limit, dtype=np.int64), np.empty(limit, dtype=np.int64)
    count, used, code = frames(data, 0, begins, ends)
    if code != OK:
        raise _no_record(name, first + count)
    if used != len(data):
        raise UserError(f"{name} record {first + count + 1}: cut short")
    return data, begins[:count], ends[:count]


def _no_record(name: str, row: int) -> UserError:
    return UserError(f"{name} record {row + 1}: no record begins here (is it recordio?)")


def _describe(data: Array, begins: Array, ends: Array, name: str, first: int) -> Array:
    descriptions = np.zeros((len(begins), COLUMNS), dtype=np.int64)
    code, record = describe(data, begins, ends, descriptions)
    if code != OK:
        raise _wrong(code, f"{name} record {first + record + 1}", 0)
    return descriptions


def _sparse(descriptions: Array) -> bool:
    """Return whether records are sparse: they have keys, or no values but a shape."""
    empty = (descriptions[:, VALUES] == 0) & (descriptions[:, WIDTH] > 0)
    return bool(((descriptions[:, KEYS] > 0) | empty).any())


def _width(descriptions: Array, name: str, first: int) -> int:
    record = int(descriptions[:, WIDTH].argmax())
    width = int(descriptions[record, WIDTH])
    if width > _MAX_COLUMNS:
        raise UserError(f"{name} record {first + record + 1}: a width of {width} is not possible, the most is {_MAX_COLUMNS}")
    return width


def _features(
    data: Array, descriptions: Array, columns: int, sparse: bool, name: str, first: int, out: Array | None = None
) -> Features:
    if not sparse:
        wrong = np.flatnonzero((descriptions[:, VALUES] != columns) | (descriptions[:, KEYS] > 0))
        if len(wrong):  # before memory is taken: one wide record must not make all wide
            has = int(descriptions[wrong[0], VALUES])
            raise UserError(f"{name} record {first + int(wrong[0]) + 1} has {has} values where {columns} are expected")
        dense = np.empty((len(descriptions), columns), dtype=np.float32) if out is None else out
        fill_dense(data, descriptions, dense)
        return dense
    indptr = np.concatenate([[0], np.cumsum(descriptions[:, VALUES])]).astype(np.int64)
    indices, values = np.empty(int(indptr[-1]), dtype=np.int64), np.empty(int(indptr[-1]), dtype=np.float32)
    code, record = fill_sparse(data, descriptions, indptr, indices, values, columns)
    if code != OK:
        raise _wrong(code, f"{name} record {first + record + 1}", columns)
    return Csr(indptr, indices, values, columns)


def _labels(data: Array, descriptions: Array, name: str, first: int) -> Array:
    label = np.empty(len(descriptions), dtype=np.float32)
    code, record = fill_labels(data, descriptions, label)
    if code != OK:
        raise UserError(f"{name} record {first + record + 1}: a label must be one number")
    bad = np.flatnonzero(~np.isfinite(label))
    if len(bad):
        raise UserError(f"{name} record {first + int(bad[0]) + 1}: the label must be a finite number, not {label[bad[0]]}")
    return label


def _wrong(code: int, where: str, columns: int) -> UserError:
    if code == NO_FEATURES:
        return UserError(f"{where} has no features")
    if code == UNSUPPORTED:
        return UserError(f"{where} holds a tensor that is neither float32, float64 nor int32")
    if code == BAD_KEYS:
        return UserError(f"{where}: a sparse tensor needs one key for every value, and each key once")
    if code == KEY_RANGE:
        return UserError(f"{where} has a key beyond the {columns} columns of the data")
    if code == SEVERAL:
        return UserError(f"{where} has more than one tensor of features; there must be one, named 'values'")
    if code == SHAPE:
        return UserError(f"{where}: its shape does not fit the number of its values")
    return UserError(f"{where} is damaged: no protobuf message")


def _check_label(rows: int, label: Array | None) -> None:
    if label is not None and (label.ndim != 1 or len(label) != rows):
        raise UserError(f"the label must be a vector of {rows} values, not of shape {label.shape}")


def _write_record(file: BinaryIO, features: bytes, label: bytes | None) -> None:
    key = _bytes_field(1, b"values")
    payload = _bytes_field(1, key + _bytes_field(2, features))
    if label is not None:
        payload += _bytes_field(2, key + _bytes_field(2, label))
    file.write(_framed(payload))


def _framed(payload: bytes) -> bytes:
    return _HEADER.pack(MAGIC, len(payload)) + payload + b"\0" * (-len(payload) % 4)


def _alike(tensors: Sequence[tuple[int, str, Array]]) -> bytes:
    """Return records of float tensors, given as (map, name, values (N, K)).

    They are all as long as each other: one is laid out, copied, and the values are written into the copies.
    """
    layout, places, at = b"", [], _HEADER.size
    for number, name, values in tensors:
        size = values.shape[1] * values.itemsize
        kind = 3 if values.dtype == np.float64 else 2
        value = _bytes_field(kind, _packed(1, bytes(size)))
        layout += _bytes_field(number, _bytes_field(1, name.encode()) + _bytes_field(2, value))
        places.append(slice(at + len(layout) - size, at + len(layout)))
    record = np.frombuffer(_framed(layout), dtype=np.uint8)
    records = np.repeat(record[None], len(tensors[0][2]) if tensors else 0, axis=0)
    for place, (_, _, values) in zip(places, tensors, strict=True):
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        records[:, place] = little.view(np.uint8).reshape(len(little), -1) if little.size else 0
    return records.tobytes()


def _tensor(values: Array, keys: Array | None = None, shape: Array | None = None) -> bytes:
    """Return a Value that holds one tensor."""
    if values.dtype.kind in "iu":
        if values.size and (int(values.max()) > _INT32.max or int(values.min()) < _INT32.min):
            raise UserError("whole numbers beyond 32 bits cannot be written as int32; give float32 or float64")
        number, content = 7, _varints(values)
    elif values.dtype == np.float64:
        number, content = 3, values.astype("<f8").tobytes()
    elif values.dtype == np.float32:
        number, content = 2, values.astype("<f4").tobytes()
    else:
        raise UserError(f"arrays of {values.dtype} cannot be written; give int, float32 or float64")
    body = _packed(1, content)
    if keys is not None:
        body += _packed(2, _varints(keys))
    if shape is not None:
        body += _packed(3, _varints(shape))
    return _bytes_field(number, body)


def _packed(number: int, content: bytes) -> bytes:
    """Return a repeated field; one without values is left out, as protobuf does."""
    return _bytes_field(number, content) if content else b""


def _varints(numbers: Array) -> bytes:
    return b"".join(_varint(int(number) & (2**64 - 1)) for number in numbers.tolist())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content
