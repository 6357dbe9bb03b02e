"""recordio-protobuf: exact bytes, messages as others write them, records in parts, damaged and hostile files."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx import storage
from phalanx.contracts import Array, Csr, Features
from phalanx.data.format import STRIDE, Options, RowIndex, Table
from phalanx.data.formats.recordio import RecordIO, decode_records, encode_label_records, write_dense, write_sparse
from phalanx.data.recordio_kernels import MAGIC
from phalanx.data.source import Source
from phalanx.errors import UserError

_MAGIC = struct.pack("<I", MAGIC)
_FLOAT32, _FLOAT64, _INT32, _BYTES = 2, 3, 7, 9


# -- a writer of its own, so that mistakes of the tested one are seen -----------------------------------------------------


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def framed(payload: bytes, flag: int = 0) -> bytes:
    return struct.pack("<II", MAGIC, flag << 29 | len(payload)) + payload + b"\0" * (-len(payload) % 4)


def entry(tensor: bytes, kind: int = _FLOAT32, name: bytes = b"values") -> bytes:
    return field(1, name) + field(2, field(kind, tensor))


def record(tensor: bytes, kind: int = _FLOAT32, label: bytes = b"") -> bytes:
    return framed(field(1, entry(tensor, kind)) + label)


def floats(*values: float) -> bytes:
    return field(1, struct.pack(f"<{len(values)}f", *values))


def keys(*numbers: int) -> bytes:
    return field(2, b"".join(map(varint, numbers)))


def shape(*numbers: int) -> bytes:
    return field(3, b"".join(map(varint, numbers)))


def written(write: Callable[..., None], *arrays: object) -> bytes:
    out = io.BytesIO()
    write(out, *arrays)
    return out.getvalue()


def in_parts(whole: bytes, cuts: list[int]) -> bytes:
    """Return a record parted where its payload has the magic number (which the parting leaves out)."""
    payload = whole[8 : 8 + struct.unpack_from("<I", whole, 4)[0]]
    edges = [-4, *cuts, len(payload)]
    pieces = [payload[a + 4 : b] for a, b in pairwise(edges)]
    flags = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(framed(piece, flag) for piece, flag in zip(pieces, flags, strict=True))


def magic_record(value: float, times: int) -> tuple[bytes, Array]:
    """Return a record in `times` + 1 parts, whose row holds the magic number so often, and that row."""
    row = np.concatenate([[np.float32(value)], np.frombuffer(_MAGIC * times, dtype=np.float32)]).astype(np.float32)
    whole = written(write_dense, row[None], np.array([value], np.float32))
    first = whole.index(_MAGIC, 8) - 8
    return in_parts(whole, [first + 4 * i for i in range(times)]), row


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., tuple[RowIndex, Table]]]:
    """Index a file of these bytes and read all of it; its name is a.rec."""
    opened: list[Source] = []

    def read_all(body: bytes, **options: Any) -> tuple[RowIndex, Table]:
        path = tmp_path / "a.rec"
        path.write_bytes(body)
        source = Source(storage.File(str(path), len(body)), name="a.rec")
        opened.append(source)
        index = RecordIO().index(source, Options(**options))
        return index, RecordIO().read(source, index, 0, index.rows, Options(**options))

    yield read_all
    for source in opened:
        source.close()


def dense(features: Features) -> Array:
    assert isinstance(features, np.ndarray)
    return features


def sparse(features: Features) -> Csr:
    assert isinstance(features, Csr)
    return features


# -- bytes ----------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_dense_record() -> None:
    body = written(write_dense, np.array([[1, 2]], np.float32), np.array([3], np.float32))
    assert body.hex(" ") == (
        "0a 23 d7 ce 2c 00 00 00 "  # magic number, 44 bytes
        "0a 16 0a 06 76 61 6c 75 65 73 "  # features, 22 bytes: key "values"
        "12 0c 12 0a 0a 08 00 00 80 3f 00 00 00 40 "  # Value: Float32Tensor: values, packed: 1.0, 2.0
        "12 12 0a 06 76 61 6c 75 65 73 "  # label, 18 bytes: key "values"
        "12 08 12 06 0a 04 00 00 40 40"  # Value: Float32Tensor: values: 3.0
    )


def test_the_bytes_of_a_sparse_record() -> None:
    body = written(write_sparse, Csr(np.array([0, 1]), np.array([200]), np.array([5], np.int32), 300))
    assert body.hex(" ") == (
        "0a 23 d7 ce 19 00 00 00 "  # magic number, 25 bytes
        "0a 17 0a 06 76 61 6c 75 65 73 "  # features, 23 bytes: key "values"
        "12 0d 3a 0b 0a 01 05 12 02 c8 01 1a 02 ac 02 "  # Value: Int32Tensor: values 5, keys 200, shape 300
        "00 00 00"  # up to a multiple of 4
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_protobuf_writes_the_same_bytes(dtype: type[np.number[Any]]) -> None:
    message = record_message()
    kind = {"float32": "float32_tensor", "float64": "float64_tensor"}.get(np.dtype(dtype).name, "int32_tensor")
    rows: Array = np.array([[1, -2, 0], [2**31 - 1, -(2**31), 7]]).astype(dtype)
    csr = Csr(np.array([0, 2, 2]), np.array([3, 900]), rows[1, :2], 1000)
    expected = [b"", b""]
    for number in range(2):
        part = slice(csr.indptr[number], csr.indptr[number + 1])
        for way, (values, places, size) in enumerate([(rows[number], [], []), (csr.values[part], csr.indices[part], [1000])]):
            one = message()
            tensor = getattr(one.features["values"], kind)
            tensor.values.extend(values.tolist())
            tensor.keys.extend(np.asarray(places, int).tolist())
            tensor.shape.extend(size)
            getattr(one.label["values"], kind).values.append(rows[number, 0].item())
            expected[way] += framed(one.SerializeToString(deterministic=True))
    assert written(write_dense, rows, rows[:, 0]) == expected[0]
    assert written(write_sparse, csr, rows[:, 0]) == expected[1]


def record_message() -> Any:
    """Return protobuf's class for Record, built from its description."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import (  # type: ignore[import-untyped]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(name="record.proto", package="t", syntax="proto2")
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="value")
    for number, name, kind in ((2, "Float32", 2), (3, "Float64", 1), (7, "Int32", 5)):
        tensor = file.message_type.add(name=f"{name}Tensor")
        for place, part, of in ((1, "values", kind), (2, "keys", 4), (3, "shape", 4)):
            tensor.field.add(name=part, number=place, type=of, label=3).options.packed = True
        value.field.add(
            name=f"{name.lower()}_tensor", number=number, type=11, label=1, type_name=f".t.{name}Tensor", oneof_index=0
        )
    whole = file.message_type.add(name="Record")
    for number, part, name in ((1, "features", "FeaturesEntry"), (2, "label", "LabelEntry")):
        nested = whole.nested_type.add(name=name)
        nested.options.map_entry = True
        nested.field.add(name="key", number=1, type=9, label=1)
        nested.field.add(name="value", number=2, type=11, label=1, type_name=".t.Value")
        whole.field.add(name=part, number=number, type=11, label=3, type_name=f".t.Record.{name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Record"))


