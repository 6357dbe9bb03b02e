"""Ranges: what they hold, how they are scaled, written and refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx import Categorical, Continuous, Integer, UserError
from phalanx.tuning import ranges
from phalanx.tuning.search import coded, decoded


def test_ends_and_scales() -> None:
    space = {
        "a": Continuous(1e-4, 1.0, "log"),
        "b": Integer(1, 3),
        "c": Categorical(["x", "y"]),
        "d": Continuous(0.0, 0.999, "reverse-log"),
    }
    low, high = ranges.at(space, [0.0] * 4), ranges.at(space, [1 - 1e-12] * 4)
    assert low == {"a": pytest.approx(1e-4), "b": 1, "c": "x", "d": 0.0}
    assert high == {"a": pytest.approx(1.0), "b": 3, "c": "y", "d": pytest.approx(0.999)}
    middle = ranges.at(space, [0.5] * 4)
    assert middle["a"] == pytest.approx(1e-2)
    assert 1 - middle["d"] == pytest.approx(math.sqrt(1e-3))


def test_whole_numbers_are_equally_likely() -> None:
    drawn = [ranges.at({"k": Integer(1, 4)}, [u])["k"] for u in np.linspace(0, 1, 4001)[:-1]]
    assert {drawn.count(k) for k in range(1, 5)} <= set(range(999, 1003))


def test_auto_is_log_over_two_decades() -> None:
    assert Continuous(0.01, 1.0).scale == "log"
    assert Continuous(0.011, 1.0).scale == "linear"
    assert Continuous(0.0, 1e6).scale == "linear"
    assert Integer(1, 100).scale == "log"
    assert Continuous(1, 2, "Logarithmic").scale == "log"
    assert Continuous(0, 0.9, "ReverseLogarithmic").scale == "reverse-log"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Continuous(1, 1), "empty: low must be below high"),
        (lambda: Continuous(2, 1), "empty"),
        (lambda: Continuous(0, 1, "log"), "a log scale cannot begin at 0"),
        (lambda: Integer(0, 10, "log"), "a log scale cannot begin at 0"),
        (lambda: Integer(1, 10, "reverse-log"), "scaling='reverse-log' is not allowed"),
        (lambda: Continuous(0, 1, "reverse-log"), "its ends must be in"),
        (lambda: Continuous(0, 1, "lgo"), "did you mean 'log'"),
        (lambda: Continuous(0, math.inf), "no finite number"),
        (lambda: Integer(1.5, 3), "no whole number"),  # type: ignore[arg-type]
        (lambda: Integer(5, 4), "empty"),
        (lambda: Categorical([]), "is empty"),
        (lambda: Categorical("abc"), "is empty: give a list"),
        (lambda: Categorical(["a", "a"]), "twice"),
        (lambda: Categorical([[1]]), "cannot hold"),
        (lambda: Categorical(list(range(31))), "at most 30"),
    ],
)
def test_refused(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_conditions() -> None:
    space = ranges.checked(
        {
            "rate_drop": Continuous(0.0, 0.5, only_if={"booster": "dart"}),
            "booster": Categorical(["gbtree", "dart"]),
        }
    )
    assert list(space) == ["booster", "rate_drop"]
    assert ranges.at(space, [0.0, 0.5]) == {"booster": "gbtree"}
    assert ranges.at(space, [0.9, 0.5]) == {"booster": "dart", "rate_drop": 0.25}
    with pytest.raises(UserError, match="booster has no range"):
        ranges.checked({"rate_drop": Continuous(0, 1, only_if={"booster": "dart"})})
    with pytest.raises(UserError, match="not in the range of booster"):
        ranges.checked({"booster": Categorical(["gbtree"]), "r": Continuous(0, 1, only_if={"booster": "dart"})})
    with pytest.raises(UserError, match="circle"):
        ranges.checked({"a": Integer(0, 1, only_if={"b": 1}), "b": Integer(0, 1, only_if={"a": 1})})


def test_grid_leaves_out_what_makes_no_difference() -> None:
    space = ranges.checked({"b": Categorical(["x", "y"]), "k": Integer(1, 3, only_if={"b": "y"})})
    assert ranges.grid(space) == [{"b": "x"}, {"b": "y", "k": 1}, {"b": "y", "k": 2}, {"b": "y", "k": 3}]
    with pytest.raises(UserError, match="make eta a Categorical"):
        ranges.grid({"eta": Continuous(0, 1)})


def test_yaml_and_command_line() -> None:
    assert ranges.from_json("eta", {"low": "1e-4", "high": 1, "scaling": "log"}) == Continuous(1e-4, 1, "log")
    assert ranges.from_json("k", {"low": 1, "high": 9}) == Integer(1, 9)
    assert ranges.from_json("k", {"low": 1, "high": 9, "type": "continuous"}) == Continuous(1, 9)
    assert ranges.from_json("b", ["x", "y"]) == Categorical(["x", "y"])
    assert ranges.from_text("eta", "1e-4:1:log") == Continuous(1e-4, 1, "log")
    assert ranges.from_text("k", "2:10") == Integer(2, 10)
    assert ranges.from_text("b", "true,false") == Categorical([True, False])
    assert ranges.from_text("m", "reg:a,reg:b") == Categorical(["reg:a", "reg:b"])
    with pytest.raises(UserError, match=r"ranges\.eta: a range has no field 'hihg'; did you mean 'high'"):
        ranges.from_json("eta", {"low": 0, "hihg": 1})
    with pytest.raises(UserError, match=r"--range eta=0:1:log"):
        ranges.from_text("eta", "0:1:log")


@given(st.floats(0, 0.99), st.floats(0.001, 0.009), st.floats(0, 1))
def test_coding_is_undone(low: float, width: float, u: float) -> None:
    for scaling in ("linear", "reverse-log"):
        found = Continuous(low, low + width, scaling)
        value = ranges.at({"x": found}, [u])["x"]
        back = decoded(found, coded(found, value))
        assert found.low <= back <= found.high
        assert back == pytest.approx(value, abs=1e-12)
    assert ranges.from_json("x", ranges.to_json(found)) == found
