"""The loops that decode recordio-protobuf. Compiled by numba, cached on disk, free of the GIL.

Every read is checked against the end of the bytes at hand; lengths that a file claims never decide how much memory is taken.
Legend: data (bytes,) uint8; a payload is data[begin:end]; descriptions (N, COLUMNS) int64, see the column names.
"""

# mypy: disable-error-code="assignment,no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np
from numba import njit

from . import kernel_cache  # noqa: F401 - before anything compiles

MAGIC = 0xCED7230A
_FLAGS = 29  # the length word: 3 bits that say which part of a record this is, then its length
_WHOLE, _FIRST, _LAST = 0, 1, 3
IMPOSSIBLE = 1 << 62  # stands for any number beyond
# what is wrong with a payload
OK, DAMAGED, NO_FEATURES, UNSUPPORTED, BAD_KEYS, KEY_RANGE, SEVERAL, SHAPE = 0, 1, 2, 3, 4, 5, 6, 7
# columns of a description
KIND, BEGIN, END, VALUES, KEYS, WIDTH, LABEL_KIND, LABEL_BEGIN, LABEL_END = 0, 1, 2, 3, 4, 5, 6, 7, 8
COLUMNS = 9
# kinds of tensors, as numbered in Value; -1: a label of another kind, or several
FLOAT32, FLOAT64, INT32 = 2, 3, 7


@njit(nogil=True, cache=True)
def _word(data, at):
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24


