"""Random cut forest passes the conformance suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from sklearn.datasets import make_blobs

from phalanx.algorithms.random_cut_forest.sample import windows_of
from phalanx.contracts import Array
from phalanx.testing.algorithm_checks import AlgorithmChecks
from phalanx.testing.sessions import Rows


class TestRandomCutForest(AlgorithmChecks):
    name = "random_cut_forest"
    hyperparameters: ClassVar[dict[str, Any]] = {"num_trees": 50, "num_samples_per_tree": 16, "mini_batch_size": 400}
    metrics = ("train:sampled_rows", "(validation|test):(f1|precision|recall|accuracy)")
    exact_over_workers = True

    def channels(self) -> dict[str, Rows]:
        rows = make_blobs(1500, 4, centers=1, random_state=3)[0].astype(np.float32)
        label = np.zeros(300, np.float32)
        label[::50] = 1
        test = rows[1200:].copy()
        test[::50] += 20
        return {"train": Rows(rows[:1200]), "test": Rows(test, label)}

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["test:recall"] == 1
        assert metrics["test:f1"] > 0.5


class TestWindows(AlgorithmChecks):
    """Windows of a series that ranks share: those that begin in another rank's rows too."""

    name = "random_cut_forest"
    hyperparameters: ClassVar[dict[str, Any]] = {
        "num_trees": 50,
        "num_samples_per_tree": 16,
        "mini_batch_size": 600,
        "shingle_size": 6,
        "attribution": True,
    }
    metrics = ("train:sampled_rows", "(validation|test):(f1|precision|recall|accuracy)")
    exact_over_workers = True

    def channels(self) -> dict[str, Rows]:
        time = np.arange(2300)
        noise = np.random.default_rng(1).normal(scale=0.05, size=(2300, 2))
        rows = (np.stack([np.sin(time / 8), np.cos(time / 8)], axis=1) + noise).astype(np.float32)
        rows[2100] = 4
        label = (np.abs(time - 2102.5) < 3).astype(np.float32)  # windows that hold it
        return {"train": Rows(rows[:1900]), "test": Rows(rows[1900:], label[1900:])}

    def requests(self) -> Array:
        return windows_of(np.asarray(self.channels()["test"].features), 6)[170:230].copy()

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["test:recall"] == 1
        assert metrics["test:f1"] > 0.5
