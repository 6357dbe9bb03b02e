"""The loops that decode recordio-protobuf. Compiled by numba, cached on disk, free of the GIL.

Every read is checked against the end of the bytes at hand; lengths that a file claims never decide how much memory is taken.
Legend: data (bytes,) uint8; a payload is data[begin:end]; descriptions (N, 8) int64, see the column names.
"""

# mypy: disable-error-code="assignment,no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np
from numba import njit

MAGIC = 0xCED7230A
# what is wrong with a payload
OK, DAMAGED, NO_FEATURES, UNSUPPORTED, BAD_KEYS, WIDTH, KEY_RANGE = 0, 1, 2, 3, 4, 5, 6
# columns of a description
KIND, BEGIN, END, VALUES, KEYS, WIDTH_OF, LABEL_KIND, LABEL_BEGIN, LABEL_END = 0, 1, 2, 3, 4, 5, 6, 7, 8
COLUMNS = 9
# kinds of tensors, as numbered in Value
FLOAT32, FLOAT64, INT32 = 2, 3, 7


@njit(nogil=True, cache=True)
def frames(data, begins, ends, limit):
    """Fill `begins` and `ends` with the payloads of whole records in data; return (records, bytes used, code, parts).

    Code: 0; 1: no magic number at the place used; `parts`: a record in several parts is there, and the walk stopped before it.
    """
    at = 0
    count = 0
    size = len(data)
    while count < limit and at + 8 <= size:
        magic = (
            np.int64(data[at]) | (np.int64(data[at + 1]) << 8) | (np.int64(data[at + 2]) << 16) | (np.int64(data[at + 3]) << 24)
        )
        if magic != MAGIC:
            return count, at, 1, False
        word = (
            np.int64(data[at + 4])
            | (np.int64(data[at + 5]) << 8)
            | (np.int64(data[at + 6]) << 16)
            | (np.int64(data[at + 7]) << 24)
        )
        if word >> 29 != 0:
            return count, at, 0, True
        padded = (word + 3) // 4 * 4
        if at + 8 + word > size:
            break
        begins[count] = at + 8
        ends[count] = at + 8 + word
        count += 1
        if at + 8 + padded > size:  # the padding of the last record may be missing
            at = size
            break
        at += 8 + padded
    return count, at, 0, False


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
    """Return (tensor kind, begin, end) of a map entry's Value; kind -1 where it is damaged, 0 where there is none."""
    kind = 0
    first = 0
    last = 0
    while at < end:
        number, wire, begin, stop, at = _field(data, at, end)
        if at < 0:
            return -1, 0, 0
        if number == 2 and wire == 2:
            inner = begin
            while inner < stop:
                tensor, inner_wire, tensor_begin, tensor_end, inner = _field(data, inner, stop)
                if inner < 0:
                    return -1, 0, 0
                if inner_wire == 2:
                    kind, first, last = tensor, tensor_begin, tensor_end
    return kind, first, last


@njit(nogil=True, cache=True)
def _count(data, begin, end, packed_width):
    """Return how many numbers a packed field holds; -1 where it is damaged. Width 0: varints."""
    if packed_width > 0:
        return (end - begin) // packed_width if (end - begin) % packed_width == 0 else -1
    count = 0
    for i in range(begin, end):
        if data[i] < 128:
            count += 1
    return count if begin == end or data[end - 1] < 128 else -1


@njit(nogil=True, cache=True)
def _measure(data, kind, at, end):
    """Return (values, keys, last of shape or -1) of a tensor; values -1 where it is damaged."""
    wide = 4 if kind == FLOAT32 else 8 if kind == FLOAT64 else 0
    values = 0
    keys = 0
    width = np.int64(-1)
    while at < end:
        number, wire, begin, stop, at = _field(data, at, end)
        if at < 0:
            return -1, 0, width
        if number == 1:
            if wire == 2:
                more = _count(data, begin, stop, wide)
                if more < 0:
                    return -1, 0, width
                values += more
            elif (wire == 5 and wide == 4) or (wire == 1 and wide == 8) or (wire == 0 and wide == 0):
                values += 1
            else:
                return -1, 0, width
        elif number == 2 or number == 3:
            more = _count(data, begin, stop, 0) if wire == 2 else 1 if wire == 0 else -1
            if more < 0:
                return -1, 0, width
            if number == 2:
                keys += more
            else:
                place = begin
                for _ in range(more):
                    width, place = _varint(data, place, stop)
                    if place < 0:
                        return -1, 0, width
    return values, keys, width


