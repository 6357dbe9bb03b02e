"""The loops that turn bytes into numbers: lines, csv and libsvm. Compiled by numba, cached on disk, free of the GIL.

Legend: data (bytes,) uint8; starts (N + 1,) int64 line starts with the end last; D columns. No kernel reads outside `data` or
writes outside its outputs, whatever the bytes say. Numbers go through float64: up to 19 digits of mantissa, one multiplication
or division by a power of ten, then rounding to float32.
"""

# mypy: disable-error-code="assignment,no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np
from numba import njit

NEWLINE, RETURN, SPACE, TAB, QUOTE, COLON, HASH = 10, 13, 32, 9, 34, 58, 35
OK, BAD_NUMBER, TOO_FEW, TOO_MANY, BAD_INDEX, INDEX_TOO_LARGE, DUPLICATE, BAD_LABEL = 0, 1, 2, 3, 4, 5, 6, 7
_POWERS = 10.0 ** np.arange(0, 309)
_MAX_INDEX = 1 << 40


@njit(nogil=True, cache=True)
def line_starts(data, starts, begin_of_data):
    """Fill `starts` with the offsets of lines that are not blank; return how many.

    Args:
        data: (bytes,) whole lines, the last one may lack its newline.
        starts: output, at least as long as there are newlines + 1.
        begin_of_data: added to every offset.
    """
    count = 0
    at = 0
    size = len(data)
    while at < size:
        first = at
        while at < size and (data[at] == SPACE or data[at] == TAB or data[at] == RETURN):
            at += 1
        if at < size and data[at] != NEWLINE:
            starts[count] = first + begin_of_data
            count += 1
            while at < size and data[at] != NEWLINE:
                at += 1
        at += 1
    return count


@njit(nogil=True, cache=True)
def _number(data, at, end):
    """Parse data[at:end], spaces trimmed, as a number; return (value, ok)."""
    while at < end and (data[at] == SPACE or data[at] == TAB or data[at] == RETURN):
        at += 1
    while end > at and (data[end - 1] == SPACE or data[end - 1] == TAB or data[end - 1] == RETURN):
        end -= 1
    if end - at >= 2 and data[at] == QUOTE and data[end - 1] == QUOTE:
        at += 1
        end -= 1
    if at == end:
        return np.nan, True
    negative = False
    if data[at] == 45 or data[at] == 43:
        negative = data[at] == 45
        at += 1
        if at == end:
            return 0.0, False
    mantissa = np.uint64(0)
    digits = 0
    kept = 0
    exponent = 0
    point = False
    while at < end:
        c = data[at]
        if 48 <= c <= 57:
            digits += 1
            if kept < 19:
                mantissa = mantissa * np.uint64(10) + np.uint64(c - 48)
                if mantissa > 0:
                    kept += 1
                if point:
                    exponent -= 1
            elif not point:
                exponent += 1
        elif c == 46 and not point:
            point = True
        else:
            break
        at += 1
    if digits == 0:
        return _word(data, at, end, negative, point)
    if at < end:
        if data[at] != 101 and data[at] != 69:
            return 0.0, False
        at += 1
        minus = False
        if at < end and (data[at] == 45 or data[at] == 43):
            minus = data[at] == 45
            at += 1
        if at == end:
            return 0.0, False
        power = 0
        while at < end:
            c = data[at]
            if c < 48 or c > 57:
                return 0.0, False
            if power < 100000:
                power = power * 10 + (c - 48)
            at += 1
        exponent += -power if minus else power
    value = np.float64(mantissa)
    if mantissa > 0:
        if exponent > 0:
            value = value * _POWERS[exponent] if exponent <= 308 else np.inf
        elif exponent < 0:
            down = -exponent
            if down > 308:
                value = value / _POWERS[308]
                down -= 308
            value = value / _POWERS[down] if down <= 308 else 0.0
    return (-value if negative else value), True


