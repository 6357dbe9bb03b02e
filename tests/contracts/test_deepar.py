"""DeepAR passes the conformance suite: daily series, and counts with categories and features that change with time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from phalanx.contracts import Features, Json, Records
from phalanx.data.memory import take
from phalanx.testing.algorithm_checks import AlgorithmChecks
from phalanx.testing.sessions import Circumstances, Rows

AHEAD = 6


def weekly(count: int, seed: int, *, counts: bool = False) -> list[dict[str, Json]]:
    """Return series with a week's pattern, some values missing."""
    generator = np.random.default_rng(seed)
    found: list[dict[str, Json]] = []
    for number in range(count):
        length = int(generator.integers(60, 90))
        level = float(generator.uniform(5, 50))
        wave = 1 + 0.5 * np.sin(2 * np.pi * np.arange(length) / 7)
        target: list[float | None] = [float(v) for v in level * wave + generator.normal(size=length) * level / 50]
        record: dict[str, Json] = {"start": "2024-01-01 00:00:00", "target": target}
        if counts:
            record["target"] = [float(np.floor(value or 0)) for value in target]
            record |= {"cat": [number % 3], "dynamic_feat": [generator.uniform(size=length).tolist()]}
        record["target"][int(generator.integers(length))] = None
        found.append(record)
    return found


class _DeepARChecks(AlgorithmChecks):
    name = "deepar"
    metrics = (
        r"train:(final_)?loss",
        "train:loss:batch",
        r"test:(RMSE|mean_wQuantileLoss)",
        r"test:(wQuantileLoss|coverage)\[.*\]",
    )
    counts: ClassVar[bool] = False

    def channels(self) -> dict[str, Rows]:
        test = weekly(60, 0, counts=self.counts)
        train = [dict(one, target=one["target"][:-AHEAD]) for one in test]
        if self.counts:
            train = [dict(one, dynamic_feat=[row[:-AHEAD] for row in one["dynamic_feat"]]) for one in train]
        return {"train": Rows(Records(train)), "test": Rows(Records(test[:20]))}

    def requests(self) -> Features:
        items = weekly(7, 5, counts=self.counts)
        if self.counts:
            items = [dict(one, target=one["target"][:-AHEAD]) for one in items]
        return Records(items)

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["test:mean_wQuantileLoss"] < 0.3
        assert 0.5 < metrics["test:coverage[0.9]"] <= 1

    def test_predictions_do_not_depend_on_the_company(self, tmp_path: Path) -> None:
        algorithm = self.train(tmp_path, Circumstances())[0].algorithm
        requests = self.requests()
        together = algorithm.predict(requests)
        for i in range(len(requests)):
            alone = algorithm.predict(take(requests, slice(i, i + 1)))
            np.testing.assert_allclose(alone["mean"][0], together["mean"][i], rtol=1e-5)
            for name in together["quantiles"].dtype.names or ():
                np.testing.assert_allclose(alone["quantiles"][name][0], together["quantiles"][name][i], rtol=1e-5)
        assert {len(column) for column in algorithm.predict(take(requests, slice(0, 0))).values()} == {0}


class TestBursts(_DeepARChecks):
    hyperparameters: ClassVar[Mapping[str, Any]] = {
        "time_freq": "D",
        "prediction_length": AHEAD,
        "context_length": 10,
        "epochs": 3,
        "batches_per_epoch": 12,
        "mini_batch_size": 32,
        "learning_rate": 0.01,
        "num_cells": 12,
        "num_eval_samples": 30,
    }


class TestCounts(_DeepARChecks):
    counts = True
    hyperparameters: ClassVar[Mapping[str, Any]] = {
        **TestBursts.hyperparameters,
        "likelihood": "negative-binomial",
        "num_layers": 1,
        "early_stopping_patience": 2,
    }