@njit(nogil=True, cache=True)
def describe(data, begins, ends, descriptions):
    """Fill the descriptions of payloads; return (code, record) of the first that is wrong."""
    for record in range(len(begins)):
        at = begins[record]
        end = ends[record]
        row = descriptions[record]
        row[KIND] = 0
        row[LABEL_KIND] = 0
        while at < end:
            number, wire, begin, stop, at = _field(data, at, end)
            if at < 0:
                return DAMAGED, record
            if (number == 1 or number == 2) and wire == 2:
                kind, first, last = _value_of_entry(data, begin, stop)
                if kind < 0:
                    return DAMAGED, record
                if kind != 0 and kind != FLOAT32 and kind != FLOAT64 and kind != INT32:
                    return UNSUPPORTED, record
                if number == 1:
                    row[KIND], row[BEGIN], row[END] = kind, first, last
                else:
                    row[LABEL_KIND], row[LABEL_BEGIN], row[LABEL_END] = kind, first, last
        if row[KIND] == 0:
            return NO_FEATURES, record
        values, keys, width = _measure(data, row[KIND], row[BEGIN], row[END])
        if values < 0:
            return DAMAGED, record
        if keys > 0 and keys != values:
            return BAD_KEYS, record
        row[VALUES], row[KEYS], row[WIDTH_OF] = values, keys, width
    return OK, 0


@njit(nogil=True, cache=True)
def _fill(data, kind, at, end, values, keys):
    """Write a tensor's values as float32 and its keys; the outputs are as long as `_measure` said."""
    bits32 = np.empty(1, dtype=np.uint32)
    as32 = bits32.view(np.float32)
    bits64 = np.empty(1, dtype=np.uint64)
    as64 = bits64.view(np.float64)
    value_at = 0
    key_at = 0
    while at < end:
        number, _wire, begin, stop, at = _field(data, at, end)
        if at < 0:
            return
        if number == 1:
            place = begin
            while place < stop and value_at < len(values):
                if kind == FLOAT32:
                    bits32[0] = (
                        np.uint32(data[place])
                        | (np.uint32(data[place + 1]) << np.uint32(8))
                        | (np.uint32(data[place + 2]) << np.uint32(16))
                        | (np.uint32(data[place + 3]) << np.uint32(24))
                    )
                    values[value_at] = as32[0]
                    place += 4
                elif kind == FLOAT64:
                    bits = np.uint64(0)
                    for i in range(8):
                        bits |= np.uint64(data[place + i]) << np.uint64(8 * i)
                    bits64[0] = bits
                    values[value_at] = as64[0]
                    place += 8
                else:
                    whole, place = _varint(data, place, stop)
                    if place < 0:
                        return
                    values[value_at] = whole
                value_at += 1
        elif number == 2:
            place = begin
            while place < stop and key_at < len(keys):
                keys[key_at], place = _varint(data, place, stop)
                if place < 0:
                    return
                key_at += 1


@njit(nogil=True, cache=True)
def fill_dense(data, descriptions, out):
    """Write dense rows into out (N, D); return (code, record)."""
    none = np.empty(0, dtype=np.int64)
    for record in range(len(descriptions)):
        row = descriptions[record]
        if row[KEYS] > 0 or row[VALUES] != out.shape[1]:
            return WIDTH, record
        _fill(data, row[KIND], row[BEGIN], row[END], out[record], none)
    return OK, 0


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
        values, _, _ = _measure(data, row[LABEL_KIND], row[LABEL_BEGIN], row[LABEL_END])
        if values != 1:
            return DAMAGED, record
        _fill(data, row[LABEL_KIND], row[LABEL_BEGIN], row[LABEL_END], out[record : record + 1], none)
    return OK, 0


@njit(nogil=True, cache=True)
def largest_key(data, descriptions):
    """Return the largest key + 1 over records that give no shape."""
    widest = np.int64(0)
    for record in range(len(descriptions)):
        row = descriptions[record]
        if row[WIDTH_OF] >= 0:
            continue
        if row[KEYS] == 0:
            widest = max(widest, row[VALUES])
            continue
        keys = np.empty(row[KEYS], dtype=np.int64)
        values = np.empty(row[VALUES], dtype=np.float32)
        _fill(data, row[KIND], row[BEGIN], row[END], values, keys)
        widest = max(widest, keys.max() + 1)
    return widest
