"""Odd and wrong rows for the four algorithms for tables: a model of finite numbers, or an error that names the mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - loads what sets variables before the test begins

from phalanx import hyperparameters
from phalanx.contracts import Array, Csr
from phalanx.errors import UserError
from phalanx.parallel.threads import run_threads
from phalanx.registry import load
from phalanx.testing.sessions import MemorySession, Rows

ROWS = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
BINARY = {"predictor_type": "binary_classifier"}
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": ("kmeans", {"k": 4}),
    "lloyd": ("kmeans", {"k": 4, "solver": "lloyd"}),
    "linear": ("linear_learner", BINARY),
    "regressor": ("linear_learner", {"predictor_type": "regressor"}),
    "adam": ("linear_learner", {**BINARY, "optimizer": "adam", "epochs": 2}),
    "machine": ("factorization_machines", {**BINARY, "num_factors": 2, "epochs": 2}),
    "forest": ("random_cut_forest", {"num_trees": 50, "num_samples_per_tree": 8}),
}


def answers(job: str, folder: Path, channels: Mapping[str, Rows], asked: Array, size: int = 1) -> dict[str, Array]:
    """Return what a model trained on the channels answers."""
    name, given = JOBS[job]
    algorithm = load(name)

    def fit(world: Any) -> dict[str, Array]:
        model = algorithm(hyperparameters.parse(algorithm.Hyperparameters, given, owner=name))
        shards = {channel: rows.shard(rank=world.rank, size=world.size) for channel, rows in channels.items()}
        session = MemorySession(shards, folder, world=world)
        model.fit(session)
        assert all(np.isfinite(value) for value in session.metrics.values())
        found: dict[str, Array] = model.predict(asked)
        return found

    return run_threads(size, fit)[0]


def odd(kind: str) -> Array:
    """Return rows of one kind."""
    rows = ROWS.copy()
    match kind:
        case "constant columns":
            rows[:, 1], rows[:, 2] = 7, 0
        case "equal rows":
            rows[:] = 1
        case "zeros":
            rows[:] = 0
        case "large":
            rows *= np.float32(1e20)
        case "smallest":
            rows *= np.float32(1e-42)
        case "far away":
            rows[:, 0] += 1e8
        case _:
            rows = np.repeat(rows[:3], 40, axis=0)
    return rows


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["constant columns", "equal rows", "zeros", "large", "smallest", "far away", "three distinct"])
@pytest.mark.parametrize("job", list(JOBS))
def test_odd_rows_make_a_model_that_answers_with_numbers(tmp_path: Path, job: str, kind: str, size: int) -> None:
    rows = odd(kind)
    label = (ROWS[:, 0] > 0).astype(np.float32)
    found = answers(job, tmp_path, {"train": Rows(rows, label), "test": Rows(rows[:30], label[:30])}, rows[:10], size)
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("job", ["linear", "machine"])
def test_one_class_is_learnt(tmp_path: Path, job: str) -> None:
    for label in (0, 1):
        found = answers(job, tmp_path, {"train": Rows(ROWS, np.full(120, label, np.float32))}, ROWS)
        assert (found["predicted_label"] == label).all()


@pytest.mark.parametrize("job", ["stream", "lloyd", "linear", "machine"])
def test_rows_that_weigh_nothing_make_some_model(tmp_path: Path, job: str) -> None:
    label = (ROWS[:, 0] > 0).astype(np.float32)
    found = answers(job, tmp_path, {"train": Rows(ROWS, label, np.zeros(120, np.float32))}, ROWS[:3])
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("columns", [3, 6])
@pytest.mark.parametrize("job", list(JOBS))
def test_a_validation_channel_of_another_width_is_refused(tmp_path: Path, job: str, columns: int, size: int) -> None:
    label = (ROWS[:, 0] > 0).astype(np.float32)
    channels = {"train": Rows(ROWS, label), "validation": Rows(np.ones((20, columns), np.float32), label[:20])}
    with pytest.raises(UserError, match=rf"channel '\w+' has {columns} (features|columns)"):
        answers(job, tmp_path, channels, ROWS[:1], size)


@pytest.mark.parametrize("job", ["linear", "adam", "forest"])
def test_numbers_that_leave_no_room_are_refused(tmp_path: Path, job: str) -> None:
    rows = ROWS.copy()
    rows[5, 2] = 3e38
    with pytest.raises(UserError, match=r"a number of magnitude 3e\+38"):
        answers(job, tmp_path, {"train": Rows(rows, (ROWS[:, 0] > 0).astype(np.float32))}, ROWS)


@pytest.mark.parametrize("job", ["stream", "lloyd", "linear", "regressor", "machine"])
def test_large_requests_are_answered_with_numbers(tmp_path: Path, job: str) -> None:
    label = (ROWS[:, 0] > 0).astype(np.float32)
    found = answers(job, tmp_path, {"train": Rows(ROWS, label)}, np.full((2, 4), 3e38, np.float32))
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("job", list(JOBS))
def test_rows_that_are_read_only_are_learnt_and_answered(tmp_path: Path, job: str) -> None:
    rows = np.tile(ROWS, 2)  # eight columns: no kernel needs more of them
    rows.setflags(write=False)
    label = (ROWS[:, 0] > 0).astype(np.float32)
    found = answers(job, tmp_path, {"train": Rows(rows, None if job in ("stream", "lloyd", "forest") else label)}, rows)
    assert all(len(values) == len(rows) for values in found.values())


@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_without_features_are_refused(tmp_path: Path, job: str, size: int) -> None:
    nothing = Csr(np.zeros(41, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
    label = None if job in ("stream", "lloyd", "forest") else np.tile([0, 1], 20).astype(np.float32)
    with pytest.raises(UserError, match="channel 'train' has no features"):
        answers(job, tmp_path, {"train": Rows(nothing, label)}, ROWS, size)
