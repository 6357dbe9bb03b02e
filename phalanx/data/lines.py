"""Files whose rows are lines: where the lines are, and the bytes of a run of them. Blank lines and comments are no rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from ..contracts import Array
from ..errors import UserError
from .format import STRIDE, RowIndex, place_after, place_before
from .kernels import line_starts, stride_starts
from .source import CHUNK, Source

MAX_LINE = 1 << 26
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARALLEL_BYTES = 1 << 20  # below, a second thread costs more than it brings
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of a run of rows, and a few rows before it."""

    data: Array  # (bytes,) uint8; ends with a newline
    skip: int  # rows before the run
    rows: int
    cuts: list[tuple[int, int, int]]  # (place in data, rows to skip, rows) of parts to decode side by side


def index_lines(source: Source, comment: int = 0) -> tuple[int, Array]:
    """Return the rows of a file and the `places` of its index; reads it once in pieces.

    Args:
        source: the file.
        comment: lines that begin with this byte are no rows; 0: there are none.

    Raises:
        UserError: a line longer than 64 MiB: the file is no text.
    """
    offset = len(_BYTE_ORDER_MARK) if source.read(0, 3) == _BYTE_ORDER_MARK else 0
    seen = 0
    found: list[Array] = []
    rest: list[bytes] = []  # the beginning of a line that goes on
    while True:
        held = sum(map(len, rest))
        data = source.read(offset + held, CHUNK)
        cut = data.rfind(b"\n") + 1 if data else 0
        if data and not cut:
            rest.append(data)
            if held + len(data) > MAX_LINE:
                raise UserError(f"{source.name} has a line longer than {MAX_LINE >> 20} MiB: is it text?")
            continue
        whole = np.frombuffer(b"".join([*rest, data[:cut]]), dtype=np.uint8)
        starts = np.empty(len(whole) // (2 * STRIDE) + 2, dtype=np.int64)
        seen, count = stride_starts(whole, comment, seen, STRIDE, starts)
        found.append(offset + starts[:count])
        offset += len(whole)
        rest = [data[cut:]] if cut < len(data) else []
        if not data:
            return seen, np.concatenate([*found, [offset]]).astype(np.int64)


def read_span(source: Source, index: RowIndex, start: int, stop: int, threads: int = 1) -> Span:
    """Return the bytes of rows [start, stop), `start` < `stop`."""
    first, place = place_before(index, start)
    raw = source.read(place, place_after(index, stop) - place)
    if not raw.endswith(b"\n"):
        raw += b"\n"
    data = np.frombuffer(raw, dtype=np.uint8)
    parts = threads if len(data) >= _PARALLEL_BYTES else 1
    edges = [start]
    for part in range(1, parts):
        middle = (start + (stop - start) * part // parts) // STRIDE * STRIDE  # whose place the index knows
        if edges[-1] < middle < stop:
            edges.append(middle)
    cuts = []
    for a, b in zip(edges, [*edges[1:], stop], strict=True):
        noted, at = place_before(index, a)
        cuts.append((at - place, a - noted, b - a))
    return Span(data, start - first, stop - start, cuts)


def lines_of(source: Source, index: RowIndex, start: int, stop: int, comment: int = 0) -> list[bytes]:
    """Return rows [start, stop) with their newlines.

    Raises:
        UserError: there are fewer.
    """
    span = read_span(source, index, start, stop)
    places = np.empty(int(np.count_nonzero(span.data == 10)) + 1, dtype=np.int64)
    count = line_starts(span.data, comment, places)
    if count < span.skip + span.rows:
        raise changed(source)
    places[count] = len(span.data)
    text = span.data.tobytes()
    wanted = places[span.skip : span.skip + span.rows + 1].tolist()
    return [text[a:b] for a, b in pairwise(wanted)]


def changed(source: Source) -> UserError:
    """Return the error for a file that is not what its index says."""
    return UserError(f"{source.name} has changed while it was read")


def in_threads(action: Callable[[int], T], parts: int) -> list[T]:
    """Return `action(0)` … `action(parts - 1)`, run in threads where there is more than one."""
    if parts == 1:
        return [action(0)]
    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(action, range(parts)))


def line_of(source: Source, index: RowIndex, row: int, comment: int = 0) -> int:
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
    places = np.empty(int(np.count_nonzero(data == 10)) + 1, dtype=np.int64)
    count = line_starts(data, comment, places)
    if row - first >= count:
        return line
    return line + int(np.count_nonzero(data[: places[row - first]] == 10))


def text_at(data: Array, start: int, limit: int = 60) -> str:
    """Return the line that begins at `start`, shortened, for an error."""
    piece = data[start : start + 4 * limit].tobytes().split(b"\n", 1)[0]
    text = piece.decode("utf-8", "replace").strip()
    return text if len(text) <= limit else text[: limit - 3] + "..."
