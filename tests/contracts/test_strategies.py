"""The strategies under their conformance suite."""

from phalanx.testing.strategy_checks import StrategyChecks


class TestSingle(StrategyChecks):
    strategy = "single"
    sizes = (1,)


class TestDDP(StrategyChecks):
    strategy = "ddp"
    sizes = (1, 2)
