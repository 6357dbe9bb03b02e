"""The loops over bytes: numbers are the nearest float32, whatever is written; lines are found however they end."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phalanx.contracts import Array, Csr
from phalanx.data.formats.recordio import write_dense, write_sparse
from phalanx.data.kernels import BAD_NUMBER, OK, line_starts, parse_csv, parse_libsvm, stride_starts, transpose

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def parsed(field: bytes) -> tuple[int, np.float32]:
    """Parse one field, in a place where the bytes around it are no digits."""
    data = np.frombuffer(b"1," + field + b"\n", dtype=np.uint8)
    out, side = np.empty((1, 1), np.float32), np.empty((1, 1), np.float32)
    code, *_ = parse_csv(data, 0, len(data), 0, ord(","), 2, out, side)
    return code, out[0, 0]


def nearest(text: str) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(float(text))


def bits(value: np.float32) -> int:
    return int(np.asarray(value).view(np.uint32))


numbers = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.floats(width=32, allow_nan=False).map(repr),
    st.integers(-(10**25), 10**25).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=20).map(str),
    st.from_regex(_NUMBER, fullmatch=True),
    # beside the middle of two float32
    st.tuples(st.integers(1 << 23, (1 << 24) - 1), st.integers(-60, 60), st.sampled_from(["", "00001", "99999"])).map(
        lambda t: f"{(2 * t[0] + 1) * math.ldexp(1.0, t[1] - 25)!r}{t[2]}"
    ),
)


@settings(max_examples=400, deadline=None)
@given(numbers)
@example("16777217.0000000000000000000001")
@example("16777216.99999999999999999999")
@example("3.4028235677973366e38")
@example("1.401298464324817e-45")
@example("7.006492321624085e-46")
@example("1e-400")
@example("0." + "0" * 400 + "1e400")
@example("1" + "0" * 400 + "e-400")
@example("-0.0")
def test_numbers_are_the_nearest_float32(text: str) -> None:
    code, value = parsed(text.encode())
    assert code == OK
    assert bits(value) == bits(nearest(text)), text


@pytest.mark.parametrize("text", ["", " ", '""', "nan", "NaN", "NA", "null", " nan ", '"NaN"'])
def test_missing_values(text: str) -> None:
    code, value = parsed(text.encode())
    assert code == OK
    assert np.isnan(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 7 ", 7),
        ('"7.5"', 7.5),
        ("+3", 3),
        ("1.", 1),
        (".5", 0.5),
        ("-.5e1", -5),
        ("Infinity", np.inf),
        ("-inf", -np.inf),
        ("1E2", 100),
    ],
)
def test_ways_to_write_a_number(text: str, value: float) -> None:
    assert parsed(text.encode()) == (OK, np.float32(value))


@pytest.mark.parametrize(
    "text", ["x", "1x", "1e", "1e+", "e5", ".", "-", "+-1", "1.2.3", "0x10", "1_0", "1 2", "naan", "infinite", "١", '"', "\0"]
)
def test_what_is_no_number(text: str) -> None:
    assert parsed(text.encode())[0] == BAD_NUMBER


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(b",; \t"), st.integers(1, 4), st.integers(0, 3))
def test_any_bytes_are_parsed_within_bounds(body: bytes, delimiter: int, columns: int, skip: int) -> None:
    """Bytes after the end are digits: a kernel that read on would find more of the number."""
    whole = body + b"\n"
    data = np.frombuffer(whole + b"7" * 40, dtype=np.uint8)
    rows = max(1, whole.count(b"\n"))
    out, side = np.zeros((rows + 2, columns), np.float32), np.zeros((rows + 2, 0), np.float32)
    parse_csv(data, 0, len(whole), skip, delimiter, columns, out[:rows], side[:rows])
    assert not out[rows:].any()
    colons = whole.count(b":")
    indices, values = np.zeros(colons + 2, np.int64), np.zeros(colons + 2, np.float32)
    lengths, pair, group = np.zeros(rows, np.int64), np.zeros((rows, 2), np.float32), np.zeros(rows, np.int64)
    parse_libsvm(data, 0, len(whole), skip, 1, -1, lengths, indices[:colons], values[:colons], pair, group)
    assert not indices[colons:].any()
    assert not values[colons:].any()


def rows_of(text: bytes, comment: int) -> list[int]:
    """Return where rows begin, the slow way."""
    places, at = [], 0
    for line in text.split(b"\n"):
        bare = line.lstrip(b" \t\r")
        if bare and bare[0] != comment:
            places.append(at)
        at += len(line) + 1
    return places


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b" ", b"\r", b"1,2", b"# x", b"1" * 30, b" 3", b"\t#"])),
    st.booleans(),
    st.sampled_from([0, 35]),
    st.integers(0, 5),
)
def test_lines_are_found(lines: list[bytes], ended: bool, comment: int, seen: int) -> None:
    text = b"\n".join(lines) + b"\n" * ended
    data = np.frombuffer(text, dtype=np.uint8)
    expected = rows_of(text, comment)
    places = np.empty(text.count(b"\n") + 1, dtype=np.int64)
    assert places[: line_starts(data, comment, places)].tolist() == expected
    total, count = stride_starts(data, comment, seen, 3, places)
    assert total == seen + len(expected)
    assert places[:count].tolist() == expected[(-seen) % 3 :: 3]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (65, 64), (130, 70)])
def test_transpose(shape: tuple[int, int]) -> None:
    by_column: Array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    out = np.full((shape[1], shape[0] + 2), 9, dtype=np.float32)
    transpose(by_column, 1, out)
    np.testing.assert_array_equal(out[:, 1:-1], by_column.T)
    assert (out[:, [0, -1]] == 9).all()


_COMPILED_BY_READING = """
import sys
from pathlib import Path
import numpy as np
from numba.core.dispatcher import Dispatcher
from phalanx import storage
from phalanx.data import kernels, recordio_kernels
from phalanx.data.format import Options
from phalanx.data.formats import format_named
from phalanx.data.source import Source
folder = Path(sys.argv[1])

def compiled():
    found = {}
    for module in (kernels, recordio_kernels):
        module.warm_up()
        found |= {name: list(d.signatures) for name, d in vars(module).items() if isinstance(d, Dispatcher)}
    return found

before = compiled()
for name in ("a.csv", "b.libsvm", "c.recordio", "d.recordio"):
    data_format = format_named({"csv": "csv", "libsvm": "libsvm", "recordio": "recordio"}[name[2:]])
    source = Source(storage.list_files(str(folder / name))[0], "none", name=name)
    options = Options(label_size=1, weight_size=0, index_base=1, columns=None)
    index = data_format.index(source, options)
    data_format.read(source, index, 0, index.rows, options)
    source.close()
print({name: (before[name], now) for name, now in compiled().items() if now != before[name]} or "nothing more")
"""


def test_warm_up_compiles_what_readers_call(tmp_path: Path) -> None:
    features, label = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10, dtype=np.float32)
    (tmp_path / "a.csv").write_text("".join(f"{y},{a},{b}\n" for y, (a, b) in zip(label, features, strict=True)))
    (tmp_path / "b.libsvm").write_text("".join(f"{y} 1:{a} 2:{b}\n" for y, (a, b) in zip(label, features, strict=True)))
    with (tmp_path / "c.recordio").open("wb") as file:
        write_dense(file, features, label)
    with (tmp_path / "d.recordio").open("wb") as file:
        indptr, indices = np.arange(0, 21, 2, dtype=np.int64), np.tile(np.array([0, 1]), 10)
        write_sparse(file, Csr(indptr, indices, features.ravel(), 2), label)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED_BY_READING, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("nothing more", "")
