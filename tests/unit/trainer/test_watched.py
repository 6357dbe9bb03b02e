"""`session.watch`: a training loop of one's own is seen by rules as a Trainer's is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from phalanx import observing, pulse
from phalanx.errors import UserError
from phalanx.parallel.collective import Solo
from phalanx.trainer.script import ScriptSession
from phalanx.trainer.watched import watch

Events = list[Mapping[str, Any]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """What is sent while everything is observed, at every step."""
    monkeypatch.setattr(pulse, "now", pulse.Pulse())
    found: Events = []
    before = observing.now
    observing.start({"kinds": ["tensors", "labels"], "every": 1}, rank=0, size=1, send=found.append)
    yield found
    observing.now = before


def _seen(events: Events, what: str) -> list[Mapping[str, Any]]:
    return [event["seen"] for event in events if event["what"] == what]


def _net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))


def _train(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.nn.Module, *, steps: int, parts: int = 1
) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        for _ in range(parts):
            inputs = torch.randn(256, 6, generator=generator)
            loss(net(inputs), (inputs[:, 0] > 0).long()).backward()
        optimizer.step()
        pulse.now.stepped(step)


def test_gradients_weights_and_activations_of_every_step(events: Events) -> None:
    net, loss = _net(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch(net, optimizer, loss=loss)
    _train(net, optimizer, loss, steps=3)
    tensors = _seen(events, "tensors")
    assert [look["step"] for look in tensors] == [1, 2, 3]
    assert set(tensors[0]["gradients"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(found["change"] > 0 for found in tensors[0]["weights"].values())
    assert tensors[0]["activations"]["1"]["kind"] == "relu"
    labels = _seen(events, "labels")
    assert sum(map(sum, labels[0]["confusion"])) == 256


class _Plain(torch.nn.Module):
    """Calls a function of torch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 16), torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(torch.relu(self.first(x)))
        return found


def test_plain_calls_of_the_module_are_seen(events: Events) -> None:
    net, loss = _Plain(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch(net, optimizer)
    _train(net, optimizer, loss, steps=2, parts=2)
    assert [list(look["activations"]) for look in _seen(events, "tensors")] == [["module.relu"]] * 2


def test_parts_of_a_step_are_one_look(events: Events) -> None:
    net, loss = _net(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch(net, optimizer, loss=loss)
    _train(net, optimizer, loss, steps=2, parts=3)
    assert [look["step"] for look in _seen(events, "tensors")] == [1, 2]
    assert sum(map(sum, _seen(events, "labels")[0]["confusion"])) == 3 * 256


def test_evaluations_and_steps_that_come_to_nothing_are_not_looked_at(events: Events) -> None:
    net, loss = _net(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch(net, optimizer, loss=loss)
    with torch.no_grad():
        net(torch.randn(4, 6))
    net.eval()(torch.randn(4, 6))
    net.train()(torch.randn(4, 6))  # no update follows
    pulse.now.stepped(1)
    _train(net, optimizer, loss, steps=1)
    assert [look["step"] for look in _seen(events, "tensors")] == [2]


def test_two_modules_in_turn(events: Events) -> None:
    one, other, loss = _net(), _net(), torch.nn.CrossEntropyLoss()
    optimizers = {
        "one": torch.optim.SGD(one.parameters(), lr=0.1),
        "other": torch.optim.SGD(other.parameters(), lr=0.1),
    }
    watch(one, optimizers["one"], name="one")
    watch(other, optimizers["other"], name="other")
    inputs, target = torch.randn(256, 6), torch.zeros(256, dtype=torch.long)
    for net, optimizer in ((one, optimizers["one"]), (other, optimizers["other"])):
        loss(net(inputs), target).backward()
        optimizer.step()
    looks = _seen(events, "tensors")
    assert [sorted(look["weights"])[0] for look in looks] == ["one.0.bias", "other.0.bias"]
    assert [list(look["activations"]) for look in looks] == [["one.1"], ["other.1"]]


def test_a_name_is_given_once() -> None:
    session = ScriptSession(Solo(), "cpu", threading.Event())
    net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    session.watch(net, optimizer)  # nothing is wanted: nothing is looked at
    session.watch(net, optimizer, name="again")
    with pytest.raises(UserError, match="a module is watched already; give each a name="):
        session.watch(net, optimizer)