def test_answers_are_records_with_labels_only() -> None:
    columns = {
        "score": np.array([0.5, -1]),
        "quantiles": np.array([[1, 2], [3, 4]], np.int64),
        "sure": np.array([True, False]),
    }

    def answer(score: float, quantiles: tuple[float, float], sure: float) -> bytes:
        entries = ((b"score", (score,)), (b"quantiles", quantiles), (b"sure", (sure,)))
        return framed(b"".join(field(2, entry(floats(*values), name=name)) for name, values in entries))

    assert encode_label_records(columns) == answer(0.5, (1, 2), 1) + answer(-1, (3, 4), 0)
    assert encode_label_records({"score": np.empty(0, np.float32)}) == b""
    with pytest.raises(UserError, match=r"'word' holds no numbers.*text/csv"):
        encode_label_records({"word": np.array(["a"])})
    with pytest.raises(UserError, match="score 2, more 3"):
        encode_label_records({"score": np.zeros(2), "more": np.zeros(3)})


# -- what is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("rows", [1, STRIDE, 3 * STRIDE + 5])
def test_dense_rows_come_back(read: Callable[..., tuple[RowIndex, Table]], dtype: type[np.number[Any]], rows: int) -> None:
    features: Array = (np.random.default_rng(0).normal(size=(rows, 5)) * 1e6).astype(dtype)
    label: Array = np.arange(rows).astype(dtype)
    index, table = read(written(write_dense, features, label))
    assert (index.rows, index.columns, index.sparse, index.labelled) == (rows, 5, False, True)
    np.testing.assert_array_equal(dense(table.features), features.astype(np.float32))
    np.testing.assert_array_equal(table.label, label.astype(np.float32))


