"""A defect in a training is found by the rule that is for it, with all rules on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx.tracking import load_job

SCRIPT = """
import sys, time
import torch, phalanx

defect = sys.argv[1]
session = phalanx.session()
torch.manual_seed(0)
draw = torch.Generator().manual_seed(0)
weights = torch.randn(20, generator=draw)


class Rows(torch.utils.data.Dataset):
    def __init__(self, number, noise=0.0):
        self.x = torch.randn(number, 20, generator=draw)
        self.y = (self.x @ weights + noise * torch.randn(number, generator=draw) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, number):
        if defect == "starved":
            time.sleep(0.002)
        return self.x[number], self.y[number]


class Layer(torch.nn.Module):
    def forward(self, x):
        if defect == "slow" and self.training and session.world.rank == 1:
            time.sleep(0.04)
        return x


wide = 512 if defect == "overfit" else 64
net = torch.nn.Sequential(torch.nn.Linear(20, wide), Layer(), torch.nn.ReLU(), torch.nn.Linear(wide, 2))
if defect == "dead":
    with torch.no_grad():
        net[0].bias.fill_(-50.0)
rate = 1e4 if defect == "exploding" else 1e-3
optimizer = torch.optim.SGD if defect == "exploding" else torch.optim.Adam
train = Rows(64, noise=3.0) if defect == "overfit" else Rows(2048)
loss = torch.nn.MSELoss() if defect == "exploding" else torch.nn.CrossEntropyLoss()
if defect == "exploding":
    net = torch.nn.Sequential(net, torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    train = torch.utils.data.TensorDataset(train.x, train.y.float())
trainer = phalanx.Trainer(net, loss, optimizer=lambda p: optimizer(p, lr=rate))
watched = None if defect == "exploding" else Rows(256, noise=3.0 if defect == "overfit" else 0.0)
trainer.fit(train, validation=watched, epochs=int(sys.argv[2]), batch_size=64)
"""
STOP = "all:action=stop"


def _findings(folder: Path, defect: str, *, epochs: int = 200, **changes: Any) -> list[dict[str, Any]]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    job = phalanx.TrainingJob(
        **{
            "script": str(script),
            "arguments": [defect, str(epochs)],
            "output": str(folder),
            "name": "one",
            "checkpoint_every": "never",
            "rules": ["all"],
            **changes,
        }
    )
    with contextlib.suppress(phalanx.Stopped, phalanx.AlgorithmError):
        job.run(progress=False)
    return load_job(str(folder / "one")).findings()


def test_a_dead_relu(tmp_path: Path) -> None:
    found = {finding["rule"]: finding for finding in _findings(tmp_path, "dead", epochs=4)}
    assert found["dead_relu"]["step"] < 100
    assert "100 % of the units of 2 put out 0" in found["dead_relu"]["message"]
    assert {"load_balancing", "io_bottleneck", "overfit", "exploding_tensor"}.isdisjoint(found)


def test_an_exploding_loss(tmp_path: Path) -> None:
    found = _findings(tmp_path, "exploding", epochs=3, rules=["exploding_tensor"])
    assert [finding["rule"] for finding in found] == ["exploding_tensor"]
    assert found[0]["step"] < 20


def test_a_clean_run(tmp_path: Path) -> None:
    assert _findings(tmp_path, "clean", epochs=10) == []


@pytest.mark.slow
def test_overfitting(tmp_path: Path) -> None:
    found = {finding["rule"]: finding for finding in _findings(tmp_path, "overfit")}
    assert "while train:loss improved" in found["overfit"]["message"]
    assert {"load_balancing", "io_bottleneck", "dead_relu", "exploding_tensor", "loss_not_decreasing"}.isdisjoint(found)


@pytest.mark.slow
def test_a_slow_rank(tmp_path: Path) -> None:
    found = _findings(tmp_path, "slow", workers=2, rules=[STOP])
    assert [finding["rule"] for finding in found] == ["load_balancing"]
    assert found[0]["message"].startswith("rank 1 is slow")


@pytest.mark.slow
def test_a_training_that_waits_for_its_data(tmp_path: Path) -> None:
    found = _findings(tmp_path, "starved", rules=[STOP])
    assert [finding["rule"] for finding in found] == ["io_bottleneck"]
