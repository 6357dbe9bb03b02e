"""FSDP2 under the conformance suite of strategies."""

from typing import ClassVar

import pytest

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
