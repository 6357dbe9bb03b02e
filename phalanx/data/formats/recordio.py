"""`application/x-recordio-protobuf`: records of managed training, read and written.

Framing: per record the magic number 0xCED7230A and the length (both uint32, little-endian), the payload, zeros up to 4 bytes.
The upper 3 bits of the length mark a record in several parts. Payload: the protobuf message Record with the maps `features` (1)
and `label` (2) of Value; a Value is a tensor of float32 (2), float64 (3) or int32 (7): `values` (1), `keys` (2), `shape` (3).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
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
    UNSUPPORTED,
    VALUES,
    WIDTH,
    WIDTH_OF,
    describe,
    fill_dense,
    fill_labels,
    fill_sparse,
    frames,
    largest_key,
)
from ..source import CHUNK, Source

_HEADER = struct.Struct("<II")
_MAX_RECORD = 1 << 29
_MAX_COLUMNS = (1 << 31) - 1


@final
class RecordIO:
    """Dense and sparse records; a label is taken where there is one."""

    def index(self, source: Source, options: Options) -> RowIndex:
        """See `Format.index`."""
        walk = _Walk(source.name, options.label_size == 1)
        offset, rest = 0, b""
        while True:
            data = source.read(offset + len(rest), CHUNK)
            piece = rest + data
            if not piece:
                break
            used = walk.take(piece, offset)
            rest, offset = piece[used:], offset + used
            if not data and rest:
                raise UserError(f"{source.name} record {walk.rows + 1}: cut short")
            if len(rest) > _MAX_RECORD + 8:
                raise UserError(f"{source.name} record {walk.rows + 1}: longer than {_MAX_RECORD >> 20} MiB")
        columns = walk.columns if options.columns is None or not walk.sparse else options.columns
        places = np.append(walk.places, offset).astype(np.int64)
        return RowIndex(walk.rows, places, columns if walk.rows else None, sparse=walk.sparse, labelled=walk.labelled)

    def read(self, source: Source, index: RowIndex, start: int, stop: int, options: Options) -> Table:
        """See `Format.read`."""
        first, place = place_before(index, start)
        data, begins, ends = _frames(source.read(place, place_after(index, stop) - place), source.name)
        begins, ends = begins[start - first : stop - first], ends[start - first : stop - first]
        if len(begins) != stop - start:
            raise UserError(f"{source.name} has changed while it was read")
        descriptions = _describe(data, begins, ends, source.name, start)
        columns = options.columns if options.columns is not None else index.columns or 0
        if not index.sparse:
            columns = index.columns or 0
        features = _features(data, descriptions, columns, index.sparse, source.name, start)
        return Table(features, _labels(data, descriptions, source.name, start) if index.labelled else None)

    def where(self, source: Source, index: RowIndex, row: int) -> str:
        """See `Format.where`."""
        return f"{source.name} record {row + 1}"


def write_dense(file: BinaryIO, features: Array, label: Array | None = None) -> None:
    """Write rows (N, D), with labels (N,) where given; int arrays become int32 tensors, float64 and float32 stay what they are.

    Raises:
        UserError: another dtype, or a label that is not as long as the features.
    """
    _check_label(features.shape[0], label)
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
    """Return a response: a record a row, every column an entry of its label map."""
    parts: list[bytes] = []
    for row in zip(*columns.values(), strict=True):
        entries = [
            _bytes_field(2, _bytes_field(1, name.encode()) + _bytes_field(2, _tensor(np.atleast_1d(np.asarray(v, np.float32)))))
            for name, v in zip(columns, row, strict=True)
        ]
        parts.append(_framed(b"".join(entries)))
    return b"".join(parts)


def decode_records(body: bytes, columns: int | None) -> Features:
    """Return the features of a request's records.

    Raises:
        UserError: damaged records, or no records.
    """
    data, begins, ends = _frames(body, "the request")
    if not len(begins):
        raise UserError("the request holds no records")
    descriptions = _describe(data, begins, ends, "the request", 0)
    sparse = _sparse(descriptions)
    width = columns if columns is not None else _width(data, descriptions, "the request", 0)
    return _features(data, descriptions, width, sparse, "the request", 0)


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

    def take(self, piece: bytes, offset: int) -> int:
        """Walk the whole records in `piece`, which lies at `offset`; return how many bytes they take."""
        data = np.frombuffer(piece, dtype=np.uint8)
        limit = len(data) // 8 + 1
        begins, ends = np.empty(limit, dtype=np.int64), np.empty(limit, dtype=np.int64)
        count, used, code, parts = frames(data, begins, ends, limit)
        self._note(data, begins[:count], ends[:count], offset + begins[:count] - 8)
        if code != OK:
            raise UserError(f"{self._name} record {self.rows + 1}: no record begins here (is it recordio?)")
        if parts:
            payload, length = _joined(piece, used, f"{self._name} record {self.rows + 1}")
            if payload is not None:
                joined = np.frombuffer(payload, dtype=np.uint8)
                place = np.array([offset + used])
                self._note(joined, np.zeros(1, np.int64), np.array([len(joined)]), place)
                used += length
        return int(used)

    def _note(self, data: Array, begins: Array, ends: Array, places: Array) -> None:
        if not len(begins):
            return
        descriptions = _describe(data, begins, ends, self._name, self.rows)
        self.sparse = self.sparse or _sparse(descriptions)
        self._note_labels(descriptions)
        self.columns = max(self.columns, _width(data, descriptions, self._name, self.rows))
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


def _frames(piece: bytes, name: str) -> tuple[Array, Array, Array]:
    """Return data, and begin and end of every record's payload in it; records in parts are joined."""
    data = np.frombuffer(piece, dtype=np.uint8)
    limit = len(data) // 8 + 1
    begins, ends = np.empty(limit, dtype=np.int64), np.empty(limit, dtype=np.int64)
    count, used, code, parts = frames(data, begins, ends, limit)
    if code == OK and not parts and used == len(data):
        return data, begins[:count], ends[:count]
    if code != OK:
        raise UserError(f"{name} record {count + 1}: no record begins here (is it recordio?)")
    if not parts:
        raise UserError(f"{name} record {count + 1}: cut short")
    whole = bytearray(piece[:used])
    while used < len(piece):
        payload, length = _joined(piece, used, name)
        if payload is None:
            raise UserError(f"{name}: a record in several parts is cut short")
        whole += _framed(payload)
        used += length
    return _frames(bytes(whole), name)


