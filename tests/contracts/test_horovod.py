"""Horovod under the conformance suite of strategies, and under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import phalanx
from phalanx.contracts import Exit, WorkerContext, WorkerSpec
from phalanx.launch.local import LocalLauncher
from phalanx.testing.strategy_checks import PRELOAD, StrategyChecks

pytest.importorskip("horovod.torch", reason="Horovod is not installed: scripts/install_horovod.sh builds it")

EXAMPLE = Path(__file__).parents[2] / "examples" / "horovod_from_ddp" / "train.py"
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
    models = ("mlp", "tied", "unused", "convolution", "frozen")
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


def die(context: WorkerContext) -> None:
    """Train a step on both ranks; then rank 1 is gone, and rank 0 says what it finds in the next."""
    from phalanx.errors import to_record
    from phalanx.testing.strategy_models import Case, micro_batches
    from phalanx.testing.strategy_targets import prepared
    from phalanx.worker import open_world

    world = open_world(context)
    case = Case()
    replica = prepared(case, "horovod", {}, world)
    replica.train_step(micro_batches(case, 1, world.rank, world.size))
    if world.rank == 1:
        os._exit(7)
    try:
        replica.train_step(micro_batches(case, 2, world.rank, world.size))
    except phalanx.PhalanxError as error:
        context.send({"kind": "result", "error": to_record(error)})
    os._exit(0)


def test_the_death_of_a_rank_is_the_platforms_error(tmp_path: Path) -> None:
    spec = WorkerSpec(
        workers=2,
        log_folder=tmp_path,
        attempt=0,
        target=f"{__name__}:die",
        payload={},
        preload=(*PRELOAD, "phalanx.parallel.horovod"),
    )
    workers = LocalLauncher().start(spec)
    codes: dict[int, int] = {}
    said: list[Any] = []
    try:
        while len(codes) < 2:
            for happened in workers.poll(60):
                if isinstance(happened, Exit):
                    codes[happened.rank] = happened.code
                else:
                    said.append(happened.body)
    finally:
        workers.close()
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.iterdir()))
    assert codes == {0: 0, 1: 7}, logs[-2000:]
    [body] = said
    assert body["error"]["kind"] == "PlatformError"
    assert "lost contact with another worker" in body["error"]["message"]


@pytest.mark.slow
def test_a_ddp_script_ported_by_one_word(tmp_path: Path) -> None:
    """Both jobs start at the same weights and end at the same loss."""
    losses = {}
    for strategy in ("ddp", "horovod"):
        arguments = ["--strategy", strategy, "--epochs", "10"]
        job = phalanx.TrainingJob(script=str(EXAMPLE), workers=2, arguments=arguments, output=str(tmp_path), name=strategy)
        job.run(progress=False)
        log = (tmp_path / strategy / "logs" / "rank-0.log").read_text()
        found = re.search(rf"{strategy}, 2 ranks: loss ([0-9.]+)", log)
        assert found, log
        losses[strategy] = float(found[1])
    assert losses["horovod"] == pytest.approx(losses["ddp"], abs=1e-5)
    assert losses["horovod"] < 0.6  # guessing is 0.69
