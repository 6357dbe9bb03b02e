"""Declared hyperparameters: what is taken, what is refused and how, how they are described."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx.errors import UserError
from phalanx.hyperparameters import Hyperparameter, describe, hyper, json_schema, parse, to_json

# ruff: noqa: RUF009  (`hyper` is a dataclass field)


@dataclass(frozen=True)
class Example:
    """One field of every kind."""

    k: int = hyper(low=1, help="clusters")
    rate: float = hyper(0.3, low=0, high=1, open_low=True, aliases=("eta", "learning_rate"), tunable=(0.1, 0.5), help="step")
    upper: float = hyper(0.5, high=2, open_high=True, help="bounded above")
    any_number: float = hyper(0.0, help="unbounded")
    flag: bool = hyper(False, help="on or off")
    method: Literal["random", "kmeans++"] = hyper("random", tunable=("random", "kmeans++"), help="start")
    factor: int | Literal["auto"] = hyper("auto", low=2, help="factor")
    limit: int | None = hyper(None, low=0, help="limit")
    names: list[str] = hyper(["a"], help="names")
    sizes: list[int] = hyper([1, 2], low=1, help="sizes")
    groups: list[list[int]] = hyper([], help="groups")
    text: str = hyper("", help="text")

    def check(self) -> None:
        """Refuse a pair of values."""
        if self.flag and self.limit == 0:
            raise UserError("flag=true needs a limit above 0")


def of(**given: Any) -> Example:
    return parse(Example, {"k": 3, **given}, owner="example")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("k", 7, 7),
        ("k", "7", 7),
        ("k", " 7 ", 7),
        ("k", 7.0, 7),
        ("k", np.int64(7), 7),
        ("k", np.float32(7), 7),
        ("k", 10**400, 10**400),
        ("rate", 1, 1.0),
        ("rate", "0.25", 0.25),
        ("rate", "1e-3", 0.001),
        ("rate", np.float32(0.5), 0.5),
        ("upper", -1e300, -1e300),
        ("flag", True, True),
        ("flag", "true", True),
        ("flag", "OFF", False),
        ("flag", 1, True),
        ("flag", "no", False),
        ("method", "kmeans++", "kmeans++"),
        ("method", " random ", "random"),
        ("factor", "auto", "auto"),
        ("factor", "4", 4),
        ("limit", None, None),
        ("limit", "none", None),
        ("limit", "", None),
        ("limit", "0", 0),
        ("names", "a, b,c", ["a", "b", "c"]),
        ("names", '["a,b", "c"]', ["a,b", "c"]),
        ("names", ("x",), ["x"]),
        ("names", "", []),
        ("sizes", "[3, 4]", [3, 4]),
        ("sizes", 5, [5]),
        ("groups", "[[0, 1], [2]]", [[0, 1], [2]]),
        ("text", "none", "none"),
    ],
)
def test_values_and_their_text_are_taken(name: str, value: Any, expected: Any) -> None:
    found = getattr(of(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("k", 0, "k=0 is not allowed: it must be in [1, inf) (clusters)"),
        ("k", "-5", "k=-5 is not allowed: it must be in [1, inf) (clusters)"),
        ("k", 2.5, "k=2.5 is not allowed: it must be int in [1, inf) (clusters)"),
        ("k", np.float32(2.5), "it must be int in [1, inf) (clusters)"),
        ("k", "2.5", "k=2.5 is not allowed: it must be int"),
        ("k", float("inf"), "k=inf is not allowed: it must be int"),
        ("k", float("nan"), "k=nan is not allowed: it must be int"),
        ("k", True, "k=True is not allowed: it must be int"),
        ("k", None, "k=None is not allowed: it must be int"),
        ("k", [3], "k=[3] is not allowed: it must be int"),
        ("k", "many", "k=many is not allowed: it must be int"),
        ("k", "9" * 5000, "it must be int in [1, inf)"),
        ("k", "x" * 100, f"k={'x' * 77}... is not allowed"),
        ("rate", 0, "rate=0 is not allowed: it must be in (0, 1] (step)"),
        ("rate", "1.01", "rate=1.01 is not allowed: it must be in (0, 1] (step)"),
        ("rate", "nan", "rate=nan is not allowed: it must be in (0, 1] (step)"),
        ("rate", 10**400, "it must be float in (0, 1]"),
        ("rate", False, "rate=False is not allowed: it must be float in (0, 1]"),
        ("upper", 2, "upper=2 is not allowed: it must be in (-inf, 2) (bounded above)"),
        ("any_number", "inf", "any_number=inf is not allowed: it must be a finite number (unbounded)"),
        ("flag", "maybe", "flag=maybe is not allowed: it must be bool (on or off)"),
        ("flag", 2, "flag=2 is not allowed: it must be bool"),
        ("method", "Random", "method=Random is not allowed: it must be one of random, kmeans++ (start)"),
        ("method", 3, "method=3 is not allowed: it must be one of random, kmeans++"),
        ("factor", "1", "factor=1 is not allowed: it must be in [2, inf) (factor)"),
        ("factor", "some", "factor=some is not allowed: it must be int or one of auto in [2, inf) (factor)"),
        ("limit", "few", "limit=few is not allowed: it must be int or none in [0, inf) (limit)"),
        ("sizes", "[0]", "sizes=[0] is not allowed: it must be in [1, inf) (sizes)"),
        ("sizes", "1,x", "sizes=1,x is not allowed: it must be list of int in [1, inf) (sizes)"),
        ("sizes", "[1", "sizes=[1 is not allowed: it must be list of int"),
        ("sizes", "[" * 100_000, "is not allowed: it must be list of int"),
        ("text", 5, "text=5 is not allowed: it must be text (text)"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        of(**{name: value})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_names() -> None:
    assert of(eta="0.1").rate == 0.1
    with pytest.raises(UserError, match=r"example has no hyperparameter 'metod'; did you mean 'method'\?"):
        of(metod="random")
    with pytest.raises(UserError, match="example has no hyperparameter 'zzz'; allowed: any_number, eta"):
        of(zzz=1)
    with pytest.raises(UserError, match="example has no hyperparameter '5'"):
        parse(Example, {"k": 1, 5: 6}, owner="example")  # type: ignore[dict-item]
    with pytest.raises(UserError, match="'learning_rate' and 'rate' are the same hyperparameter and both were given; give one"):
        of(eta=0.1, learning_rate=0.2)


def test_what_is_required() -> None:
    @dataclass(frozen=True)
    class Two:
        first: int = hyper(help="the first")
        second: str = hyper(help="the second")

    with pytest.raises(UserError, match=r"example needs the hyperparameter k \(clusters\); set it with --set k=VALUE"):
        parse(Example, {}, owner="example")
    with pytest.raises(
        UserError, match=r"two needs the hyperparameters first \(the first\); second \(the second\); set it with"
    ):
        parse(Two, {}, owner="two")


def test_rules_over_several_fields() -> None:
    assert of(flag=True, limit=1).flag
    with pytest.raises(UserError, match="flag=true needs a limit above 0"):
        of(flag=True, limit=0)


def test_defaults_are_not_shared() -> None:
    of().names.append("changed")
    assert of().names == ["a"]


def test_values_survive_json() -> None:
    values = of(rate=0.7, names="x,y", limit=4)
    assert parse(Example, json.loads(json.dumps(to_json(values))), owner="example") == values
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in to_json(values).items()}
    assert parse(Example, texts, owner="example") == values


@given(st.integers(-(10**6), 10**6), st.floats(-2, 2))
def test_ranges_hold_for_any_number(whole: int, real: float) -> None:
    def allowed(**given: Any) -> bool:
        try:
            of(**given)
        except UserError:
            return False
        return True

    for number in (whole, str(whole)):
        assert allowed(k=number) == (whole >= 1)
    for number in (real, repr(real)):
        assert allowed(rate=number) == (0 < real <= 1)
        assert allowed(upper=number) == (real < 2)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_value_is_taken_or_refused_in_words(value: Any) -> None:
    texts: list[tuple[str, str]] = []
    for name in Example.__dataclass_fields__:
        try:
            of(**{name: value})
        except UserError as error:
            texts.append((name, str(error)))
    assert all(text.startswith(f"{name}=") for name, text in texts)


def test_descriptions() -> None:
    described = {one.name: one for one in describe(Example)}
    assert list(described) == list(Example.__dataclass_fields__)
    assert described["k"] == Hyperparameter("k", "int", None, True, "[1, inf)", (), "clusters", (), None)
    assert described["rate"] == Hyperparameter(
        "rate", "float", 0.3, False, "(0, 1]", (), "step", ("eta", "learning_rate"), (0.1, 0.5)
    )
    assert described["factor"].type == "int or one of auto"
    assert described["method"].choices == ("random", "kmeans++")
    assert described["limit"].type == "int"
    assert described["sizes"].type == "list of int"
    assert described["upper"].range == "(-inf, 2)"
    assert described["text"].range == ""


def test_the_schema() -> None:
    schema = json_schema(Example)
    assert schema["required"] == ["k"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["k"] == {"type": "integer", "minimum": 1, "description": "clusters"}
    assert properties["rate"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "step",
        "default": 0.3,
    }
    assert properties["factor"]["anyOf"] == [{"type": "integer", "minimum": 2}, {"enum": ["auto"]}]
    assert properties["limit"]["anyOf"] == [{"type": "integer", "minimum": 0}, {"type": "null"}]
    assert properties["groups"]["items"] == {"type": "array", "items": {"type": "integer"}}
    json.dumps(schema)


def test_a_field_that_is_not_declared_is_a_mistake_of_the_programmer() -> None:
    @dataclass(frozen=True)
    class Plain:
        k: int = 1

    with pytest.raises(TypeError, match=r"field k must be declared with hyper"):
        describe(Plain)
