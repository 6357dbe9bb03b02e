"""ZeRO and pipelines of DeepSpeed under the strategies' conformance suite."""

from phalanx.testing.strategy_checks import StrategyChecks

PRELOAD = ("phalanx.parallel.zero", "phalanx.parallel.deepspeed_preload")
MODELS = ("mlp", "tied", "uncalled", "convolution", "frozen")


class TestZeRO1(StrategyChecks):
    strategy = "zero1"
    sizes = (1, 2)
    models = MODELS
    preload = PRELOAD


class TestZeRO2(StrategyChecks):
    strategy = "zero2"
    sizes = (2,)
    models = MODELS
    preload = PRELOAD


class TestZeRO3(StrategyChecks):
    strategy = "zero3"
    sizes = (2,)
    models = MODELS
    preload = PRELOAD


class TestPipeline(StrategyChecks):
    strategy = "pipeline"
    sizes = (2,)
    models = ("mlp", "frozen", "transformer")
    preload = (*PRELOAD, "phalanx.parallel.pipeline")
    every_rank_reads_its_own = False