def test_any_run_of_rows_can_be_read(tmp_path: Path) -> None:
    rows = 3 * STRIDE + 5
    features = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    path = tmp_path / "a.rec.gz"
    with gzip.open(path, "wb") as out:
        for number, row in enumerate(features):  # records of different lengths and kinds
            write_dense(out, row[None].astype([np.float32, np.float64, np.int32][number % 3]))  # type: ignore[arg-type]
    source = Source(storage.File(str(path), path.stat().st_size))
    index = RecordIO().index(source, Options())
    for start in range(0, rows, 7):
        for stop in (start + 1, min(start + 40, rows), rows):
            table = RecordIO().read(source, index, start, stop, Options())
            np.testing.assert_array_equal(dense(table.features), features[start:stop])
            assert table.label is None
    assert RecordIO().where(source, index, 6).endswith("a.rec.gz record 7")
    source.close()


def test_much_at_a_time_is_read_once(tmp_path: Path) -> None:
    rows, wide = 3 * STRIDE + 5, 20_000
    features = np.arange(rows * wide, dtype=np.float32).reshape(rows, wide)
    path = tmp_path / "a.rec"
    with path.open("wb") as out:
        write_dense(out, features, features[:, 0])
    source = Source(storage.File(str(path), path.stat().st_size))
    index = RecordIO().index(source, Options())
    for start, stop in ((0, rows), (1, rows), (STRIDE - 1, 2 * STRIDE + 1), (STRIDE, 2 * STRIDE), (rows - 3, rows)):
        with mock.patch.object(source, "read", wraps=source.read) as reading:
            table = RecordIO().read(source, index, start, stop, Options())
        np.testing.assert_array_equal(dense(table.features), features[start:stop])
        np.testing.assert_array_equal(table.label, features[start:stop, 0])
        spans = [call.args for call in reading.call_args_list]
        assert all(a + size == b for (a, size), (b, _) in pairwise(spans))  # nothing twice, nothing left out
    source.close()


def test_sparse_rows_come_back(read: Callable[..., tuple[RowIndex, Table]]) -> None:
    given = Csr(np.array([0, 2, 2, 3]), np.array([1, 8, 0]), np.array([1, -2, 3], np.float32), 10)
    for options, columns in (({}, 10), ({"columns": 12}, 12)):
        index, table = read(written(write_sparse, given, np.arange(3.0)), **options)
        found = sparse(table.features)
        assert (index.rows, index.columns, index.sparse, found.columns) == (3, columns, True, columns)
        np.testing.assert_array_equal(found.indptr, given.indptr)
        np.testing.assert_array_equal(found.indices, given.indices)
        np.testing.assert_array_equal(found.values, given.values)


