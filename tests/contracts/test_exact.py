"""Training that is the same to the bit on any number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import phalanx
from phalanx.errors import UserError
from phalanx.parallel.exact import Exact
from phalanx.testing.sessions import MemorySession
from phalanx.testing.strategy_checks import StrategyChecks
from phalanx.testing.strategy_models import Case


class Ranks(StrategyChecks):
    strategy = "exact"
    preload = ("phalanx.parallel.exact",)


@pytest.mark.parametrize("model", ["dropout", "unused", "convolution"])
def test_any_number_of_workers_gives_the_same_bits(model: str, tmp_path: Path) -> None:
    case = Case(model=model, clip_norm=1.0)
    found = [Ranks().good("fit", case, size, tmp_path / str(size)) for size in (1, 2, 3, 4)]
    for ranks in found[1:]:
        for key in ("losses", "validation", "predicted", "exported"):
            assert ranks[0][key] == found[0][0][key], key
        assert all(rank["losses"] == ranks[0]["losses"] for rank in ranks)


def test_it_learns_as_plain_torch_does(tmp_path: Path) -> None:
    case = Case(clip_norm=1.0)
    exact = Ranks().good("fit", case, 2, tmp_path / "exact")[0]
    plain = Ranks().good("fit", case, 1, tmp_path / "plain", strategy="single")[0]
    for key in ("losses", "validation", "predicted"):
        np.testing.assert_allclose(exact[key], plain[key], atol=1e-4)


def test_an_error_of_one_rank_reaches_all(tmp_path: Path) -> None:
    for result in Ranks().run("fit_until_broken", Case(), 2, tmp_path):
        assert "is no image" in result["error"]["message"]


def test_what_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    def fit(module: nn.Module, strategy: Exact, precision: str = "fp32", accumulate: int = 1) -> None:
        trainer = phalanx.Trainer(
            module,
            nn.functional.mse_loss,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
            accumulate=accumulate,
            session=MemorySession({}, tmp_path),
        )
        trainer.fit((torch.randn(24, 2), torch.randn(24, 2)), batch_size=12)

    normalised = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(UserError, match="running statistics of batch norm; use GroupNorm"):
        fit(normalised, Exact())
    with pytest.raises(UserError, match="precision fp32 or bf16"):
        fit(nn.Linear(2, 2), Exact(), precision="fp16")
    with pytest.raises(UserError, match="in place of accumulate"):
        fit(nn.Linear(2, 2), Exact(), accumulate=2)
    with pytest.raises(UserError, match="shared evenly by 5 workers: give 1, 2, 3, 4, 6, 12 workers"):
        Exact().share(5)
