"""Damaged and crafted models are refused before xgboost's reader, which trusts them, can crash."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.algorithms.xgboost.algorithm import CARD_FILE, MODEL_FILE, XGBoost
from phalanx.algorithms.xgboost.model import check_model
from phalanx.errors import UserError


def trained(**parameters: Any) -> bytes:
    generator = np.random.default_rng(0)
    features = generator.random((200, 4)).astype(np.float32)
    label = (features[:, 0] * features[:, 1] > 0.25).astype(np.float32)
    chosen = {"objective": "binary:logistic", "verbosity": 0, "nthread": 1, **parameters}
    return bytes(xgb.train(chosen, xgb.DMatrix(features, label, nthread=1), 3).save_raw(raw_format="ubj"))


MODELS = {
    "gbtree": trained(max_depth=3),
    "pruned": trained(tree_method="exact", gamma=1.5),
    "dart": trained(booster="dart", rate_drop=0.5, max_depth=2),
    "gblinear": trained(booster="gblinear"),
    "classes": trained(objective="multi:softprob", num_class=2, max_depth=2, num_parallel_tree=2),
}

_LOAD = """
import pathlib, sys
import numpy as np, xgboost as xgb
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    booster = xgb.Booster({"verbosity": 0, "nthread": 1})
    try:
        booster.load_model(bytearray(path.read_bytes()))
        if booster.num_features() < 1000:
            booster.predict(xgb.DMatrix(np.random.default_rng(0).random((20, booster.num_features())), nthread=1))
    except xgb.core.XGBoostError:
        pass
print("all survived")
"""


def load_apart(folder: Path) -> None:
    """Let xgboost load every file of a folder, and predict, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _LOAD, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("all survived\n"), f"ended with {done.returncode} at {done.stdout[-40:]}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("name", MODELS)
def test_models_are_let_through(name: str) -> None:
    check_model(MODELS[name], "m")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_let_through_does_not_crash_the_reader(name: str, tmp_path: Path) -> None:
    good = MODELS[name]
    passed: set[bytes] = set()
    edit = st.tuples(
        st.integers(0, len(good) - 1), st.one_of(st.integers(0, 255), st.sampled_from(b'{}[]#$SLlid\xff\x7f\x00"091'))
    )

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.lists(edit, min_size=1, max_size=3))
    def look(edits: list[tuple[int, int]]) -> None:
        data = bytearray(good)
        for place, byte in edits:
            data[place] = byte
        with suppress(UserError):  # any other exception fails the test
            check_model(bytes(data), "m")
            passed.add(bytes(data))

    look()
    assert passed
    for number, data in enumerate(sorted(passed)):
        (tmp_path / f"{number:04d}").write_bytes(data)
    load_apart(tmp_path)


@pytest.mark.parametrize("name", ["gbtree", "gblinear"])
def test_cuts_are_refused(name: str) -> None:
    for end in [*range(0, len(MODELS[name]), 13), len(MODELS[name]) - 1]:
        with pytest.raises(UserError, match="damaged"):
            check_model(MODELS[name][:end], "m")


def array_edit(name: bytes, at: int, value: bytes, kind: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts `value` at item `at` of the first typed array of that name."""

    def edit(data: bytes) -> bytes:
        head = name + b"[$" + kind + b"#L"
        begin = data.index(head) + len(head) + 8 + at * len(value)
        return data[:begin] + value + data[begin + len(value) :]

    return edit


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, 1)


def length(size: int) -> bytes:
    return b"L" + struct.pack(">q", size)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (array_edit(b"left_children", 0, struct.pack(">i", 999), b"l"), "is no node of it"),
        (array_edit(b"left_children", 0, struct.pack(">i", 0), b"l"), "is no node of it"),
        (array_edit(b"left_children", 0, struct.pack(">i", 2), b"l"), "reached twice|another parent"),
        (array_edit(b"right_children", 0, struct.pack(">i", -1), b"l"), "has one child"),
        (array_edit(b"parents", 1, struct.pack(">i", 12345), b"l"), "is no node of it"),
        (array_edit(b"split_indices", 0, struct.pack(">i", 4), b"l"), "splits by a feature that there is not"),
        (array_edit(b"split_type", 0, b"\1", b"U"), "splits of another kind"),
        (lambda data: data[: data.index(b"parents[$l#") + 11] + length(1 << 40) + data[-50:], "a length of 1099511627776"),
        (replaced(length(7) + b"learner", length(-1) + b"learner"), "a length of -1"),
        (lambda data: b"[#" + length(1) + data[1:], "begins|left|follow"),
        (lambda data: (b"[#" + length(1)) * 100_000 + data, "nested deeper"),
        (lambda data: data + b"}", "1 bytes follow its end"),
        (lambda data: b"{}", "no 'version'"),
        (lambda data: b"", "0 are left"),
        (lambda data: b'{"learner": {}}', "is not 'L'"),
    ],
    ids=range(15),
)
def test_crafted_models_are_told_apart(edit: Callable[[bytes], bytes], says: str) -> None:
    crafted = edit(MODELS["gbtree"])
    assert crafted != MODELS["gbtree"]
    with pytest.raises(UserError, match=says):
        check_model(crafted, "m")


def test_loading_checks_first(tmp_path: Path) -> None:
    card = {"rounds": 3, "best_round": 3, "best_score": None, "booster": "gbtree", "num_class": None}
    (tmp_path / CARD_FILE).write_text(json.dumps({**card, "objective": "binary:logistic"}))
    (tmp_path / MODEL_FILE).write_bytes(MODELS["gbtree"])
    assert XGBoost.load(tmp_path).columns == 4
    (tmp_path / MODEL_FILE).write_bytes(array_edit(b"left_children", 0, struct.pack(">i", 999), b"l")(MODELS["gbtree"]))
    with pytest.raises(UserError, match=f"{MODEL_FILE} is damaged"):
        XGBoost.load(tmp_path)
