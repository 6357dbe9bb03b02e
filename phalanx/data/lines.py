"""Files whose rows are lines: where the lines are, and the bytes of a run of them. Blank lines are no rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..contracts import Array
from ..errors import UserError
from .format import STRIDE, RowIndex, place_after, place_before
from .kernels import line_starts
from .source import CHUNK, Source

MAX_LINE = 1 << 28
_PARALLEL_BYTES = 1 << 20  # below, a second thread costs more than it brings
T = TypeVar("T")


def index_lines(source: Source, threads: int = 1) -> tuple[int, Array]:
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
        starts = starts_of(np.frombuffer(piece, dtype=np.uint8, count=cut), threads)
        found.append(offset + starts[(-seen) % STRIDE :: STRIDE])
        seen += len(starts)
        offset += cut
        rest = piece[cut:]
    return seen, np.concatenate([*found, [offset]]).astype(np.int64)


def read_lines(source: Source, index: RowIndex, start: int, stop: int, threads: int = 1) -> tuple[Array, Array]:
    """Return (data, starts) of rows [start, stop): bytes as uint8, and the offset of every row in them, the end last."""
    first, place = place_before(index, start)
    data = np.frombuffer(source.read(place, place_after(index, stop) - place), dtype=np.uint8)
    starts = np.append(starts_of(data, threads), len(data))
    wanted = starts[start - first : stop - first + 1]
    if len(wanted) != stop - start + 1:
        raise UserError(f"{source.name} has changed while it was read")
    return data, wanted


def starts_of(data: Array, threads: int = 1) -> Array:
    """Return the offsets of the lines in `data` that are not blank, (N,) int64."""
    parts = threads if len(data) >= _PARALLEL_BYTES else 1
    cuts = [0]
    for part in range(1, parts):  # after the first newline beyond each even cut
        begin = max(cuts[-1], len(data) * part // parts)
        found = data[begin : begin + MAX_LINE].tobytes().find(b"\n") if begin < len(data) else -1
        cuts.append(len(data) if found < 0 else begin + found + 1)
    cuts.append(len(data))

    def find(part: int) -> Array:
        piece = data[cuts[part] : cuts[part + 1]]
        starts = np.empty(piece.tobytes().count(b"\n") + 1, dtype=np.int64)
        return starts[: line_starts(piece, starts, cuts[part])]

    return np.concatenate(in_threads(find, parts))


def in_threads(action: Callable[[int], T], parts: int) -> list[T]:
    """Return `action(0)` … `action(parts - 1)`, run in threads where there is more than one."""
    if parts == 1:
        return [action(0)]
    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(action, range(parts)))


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
    starts = starts_of(data)
    if row - first >= len(starts):
        return line
    return line + int(np.count_nonzero(data[: starts[row - first]] == 10))


def text_of(data: Array, starts: Array, row: int, limit: int = 60) -> str:
    """Return the text of a row, shortened, for an error."""
    text = data[starts[row] : starts[row + 1]].tobytes().decode("utf-8", "replace").strip()
    return text if len(text) <= limit else text[: limit - 3] + "..."
