"""Requests in every shape of the spec, and answers as they are written."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.contracts import Csr, Records
from phalanx.data.formats.recordio import decode_records, write_dense
from phalanx.data.json_stream import instances
from phalanx.data.requests import ResponseWriter, decode, read_requests
from phalanx.errors import UserError

DENSE = np.array([[1.5, 16], [2, np.nan]], dtype=np.float32)


def record_body() -> bytes:
    out = io.BytesIO()
    write_dense(out, DENSE, np.ones(2, np.float32))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv", b"1.5,16\n2,\n"),
        ("text/csv;label_size=1", b"9,1.5,16\n9,2,nan\n"),
        ("text/csv; charset=utf-8", b"1.5,16\r\n2,NaN"),
        ("application/json", b'{"instances": [{"features": [1.5, 16]}, {"features": [2, null]}]}'),
        ("application/json", b'{"configuration": {"a": [1]}, "instances": [[1.5, 16.0], [2, NaN]]}\n'),
        (
            "application/json",
            b'{"instances":[{"data":{"features":{"values":[1.5,16]}}},{"data":{"features":{"values":[2,null]}}}]}',
        ),
        ("application/jsonlines", b'{"features": [1.5, 16]}\n{"features": [2, null], "label": 3}\n'),
        ("application/jsonlines", b'{"data":{"features":{"values":[1.5,16]}}}\n{"data":{"features":{"values":[2,null]}}}'),
        ("application/x-recordio-protobuf", record_body()),
    ],
)
def test_dense_requests(content_type: str, body: bytes) -> None:
    for columns in (2, None):
        found = decode(body, content_type, columns=columns)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, DENSE)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/libsvm", b"0 2:1 4:2\n1 1:3\n"),
        ("text/libsvm;index_base=0", b"0 1:1 3:2\n1 0:3\n"),
        (
            "application/json",
            b'{"instances": [{"data": {"features": {"keys": [3, 1], "shape": [4], "values": [2, 1]}}},'
            b' {"features": {"keys": [0], "shape": [4], "values": [3]}}]}',
        ),
        (
            "application/jsonlines",
            b'{"data":{"features":{"keys":[1,3],"shape":4,"values":[1,2]}}}\n{"features":{"keys":[0],"values":[3]}}\n',
        ),
    ],
)
def test_sparse_requests(content_type: str, body: bytes) -> None:
    found = decode(body, content_type, columns=6)
    assert isinstance(found, Csr)
    assert (found.indptr.tolist(), found.indices.tolist(), found.values.tolist(), found.columns) == (
        [0, 2, 3],
        [1, 3, 0],
        [1, 2, 3],
        6,
    )


def test_other_requests_are_records() -> None:
    found = decode(b'{"instances": [{"start": "2020-01-01", "target": [1, 2]}]}', "application/json", columns=None)
    assert found == Records([{"start": "2020-01-01", "target": [1, 2]}])


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("text/csv", b"1,2\n1,x\n", ["the request line 2", "'1,x'"]),
        ("text/csv", b"1,2,3\n", ["3 feature columns", "takes 2", "label_size=1"]),
        ("text/csv", b"", ["no rows"]),
        ("text/libsvm", b"1 7:2\n", ["line 1", "7:2", "2 columns"]),
        ("application/json", b"", ["instances"]),
        ("application/json", b"3", ["instances"]),
        ("application/json", b'{"rows": []}', ["instances"]),
        ("application/json", b'{"instances": []}', ["instances"]),
        ("application/json", b'{"instances": [{"features": [1, 2]}, {"features": [1]}]}', ["instance 2", "1 feature", "2"]),
        ("application/json", b'{"instances": [{"features": [1, "a"]}]}', ["instance 1", "'a'"]),
        ("application/json", b'{"instances": [{"features": [1, 2]}', ["ends"]),
        ("application/json", b'{"instances": [{"features": [1, 2}]}', ["instance 1", "JSON"]),
        ("application/json", b'{"instances": [[1, 2]]} x', ["after the end"]),
        ("application/json", b'{"instances": [' + b"[" * 100000, ["instance 1", "deep"]),
        ("application/json", b'{"instances": [[1, 1' + b"0" * 5000 + b"]]}", ["instance 1"]),
        ("application/json", b'{"instances": ["\xff"]}', ["UTF-8"]),
        ("application/jsonlines", b'{"features": [1, 2]}\n{"features": [1]}\n', ["line 2"]),
        ("application/x-recordio-protobuf", b"abcdefgh", ["record 1"]),
        ("text/html", b"", ["text/html"]),
    ],
)
def test_bad_requests(content_type: str, body: bytes, says: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        decode(body, content_type, columns=2)
    for part in says:
        assert part in raised.value.message
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "json", "jsonl"])
def test_files_are_read_piece_by_piece(tmp_path: Path, suffix: str) -> None:
    rows = np.arange(50, dtype=np.float32).reshape(25, 2)
    text = {
        "csv": "".join(f"{a},{b}\n" for a, b in rows),
        "json": json.dumps({"instances": [{"features": row} for row in rows.tolist()]}),
        "jsonl": "".join(json.dumps({"features": row}) + "\n" for row in rows.tolist()),
    }[suffix.removesuffix(".gz")]
    path = tmp_path / f"requests.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    found = list(read_requests(str(path), None, columns=2, batch_rows=10))
    assert [len(piece) for piece in found] == [10, 10, 5]
    np.testing.assert_array_equal(np.concatenate([piece for piece in found if isinstance(piece, np.ndarray)]), rows)


def test_a_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("1,2\n" * 30 + "1,x\n")
    pieces = read_requests(str(path), None, columns=2, batch_rows=10)
    assert len(next(pieces)) == 10
    with pytest.raises(UserError, match=r"requests\.csv line 31"):
        list(pieces)


@pytest.mark.parametrize(
    "body",
    [
        '{"configuration": {"k": 2}, "instances": ["a b", {"target": [1]}, {"target": [2], "configuration": {"k": 3}}]}',
        '{"instances": ["a b", {"target": [1]}, {"target": [2], "configuration": {"k": 3}}], "configuration": {"k": 2}}',
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_configuration_of_a_document_is_that_of_its_records(tmp_path: Path, body: str, packed: bool) -> None:
    path = tmp_path / ("requests.json.gz" if packed else "requests.json")
    path.write_bytes(gzip.compress(body.encode()) if packed else body.encode())
    (features,) = read_requests(str(path), None, columns=None, batch_rows=10)
    assert isinstance(features, Records)
    assert [item["configuration"] for item in features.items] == [{"k": 2}, {"k": 2}, {"k": 3}]
    assert features.items[0]["source"] == "a b"
    assert features.items[1]["target"] == [1]


def test_a_large_document_is_not_held_in_memory() -> None:
    instance = json.dumps("x" * 10000).encode()

    def pieces() -> Iterator[bytes]:
        yield b'{"instances": [0'
        for _ in range(50):
            yield (b", " + instance) * 20
        yield b"]}"

    source = pieces()
    tracemalloc.start()
    try:
        count = sum(1 for _ in instances(lambda size: next(source, b""), "document"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1001
    assert peak < 4 << 20 < 1000 * len(instance)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=5,
    ),
    st.integers(1, 9),
)
def test_any_document_is_read_in_pieces_of_any_size(rows: list[object], size: int) -> None:
    body = io.BytesIO(json.dumps({"a": [1], "instances": [*rows, 1], "b": {"instances": [2]}}, ensure_ascii=False).encode())
    assert list(instances(lambda _: body.read(size), "document")) == [*rows, 1]


def written(accept: str, *pieces: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    writer = ResponseWriter(out, accept)
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return out.getvalue()


ONE = {"score": np.array([0.1, np.nan], np.float32), "predicted_label": np.array([0.0, 2.0])}
TWO = {"score": np.array([1e-7], np.float32), "predicted_label": np.array([1.0])}


def test_answers_as_json() -> None:
    body = written("application/json", ONE, TWO)
    assert json.loads(body) == {
        "predictions": [
            {"score": 0.1, "predicted_label": 0.0},
            {"score": None, "predicted_label": 2.0},
            {"score": 1e-07, "predicted_label": 1.0},
        ]
    }
    assert json.loads(written("application/json")) == {"predictions": []}
    out = io.BytesIO()
    writer = ResponseWriter(out, "application/json", "scores")
    writer.write(TWO)
    writer.close()
    assert json.loads(out.getvalue()) == {"scores": [{"score": 1e-07, "predicted_label": 1.0}]}
    lines = written("application/jsonlines", ONE, TWO).splitlines()
    assert [json.loads(line) for line in lines] == json.loads(body)["predictions"]


def test_answers_as_csv() -> None:
    columns = {"closest_cluster": np.array([1.0, 0.0]), "distance_to_cluster": np.array([3.0, 0.25], np.float32)}
    assert written("text/csv", columns) == b"1.0,3.0\n0.0,0.25\n"
    assert written("text/csv;label_size=0", {"score": np.array([[0.5, 0.25], [1, 0]], np.float32)}) == b"0.5,0.25\n1.0,0.0\n"


def test_answers_with_lists_words_and_truths() -> None:
    columns = {
        "score": np.array([[0.5, np.inf]], np.float32),
        "word": np.array(['a"b\n']),
        "count": np.array([7]),
        "sure": np.array([True]),
    }
    assert json.loads(written("application/jsonlines", columns)) == {
        "score": [0.5, None],
        "word": 'a"b\n',
        "count": 7,
        "sure": True,
    }
    assert written("application/jsonlines", {"score": np.empty((2, 0))}) == b'{"score": []}\n{"score": []}\n'


def test_answers_as_records() -> None:
    body = written("application/x-recordio-protobuf", ONE, TWO)
    assert body.count(b"predicted_label") == 3
    assert body[:4] == bytes.fromhex("0a23d7ce")
    with pytest.raises(UserError, match="no features"):
        decode_records(body, None)  # answers stand in the label map


def test_answers_with_named_parts() -> None:
    parts = np.zeros(2, dtype=[("0.1", np.float32, (2,)), ("0.9", np.float32, (2,))])
    parts["0.9"] = [[1, 2], [3, np.nan]]
    columns = {"mean": np.array([1.5, 2.5]), "quantiles": parts}
    out = io.BytesIO()
    writer = ResponseWriter(out, "application/json")
    writer.write(columns)
    writer.close()
    assert json.loads(out.getvalue())["predictions"] == [
        {"mean": 1.5, "quantiles": {"0.1": [0, 0], "0.9": [1, 2]}},
        {"mean": 2.5, "quantiles": {"0.1": [0, 0], "0.9": [3, None]}},
    ]
    out = io.BytesIO()
    ResponseWriter(out, "text/csv").write(columns)
    assert out.getvalue() == b"1.5,0.0,0.0,1.0,2.0\n2.5,0.0,0.0,3.0,\n"


def test_an_unknown_answer_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"text/html.*allowed.*application/json"):
        ResponseWriter(io.BytesIO(), "text/html")
