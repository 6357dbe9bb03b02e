"""Conformance suite of `contracts.Strategy`: inherit `StrategyChecks`, name the strategy, get all checks.

class TestMine(StrategyChecks):
    strategy = "mine"
    options = {"stages": 2}
    sizes = (2,)                    # ranks; every check runs on each
    models = ("mlp", "tied", …)     # those it can train
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ..contracts import Exit, WorkerSpec
from ..launch.local import LocalLauncher
from .strategy_models import Case, batch, build, plain

PRELOAD = ("phalanx.testing.strategy_targets", "phalanx.parallel.ddp", "torch._dynamo")  # the last: optimizers load it


class StrategyChecks:
    """Ranks are processes from a warm server; what they come to is compared with plain torch in this one."""

    strategy: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    sizes: ClassVar[tuple[int, ...]] = (1, 2)
    models: ClassVar[tuple[str, ...]] = ("mlp", "tied", "unused", "convolution", "frozen")
    preload: ClassVar[tuple[str, ...]] = ()
    resume_models: ClassVar[tuple[str, ...]] = ("mlp", "dropout")
    tolerance: ClassVar[float] = 2e-5
    every_rank_reads_its_own: ClassVar[bool] = True  # False where ranks share the rows of a batch
    one_module_only: ClassVar[bool] = True  # whether every rank must build the same module

    def run(
        self,
        action: str,
        case: Case,
        size: int,
        folder: Path,
        *,
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Run an action on `size` ranks; return their results in rank order, {"error": record} where one failed."""
        chosen = {"strategy": strategy or self.strategy, "options": dict(self.options if options is None else options)}
        spec = WorkerSpec(
            workers=size,
            log_folder=folder / "logs",
            attempt=0,
            target="phalanx.testing.strategy_targets:main",
            payload={"action": action, "case": asdict(case), **chosen},
            preload=(*PRELOAD, *self.preload),
        )
        workers = LocalLauncher().start(spec)
        results: dict[int, dict[str, Any]] = {}
        left = size
        try:
            while left:
                for happened in workers.poll(60):
                    if isinstance(happened, Exit):
                        left -= 1
                    elif happened.body["kind"] in ("result", "failure"):
                        results[happened.rank] = dict(happened.body)
        finally:
            workers.close()
        logs = "\n".join(path.read_text() for path in sorted(spec.log_folder.iterdir()))
        assert sorted(results) == list(range(size)), logs[-3000:]
        return [results[rank] for rank in range(size)]

    def good(
        self,
        action: str,
        case: Case,
        size: int,
        folder: Path,
        *,
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Run an action that must succeed on every rank."""
        results = self.run(action, case, size, folder, strategy=strategy, options=options)
        for result in results:
            assert "error" not in result, result["error"]["details"] or result["error"]["message"]
        return [result["result"] for result in results]

    def check_equals_plain(self, case: Case, size: int, folder: Path) -> None:
        """Train the case; losses, norms, weights, evaluation and prediction must be plain torch's."""
        expected, got = plain(case), self.good("train", case, size, folder)
        for result in got:
            np.testing.assert_allclose(result["losses"], expected.losses, atol=self.tolerance)
            if case.clip_norm is not None:
                np.testing.assert_allclose(result["norms"], list(map(float, expected.norms)), rtol=1e-4, atol=self.tolerance)
        weights = got[0]["weights"]
        assert weights is not None
        assert sorted(weights) == sorted(expected.weights)
        module = build(case)
        tensors = {n: torch.tensor(v).reshape(shape) for n, (_, shape, v) in weights.items()}
        module.load_state_dict(tensors, strict=True)
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, expected.weights[name], atol=20 * self.tolerance, err_msg=name)
        module.eval()
        inputs, target = batch(case, 1)
        with torch.no_grad():
            output = module(inputs)
        for result in got:
            np.testing.assert_allclose(result["predicted"], output, atol=1e-4)
            loss = float(torch.nn.functional.cross_entropy(output, target))
            assert result["evaluated"] == pytest.approx(loss, abs=1e-5)
        assert all(result["weights"] is None for result in got[1:])

    def test_equals_plain_torch(self, tmp_path: Path) -> None:
        for size in self.sizes:
            for model in self.models:
                self.check_equals_plain(Case(model=model), size, tmp_path / f"{size}-{model}")

    def test_another_optimizer(self, tmp_path: Path) -> None:
        self.check_equals_plain(Case(optimizer="sgd"), self.sizes[-1], tmp_path)

    def test_accumulating_is_one_large_batch(self, tmp_path: Path) -> None:
        for size in self.sizes:
            self.check_equals_plain(Case(accumulate=3), size, tmp_path / str(size))

    def test_clipping_and_the_norm(self, tmp_path: Path) -> None:
        for size in self.sizes:
            case = Case(clip_norm=0.05, accumulate=2, optimizer="sgd")
            self.check_equals_plain(case, size, tmp_path / str(size))

    def test_batches_that_do_not_divide(self, tmp_path: Path) -> None:
        """The last batch of an epoch may be of any size: also of fewer rows than there are ranks."""
        for size in self.sizes:
            self.check_equals_plain(Case(batches=(13, 13, 5, 1), accumulate=2), size, tmp_path / str(size))

    def test_activation_checkpointing_changes_nothing(self, tmp_path: Path) -> None:
        self.check_equals_plain(Case(activation_checkpointing=True), self.sizes[-1], tmp_path)

    def test_dropout_is_a_function_of_the_seed(self, tmp_path: Path) -> None:
        if "dropout" not in self.resume_models:
            pytest.skip("this strategy takes no module with dropout")
        case = Case(model="dropout")
        runs = [self.good("train", c, self.sizes[-1], tmp_path / n) for n, c in (("a", case), ("b", case))]
        assert runs[0][0]["losses"] == runs[1][0]["losses"]
        assert runs[0][0]["losses"] != plain(case).losses

    def test_a_state_goes_on_exactly(self, tmp_path: Path) -> None:
        for model in self.resume_models:
            for result in self.good("resume", Case(model=model, clip_norm=1.0), self.sizes[-1], tmp_path / model):
                assert result["same"]
                assert result["again"] == result["losses"][len(result["again"]) :]

    def test_bf16_learns_nearly_the_same(self, tmp_path: Path) -> None:
        case = Case(precision="bf16", batches=(24,) * 6)
        expected = plain(replace(case, precision="fp32"))
        got = self.good("train", case, self.sizes[-1], tmp_path)[0]
        np.testing.assert_allclose(got["losses"], expected.losses, atol=0.05)
        assert {dtype for dtype, _, _ in got["weights"].values()} == {"torch.float32"}

    def test_an_error_of_one_rank_reaches_all(self, tmp_path: Path) -> None:
        for size in self.sizes:
            if size == 1:
                continue
            results = self.run("wrong_shape_on_one_rank", Case(), size, tmp_path / str(size))
            for rank, result in enumerate(results):
                assert "error" in result, f"rank {rank} went on"
                assert re.search("shape|dim", result["error"]["message"]), result["error"]["message"]

    def test_the_trainer_is_the_same_on_any_number_of_ranks(self, tmp_path: Path) -> None:
        """Shuffled, three epochs of uneven batches, schedule, validation, metrics: as on one rank without a strategy."""
        case = Case(accumulate=2, clip_norm=1.0)
        expected = self.good("fit", case, 1, tmp_path / "plain", strategy="single", options={})[0]
        for size in self.sizes:
            for result in self.good("fit", case, size, tmp_path / str(size)):
                for key in ("losses", "validation", "rates", "predicted"):
                    np.testing.assert_allclose(result[key], expected[key], atol=5 * self.tolerance, err_msg=key)
                assert result["reported"] == expected["reported"]
                if result["exported"] is not None:
                    assert result["exported"].keys() == expected["exported"].keys()

    def test_data_that_one_rank_cannot_read_stops_all(self, tmp_path: Path) -> None:
        for size in self.sizes:
            if size == 1 or not self.every_rank_reads_its_own:
                continue
            results = self.run("fit_until_broken", Case(), size, tmp_path / str(size))
            for result in results:
                assert result["error"]["kind"] == "UserError"
                assert "is no image" in result["error"]["message"]

    def test_ranks_with_different_modules_are_told_so(self, tmp_path: Path) -> None:
        for size in self.sizes:
            if size == 1 or not self.one_module_only:
                continue
            for result in self.run("other_module_on_one_rank", Case(), size, tmp_path / str(size)):
                assert result["error"]["kind"] == "UserError"
                assert f"rank {size - 1} built another module" in result["error"]["message"]