def test_sparse_rows_as_others_write_them() -> None:
    body = (
        record(floats(1, 2) + keys(7, 3))  # in another order, no shape
        + record(keys(2) + shape(2, 6) + floats(3))  # a matrix; fields in another order
        + record(shape(12))
        + record(floats(4, 5))  # a dense one among them
    )
    found = sparse(decode_records(body, None))
    assert found.columns == 12
    assert found.indptr.tolist() == [0, 2, 3, 3, 5]
    assert found.indices.tolist() == [3, 7, 2, 0, 1]
    assert found.values.tolist() == [2, 1, 3, 4, 5]


def test_numbers_that_are_not_packed() -> None:
    single = b"".join(varint(1 << 3 | 5) + struct.pack("<f", x) for x in (1, 2))
    double = b"".join(varint(1 << 3 | 1) + struct.pack("<d", x) for x in (3, 4))
    whole = b"".join(varint(1 << 3) + varint(x & (2**64 - 1)) for x in (5, -6))
    split = floats(7) + varint(1 << 3 | 5) + struct.pack("<f", 8)
    body = record(single) + record(double, _FLOAT64) + record(whole, _INT32) + record(split)
    assert dense(decode_records(body, 2)).tolist() == [[1, 2], [3, 4], [5, -6], [7, 8]]
    places = b"".join(varint(2 << 3) + varint(x) for x in (0, 4))
    assert sparse(decode_records(record(single + places), None)).indices.tolist() == [0, 4]


def test_an_int32_in_five_bytes_is_cut_to_32_bits() -> None:
    assert dense(decode_records(record(field(1, varint(2**32 - 1)), _INT32), None)).tolist() == [[-1]]


def test_fields_that_are_unknown_or_not_needed() -> None:
    more = field(3, b"uid") + field(4, b"{}") + varint(99 << 3) + varint(5) + varint(98 << 3 | 1) + b"8 bytes."
    assert dense(decode_records(framed(more + field(1, entry(floats(1))) + more), None)).tolist() == [[1]]


def test_a_label_that_is_not_asked_for_is_left_alone(read: Callable[..., tuple[RowIndex, Table]]) -> None:
    body = record(floats(1), label=field(2, entry(field(1, b"x"), _BYTES))) + record(floats(2))
    index, table = read(body, label_size=0)
    assert (index.rows, index.labelled, table.label) == (2, False, None)


# -- records in parts -----------------------------------------------------------------------------------------------------


