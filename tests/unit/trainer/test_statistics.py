"""What rules look at in a Trainer: gradients, weights, activations and classes, measured where their turn has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import phalanx
from phalanx import observing
from phalanx.contracts import Records
from phalanx.testing.sessions import MemorySession, Rows
from phalanx.trainer.activity import Activity
from phalanx.trainer.counting import confusion, count, count_learnt
from phalanx.trainer.trainer import Trainer

Events = list[Mapping[str, Any]]


@pytest.fixture
def events(request: pytest.FixtureRequest) -> Iterator[Events]:
    """What is sent while everything is observed, at every step."""
    found: Events = []
    before = observing.now
    given = {"kinds": ["tensors", "labels"], "every": 1, "measure": {"tanh": [-1.0, 1.0]}, **getattr(request, "param", {})}
    observing.start(given, rank=0, size=1, send=found.append)
    yield found
    observing.now = before


def _seen(events: Events, what: str) -> list[Mapping[str, Any]]:
    return [event["seen"] for event in events if event["what"] == what]


def _fit(
    folder: Path, module: torch.nn.Module, *, steps: int = 4, rate: float = 0.1, rows: int = 256, **options: Any
) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 6, generator=generator)
    target = (inputs[:, 0] > 0).long()
    trainer = Trainer(
        module,
        torch.nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate),
        session=MemorySession({}, folder),
        **options,
    )
    trainer.fit((inputs, target), steps=steps, batch_size=rows)
    return trainer


def _net() -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )


def test_gradients_and_weights_are_those_of_the_step(tmp_path: Path, events: Events) -> None:
    net = _net()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    _fit(tmp_path, net, steps=1)
    seen = _seen(events, "tensors")[0]
    change = net[0].weight.detach() - start["0.weight"]
    gradient = -change / 0.1
    assert seen["step"] == 1
    assert set(seen["weights"]) == set(seen["gradients"]) == set(start)
    weight, found = seen["weights"]["0.weight"], seen["gradients"]["0.weight"]
    assert weight["change"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert weight["norm"] == pytest.approx(float(start["0.weight"].norm()), rel=1e-5)
    assert weight["scale"] == pytest.approx(float(start["0.weight"].var(unbiased=False)) * 6, rel=1e-4)
    assert found["mean_abs"] == pytest.approx(float(gradient.abs().mean()), rel=1e-3)
    assert (found["nan"], found["inf"], weight["alike"], weight["axes"]) == (0, 0, False, 2)


def test_layers_are_named_and_their_units_counted(tmp_path: Path, events: Events) -> None:
    net = _net()
    with torch.no_grad():
        net[0].bias[:12] = -100.0
        net[2].bias[:2] = 100.0
    _fit(tmp_path, net, steps=1)
    layers = _seen(events, "tensors")[0]["activations"]
    assert {name: found["kind"] for name, found in layers.items()} == {"1": "relu", "3": "tanh"}
    assert sum(share == 0 for share in layers["1"]["active"]) / 101 == pytest.approx(12 / 16, abs=0.05)
    assert sum(share == 0 for share in layers["3"]["active"]) / 101 == pytest.approx(2 / 8, abs=0.1)


def test_a_weight_that_is_frozen_by_its_learning_rate_is_the_same(tmp_path: Path, events: Events) -> None:
    _fit(tmp_path, _net(), steps=31, rate=0.0)
    same = [seen["weights"]["2.weight"]["same"] for seen in _seen(events, "tensors")]
    assert same.count(True) == 3  # every ten steps
    assert same[0] is None
    events.clear()
    _fit(tmp_path, _net(), steps=31)
    assert [seen["weights"]["2.weight"]["same"] for seen in _seen(events, "tensors")].count(False) == 3


def test_what_gets_no_gradient_is_seen_not_to_change(tmp_path: Path, events: Events) -> None:
    net = _net()
    net[0].register_forward_hook(lambda layer, given, output: output.detach())
    _fit(tmp_path, net, steps=21)
    seen = _seen(events, "tensors")[-1]
    assert "0.weight" not in seen["gradients"]
    assert (seen["weights"]["0.weight"]["same"], seen["weights"]["0.weight"]["change"]) == (True, None)
    assert seen["weights"]["4.weight"]["same"] is False


def test_few_rows_of_a_table_have_a_gradient(tmp_path: Path, events: Events) -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(1001, 2048)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.table(torch.full((len(inputs),), 700))[:, :2]

    _fit(tmp_path, Table(), steps=12)
    seen = _seen(events, "tensors")
    found = seen[0]["gradients"]["table.weight"]
    assert 0 < found["mean_abs"] < 1
    assert 0.99 < found["zero"] < 1
    weights = [one["weights"]["table.weight"] for one in seen]
    assert all(weight["change"] is None and weight["same"] is None for weight in weights)  # other rows are looked at


@pytest.mark.parametrize("wide", [64, 512, 784, 2047])
def test_columns_without_a_gradient_do_not_hide_the_others(wide: int, tmp_path: Path, events: Events) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(wide, 512), torch.nn.Tanh(), torch.nn.Linear(512, 2))
    inputs = torch.randn(64, wide, generator=torch.Generator().manual_seed(0))
    inputs[:, ::2] = 0  # as the margins of pictures are
    start = net[0].weight.detach().clone()
    trainer = Trainer(
        net, torch.nn.CrossEntropyLoss(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), session=MemorySession({}, tmp_path)
    )
    trainer.fit((inputs, (inputs[:, 1] > 0).long()), steps=1, batch_size=64)
    seen = _seen(events, "tensors")[0]
    assert seen["gradients"]["0.weight"]["zero"] == pytest.approx(0.5, abs=0.02)
    found, whole = seen["weights"]["0.weight"], float((net[0].weight.detach() - start).norm() / start.norm())
    assert found["change"] / found["norm"] == pytest.approx(whole, rel=0.1)


def test_classes_are_counted(tmp_path: Path, events: Events) -> None:
    _fit(tmp_path, _net(), steps=60, rate=1.0)
    first, last = _seen(events, "labels")[0], _seen(events, "labels")[-1]
    assert last["classes"] == ["0", "1"]
    assert np.sum(last["confusion"]) == 256
    assert np.trace(last["confusion"]) > max(200, np.trace(first["confusion"]))


def test_what_is_learnt_does_not_depend_on_who_looks(tmp_path: Path, events: Events) -> None:
    looked_at = _net()
    _fit(tmp_path, looked_at, steps=20, rows=64)
    assert events
    observing.start({}, rank=0, size=1, send=events.append)
    alone = _net()
    _fit(tmp_path, alone, steps=20, rows=64)
    for name, value in looked_at.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name])


@pytest.mark.parametrize("events", [{"every": None}], indirect=True)
def test_looks_are_rare_where_they_cost_much(events: Events) -> None:
    now = [0.0]
    observer = observing.Observer({"kinds": ["tensors"]}, clock=lambda: now[0])
    looked = []
    for step in range(1, 2001):
        now[0] += 0.1
        if observer.due("tensors", step):
            looked.append(step)
            observer.cost("tensors", step, 0.5)
    assert looked[0] == 1
    assert 0.5 * len(looked) <= 0.05 + 0.005 * 200 + 0.5
    assert len(looked) >= 2
    assert not observer.due("labels", 1)


def test_looks_come_early_and_then_every_ten_steps_where_they_cost_little() -> None:
    observer = observing.Observer({"kinds": ["tensors", "labels"]})
    looked: dict[str, list[int]] = {"tensors": [], "labels": []}
    for step in range(1, 101):
        for kind, steps in looked.items():
            if observer.due(kind, step):
                steps.append(step)
                observer.cost(kind, step, 0.0)
    assert looked["tensors"][:6] == [1, 2, 3, 4, 5, 6]
    assert looked["tensors"][-1] - looked["tensors"][-2] == 10
    assert looked["labels"] == list(range(1, 101, 20))


def test_plain_calls_and_images_are_seen() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(1, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(self.first(x)).relu().mean((2, 3)).sigmoid()

    net = Net()
    with torch.no_grad():
        net.first.bias[:3] = -100.0
    activity = Activity(net, {})
    with activity:
        net(torch.rand(130, 1, 2, 2))
    net(torch.rand(130, 1, 2, 2))  # not looked at
    found = activity.read()
    assert {name: entry["kind"] for name, entry in found.items()} == {
        "module.relu": "relu",
        "module.relu (2)": "relu",
        "module.sigmoid": "sigmoid",
    }
    assert sum(share == 0 for share in found["module.relu"]["active"]) / 101 == pytest.approx(3 / 4, abs=0.15)
    assert activity.read() == {}


def test_few_rows_say_nothing_yet() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU())
    activity = Activity(net, {})
    for _ in range(3):
        with activity:
            net(torch.rand(32, 3))
        assert activity.read() == {}
    with activity:
        net(torch.rand(32, 3))
    assert set(activity.read()) == {"1"}


def test_outputs_of_two_classes() -> None:
    logits, target = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [0.0], [0.0]])
    assert confusion([logits], [target]) == {"classes": ["0", "1"], "confusion": [[1, 1], [0, 1]]}
    assert confusion([torch.sigmoid(logits)], [target]) == {"classes": ["0", "1"], "confusion": [[1, 1], [0, 1]]}


def test_what_is_no_classifier_has_no_classes() -> None:
    assert confusion([torch.randn(4, 1)], [torch.randn(4, 1)]) is None
    assert confusion([torch.randn(4, 3)], [torch.randn(4, 3)]) is None
    assert confusion([], []) is None
    assert count(np.array([0.5, 1.0]), np.array([1.0, 1.0])) is None


class _Taught:
    """An algorithm that has learnt to answer as it is told."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self._answer = answer

    def predict(self, requests: Any) -> Any:
        return {name: np.asarray(value)[: len(requests)] for name, value in self._answer.items()}