@njit(nogil=True, cache=True)
def _span(data, at):
    """Return (end of the payload, start of the next record, code) of the record at `at`; end -1 where it is not all there.

    A part after the first has four bytes of the payload's own before it: the magic number that it was parted at. The padding
    of the last record may be missing.
    """
    size = len(data)
    first = True
    end = at + 8
    while True:
        if at + 8 > size:
            return -1, at, OK
        flag = _word(data, at + 4) >> _FLAGS
        if _word(data, at) != MAGIC or (flag in (_WHOLE, _FIRST)) != first or flag > _LAST:
            return -1, at, DAMAGED
        length = _word(data, at + 4) & ((1 << _FLAGS) - 1)
        if at + 8 + length > size:
            return -1, at, OK
        end += length if first else 4 + length
        at = min(at + 8 + (length + 3) // 4 * 4, size)
        if flag in (_WHOLE, _LAST):
            return end, at, OK
        first = False


@njit(nogil=True, cache=True)
def _join(data, at, stop):
    """Move the parts of a record to where it begins, so that its payload lies in one piece."""
    begin = at
    to = at + 8
    while at < stop:
        length = _word(data, at + 4) & ((1 << _FLAGS) - 1)
        if at > begin:  # a header is longer than the magic number that takes its place
            for i in range(4):
                data[to + i] = (MAGIC >> (8 * i)) & 255
            to += 4
        for i in range(length):
            data[to + i] = data[at + 8 + i]
        to += length
        at = at + 8 + (length + 3) // 4 * 4


@njit(nogil=True, cache=True)
def frames(data, at, begins, ends):
    """Fill `begins` and `ends` with the payloads of whole records from `at`; return (records, next place, code).

    Records in several parts are joined in `data` itself; a payload always begins 8 bytes after its record. The code is DAMAGED
    where the next place begins no record; else what lies there is not all there, or the outputs are full.
    """
    count = 0
    while count < len(begins) and at < len(data):
        end, after, code = _span(data, at)
        if code != OK or end < 0:
            return count, at, code
        if _word(data, at + 4) >> _FLAGS != _WHOLE:
            _join(data, at, after)
        begins[count] = at + 8
        ends[count] = end
        count += 1
        at = after
    return count, at, OK


@njit(nogil=True, cache=True)
def _varint(data, at, end):
    """Return (value as int64, next place); next place -1 where it is damaged."""
    value = np.uint64(0)
    shift = np.uint64(0)
    for _ in range(10):
        if at >= end:
            return np.int64(0), -1
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < 128:
            return np.int64(value), at
        shift += np.uint64(7)
    return np.int64(0), -1


@njit(nogil=True, cache=True)
def _field(data, at, end):
    """Return (number, wire type, content begin, content end, next place); next place -1 where it is damaged."""
    tag, at = _varint(data, at, end)
    if at < 0 or tag < 8:
        return 0, 0, 0, 0, -1
    number = tag >> 3
    wire = tag & 7
    if wire == 0:
        begin = at
        _, at = _varint(data, at, end)
        return number, wire, begin, at, at
    if wire == 1:
        return (number, wire, at, at + 8, at + 8) if at + 8 <= end else (0, 0, 0, 0, -1)
    if wire == 5:
        return (number, wire, at, at + 4, at + 4) if at + 4 <= end else (0, 0, 0, 0, -1)
    if wire == 2:
        length, at = _varint(data, at, end)
        if at < 0 or length < 0 or length > end - at:
            return 0, 0, 0, 0, -1
        return number, wire, at, at + length, at + length
    return 0, 0, 0, 0, -1


@njit(nogil=True, cache=True)
def _value_of_entry(data, at, end):
    """Return (code, tensor kind, begin, end) of a map entry's Value; kind 0 where there is none."""
    kind = 0
    first = 0
    last = 0
    while at < end:
        number, wire, begin, stop, at = _field(data, at, end)
        if at < 0:
            return DAMAGED, 0, 0, 0
        if number == 2 and wire == 2:
            inner = begin
            while inner < stop:
                tensor, inner_wire, tensor_begin, tensor_end, inner = _field(data, inner, stop)
                if inner < 0:
                    return DAMAGED, 0, 0, 0
                if inner_wire == 2:
                    if kind != 0:
                        return SEVERAL, 0, 0, 0
                    kind, first, last = tensor, tensor_begin, tensor_end
    return OK, kind, first, last


@njit(nogil=True, cache=True)
def _count(data, begin, end, packed_width):
    """Return how many numbers a packed field holds; -1 where it is damaged. Width 0: varints, of at most 10 bytes each."""
    if packed_width > 0:
        return (end - begin) // packed_width if (end - begin) % packed_width == 0 else -1
    count = 0
    length = 0
    for i in range(begin, end):
        length += 1
        if data[i] < 128:
            count += 1
            length = 0
        elif length == 10:
            return -1
    return count if length == 0 else -1


@njit(nogil=True, cache=True)
def _measure(data, kind, at, end):
    """Return (values, keys, product of the shape or -1) of a tensor; values -1 where it is damaged."""
    wide = 4 if kind == FLOAT32 else 8 if kind == FLOAT64 else 0
    values = 0
    keys = 0
    size = np.int64(-1)
    while at < end:
        number, wire, begin, stop, at = _field(data, at, end)
        if at < 0:
            return -1, 0, size
        if number == 1:
            if wire == 2:
                more = _count(data, begin, stop, wide)
                if more < 0:
                    return -1, 0, size
                values += more
            elif (wire == 5 and wide == 4) or (wire == 1 and wide == 8) or (wire == 0 and wide == 0):
                values += 1
            else:
                return -1, 0, size
        elif number == 2 or number == 3:
            more = _count(data, begin, stop, 0) if wire == 2 else 1 if wire == 0 else -1
            if more < 0:
                return -1, 0, size
            if number == 2:
                keys += more
            else:
                place = begin
                for _ in range(more):
                    length, place = _varint(data, place, stop)
                    size = length if size < 0 else _times(size, length)
                    if size < 0 or size > IMPOSSIBLE:
                        size = np.int64(IMPOSSIBLE)
    return values, keys, size


@njit(nogil=True, cache=True)
def _times(a, b):
    """Return a · b for a >= 0, IMPOSSIBLE where it is more."""
    if a == 0 or b == 0:
        return np.int64(0)
    return np.int64(IMPOSSIBLE) if b < 0 or b > IMPOSSIBLE // a else a * b


@njit(nogil=True, cache=True)
def _largest_key(data, at, end):
    """Return the largest key of a tensor that was measured; IMPOSSIBLE where it is more."""
    largest = np.int64(-1)
    while at < end:
        number, _, begin, stop, at = _field(data, at, end)
        if number == 2:
            place = begin
            while place < stop:
                key, place = _varint(data, place, stop)
                largest = max(largest, key if 0 <= key < IMPOSSIBLE else np.int64(IMPOSSIBLE))
    return largest


@njit(nogil=True, cache=True)
def _find_tensors(data, at, end, row):
    """Note where a record's features and label are; return what is wrong."""
    row[KIND] = 0
    row[LABEL_KIND] = 0
    while at < end:
        number, wire, begin, stop, at = _field(data, at, end)
        if at < 0:
            return DAMAGED
        if (number != 1 and number != 2) or wire != 2:
            continue
        code, kind, first, last = _value_of_entry(data, begin, stop)
        if code == DAMAGED:
            return DAMAGED
        if kind == 0 and code == OK:
            continue
        if number == 2:
            single = code == OK and row[LABEL_KIND] == 0 and kind in (FLOAT32, FLOAT64, INT32)
            row[LABEL_KIND], row[LABEL_BEGIN], row[LABEL_END] = kind if single else -1, first, last
            continue
        if code != OK or row[KIND] != 0:
            return SEVERAL
        row[KIND], row[BEGIN], row[END] = kind, first, last
    return OK


@njit(nogil=True, cache=True)
def _describe_one(data, at, end, row):
    """Fill the description of a payload; return what is wrong."""
    code = _find_tensors(data, at, end, row)
    if code != OK:
        return code
    kind = row[KIND]
    if kind == 0:
        return NO_FEATURES
    if kind not in (FLOAT32, FLOAT64, INT32):
        return UNSUPPORTED
    values, keys, size = _measure(data, kind, row[BEGIN], row[END])
    if values < 0:
        return DAMAGED
    row[VALUES], row[KEYS], row[WIDTH] = values, keys, size
    if keys > 0:
        if size < 0:
            row[WIDTH] = _largest_key(data, row[BEGIN], row[END]) + 1
        return OK if keys == values else BAD_KEYS
    if size < 0:
        row[WIDTH] = values
    return OK if values == 0 or values == row[WIDTH] else SHAPE


@njit(nogil=True, cache=True)
def describe(data, begins, ends, descriptions):
    """Fill the descriptions of payloads; return (code, record) of the first that is wrong."""
    for record in range(len(begins)):
        code = _describe_one(data, begins[record], ends[record], descriptions[record])
        if code != OK:
            return code, record
    return OK, 0


@njit(nogil=True, cache=True)
def _fill(data, kind, at, end, values, keys):
    """Write a tensor's values as float32 and its keys; it was measured, and the outputs are as long as that said."""
    bits64 = np.empty(1, dtype=np.uint64) if kind == FLOAT64 else np.empty(0, dtype=np.uint64)
    as64 = bits64.view(np.float64)
    value_at = 0
    key_at = 0
    while at < end:
        number, _, begin, stop, at = _field(data, at, end)
        place = begin
        if number == 1 and kind == FLOAT32:
            source = data[begin:stop]  # slices, so that the copy is made many bytes at a time
            target = values[value_at : value_at + (stop - begin) // 4].view(np.uint8)
            for i in range(min(len(source), len(target))):
                target[i] = source[i]
            value_at += (stop - begin) // 4
        elif number == 1:
            while place < stop and value_at < len(values):
                if kind == FLOAT64:
                    bits = np.uint64(0)
                    for i in range(8):
                        bits |= np.uint64(data[place + i]) << np.uint64(8 * i)
                    bits64[0] = bits
                    values[value_at] = as64[0]
                    place += 8
                else:
                    whole, place = _varint(data, place, stop)
                    values[value_at] = np.int32(whole)
                value_at += 1
        elif number == 2:
            while place < stop and key_at < len(keys):
                keys[key_at], place = _varint(data, place, stop)
                key_at += 1


@njit(nogil=True, cache=True)
def fill_dense(data, descriptions, out):
    """Write dense rows into out (N, D); every description says D values."""
    none = np.empty(0, dtype=np.int64)
    for record in range(len(descriptions)):
        row = descriptions[record]
        _fill(data, row[KIND], row[BEGIN], row[END], out[record], none)


@njit(nogil=True, cache=True)
def fill_sparse(data, descriptions, indptr, indices, values, columns):
    """Write sparse rows; dense ones count as keys 0 …; return (code, record)."""
    for record in range(len(descriptions)):
        row = descriptions[record]
        begin = indptr[record]
        end = indptr[record + 1]
        _fill(data, row[KIND], row[BEGIN], row[END], values[begin:end], indices[begin:end])
        if row[KEYS] == 0 and end > begin:
            for i in range(begin, end):
                indices[i] = i - begin
        ascending = True
        for i in range(begin, end):
            if indices[i] < 0 or indices[i] >= columns:
                return KEY_RANGE, record
            if i > begin and indices[i] <= indices[i - 1]:
                ascending = False
        if not ascending:
            order = np.argsort(indices[begin:end])
            indices[begin:end] = indices[begin:end][order]
            values[begin:end] = values[begin:end][order]
            for i in range(begin + 1, end):
                if indices[i] == indices[i - 1]:
                    return BAD_KEYS, record
    return OK, 0


@njit(nogil=True, cache=True)
def fill_labels(data, descriptions, out):
    """Write labels into out (N,), NaN where a record has none; return (code, record)."""
    none = np.empty(0, dtype=np.int64)
    for record in range(len(descriptions)):
        row = descriptions[record]
        out[record] = np.nan
        if row[LABEL_KIND] == 0:
            continue
        if row[LABEL_KIND] < 0:
            return UNSUPPORTED, record
        values, _, _ = _measure(data, row[LABEL_KIND], row[LABEL_BEGIN], row[LABEL_END])
        if values != 1:
            return DAMAGED, record
        _fill(data, row[LABEL_KIND], row[LABEL_BEGIN], row[LABEL_END], out[record : record + 1], none)
    return OK, 0


def warm_up() -> None:
    """Compile the kernels, or load them from the cache on disk, for the types that the reader passes."""
    data = np.frombuffer(bytearray(), dtype=np.uint8)
    none, values = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    descriptions = np.empty((0, COLUMNS), dtype=np.int64)
    frames(data, 0, none, none)
    describe(data, none, none, descriptions)
    fill_dense(data, descriptions, np.empty((0, 1), dtype=np.float32))
    fill_sparse(data, descriptions, np.zeros(1, dtype=np.int64), none, values, 1)
    fill_labels(data, descriptions, values)