def test_many_records_in_several_parts(read: Callable[..., tuple[RowIndex, Table]]) -> None:
    bodies, rows = [], []
    for number in range(5 * STRIDE):
        parted, row = magic_record(number, 3)
        plain = np.full((1, 4), number, np.float32)
        bodies += [parted, written(write_dense, plain, plain[0, :1])]
        rows += [row, plain[0]]
    index, table = read(b"".join(bodies))
    np.testing.assert_array_equal(dense(table.features), np.array(rows))
    assert table.label is not None
    assert table.label.tolist() == [number // 2 for number in range(10 * STRIDE)]
    assert index.places.tolist() == [*np.cumsum([0, *map(len, bodies)])[:-1:STRIDE], sum(map(len, bodies))]


def test_a_record_in_very_many_parts() -> None:
    body, row = magic_record(1, 200_000)  # what grows with the square of the parts would take minutes
    np.testing.assert_array_equal(dense(decode_records(body, None))[0], row)


def test_parts_that_do_not_fit_together(read: Callable[..., tuple[RowIndex, Table]]) -> None:
    good, (body, _) = record(floats(1)), magic_record(1, 2)
    second = body.index(_MAGIC, 8)
    third = body.index(_MAGIC, second + 4)
    for wrong, says in (
        (body[second:], "record 2: no record begins here"),  # a middle part first
        (body[third:], "record 2: no record begins here"),
        (body[:second], "record 2: cut short"),
        (body[:third], "record 2: cut short"),
        (body[:second] + good, "record 2: no record begins here"),
        (body[:second] + body, "record 2: no record begins here"),
        (framed(b"", 5), "record 2: no record begins here"),
    ):
        with pytest.raises(UserError, match=rf"^a\.rec {says}"):
            read(good + wrong)
        with pytest.raises(UserError, match=rf"^the request {says}"):
            decode_records(good + wrong, None)


# -- what is refused ------------------------------------------------------------------------------------------------------

REFUSED = {
    "magic number": (struct.pack("<II", MAGIC + 1, 0), "no record begins here"),
    "a length beyond the end": (struct.pack("<II", MAGIC, 2**29 - 1) + b"123456789012", "cut short"),
    "a length with all bits": (struct.pack("<II", MAGIC, 2**32 - 1) + b"123456789012", "no record begins here"),
    "half a header": (_MAGIC + b"\1", "cut short"),
    "no message": (framed(b"\xff\xff"), "damaged"),
    "a length inside beyond the end": (framed(b"\x0a" + varint(2**63)), "damaged"),
    "a group": (framed(b"\x0b\x0c"), "damaged"),
    "features that are a number": (framed(b"\x08\x01"), "no features"),
    "features without a value": (framed(field(1, field(1, b"values"))), "no features"),
    "bytes": (record(field(1, b"abcd"), _BYTES), "neither float32, float64 nor int32"),
    "two tensors": (framed(field(1, entry(floats(1))) + field(1, entry(floats(2), name=b"more"))), "more than one tensor"),
    "two values": (framed(field(1, entry(floats(1)) + field(2, field(2, floats(2))))), "more than one tensor"),
    "a third of a float": (record(field(1, b"abcde")), "damaged"),
    "doubles in a float tensor": (record(varint(1 << 3 | 1) + b"8 bytes."), "damaged"),
    "a varint of 11 bytes": (record(field(1, b"\x80" * 10 + b"\1"), _INT32), "damaged"),
    "a varint without end": (record(field(1, b"\x80"), _INT32), "damaged"),
    "a key of 11 bytes": (record(floats(1) + field(2, b"\x80" * 10 + b"\1") + shape(5)), "damaged"),
    "fewer keys": (record(floats(1, 2) + keys(1) + shape(5)), "one key for every value"),
    "keys without values": (record(keys(1) + shape(5)), "one key for every value"),
    "a key twice": (record(floats(1, 2) + keys(3, 3) + shape(5)), "each key once"),
    "a key beyond the shape": (record(floats(1) + keys(5) + shape(5)), "beyond the 5 columns"),
    "a huge key": (record(floats(1) + keys(2**40)), f"width of {2**40 + 1} is not possible"),
    "the hugest key": (record(floats(1) + keys(2**64 - 1)), "is not possible"),
    "a huge shape": (record(floats(1) + keys(1) + shape(2**60)), f"width of {2**60} is not possible"),
    "the hugest shape": (record(floats(1) + keys(1) + shape(2**64 - 1)), "is not possible"),
    "a shape beyond 64 bits": (record(floats(1) + keys(1) + shape(2**40, 2**40)), "is not possible"),
    "a shape of another size": (record(floats(1, 2) + shape(3)), "shape does not fit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_record_is_named(read: Callable[..., tuple[RowIndex, Table]], case: str) -> None:
    body, says = REFUSED[case]
    good = record(floats(1) + keys(1) + shape(5))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"^a\.rec record 4\b.*{says}"):
            read(good * 3 + body)
        with pytest.raises(UserError, match=rf"^the request record 4\b.*{says}"):
            decode_records(good * 3 + body, None)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_one_wide_record_does_not_make_all_wide(read: Callable[..., tuple[RowIndex, Table]]) -> None:
    body = record(floats(1)) * 50_000 + record(floats(*[0.0] * 200_000))  # 40 GB if all rows were so wide
    for refused in (lambda: decode_records(body, None), lambda: read(body)):
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match="record 1 has 1 values where 200000 are expected"):
                refused()
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (entry(floats()), "a label must be one number"),
        (entry(floats(1, 2)), "a label must be one number"),
        (entry(field(1, b"x"), _BYTES), "a label must be one number"),
        (entry(floats(float("inf"))), "must be a finite number, not inf"),
    ],
)
def test_labels_that_are_no_number(read: Callable[..., tuple[RowIndex, Table]], label: bytes, says: str) -> None:
    good = record(floats(1), label=field(2, entry(floats(1))))
    with pytest.raises(UserError, match=rf"^a\.rec record 2.*{says}"):
        read(good + record(floats(1), label=field(2, label)))
    with pytest.raises(UserError, match=r"^a\.rec record 2.*a label must be one number"):
        read(good + record(floats(1), label=field(2, entry(floats(1))) * 2))


