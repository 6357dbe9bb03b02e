"""ZeRO and pipelines of DeepSpeed under the strategies' conformance suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from phalanx.testing.strategy_checks import StrategyChecks
from phalanx.testing.strategy_models import Case

PRELOAD = ("phalanx.parallel.zero", "phalanx.parallel.pipeline", "phalanx.parallel.deepspeed_preload")
MODELS = ("mlp", "tied", "uncalled", "convolution", "frozen")


class TestZeRO1(StrategyChecks):
    strategy = "zero1"
    sizes = (2,)
    models = ("mlp", "tied")
    resume_models = ("mlp",)
    preload = PRELOAD


@pytest.mark.slow
class TestZeRO2(StrategyChecks):
    strategy = "zero2"
    sizes = (1, 2)
    models = MODELS
    preload = PRELOAD


class TestZeRO3(StrategyChecks):
    strategy = "zero3"
    sizes = (2,)
    models = MODELS
    resume_models = ("mlp",)
    preload = PRELOAD


class TestPipeline(StrategyChecks):
    strategy = "pipeline"
    sizes = (2,)
    models = ("mlp", "frozen", "transformer")
    preload = PRELOAD
    every_rank_reads_its_own = False


class Partitioned(StrategyChecks):
    """All weights cut, none kept whole."""

    strategy = "zero3"
    options: ClassVar[Mapping[str, Any]] = {"keep_below": 0}
    preload = PRELOAD


class Cut(StrategyChecks):
    """A pipeline with the optimizer's state cut as well."""

    strategy = "pipeline"
    options: ClassVar[Mapping[str, Any]] = {"zero": 1, "micro_batches": 6, "balance": "uniform"}
    preload = PRELOAD


class Offloaded(StrategyChecks):
    """The optimizer's state in the host's memory: torch's optimizer, nothing compiled."""

    strategy = "zero2"
    options: ClassVar[Mapping[str, Any]] = {"offload": "cpu"}
    preload = PRELOAD


class TestOptions:
    """Other options, in one training each."""

    def test_weights_that_are_really_cut(self, tmp_path: Path) -> None:
        for model in ("mlp", "tied"):
            Partitioned().check_equals_plain(Case(model=model, accumulate=2), 2, tmp_path / model)
        for result in Partitioned().good("resume", Case(), 2, tmp_path / "resume"):
            assert result["same"]

    @pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
    def test_offload(self, strategy: str, tmp_path: Path) -> None:
        for result in Offloaded().good("resume", Case(accumulate=2), 2, tmp_path / "resume", strategy=strategy):
            assert result["same"]
        if strategy == "zero2":
            Offloaded().check_equals_plain(Case(accumulate=2, clip_norm=0.05, optimizer="sgd"), 2, tmp_path / "train")

    def test_a_pipeline_with_zero_1_and_more_micro_batches(self, tmp_path: Path) -> None:
        Cut().check_equals_plain(Case(clip_norm=0.05, accumulate=2, optimizer="sgd"), 2, tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize("checks", [TestPipeline(), Cut()], ids=["plain", "zero1"])
    def test_stages_times_copies(self, checks: StrategyChecks, tmp_path: Path) -> None:
        checks.check_equals_plain(Case(accumulate=2, batches=(24, 13, 5)), 4, tmp_path / "uneven")
        checks.check_equals_plain(Case(clip_norm=0.05, accumulate=2, optimizer="sgd"), 4, tmp_path / "clipped")
        for result in checks.good("resume", Case(accumulate=2), 4, tmp_path / "resume"):
            assert result["same"]
