"""A script's functions for requests, and what stands in for those it has not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from phalanx.contracts import Csr, Records
from phalanx.errors import UserError
from phalanx.scripts.handlers import CSV, JSON, JSONLINES, NPY, Handlers, decoded, encoded
from phalanx.scripts.model import content_type_of


class Doubler:
    def predict(self, data: Any) -> Any:
        return np.asarray(data.sum(axis=1)).ravel() * 2


def handlers(folder: Path, **functions: Callable[..., Any]) -> Handlers:
    module = ModuleType("script")
    module.__file__ = "script.py"
    vars(module).update({"model_fn": lambda folder: Doubler(), **functions})
    return Handlers(module, folder)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[[1, 2], [3, 4]]", JSON),
        (b'{"instances": [[1, 2], [3, 4]]}', "application/json; charset=utf-8"),
        (b"1,2\n3,4\n", CSV),
        (b"0:1 1:2\n0:3 1:4\n".replace(b"0:1 1", b"0 0:1 1").replace(b"0:3 1", b"0 0:3 1"), "text/libsvm"),
    ],
)
@pytest.mark.parametrize(
    ("accept", "answer"),
    [(JSON, b"[6.0, 14.0]"), (JSONLINES, b"6.0\n14.0\n"), (CSV, b"6.0\n14.0\n"), ("*/*", b"[6.0, 14.0]")],
)
def test_stand_ins(tmp_path: Path, body: bytes, content_type: str, accept: str, answer: bytes) -> None:
    assert handlers(tmp_path).answer(body, content_type, accept) == answer


def test_npy_there_and_back(tmp_path: Path) -> None:
    sink = io.BytesIO()
    np.save(sink, np.ones((2, 3)))
    answer = handlers(tmp_path).answer(sink.getvalue(), NPY, NPY)
    np.testing.assert_array_equal(np.load(io.BytesIO(answer)), [6, 6])


def test_one_row_and_one_column_of_csv_stay_tables() -> None:
    assert decoded(b"1,2,3\n", CSV).shape == (1, 3)
    assert decoded(b"1\n2\n3\n", CSV).shape == (3, 1)


@pytest.mark.parametrize(
    ("body", "content_type", "pattern"),
    [
        (b"[[1, 2], [3]]", JSON, "no application/json of numbers"),
        (b"{", JSON, "no application/json"),
        (b"1,2\n3\n", CSV, "no text/csv of numbers"),
        (b"", "image/png", "'image/png' cannot be read: the script has no input_fn"),
        (b"nothing", NPY, "no application/x-npy"),
    ],
)
def test_requests_that_cannot_be_read(tmp_path: Path, body: bytes, content_type: str, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        handlers(tmp_path).answer(body, content_type, JSON)


def test_answers_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match="no output_fn"):
        encoded([1], "image/png")
    with pytest.raises(UserError, match="write an output_fn"):
        encoded([object()], JSON)


def test_the_scripts_own_functions_are_called_with_text_and_a_context(tmp_path: Path) -> None:
    seen: list[Any] = []

    def input_fn(body: Any, content_type: str, context: Any) -> Any:
        seen.append((body, content_type, context))
        return body

    asked = handlers(
        tmp_path,
        input_fn=input_fn,
        predict_fn=lambda data, model: {"model": type(model).__name__},
        output_fn=lambda prediction, accept: (json.dumps(prediction), accept),
    )
    assert asked.answer(b"1,2", CSV, JSON) == b'{"model": "Doubler"}'
    assert asked.answer(b"\x00", "application/x-own", JSON)
    assert seen == [("1,2", CSV, None), (b"\x00", "application/x-own", None)]


def test_transform_fn_takes_the_place_of_three(tmp_path: Path) -> None:
    asked = handlers(tmp_path, transform_fn=lambda model, body, content_type, accept: f"{body}|{accept}")
    assert asked.answer(b"x", CSV, JSON) == b"x|application/json"
    with pytest.raises(UserError, match="transform_fn"):
        asked.columns(np.ones((1, 2), np.float32))
    with pytest.raises(UserError, match="transform_fn beside"):
        handlers(tmp_path, transform_fn=lambda *a: "", predict_fn=lambda *a: "")


def test_arrays_in_memory(tmp_path: Path) -> None:
    asked = handlers(tmp_path)
    assert asked.columns(np.ones((2, 3), np.float32))["prediction"].tolist() == [6, 6]
    sparse = Csr(np.array([0, 1, 2]), np.array([0, 1]), np.array([1, 2], np.float32), 2)
    assert asked.columns(sparse)["prediction"].tolist() == [2, 4]
    named = handlers(tmp_path, predict_fn=lambda data, model: {"a": [1], "b": np.zeros((1, 2))})
    assert {name: column.shape for name, column in named.columns(np.ones((1, 2), np.float32)).items()} == {
        "a": (1,),
        "b": (1, 2),
    }
    with pytest.raises(UserError, match="not records"):
        asked.columns(Records(["x"]))


def test_no_model_fn(tmp_path: Path) -> None:
    module = ModuleType("script")
    module.__file__ = "train.py"
    with pytest.raises(UserError, match=r"train.py has no model_fn\(model_dir\)"):
        Handlers(module, tmp_path)


def test_a_model_that_cannot_predict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="returned int, which has no predict"):
        handlers(tmp_path, model_fn=lambda folder: 3).answer(b"[[1]]", JSON, JSON)


def test_content_types_of_names() -> None:
    assert content_type_of("s3://b/x.CSV") == CSV
    assert content_type_of("x.npy") == NPY
    assert content_type_of("x") == "application/octet-stream"
