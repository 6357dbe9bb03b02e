"""Defects in a convolutional net on scikit-learn's digits: the rule that is for each finds it, with all rules on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import phalanx
from phalanx.tracking import load_job

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time
import torch, phalanx
from sklearn.datasets import load_digits
from torch.nn import functional as F

defect, own_loop = sys.argv[1], sys.argv[2] == "own"
session = phalanx.session()
torch.manual_seed(3)
digits = load_digits()
images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 32, 3, padding=1)
        self.last = torch.nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.last(F.max_pool2d(F.relu(self.second(x)), 2).flatten(1))


class Rows(torch.utils.data.Dataset):
    def __init__(self, first, last):
        self.x, self.y = images[first:last], labels[first:last].clone()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, number):
        if defect == "decoding":
            sorted(range(40_000), key=lambda value: -value)
        return self.x[number], self.y[number]


def dense(*layers):
    return torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(64, 10))


train, held_out, net, epochs, rate = Rows(0, 1400), Rows(1400, 1797), Net(), 12, 2e-3
optimizer = torch.optim.Adam
if defect == "dead":
    with torch.no_grad():
        net.second.bias.fill_(-20)
elif defect == "vanishing":
    net = dense(*(part for _ in range(14) for part in (torch.nn.Linear(64, 64), torch.nn.Sigmoid())))
elif defect == "saturated":
    net = dense(torch.nn.Linear(64, 64), torch.nn.Tanh())
    with torch.no_grad():
        net[1].weight.mul_(10_000)
elif defect == "zeros":
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
elif defect == "standing":
    rate = 0.0
elif defect == "leaping":
    optimizer, rate = torch.optim.SGD, 30.0
elif defect == "overfitting":
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    train, epochs = Rows(0, 150), 120
    wrong = torch.rand(150) < 0.3
    train.y[wrong] = torch.randint(10, (int(wrong.sum()),))
elif defect == "rare":
    kept = (train.y == 0) | ((train.y == 1) & (torch.arange(1400) < 45))
    train.x, train.y, epochs = train.x[kept].repeat(10, 1, 1, 1), train.y[kept].repeat(10), 40
    held_out.x, held_out.y = held_out.x[held_out.y < 2], held_out.y[held_out.y < 2]
elif defect == "stumbling":
    whole, calls = net.forward, [0]

    def stumble(x):
        calls[0] += net.training
        if net.training and calls[0] % 12 == 0:
            time.sleep(0.3)
        return whole(x)

    net.forward = stumble
elif defect == "decoding":
    epochs = 200
elif defect == "deep":
    net = dense(*(part for _ in range(8) for part in (torch.nn.Linear(64, 64), torch.nn.ReLU())))
elif defect == "detached":
    net.first.register_forward_hook(lambda layer, given, output: output.detach())  # so that it gets no gradient
elif defect in ("late", "nan"):
    whole, calls = net.forward, [0]

    def grow(x):
        calls[0] += net.training
        factor = 3.0 ** max(0, calls[0] - 60) if defect == "late" else float("nan") if calls[0] > 60 else 1.0
        return whole(x) * (factor if net.training else 1.0)

    net.forward = grow

if own_loop:
    learner, loss, step = optimizer(net.parameters(), lr=rate), torch.nn.CrossEntropyLoss(), 0
    session.watch(net, learner, loss=loss)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(64):
            learner.zero_grad()
            found = loss(net(train.x[rows]), train.y[rows])
            found.backward()
            learner.step()
            session.report(step := step + 1, {"train:loss": float(found)})
else:
    phalanx.Trainer(net, torch.nn.CrossEntropyLoss(), optimizer=lambda p: optimizer(p, lr=rate)).fit(
        train, validation=held_out, epochs=epochs, batch_size=32 if defect == "overfitting" else 64
    )
"""
# defect -> the rule that is for it, and others that may fire with it
DEFECTS = {
    "dead": ("dead_relu", {"all_zero", "vanishing_gradient", "weight_update_ratio", "unchanged_tensor", "loss_not_decreasing"}),
    "vanishing": ("vanishing_gradient", {"loss_not_decreasing", "unchanged_tensor", "weight_update_ratio"}),
    "saturated": ("saturated_activation", {"loss_not_decreasing", "overfit"}),
    "zeros": ("all_zero", {"dead_relu", "unchanged_tensor", "vanishing_gradient", "loss_not_decreasing"}),
    "standing": ("weight_update_ratio", {"unchanged_tensor", "loss_not_decreasing"}),
    "leaping": ("weight_update_ratio", {"dead_relu", "all_zero", "vanishing_gradient", "unchanged_tensor", "exploding_tensor"}),
    "overfitting": ("overfit", {"overtraining"}),
    "rare": ("class_imbalance", set[str]()),
    "detached": ("unchanged_tensor", set[str]()),
    "late": (
        "exploding_tensor",
        {"dead_relu", "all_zero", "vanishing_gradient", "weight_update_ratio", "overfit", "unchanged_tensor"},
    ),
    "stumbling": ("step_outlier", {"io_bottleneck"}),
}
ANYWAY = {"poor_weight_initialization", "loss_not_decreasing", "confusion"}  # what a training that does not learn may show


def _found(folder: Path, defect: str, loop: str, **options: object) -> set[str]:
    (folder / "train.py").write_text(SCRIPT)
    job = phalanx.TrainingJob(
        script=str(folder / "train.py"), arguments=[defect, loop], output=str(folder), name="one", checkpoint_every="never",
        **{"rules": ["all"], **options},
    )  # fmt: skip
    with contextlib.suppress(phalanx.Stopped, phalanx.AlgorithmError):
        job.run(progress=False)
    return {finding["rule"] for finding in load_job(str(folder / "one")).findings()}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: str, tmp_path: Path) -> None:
    right, others = DEFECTS[defect]
    found = _found(tmp_path, defect, "trainer")
    assert right in found
    assert found <= {right} | others | (ANYWAY if others else set())


def test_numbers_that_are_none_are_told_as_what_they_are(tmp_path: Path) -> None:
    assert _found(tmp_path, "nan", "own") == {"exploding_tensor"}


@pytest.mark.parametrize("defect", ["dead", "vanishing", "standing", "rare", "detached"])
def test_a_defect_is_found_in_a_loop_of_its_own(defect: str, tmp_path: Path) -> None:
    right, others = DEFECTS[defect]
    found = _found(tmp_path, defect, "own")
    assert right in found
    assert found <= {right} | others | (ANYWAY if others else set())


def test_data_that_is_decoded_too_slowly(tmp_path: Path) -> None:
    assert _found(tmp_path, "decoding", "trainer", rules=["all:action=stop"]) == {"cpu_bottleneck"}


@pytest.mark.parametrize("options", [{}, {"workers": 2, "strategy": "fsdp"}, {"workers": 2, "strategy": "zero1"}])
def test_a_clean_run(options: dict[str, object], tmp_path: Path) -> None:
    assert _found(tmp_path, "none", "trainer", **options) == set()


def test_a_clean_run_of_a_deep_net(tmp_path: Path) -> None:
    assert _found(tmp_path, "deep", "trainer") == set()


def test_a_clean_loop_of_its_own(tmp_path: Path) -> None:
    assert _found(tmp_path, "none", "own") == set()
