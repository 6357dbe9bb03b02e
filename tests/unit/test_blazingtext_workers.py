"""Several workers learn as well as one: made text whose structure is known, every mode, 1, 2 and 4 ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phalanx.algorithms.blazingtext import BlazingText
from phalanx.contracts import Array, Records
from phalanx.hyperparameters import parse
from phalanx.parallel.threads import run_threads
from phalanx.testing.sessions import MemorySession, Rows

TOPICS, WORDS = 20, 25  # words a topic
VECTORS = {"vector_dim": 24, "epochs": 1, "min_count": 1, "sampling_threshold": 1e-3, "evaluation": False}
MODES: dict[str, dict[str, Any]] = {
    "batch_skipgram": VECTORS,
    "skipgram": VECTORS,
    "cbow": VECTORS,
    "subwords": {**VECTORS, "mode": "skipgram", "subwords": True, "buckets": 5000},
    "supervised": {"vector_dim": 16, "epochs": 1, "min_count": 1, "learning_rate": 0.5, "word_ngrams": 1, "buckets": 1000},
}


def made(lines: int, seed: int) -> list[tuple[int, str]]:
    """Return lines of mostly one topic's words, common ones far more often than rare ones, with common words of all topics."""
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, WORDS + 1)
    found = []
    for topic in generator.integers(0, TOPICS, lines).tolist():
        own = generator.choice(WORDS, 9, p=weights / weights.sum())
        shared = generator.integers(0, 30, 6)
        words = [f"t{topic}w{word}" for word in own] + [f"common{word}" for word in shared]
        found.append((topic, " ".join(generator.permutation(words).tolist())))
    return found


def trained(folder: Path, mode: str, ranks: int) -> BlazingText:
    settings = {"mode": mode, **MODES[mode]}
    wanted = parse(BlazingText.Hyperparameters, settings, owner="blazingtext")
    lines = [f"__label__{topic} {text}" if mode == "supervised" else text for topic, text in made(2000, 1)]

    def rank(world: Any) -> BlazingText:
        model = BlazingText(wanted)
        shard = Rows(Records(lines)).shard(rank=world.rank, size=world.size)
        model.fit(MemorySession({"train": shard}, folder, world=world))
        return model

    models = run_threads(ranks, rank)
    for model in models[1:]:  # all ranks end with the same model
        first, other = models[0].state_dict(), model.state_dict()
        np.testing.assert_array_equal(first["inputs"].value, other["inputs"].value)
        np.testing.assert_array_equal(first["outputs"].value, other["outputs"].value)
    return models[0]


def quality(model: BlazingText, mode: str) -> float:
    """Return the accuracy on other lines, or the share of words whose nearest word is of their topic."""
    if mode == "supervised":
        test = made(500, 2)
        labels = model.classify([text for _, text in test])["label"][:, 0]
        return float(np.mean([label == f"__label__{topic}" for label, (topic, _) in zip(labels, test, strict=True)]))
    words = [f"t{topic}w{word}" for topic in range(TOPICS) for word in range(WORDS)]
    rows: Array = model.vectors(words)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    cosines = rows @ rows.T - 2 * np.eye(len(rows))
    return float(np.mean(cosines.argmax(axis=1) // WORDS == np.arange(len(rows)) // WORDS))


@pytest.mark.parametrize("mode", list(MODES))
def test_several_workers_learn_as_well_as_one(tmp_path: Path, mode: str) -> None:
    alone, two, four = (quality(trained(tmp_path, mode, ranks), mode) for ranks in (1, 2, 4))
    assert alone > 0.5
    assert two > alone - 0.06
    assert four > alone - 0.1