@njit(nogil=True, cache=True)
def _word(data, at, end, negative, point):
    """Parse nan, na, null, inf, infinity in any case; return (value, ok)."""
    length = end - at
    if point or length < 2 or length > 8:
        return 0.0, False
    code = np.uint64(0)
    for i in range(at, end):
        code = (code << np.uint64(8)) | np.uint64(data[i] | 32)
    if code == np.uint64(0x6E616E) or code == np.uint64(0x6E61) or code == np.uint64(0x6E756C6C):  # nan, na, null
        return np.nan, True
    if code == np.uint64(0x696E66) or code == np.uint64(0x696E66696E697479):  # inf, infinity
        return (-np.inf if negative else np.inf), True
    return 0.0, False


@njit(nogil=True, cache=True)
def parse_csv(data, starts, delimiter, columns, extra, out, side):
    """Parse lines of numbers.

    Args:
        data: the bytes.
        starts: (N + 1,) offsets into data.
        delimiter: its byte; a space also stands for runs of spaces and tabs.
        columns: fields of a line, `extra` included.
        extra: leading fields that go to `side` (label, weight).
        out: (N, columns - extra) float32, output.
        side: (N, extra) float32, output.

    Returns:
        (code, row, field): code OK, or what is wrong first and where.
    """
    runs = delimiter == SPACE
    for row in range(len(starts) - 1):
        at = starts[row]
        end = starts[row + 1]
        field = 0
        while True:
            if runs:
                while at < end and (data[at] == SPACE or data[at] == TAB):
                    at += 1
                if field > 0 and (at >= end or data[at] == NEWLINE or data[at] == RETURN):
                    break
            if field >= columns:
                return TOO_MANY, row, field
            value, last, ok = _plain_number(data, at, end)
            if not ok or (last < end and data[last] != delimiter and data[last] != NEWLINE):
                last = at
                while last < end and data[last] != delimiter and data[last] != NEWLINE and not (runs and data[last] == TAB):
                    last += 1
                value, ok = _number(data, at, last)
                if not ok:
                    return BAD_NUMBER, row, field
            if field < extra:
                side[row, field] = value
            else:
                out[row, field - extra] = value
            field += 1
            if last >= end or data[last] == NEWLINE:
                break
            at = last + 1
        if field < columns:
            return TOO_FEW, row, field
    return OK, 0, 0


@njit(nogil=True, cache=True, inline="always")
def _plain_number(data, at, end):
    """Parse digits with a sign, a point and an exponent of few digits, the common case; return (value, next place, ok)."""
    negative = False
    if at < end and data[at] == 45:
        negative = True
        at += 1
    first = at
    mantissa = np.int64(0)
    while at < end:
        digit = np.int64(data[at]) - 48
        if digit < 0 or digit > 9:
            break
        mantissa = mantissa * 10 + digit
        at += 1
    digits = at - first
    down = 0
    if at < end and data[at] == 46:
        at += 1
        first = at
        while at < end:
            digit = np.int64(data[at]) - 48
            if digit < 0 or digit > 9:
                break
            mantissa = mantissa * 10 + digit
            at += 1
        down = at - first
        digits += down
    if digits == 0 or digits > 18 or (at < end and (data[at] | 32) == 101):
        return 0.0, at, False
    value = np.float64(mantissa) / _POWERS[down] if down > 0 else np.float64(mantissa)
    return (-value if negative else value), at, True


