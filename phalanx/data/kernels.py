"""The loops that turn bytes into numbers: lines, csv and libsvm. Compiled by numba, cached on disk, free of the GIL.

Legend: data (bytes,) uint8; data[at:end] is what a kernel looks at; its last byte is a newline. No kernel reads outside of it
or writes outside its outputs, whatever the bytes say: every inner loop stops at a newline. Numbers become the float64 nearest
to the text, then the float32 nearest to that, as `numpy.float32(float(text))`.
"""

# mypy: disable-error-code="assignment,no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

from . import kernel_cache  # noqa: F401 - before anything compiles

NEWLINE, RETURN, SPACE, TAB, QUOTE, COLON, HASH, MINUS, PLUS, POINT = 10, 13, 32, 9, 34, 58, 35, 45, 43, 46
OK, BAD_NUMBER, TOO_FEW, TOO_MANY, BAD_INDEX, INDEX_TOO_LARGE, BAD_LABEL, NO_ROW = 0, 1, 2, 3, 4, 5, 6, 7
_POWERS = 10.0 ** np.arange(0, 309)
_MAX_INDEX = (1 << 31) - 1
_EACH = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_NEWLINES = np.uint64(0x0A0A0A0A0A0A0A0A)
_strtod = types.ExternalFunction("strtod", types.float64(types.uintp, types.uintp))


