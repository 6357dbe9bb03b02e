"""Several workers learn as well as one: made text whose structure is known, every mode, 1, 2 and 4 ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phalanx.algorithms.blazingtext import exchange as blazingtext_exchange
from phalanx.algorithms.blazingtext.algorithm import BlazingText
from phalanx.contracts import Array, Records
from phalanx.hyperparameters import parse
from phalanx.parallel.threads import run_threads
from phalanx.testing.sessions import MemorySession, Rows, Snapshot

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


def lines_for(mode: str) -> list[str]:
    return [f"__label__{topic} {text}" if mode == "supervised" else text for topic, text in made(2000, 1)]


def trained(folder: Path, mode: str, ranks: int) -> BlazingText:
    settings = {"mode": mode, **MODES[mode]}
    wanted = parse(BlazingText.Hyperparameters, settings, owner="blazingtext")
    lines = lines_for(mode)

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


@pytest.mark.parametrize("mode", list(MODES))
def test_a_rank_that_is_ahead_goes_on_from_there(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blazingtext_exchange, "_FEWEST", 16)  # rows that go round every turn; the others are ahead for longer
    wanted = parse(BlazingText.Hyperparameters, {"mode": mode, **MODES[mode]}, owner="blazingtext")
    lines = Records(lines_for(mode))

    def learnt(snapshots: list[Snapshot] | None, at: int | None, ranks: int) -> tuple[list[Array], list[Snapshot | None]]:
        def rank(world: Any) -> tuple[BlazingText, Snapshot | None]:
            model = BlazingText(wanted)
            resumed = snapshots[min(world.rank, len(snapshots) - 1)] if snapshots else None
            shard = Rows(lines).shard(rank=world.rank, size=world.size)
            session = MemorySession({"train": shard}, tmp_path, world=world, snapshot_at=at, resumed=resumed)
            model.fit(session)
            return model, session.snapshot

        found = run_threads(ranks, rank)
        inputs = [model.state_dict()["inputs"].value for model, _ in found]
        assert all((one == inputs[0]).all() for one in inputs)
        return inputs, [snapshot for _, snapshot in found]

    whole, kept = learnt(None, 5, 2)  # a step is an eighth or less of the epoch
    snapshots = [one for one in kept if one is not None]
    if mode != "supervised":  # whose ranks are alike after every step
        assert all(len(one.states["algorithm"]["own_rows_0"].value) for one in snapshots)
    again, _ = learnt(snapshots, None, 2)
    np.testing.assert_array_equal(again[0], whole[0])
    learnt([Snapshot(one.step, {"algorithm": common(one)}) for one in snapshots], None, 3)


def common(snapshot: Snapshot) -> Any:
    """Return what a rank that is new finds in a checkpoint."""
    return {name: entry for name, entry in snapshot.states["algorithm"].items() if entry.scope == "global"}