@pytest.mark.parametrize(
    ("answer", "settings", "expected"),
    [
        ({"predicted_label": [0, 1, 1]}, {}, [[1, 1], [0, 1]]),
        ({"score": [0.2, 0.7, 0.9]}, {"objective": "binary:logistic"}, [[1, 1], [0, 1]]),
        ({"score": [[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]}, {"objective": "multi:softprob"}, [[1, 1], [0, 1]]),
        ({"score": [0.2, 0.7, 0.9]}, {"objective": "reg:squarederror"}, None),
        ({"predicted_label": [0, 1, 1]}, {"predictor_type": "regressor"}, None),
    ],
)
def test_a_learnt_algorithm_is_asked(tmp_path: Path, answer: Any, settings: Any, expected: Any) -> None:
    rows = Rows(np.zeros((3, 2), dtype=np.float32), np.array([0, 0, 1], dtype=np.float32))
    session = MemorySession({"train": rows.shard()}, tmp_path)
    taught: Any = _Taught(answer)
    found = count_learnt(taught, session, settings)
    assert (None if found is None else found["confusion"]) == expected


def test_a_classifier_of_text_is_asked(tmp_path: Path) -> None:
    lines = ["__label__a x y", "__label__b z", "__label__b w", "no label"]
    session = MemorySession({"train": Rows(Records(lines)).shard()}, tmp_path)
    taught: Any = _Taught({"label": [["__label__a"], ["__label__b"], ["__label__a"]]})
    assert count_learnt(taught, session, {}) == {"classes": ["a", "b"], "confusion": [[1, 0], [1, 1]]}


def test_a_compiled_module_says_that_its_activations_are_hidden(
    tmp_path: Path, events: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    from phalanx.trainer.statistics import Statistics

    net = _net()
    trainer = Trainer(
        net, torch.nn.CrossEntropyLoss(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), session=MemorySession({}, tmp_path)
    )
    Statistics(net, trainer.replica.optimizer, strategy="single", compiled=True)
    assert "torch.compile hides activations" in capsys.readouterr().out
    assert isinstance(trainer, phalanx.Trainer)
