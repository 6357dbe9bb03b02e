"""FSDP2, tensor parallel and auto under the conformance suite of strategies."""

from typing import ClassVar

import pytest
from torch import nn

from phalanx.errors import UserError
from phalanx.parallel.auto import choose
from phalanx.parallel.tensor_plan import check_plan, derived_plan
from phalanx.testing.strategy_checks import StrategyChecks


class TestFSDP(StrategyChecks):
    strategy = "fsdp"
    sizes = (1, 2)
    models = ("mlp", "tied", "unused", "frozen", "transformer")
    preload = ("phalanx.parallel.fsdp",)


@pytest.mark.slow
class TestHybridFSDP(StrategyChecks):
    strategy = "fsdp"
    options: ClassVar = {"replicas": 2, "reshard_after_forward": False}
    sizes = (4,)
    preload = ("phalanx.parallel.fsdp",)


class TestTensor(StrategyChecks):
    strategy = "tensor"
    sizes = (2,)
    models = ("mlp", "transformer")
    resume_models = ("mlp",)
    preload = ("phalanx.parallel.tensor",)
    every_rank_reads_its_own = False


@pytest.mark.slow
class TestTensorAndData(StrategyChecks):
    strategy = "tensor"
    options: ClassVar = {"size": 2, "plan": {"0": "column", "2": "row"}}
    sizes = (4,)
    models = ("mlp",)
    resume_models = ("mlp",)
    preload = ("phalanx.parallel.tensor",)
    every_rank_reads_its_own = False


class TestAuto(StrategyChecks):
    strategy = "auto"
    options: ClassVar = {"device_memory": 4000}
    sizes = (2,)
    models = ("mlp",)
    resume_models = ("mlp",)
    preload = ("phalanx.parallel.auto", "phalanx.parallel.fsdp")


GIB = 2**30


@pytest.mark.parametrize(
    ("parameters", "memory", "workers", "strategy"),
    [
        (4 * GIB, 80 * GIB, 1, "single"),
        (4 * GIB, 80 * GIB, 8, "ddp"),
        (11 * GIB, 80 * GIB, 8, "ddp"),
        (12 * GIB, 80 * GIB, 8, "fsdp"),
        (28 * GIB, 80 * GIB, 8, "fsdp"),
        (1, GIB, 2, "ddp"),
    ],
)
def test_what_auto_chooses(parameters: int, memory: int, workers: int, strategy: str) -> None:
    choice = choose(parameters, memory, workers)
    assert choice.strategy == strategy
    assert "GiB" in choice.reason


def test_auto_says_when_shards_do_not_fit_either() -> None:
    assert "take more workers or offload" in choose(280 * GIB, 80 * GIB, 8).reason
    assert "offload" not in choose(28 * GIB, 80 * GIB, 8).reason


class TestPlans:
    def test_derived(self) -> None:
        block = nn.TransformerEncoderLayer(8, 2, 16)
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8), block)
        assert derived_plan(module) == {"0": "column", "2": "row", "5.linear1": "column", "5.linear2": "row"}

    @pytest.mark.parametrize(
        ("module", "plan", "message"),
        [
            (nn.Linear(3, 3), None, "no plan can be derived.*as phalanx.parallel.Tensor"),
            (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), None, "no plan can be derived"),
            (nn.Sequential(nn.Linear(3, 3)), {"0": "colum"}, "did you mean 'column'"),
            (nn.Sequential(nn.Linear(3, 3)), {"up": "column"}, r"plan\['up'\] fits no module"),
            (nn.Sequential(nn.LayerNorm(3)), {"0": "row"}, "a LayerNorm: only Linear and Embedding"),
            (nn.Sequential(nn.Linear(1, 3)), {"0": "row"}, "has 1 rows and cannot be cut over 2 workers"),
        ],
    )
    def test_mistakes(self, module: nn.Module, plan: dict[str, str] | None, message: str) -> None:
        with pytest.raises(UserError, match=message):
            derived_plan(module) if plan is None else check_plan(module, plan, 2)
