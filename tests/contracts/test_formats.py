"""Every content type passes the conformance suite; what is special to one is in tests/unit/data."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pyarrow
import pyarrow.parquet

from phalanx.contracts import Array, Csr
from phalanx.data.formats.recordio import write_dense, write_sparse
from phalanx.testing.format_checks import COLUMNS, Broken, FormatChecks


def text(value: float) -> str:
    """Return the shortest text that reads back as the same float32."""
    return "" if np.isnan(value) else str(np.float32(value))


def csv_bytes(features: Array, label: Array | None, separator: str = ",") -> bytes:
    columns = features if label is None else np.column_stack([label, features])
    return "".join(separator.join(text(value) for value in row) + "\n" for row in columns).encode()


class TestCsv(FormatChecks):
    content_type, suffix = "text/csv", "csv"

    def encode(self, features: Array, label: Array | None) -> bytes:
        return csv_bytes(features, label)

    def broken(self) -> list[Broken]:
        return [
            Broken("ragged", b"1,2,3\n4,5,6\n\n7,8\n", ["line 4", "2 columns", "3"]),
            Broken("long", b"1,2,3\n4,5,6,7\n", ["line 2", "3 columns"]),
            Broken("words", b"1,2,3\n4,five,6\n", ["line 2", "column 2", "number", "five"]),
            Broken("header", b"label,width,height\n1,2,3\n", ["line 1", "header", "remove"]),
            Broken("half-header", b"label,0,1\n1,2,3\n", ["line 1", "header", "remove"]),
            Broken("label", b"1,2,3\n,5,6\n", ["line 2", "label", "nan"]),
            Broken("binary", bytes(range(256)) * 9, []),
            Broken("libsvm", b"1 1:2 2:3\n0 1:4 2:5\n", ["line 1", "number"]),
            Broken("lonely", b"1\n2\n", ["too few", "label_size=0"]),
            Broken("escape", b"1,2\n1,\x1b[31m\n", ["line 2"]),
        ]


class TestCsvWithoutLabel(TestCsv):
    content_type, labelled = "text/csv; label_size=0", False

    def broken(self) -> list[Broken]:
        return [Broken("ragged", b"1;2\n3\n", ["line 2", "1 column"])]


class TestCsvWithTabs(TestCsv):
    suffix = "tsv"

    def encode(self, features: Array, label: Array | None) -> bytes:
        return csv_bytes(features, label, "\t").replace(b"\n", b"\r\n")

    def broken(self) -> list[Broken]:
        return [Broken("ragged", b"1\t2\r\n3\r\n", ["line 2", "1 column"])]


class TestCsvWithSpaces(TestCsv):
    missing = False

    def encode(self, features: Array, label: Array | None) -> bytes:
        return csv_bytes(features, label, "  ")

    def broken(self) -> list[Broken]:
        return [Broken("ragged", b"1 2\n3\n", ["line 2", "1 column"])]


class TestLibSvm(FormatChecks):
    content_type, suffix = "text/libsvm", "libsvm"
    sparse = True
    missing = False

    def encode(self, features: Array, label: Array | None) -> bytes:
        assert label is not None
        lines = []
        for row, value in zip(features, label, strict=True):
            lines.append(f"{text(value)} " + " ".join(f"{i + 1}:{text(v)}" for i, v in enumerate(row) if v != 0) + "\n")
        return "".join(lines).encode()

    def broken(self) -> list[Broken]:
        return [
            Broken("zero", b"1 1:2\n1 0:3 1:4\n", ["line 2", "index 0", "index_base=0"]),
            Broken("negative", b"1 -1:2\n", ["line 1", "-1:2"]),
            Broken("huge", b"1 99999999999999999999:2\n", ["line 1"]),
            Broken("words", b"1 1:2\n1 1:two\n", ["line 2", "1:two"]),
            Broken("label", b"1 1:2\nnan 1:2\n", ["line 2", "label"]),
            Broken("twice", b"1 3:2 3:4\n", ["line 1", "twice"]),
            Broken("csv", b"1,2,3\n4,5,6\n", ["line 1", "is it libsvm"]),
            Broken("csv-with-spaces", b"1, 2, 3\n", ["line 1"]),
            Broken("wide", b"1 1:2\n# a comment\n\n1 7:2\n", ["line 4", "7:2", "4 columns"], columns=4),
            Broken("half-weights", b"1:2 1:2\n1 1:2\n", ["line 2", "weight"]),
            Broken("half-groups", b"1 qid:1 1:2\n1 1:2\n", ["line 2", "qid"]),
            Broken("returning-group", b"1 qid:1 1:2\n1 qid:2 1:2\n0 qid:1 1:1\n", ["line 3", "qid"]),
            Broken("binary", bytes(range(256)) * 9, []),
        ]


class TestRecordIO(FormatChecks):
    content_type, suffix = "application/x-recordio-protobuf", "recordio"

    def encode(self, features: Array, label: Array | None) -> bytes:
        out = io.BytesIO()
        write_dense(out, features, label)
        return out.getvalue()

    def broken(self) -> list[Broken]:
        good = self.encode(*self.table(3))
        one = len(good) // 3
        return [
            Broken("cut", good[:-5], ["record 3", "cut short"]),
            Broken("magic", good[:one] + b"\0\0\0\0" + good[one + 4 :], ["record 2", "recordio"]),
            Broken("length", good[:one] + struct.pack("<II", 0xCED7230A, 0x1FFFFFFF), ["record 2", "cut short"]),
            Broken("message", struct.pack("<II", 0xCED7230A, 4) + b"\xff" * 4, ["record 1", "damaged"]),
            Broken("csv", b"1,2,3\n4,5,6\n", ["record 1", "recordio"]),
            Broken("empty", struct.pack("<II", 0xCED7230A, 0), ["record 1", "no features"]),
            Broken(
                "ragged",
                good + self.encode(*(x if x is None or x.ndim == 1 else x[:, :3] for x in self.table(2))),
                ["record 4", "3"],
            ),
            Broken("nan", self.encode(np.ones((1, 2), np.float32), np.array([np.nan], np.float32)), ["record 1", "label"]),
            Broken(
                "half-labels",
                good + self.encode(self.table(3)[0], None),
                ["record 4", "label"],
            ),
        ]


class TestRecordIOWithoutLabel(TestRecordIO):
    labelled = False

    def broken(self) -> list[Broken]:
        return [Broken("cut", self.encode(*self.table(3))[:-5], ["record 3", "cut short"])]


class TestRecordIOSparse(FormatChecks):
    content_type, suffix = "application/x-recordio-protobuf", "recordio"
    sparse = True
    missing = False

    def encode(self, features: Array, label: Array | None) -> bytes:
        out = io.BytesIO()
        indptr = np.concatenate([[0], np.cumsum((features != 0).sum(axis=1))]).astype(np.int64)
        write_sparse(out, Csr(indptr, np.nonzero(features)[1], features[features != 0], features.shape[1]), label)
        return out.getvalue()

    def broken(self) -> list[Broken]:
        good = self.encode(*self.table(3))
        keyless = Csr(np.array([0, 1]), np.array([9]), np.ones(1, np.float32), 4)
        beyond, endless = io.BytesIO(), io.BytesIO()
        write_sparse(beyond, keyless, np.ones(1, np.float32))
        write_sparse(endless, Csr(np.array([0, 1]), np.array([1]), np.ones(1, np.float32), 1 << 60), np.ones(1, np.float32))
        return [
            Broken("cut", good[:-5], ["record 3", "cut short"]),
            Broken("beyond", beyond.getvalue(), ["record 1", "key", "4 columns"]),
            Broken("endless", endless.getvalue(), ["record 1", "width"]),
        ]


class TestParquet(FormatChecks):
    content_type, suffix = "application/x-parquet", "parquet"
    compressible = False

    def encode(self, features: Array, label: Array | None) -> bytes:
        columns = {} if label is None else {"label": pyarrow.array(label)}
        columns |= {f"f{i}": pyarrow.array(column, from_pandas=True) for i, column in enumerate(features.T)}
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), out, row_group_size=50)
        return out.getvalue()

    def broken(self) -> list[Broken]:
        good = self.encode(*self.table(100))
        words, no_label = io.BytesIO(), io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"label": [1.0, 2.0], "name": ["a", "b"]}), words)
        pyarrow.parquet.write_table(pyarrow.table({"label": [1.0, None], "x": [1.0, 2.0]}), no_label)
        return [
            Broken("words", words.getvalue(), ["name", "string", "numbers"]),
            Broken("label", no_label.getvalue(), ["row 2", "label"]),
            Broken("cut", good[:-20], ["parquet"]),
            Broken("csv", b"1,2,3\n4,5,6\n" * 9, ["parquet"]),
            Broken("hole", good[:200] + b"\xff" * 200 + good[400:], []),
        ]


class TestJsonLines(FormatChecks):
    content_type, suffix = "application/jsonlines", "jsonl"

    def encode(self, features: Array, label: Array | None) -> bytes:
        assert label is not None
        rows = [[None if np.isnan(v) else float(v) for v in row] for row in features]
        lines = [json.dumps({"features": row, "label": float(y)}) + "\n" for row, y in zip(rows, label, strict=True)]
        return "".join(lines).encode()

    def broken(self) -> list[Broken]:
        good = b'{"features": [1, 2], "label": 1}\n'
        return [
            Broken("syntax", good + b'{"features": [1, 2\n', ["line 2", "JSON"]),
            Broken("ragged", good + b'{"features": [1], "label": 1}\n', ["line 2", "1 feature"]),
            Broken("words", good + b'{"features": [1, "two"], "label": 1}\n', ["line 2", "two"]),
            Broken("label", good + b'{"features": [1, 2], "label": NaN}\n', ["line 2", "label"]),
            Broken("half-labels", good + b'{"features": [1, 2]}\n', ["line 2", "label"]),
            Broken("kind", good + b'{"start": "2020-01-01"}\n', ["line 2", "features"]),
            Broken("deep", good + b"[" * 100000 + b"\n", ["line 2"]),
            Broken("csv", b"1,2,3\n4,5,6\n", ["line 1", "JSON"]),
            Broken("number", good + b"7\n", ["line 2"]),
            Broken("big", good + b'{"features": [1, 1' + b"0" * 5000 + b'], "label": 1}\n', ["line 2"]),
        ]


class TestJsonLinesSparse(FormatChecks):
    content_type, suffix = "application/jsonlines", "jsonl"
    sparse = True
    missing = False

    def encode(self, features: Array, label: Array | None) -> bytes:
        assert label is not None
        lines = []
        for row, y in zip(features, label, strict=True):
            keys = np.flatnonzero(row)
            found = {"keys": keys.tolist(), "shape": [COLUMNS], "values": row[keys].tolist()}
            lines.append(json.dumps({"data": {"features": found}, "label": float(y)}) + "\n")
        return "".join(lines).encode()

    def broken(self) -> list[Broken]:
        def row(**parts: object) -> bytes:
            return (
                json.dumps({"label": 1, "data": {"features": {"keys": [0], "values": [1], "shape": [4]} | parts}}).encode()
                + b"\n"
            )

        good = row()
        return [
            Broken("beyond", good + row(keys=[4]), ["line 2", "key 4"]),
            Broken("twice", good + row(keys=[1, 1], values=[1, 2]), ["line 2", "twice"]),
            Broken("lengths", good + row(values=[1, 2]), ["line 2", "same length"]),
            Broken("endless", good + row(shape=[2**60]), ["line 2", "shape"]),
            Broken("keys", good + row(keys=["0"]), ["line 2", "keys"]),
            Broken("dense", good + b'{"features": [1, 2], "label": 1}\n', ["line 2", "sparse"]),
        ]