def test_labels_here_and_there(read: Callable[..., tuple[RowIndex, Table]]) -> None:
    labelled = record(floats(1), label=field(2, entry(floats(1))))
    with pytest.raises(UserError, match="record 3 has no label where record 1 has a label"):
        read(labelled * 2 + record(floats(1)))
    with pytest.raises(UserError, match="record 2 has a label where record 1 has none"):
        read(record(floats(1)) + labelled)


def test_what_cannot_be_written() -> None:
    for arrays, says in (
        ((np.ones((2, 2), np.float16),), "float16 cannot be written"),
        ((np.array([[True]]),), "bool cannot be written"),
        ((np.array([[2**31]]),), "beyond 32 bits"),
        ((np.array([[-(2**31) - 1]]),), "beyond 32 bits"),
        ((np.ones(3, np.float32),), r"shape \(rows, columns\), not \(3,\)"),
        ((np.ones((2, 2), np.float32), np.ones(3, np.float32)), "vector of 2 values"),
        ((np.ones((2, 2), np.float32), np.ones((2, 1), np.float32)), "vector of 2 values"),
    ):
        with pytest.raises(UserError, match=says):
            written(write_dense, *arrays)


# -- anything at all ------------------------------------------------------------------------------------------------------

_GOOD = (
    written(write_dense, np.arange(8, dtype=np.float32).reshape(2, 4), np.arange(2.0))
    + written(write_sparse, Csr(np.array([0, 2, 2]), np.array([0, 3]), np.array([1, 300]), 4), np.arange(2))
    + in_parts(
        record(floats(1, 2, 3, struct.unpack("<f", _MAGIC)[0])), [record(floats(1, 2, 3, 4)).index(floats(1, 2, 3)[2:]) + 4]
    )
)


@settings(max_examples=300, deadline=None)
@given(
    cut=st.integers(0, len(_GOOD)),
    flips=st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 7)), max_size=4),
    tail=st.binary(max_size=12),
)
def test_damage_is_always_a_user_error(cut: int, flips: list[tuple[int, int]], tail: bytes) -> None:
    body = bytearray(_GOOD)
    for place, bit in flips:
        body[place] ^= 1 << bit
    body = body[:cut] + tail
    first = outcome(bytes(body))
    np.full(64, 7, np.float32)
    assert outcome(bytes(body)) == first  # what is read does not depend on what lay in memory
    assert isinstance(first, bytes) or first.startswith("the request")


def outcome(body: bytes) -> bytes | str:
    """Return the values read, or the text of the error; any other exception is the test's failure."""
    try:
        found = decode_records(body, None)
    except UserError as error:
        return error.message
    return found.tobytes() if isinstance(found, np.ndarray) else sparse(found).values.tobytes()


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=40))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    for body in (framed(payload), record(payload), record(payload, _INT32), record(payload, _FLOAT64)):
        found = outcome(body)
        assert isinstance(found, bytes) or found.startswith("the request record 1")