def _joined(piece: bytes, at: int, name: str) -> tuple[bytes | None, int]:
    """Return the payload of the record at `at`, its parts joined by the magic number, and its length; None where it goes on."""
    begin, payload = at, b""
    while True:
        if at + 8 > len(piece):
            return None, 0
        magic, word = _HEADER.unpack_from(piece, at)
        flag, length = word >> 29, word & (_MAX_RECORD - 1)
        if magic != MAGIC or (flag in (0, 1)) != (at == begin):
            raise UserError(f"{name}: no record begins here (is it recordio?)")
        if at + 8 + length > len(piece):
            return None, 0
        payload += (struct.pack("<I", MAGIC) if at != begin else b"") + piece[at + 8 : at + 8 + length]
        at = min(at + 8 + (length + 3) // 4 * 4, len(piece))
        if flag in (0, 3):
            return payload, at - begin


def _describe(data: Array, begins: Array, ends: Array, name: str, first: int) -> Array:
    descriptions = np.zeros((len(begins), COLUMNS), dtype=np.int64)
    code, record = describe(data, begins, ends, descriptions)
    if code != OK:
        raise _wrong(code, f"{name} record {first + record + 1}", 0)
    return descriptions


def _sparse(descriptions: Array) -> bool:
    """Return whether records are sparse: they have keys, or no values but a shape."""
    empty = (descriptions[:, VALUES] == 0) & (descriptions[:, WIDTH_OF] > 0)
    return bool(((descriptions[:, KEYS] > 0) | empty).any())


def _width(data: Array, descriptions: Array, name: str, first: int) -> int:
    shaped = descriptions[:, WIDTH_OF]
    sparse = descriptions[:, KEYS] > 0
    given = np.where(sparse | (descriptions[:, VALUES] == 0), shaped, descriptions[:, VALUES])
    width = max(int(given.max()), int(largest_key(data, descriptions[sparse & (shaped < 0)])))
    if width > _MAX_COLUMNS or (shaped < -1).any():
        record = int(np.argmax((given > _MAX_COLUMNS) | (shaped < -1)))
        raise UserError(f"{name} record {first + record + 1}: a width of {int(shaped[record]) & (2**64 - 1)} is not possible")
    return width


def _features(data: Array, descriptions: Array, columns: int, sparse: bool, name: str, first: int) -> Features:
    if not sparse:
        dense = np.empty((len(descriptions), columns), dtype=np.float32)
        code, record = fill_dense(data, descriptions, dense)
        if code != OK:
            has = int(descriptions[record, VALUES])
            raise UserError(f"{name} record {first + record + 1} has {has} values where {columns} are expected")
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
    if code == WIDTH:
        return UserError(f"{where} has another width than the data")
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


def _tensor(values: Array, keys: Array | None = None, shape: Array | None = None) -> bytes:
    """Return a Value that holds one tensor."""
    if values.dtype.kind in "iu":
        number, packed = 7, _varints(values.astype(np.int64))
    elif values.dtype == np.float64:
        number, packed = 3, values.astype("<f8").tobytes()
    elif values.dtype == np.float32:
        number, packed = 2, values.astype("<f4").tobytes()
    else:
        raise UserError(f"arrays of {values.dtype} cannot be written; give int, float32 or float64")
    body = _bytes_field(1, packed)
    if keys is not None:
        body += _bytes_field(2, _varints(keys))
    if shape is not None:
        body += _bytes_field(3, _varints(shape))
    return _bytes_field(number, body)


def _varints(numbers: Array) -> bytes:
    return b"".join(_varint(int(number) & (2**64 - 1)) for number in numbers)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content
