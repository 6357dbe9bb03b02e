"""BlazingText passes the conformance suite: every mode, with subwords and n-grams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from phalanx.contracts import Features, Records
from phalanx.data.memory import take
from phalanx.testing.algorithm_checks import AlgorithmChecks
from phalanx.testing.sessions import Circumstances, Rows

TOPICS = {
    "sea": ["ship", "wave", "harbour", "sailor", "tide", "anchor"],
    "farm": ["cow", "barn", "field", "plough", "wheat", "tractor"],
}
PAIRS = Records(["ship wave 9", "cow barn 9", "ship cow 1", "wave wheat 1.5", "anchor tide 8", "field anchor 1"])


def topical(lines: int, seed: int, *, labelled: bool = False) -> Rows:
    """Return lines of which each keeps to one topic."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(lines):
        topic = str(generator.choice(list(TOPICS)))
        words = generator.choice([*TOPICS[topic], "the", "a"], 12).tolist()
        found.append(" ".join([f"__label__{topic}", *words] if labelled else words))
    return Rows(Records(found))


class _TextChecks(AlgorithmChecks):
    name = "blazingtext"

    def test_predictions_do_not_depend_on_the_company(self, tmp_path: Path) -> None:
        algorithm = self.train(tmp_path, Circumstances())[0].algorithm
        requests = self.requests()
        together = algorithm.predict(requests)
        assert {len(column) for column in together.values()} == {len(requests)}
        for i in range(len(requests)):
            alone = algorithm.predict(take(requests, slice(i, i + 1)))
            for name, column in together.items():
                np.testing.assert_array_equal(alone[name], column[i : i + 1], err_msg=name)
        assert {len(column) for column in algorithm.predict(take(requests, slice(0, 0))).values()} == {0}


class _WordVectorChecks(_TextChecks):
    metrics = ("train:loss", "train:mean_rho")

    def channels(self) -> dict[str, Rows]:
        return {"train": topical(300, 0), "evaluation": Rows(PAIRS)}

    def requests(self) -> Features:
        return Records(["ship", "cow", "nowhere", "the", {"source": "wave"}] * 3)

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["train:mean_rho"] > 0.6


SMALL: dict[str, Any] = {
    "vector_dim": 12,
    "epochs": 8,
    "min_count": 2,
    "sampling_threshold": 1e-3,
    "learning_rate": 0.2,
    "lines_per_step": 100,
}


class TestBatchSkipgram(_WordVectorChecks):
    hyperparameters: ClassVar[dict[str, Any]] = {"mode": "batch_skipgram", **SMALL, "epochs": 12}


class TestSkipgram(_WordVectorChecks):
    hyperparameters: ClassVar[dict[str, Any]] = {"mode": "skipgram", **SMALL}


class TestCbow(_WordVectorChecks):
    hyperparameters: ClassVar[dict[str, Any]] = {"mode": "cbow", **SMALL, "epochs": 12}


class TestSubwords(_WordVectorChecks):
    hyperparameters: ClassVar[dict[str, Any]] = {"mode": "skipgram", "subwords": True, "buckets": 500, **SMALL}


class TestSupervised(_TextChecks):
    hyperparameters: ClassVar[dict[str, Any]] = {
        "mode": "supervised",
        "vector_dim": 8,
        "epochs": 4,
        "min_count": 1,
        "learning_rate": 0.5,
        "buckets": 1000,
        "lines_per_step": 100,
    }
    metrics = ("train:loss", "validation:accuracy")

    def channels(self) -> dict[str, Rows]:
        return {"train": topical(300, 0, labelled=True), "validation": topical(60, 1, labelled=True)}

    def requests(self) -> Features:
        return Records(["ship wave the tide", "cow", "", {"source": "field a wheat"}] * 3)

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["validation:accuracy"] > 0.95


class TestTreeOfLabels(TestSupervised):
    hyperparameters: ClassVar[dict[str, Any]] = {
        **TestSupervised.hyperparameters,
        "loss": "hierarchical",
        "early_stopping": True,
        "min_epochs": 2,
        "patience": 1,
        "word_ngrams": 1,
    }
