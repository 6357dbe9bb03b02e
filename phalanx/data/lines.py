"""Files whose rows are lines: where the lines are, and the bytes of a run of them. Blank lines are no rows."""

from __future__ import annotations

import numpy as np

from ..contracts import Array
from ..errors import UserError
from .format import STRIDE, RowIndex, place_after, place_before
from .kernels import line_starts, stride_starts
from .source import CHUNK, Source

MAX_LINE = 1 << 28


def index_lines(source: Source) -> tuple[int, Array]:
    """Return the rows of a file and the `places` of its index; reads it once in pieces.

    Raises:
        UserError: a line longer than 256 MiB: the file is no text.
    """
    seen, offset = 0, 0
    found: list[Array] = []
    rest = b""
    while True:
        data = source.read(offset + len(rest), CHUNK)
        piece = rest + data
        if not piece:
            break
        cut = len(piece) if not data else piece.rfind(b"\n") + 1
        if cut == 0:
            rest = piece
            if len(rest) > MAX_LINE:
                raise UserError(f"{source.name} has a line longer than {MAX_LINE >> 20} MiB: is it text?")
            continue
        whole = np.frombuffer(piece, dtype=np.uint8, count=cut)
        places = np.empty(np.count_nonzero(whole == 10) // STRIDE + 2, dtype=np.int64)
        seen, count = stride_starts(whole, offset, seen, STRIDE, places, 0)
        found.append(places[:count])
        offset += cut
        rest = piece[cut:]
    return seen, np.concatenate([*found, [offset]]).astype(np.int64)


def read_lines(source: Source, index: RowIndex, start: int, stop: int) -> tuple[Array, Array]:
    """Return (data, starts) of rows [start, stop): bytes as uint8, and the offset of every row in them, the end last."""
    first, place = place_before(index, start)
    data = np.frombuffer(source.read(place, place_after(index, stop) - place), dtype=np.uint8)
    starts = np.empty(np.count_nonzero(data == 10) + 2, dtype=np.int64)
    count = line_starts(data, starts, 0)
    starts[count] = len(data)
    wanted = starts[start - first : stop - first + 1]
    if len(wanted) != stop - start + 1:
        raise UserError(f"{source.name} has changed while it was read")
    return data, wanted


def line_of(source: Source, index: RowIndex, row: int) -> int:
    """Return the 1-based physical line of a row; reads the file up to it."""
    first, place = place_before(index, row)
    line, offset = 1, 0
    while offset < place:
        piece = source.read(offset, min(CHUNK, place - offset))
        if not piece:
            break
        line += piece.count(b"\n")
        offset += len(piece)
    data = np.frombuffer(source.read(place, place_after(index, row + 1) - place), dtype=np.uint8)
    starts = np.empty(np.count_nonzero(data == 10) + 2, dtype=np.int64)
    count = line_starts(data, starts, 0)
    if row - first >= count:
        return line
    return line + int(np.count_nonzero(data[: starts[row - first]] == 10))


def text_of(data: Array, starts: Array, row: int, limit: int = 60) -> str:
    """Return the text of a row, shortened, for an error."""
    text = data[starts[row] : starts[row + 1]].tobytes().decode("utf-8", "replace").strip()
    return text if len(text) <= limit else text[: limit - 3] + "..."
