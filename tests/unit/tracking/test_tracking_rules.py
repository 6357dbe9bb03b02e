"""Every rule fires on what it is for, and is silent on a run that goes well."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from phalanx.errors import UserError
from phalanx.tracking.rules import RULES, rule_of
from phalanx.tracking.watching import RuleWatch

Metrics = Mapping[str, float | None]


def _good() -> list[Metrics]:
    """A noisy loss that comes down and then stands still."""
    losses = [0.2 + math.exp(-step / 30) + 0.02 * math.sin(7 * step) for step in range(400)]
    return [{"train:loss": v, "validation:loss": v + 0.1, "train:grad_norm": v} for v in losses]


def _pair(train: Iterable[float], validation: Iterable[float]) -> list[Metrics]:
    return [{"train:loss": t, "validation:loss": v} for t, v in zip(train, validation, strict=True)]


BAD: dict[str, list[Metrics]] = {
    "exploding_tensor": [{"train:loss": 1.0}, {"train:loss": None}],
    "loss_not_decreasing": [{"train:loss": 1.0 + step / 10} for step in range(30)],
    "overfit": _pair([1 / step for step in range(1, 20)], [abs(step - 5) / 5 + 1.5 for step in range(1, 20)]),
    "overtraining": _pair([1.0] * 20, [1.0, *[1.2] * 19]),
    "vanishing_gradient": [{"train:grad_norm": 1e-9}] * 10,
}


def _first(name: str, run: list[Metrics]) -> int | None:
    rule = rule_of(name)[1]
    return next((step for step, metrics in enumerate(run, 1) if rule.see(step, metrics) is not None), None)


@pytest.mark.parametrize("name", RULES)
def test_fires(name: str) -> None:
    assert _first(name, BAD[name]) is not None


@pytest.mark.parametrize("name", RULES)
def test_is_silent(name: str) -> None:
    assert _first(name, _good()) is None


def test_a_loss_that_stands_still_from_the_start() -> None:
    assert _first("loss_not_decreasing", [{"train:loss": 0.7}] * 60) == 50
    assert _first("loss_not_decreasing:num_steps=2", [{"train:loss": 0.7}] * 60) == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("overfitt", "overfit"),
        ("overfit:ratio=1", "ratio_threshold"),
        ("overfit:patience=x", "number"),
        ("overfit:action=mail", "warn or stop"),
        ("loss_not_decreasing:num_steps=0", "too small"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        rule_of(text)


def test_a_finding_is_written_once_told_and_stops(tmp_path: Path) -> None:
    told: list[str] = []
    stopped: list[str] = []
    watch = RuleWatch(["exploding_tensor:action=stop", "overfit"], tmp_path, told.append, stopped.append)
    watch.step(1, {"train:loss": 1.0})
    watch.failed(1, "worker 0: the loss is nan: look at the learning rate")
    watch.step(2, {"train:loss": None})
    lines = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert [(line["rule"], line["step"]) for line in lines] == [("exploding_tensor", 2)]
    assert len(told) == 1
    assert len(stopped) == 1