@intrinsic
def _eight(typing_context, data, at):
    """Load data[at : at + 8] as one number; the caller sees to the bounds."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, at), generate


@njit(nogil=True, cache=True, inline="always")
def _line_end(data, at, end):
    """Return the place of the first newline from `at`, `end` where there is none."""
    while at + 8 <= end:
        word = _eight(data, at) ^ _NEWLINES
        if (word - _EACH) & ~word & _HIGH:
            break
        at += 8
    while at < end and data[at] != NEWLINE:
        at += 1
    return at


@njit(nogil=True, cache=True)
def _row_start(data, at, end, comment):
    """Return where the first line from `at` begins that is neither blank nor a comment; `end` where there is none."""
    while at < end:
        first = at
        while at < end and (data[at] == SPACE or data[at] == TAB or data[at] == RETURN):
            at += 1
        if at < end and data[at] != NEWLINE and data[at] != comment:
            return first
        at = _line_end(data, at, end) + 1
    return end


@njit(nogil=True, cache=True)
def line_starts(data, comment, starts):
    """Fill `starts` with the places of the rows in `data`; return how many. There is room for one more than newlines."""
    count = 0
    end = len(data)
    at = _row_start(data, 0, end, comment)
    while at < end:
        starts[count] = at
        count += 1
        at = _row_start(data, _line_end(data, at, end) + 1, end, comment)
    return count


@njit(nogil=True, cache=True)
def stride_starts(data, comment, seen, stride, starts):
    """Fill `starts` with the places of every `stride`-th row, counted on from `seen`; return (rows seen, places filled)."""
    count = 0
    end = len(data)
    at = _row_start(data, 0, end, comment)
    while at < end:
        if seen % stride == 0:
            if count == len(starts):
                break
            starts[count] = at
            count += 1
        seen += 1
        at = _row_start(data, _line_end(data, at, end) + 1, end, comment)
    return seen, count


@njit(nogil=True, cache=True)
def _scaled(data, begin, mantissa, exponent):
    """Return mantissa · 10^exponent, the number that is written at `begin` without a sign."""
    if mantissa == 0:
        return 0.0
    value = np.float64(mantissa)
    if exponent > 0:
        value = value * _POWERS[exponent] if exponent <= 308 else np.inf
    elif exponent < 0:
        down = -exponent
        if down > 308:
            value = value / _POWERS[308]
            down -= 308
        value = value / _POWERS[down] if down <= 308 else 0.0
    if mantissa < np.uint64(1 << 53) and -22 <= exponent <= 22:
        return value  # both are exact, so this is the nearest
    # a few units in the last place off at most: that matters only beside the middle between two float32
    if np.float32(value * (1 - 4e-15)) != np.float32(value * (1 + 4e-15)):
        exact = _strtod(np.uintp(data.ctypes.data + begin), np.uintp(0))
        if abs(exact - value) <= 1e-12 * value:  # a locale with another decimal point would cut it short
            value = exact
    return value


@njit(nogil=True, cache=True)
def _number(data, at, end):
    """Parse data[at:end], spaces and quotes trimmed, as a number; return (value, ok). Nothing is a missing value."""
    while at < end and (data[at] == SPACE or data[at] == TAB or data[at] == RETURN):
        at += 1
    while end > at and (data[end - 1] == SPACE or data[end - 1] == TAB or data[end - 1] == RETURN):
        end -= 1
    if end - at >= 2 and data[at] == QUOTE and data[end - 1] == QUOTE:
        at += 1
        end -= 1
    if at == end:
        return np.nan, True
    negative = data[at] == MINUS
    if negative or data[at] == PLUS:
        at += 1
    begin = at
    mantissa = np.uint64(0)
    digits, kept, exponent = 0, 0, 0
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
        elif c == POINT and not point:
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
        minus = at < end and data[at] == MINUS
        if minus or (at < end and data[at] == PLUS):
            at += 1
        if at == end:
            return 0.0, False
        power = 0
        while at < end:
            c = data[at]
            if c < 48 or c > 57:
                return 0.0, False
            power = min(power * 10 + (c - 48), 100000)
            at += 1
        exponent += -power if minus else power
    value = _scaled(data, begin, mantissa, exponent)
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


@njit(nogil=True, cache=True, inline="always")
def _plain_number(data, at):
    """Parse digits with a sign and a point, the common case; return (value, next place, ok)."""
    negative = data[at] == MINUS
    if negative:
        at += 1
    begin = at
    mantissa = np.int64(0)
    while True:
        digit = np.int64(data[at]) - 48
        if digit < 0 or digit > 9:
            break
        mantissa = mantissa * 10 + digit
        at += 1
    digits = at - begin
    down = 0
    if data[at] == POINT:
        at += 1
        first = at
        while True:
            digit = np.int64(data[at]) - 48
            if digit < 0 or digit > 9:
                break
            mantissa = mantissa * 10 + digit
            at += 1
        down = at - first
        digits += down
    if digits == 0 or digits > 18 or data[at] == 101 or data[at] == 69:
        return 0.0, at, False
    if down == 0 and digits < 16:
        value = np.float64(mantissa)
    elif digits < 16:
        value = np.float64(mantissa) / _POWERS[down]
    else:
        value = _scaled(data, begin, np.uint64(mantissa), -down)
    return (-value if negative else value), at, True


@njit(nogil=True, cache=True)
def parse_csv(data, at, end, skip, delimiter, columns, out, side):
    """Parse lines of numbers.

    Args:
        data: the bytes.
        at: where to begin.
        end: where to end; data[end - 1] is a newline.
        skip: rows to pass over first.
        delimiter: its byte; a space also stands for runs of spaces and tabs.
        columns: fields of a line, those that go to `side` included.
        out: (N, features) float32, output.
        side: (N, leading fields: label, weight) float32, output.

    Returns:
        (code, row, field, start of the row): code OK, or what is wrong first and where.
    """
    extra = side.shape[1]
    runs = delimiter == SPACE
    at = _row_start(data, at, end, 0)
    for _ in range(skip):
        at = _row_start(data, _line_end(data, at, end) + 1, end, 0)
    for row in range(len(out)):
        if at >= end:
            return NO_ROW, row, 0, end
        start = at
        field = 0
        while True:
            if runs:
                while data[at] == SPACE or data[at] == TAB:
                    at += 1
                if field > 0 and (data[at] == NEWLINE or (data[at] == RETURN and data[at + 1] == NEWLINE)):
                    break
            if field >= columns:
                return TOO_MANY, row, field, start
            value, last, ok = _plain_number(data, at)
            if not ok or (data[last] != delimiter and data[last] != NEWLINE):
                last = at
                while data[last] != delimiter and data[last] != NEWLINE and not (runs and data[last] == TAB):
                    last += 1
                value, ok = _number(data, at, last)
                if not ok:
                    return BAD_NUMBER, row, field, start
            if field < extra:
                side[row, field] = value
            else:
                out[row, field - extra] = value
            field += 1
            at = last
            if data[at] == NEWLINE:
                break
            at += 1
        if field < columns:
            return TOO_FEW, row, field, start
        at = _row_start(data, _line_end(data, at, end) + 1, end, 0)
    return OK, 0, 0, at


@njit(nogil=True, cache=True)
def parse_libsvm(data, at, end, skip, base, columns, lengths, indices, values, side, group):
    """Parse `label[:weight] [qid:n] index:value … [# comment]` lines.

    Args:
        data: the bytes.
        at: where to begin.
        end: where to end; data[end - 1] is a newline.
        skip: rows to pass over first.
        base: index of the first column, 0 or 1.
        columns: width; a larger index is an error; negative: any.
        lengths: (N,) int64, output: entries of each row.
        indices: int64, output, at least as many as there are colons.
        values: float32, output, as long.
        side: (N, 2) float32, output: label, weight (NaN where not given).
        group: (N,) int64, output: query id, -1 where not given.

    Returns:
        (code, row, start of the row, place, entries, largest index + 1, whether the indices of every row ascend).
    """
    used = 0
    widest = 0
    ascending = True
    at = _row_start(data, at, end, HASH)
    for _ in range(skip):
        at = _row_start(data, _line_end(data, at, end) + 1, end, HASH)
    for row in range(len(lengths)):
        if at >= end:
            return NO_ROW, row, end, end, used, widest, ascending
        start = at
        token = 0
        group[row] = -1
        side[row, 1] = np.nan
        previous = -1
        first = used
        while True:
            while data[at] == SPACE or data[at] == TAB or data[at] == RETURN:
                at += 1
            if data[at] == NEWLINE or data[at] == HASH:
                break
            last = at
            colon = -1
            while True:
                c = data[last]
                if c == NEWLINE or c == HASH or c == SPACE or c == TAB or c == RETURN:  # noqa: SIM109 - faster than `in`
                    break
                if c == COLON and colon < 0:
                    colon = last
                last += 1
            if token == 0:
                value, ok = _number(data, at, last if colon < 0 else colon)
                if not ok:
                    return BAD_LABEL, row, start, at, used, widest, ascending
                side[row, 0] = value
                if colon >= 0:
                    value, ok = _number(data, colon + 1, last)
                    if not ok:
                        return BAD_LABEL, row, start, at, used, widest, ascending
                    side[row, 1] = value
            elif colon < 0:
                return BAD_NUMBER, row, start, at, used, widest, ascending
            elif colon - at == 3 and data[at] == 113 and data[at + 1] == 105 and data[at + 2] == 100:  # qid
                number = _whole(data, colon + 1, last)
                if number < 0:
                    return BAD_NUMBER, row, start, at, used, widest, ascending
                group[row] = number
            else:
                index = _whole(data, at, colon)
                if index < base or index >= _MAX_INDEX:
                    return BAD_INDEX, row, start, at, used, widest, ascending
                index -= base
                if columns >= 0 and index >= columns:
                    return INDEX_TOO_LARGE, row, start, at, used, widest, ascending
                value, place, ok = _plain_number(data, colon + 1)
                if not ok or place != last:
                    value, ok = _number(data, colon + 1, last)
                if not ok or used == len(indices):
                    return BAD_NUMBER, row, start, at, used, widest, ascending
                indices[used] = index
                values[used] = value
                used += 1
                ascending &= index > previous
                previous = index
                if index >= widest:
                    widest = index + 1
            token += 1
            at = last
        lengths[row] = used - first
        at = _row_start(data, _line_end(data, at, end) + 1, end, HASH)
    return OK, 0, at, at, used, widest, ascending


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


@njit(nogil=True, cache=True)
def transpose(by_column, left, by_row):
    """Write (D, N) float32 into the columns from `left` of an array of N rows, in tiles that fit the cache."""
    columns, rows = by_column.shape
    for first in range(0, rows, 64):
        for begin in range(0, columns, 64):
            for row in range(first, min(first + 64, rows)):
                for column in range(begin, min(begin + 64, columns)):
                    by_row[row, left + column] = by_column[column, row]


def warm_up() -> None:
    """Compile the kernels, or load them from the cache on disk, for the types that the readers pass."""
    data = np.frombuffer(b"1 1:2\n", dtype=np.uint8)
    places = np.empty(4, dtype=np.int64)
    line_starts(data, 0, places)
    stride_starts(data, 0, 0, 32, places)
    side = np.empty((1, 2), dtype=np.float32)
    parse_csv(data, 0, len(data), 0, SPACE, 2, np.empty((1, 1), dtype=np.float32), np.empty((1, 1), dtype=np.float32))
    values = np.empty(1, dtype=np.float32)
    parse_libsvm(data, 0, len(data), 0, 1, -1, places[:1], np.empty(1, np.int64), values, side, np.empty(1, np.int64))
    transpose(np.zeros((1, 1), dtype=np.float32), 0, np.empty((1, 1), dtype=np.float32))
