"""Horovod under the conformance suite of strategies, and under torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from phalanx.testing.strategy_checks import StrategyChecks

pytest.importorskip("horovod.torch", reason="Horovod is not installed: scripts/install_horovod.sh builds it")

SCRIPT = """
import torch, phalanx
from torch import nn

torch.manual_seed(phalanx.session().world.rank)
inputs = torch.linspace(-1, 1, 64)[:, None]
trainer = phalanx.Trainer(
    nn.Linear(1, 1), nn.functional.mse_loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.3), strategy="horovod"
)
history = trainer.fit((inputs, 2 * inputs + 1), epochs=20, batch_size=16)
if trainer.world.rank == 0:
    print(f"{trainer.world.size} ranks, loss {history.losses[-1]:.6f}")
"""


class TestHorovod(StrategyChecks):
    strategy = "horovod"
    sizes = (1, 2)
    models = ("mlp", "tied", "unused", "frozen")
    preload = ("phalanx.parallel.horovod",)


class TestCompressed(StrategyChecks):
    strategy = "horovod"
    options: ClassVar = {"compression": "fp16", "fusion_mb": 1}
    sizes = (2,)
    models = ("mlp",)
    tolerance = 1e-3
    preload = ("phalanx.parallel.horovod",)

    test_a_state_goes_on_exactly = None  # type: ignore[assignment]
    test_the_trainer_is_the_same_on_any_number_of_ranks = None  # type: ignore[assignment]


def test_torchrun_needs_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 ranks, loss 0.0000" in done.stdout