@njit(nogil=True, cache=True)
def parse_libsvm(data, starts, base, columns, lengths, indices, values, side, group):
    """Parse `label[:weight] [qid:n] index:value … [# comment]` lines.

    Args:
        data: the bytes.
        starts: (N + 1,) offsets into data.
        base: index of the first column, 0 or 1.
        columns: width; a larger index is an error; negative: any.
        lengths: (N,) int64, output: entries of each row.
        indices: output, at least as many as colons in data.
        values: output float32, as long.
        side: (N, 2) float32, output: label, weight (NaN where not given).
        group: (N,) int64, output: query id, -1 where not given.

    Returns:
        (code, row, offset, entries, largest index + 1, whether weights, whether groups).
    """
    used = 0
    widest = 0
    weights = False
    groups = False
    for row in range(len(starts) - 1):
        at = starts[row]
        end = starts[row + 1]
        stop = at
        while stop < end and data[stop] != NEWLINE and data[stop] != HASH:
            stop += 1
        first = used
        token = 0
        group[row] = -1
        side[row, 0] = np.nan
        side[row, 1] = np.nan
        previous = -1
        ascending = True
        while True:
            while at < stop and (data[at] == SPACE or data[at] == TAB or data[at] == RETURN):
                at += 1
            if at >= stop:
                break
            last = at
            colon = -1
            while last < stop and data[last] != SPACE and data[last] != TAB and data[last] != RETURN:
                if data[last] == COLON and colon < 0:
                    colon = last
                last += 1
            if token == 0:
                value, ok = _number(data, at, last if colon < 0 else colon)
                if not ok:
                    return BAD_LABEL, row, at, used, widest, weights, groups
                side[row, 0] = value
                if colon >= 0:
                    value, ok = _number(data, colon + 1, last)
                    if not ok:
                        return BAD_LABEL, row, at, used, widest, weights, groups
                    side[row, 1] = value
                    weights = True
            elif colon < 0:
                return BAD_NUMBER, row, at, used, widest, weights, groups
            elif colon - at == 3 and data[at] == 113 and data[at + 1] == 105 and data[at + 2] == 100:
                number = _whole(data, colon + 1, last)
                if number < 0:
                    return BAD_NUMBER, row, at, used, widest, weights, groups
                group[row] = number
                groups = True
            else:
                index = _whole(data, at, colon)
                if index < base or index >= _MAX_INDEX:
                    return BAD_INDEX, row, at, used, widest, weights, groups
                index -= base
                if columns >= 0 and index >= columns:
                    return INDEX_TOO_LARGE, row, at, used, widest, weights, groups
                value, ok = _number(data, colon + 1, last)
                if not ok:
                    return BAD_NUMBER, row, at, used, widest, weights, groups
                indices[used] = index
                values[used] = value
                used += 1
                if index <= previous:
                    ascending = False
                previous = index
                if index >= widest:
                    widest = index + 1
            token += 1
            at = last
        if token == 0:
            return BAD_LABEL, row, starts[row], used, widest, weights, groups
        if not ascending:
            order = np.argsort(indices[first:used])
            indices[first:used] = indices[first:used][order]
            values[first:used] = values[first:used][order]
            for i in range(first + 1, used):
                if indices[i] == indices[i - 1]:
                    return DUPLICATE, row, starts[row], used, widest, weights, groups
        lengths[row] = used - first
    return OK, 0, 0, used, widest, weights, groups


@njit(nogil=True, cache=True)
def _whole(data, at, end):
    """Parse data[at:end] as a whole number; -1 where it is none."""
    if at >= end or end - at > 18:
        return -1
    number = 0
    for i in range(at, end):
        c = data[i]
        if c < 48 or c > 57:
            return -1
        number = number * 10 + (c - 48)
    return number


def warm_up() -> None:
    """Compile the kernels, or load them from the cache on disk, for the types that the readers pass."""
    data = np.frombuffer(b"1 1:2\n", dtype=np.uint8)
    starts = np.array([0, len(data)], dtype=np.int64)
    places = np.empty(4, dtype=np.int64)
    line_starts(data, places, 0)
    side = np.empty((1, 2), dtype=np.float32)
    parse_csv(data, starts, 32, 2, 1, np.empty((1, 1), dtype=np.float32), side[:, :1].copy())
    entries = np.empty(1, dtype=np.int64)
    values = np.empty(1, dtype=np.float32)
    parse_libsvm(data, starts, 1, -1, places[:1].copy(), entries, values, side, places[:1].copy())
