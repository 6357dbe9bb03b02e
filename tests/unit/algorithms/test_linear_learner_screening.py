"""Screening of many candidates by some of the rows: as exact as what it saves, and as good."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - loads what sets variables before the test begins

from phalanx import hyperparameters
from phalanx.algorithms.linear_learner import rotation
from phalanx.algorithms.linear_learner.algorithm import LinearLearner
from phalanx.algorithms.linear_learner.curvature import Curvature
from phalanx.algorithms.linear_learner.data import READ_ROWS, Piece, rows_of
from phalanx.algorithms.linear_learner.losses import Softmax
from phalanx.algorithms.linear_learner.objective import Crew, Objective
from phalanx.algorithms.linear_learner.screening import Heat, screening
from phalanx.algorithms.linear_learner.solver import Penalty, Solver
from phalanx.contracts import Algorithm, Array, Csr
from phalanx.parallel.collective import Solo
from phalanx.testing.algorithm_checks import model_files, to_csr
from phalanx.testing.sessions import Circumstances, Rows, Trained, attempt_in_threads, train_in_threads

ROWS = 20_000


def channels(*, sparse: bool) -> dict[str, Rows]:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(ROWS + 4000, 12)).astype(np.float32)
    x[:, :8][generator.uniform(size=(len(x), 8)) < 0.7] = 0
    chance = 1 / (1 + np.exp(-x @ generator.normal(size=12)))
    y = (generator.uniform(size=len(x)) < chance).astype(np.float32)
    features = to_csr if sparse else np.asarray
    return {"train": Rows(features(x[:ROWS]), y[:ROWS]), "validation": Rows(features(x[ROWS:]), y[ROWS:])}


def make(**given: object) -> Algorithm:
    wanted = {"predictor_type": "binary_classifier", "num_models": 16, "positive_example_weight_mult": "auto", **given}
    return LinearLearner(hyperparameters.parse(LinearLearner.Hyperparameters, wanted, owner="linear_learner"))


def trained(folder: Path, how: Circumstances, *, sparse: bool) -> Trained:
    return train_in_threads(make, channels(sparse=sparse), folder, how)[0]


@pytest.mark.parametrize("sparse", [False, True])
def test_workers_and_threads_do_not_change_the_model(tmp_path: Path, *, sparse: bool) -> None:
    alone = trained(tmp_path, Circumstances(), sparse=sparse)
    expected = model_files(alone.algorithm, tmp_path / "alone")
    for number, how in enumerate([Circumstances(3), Circumstances(2, threads=2)]):
        other = trained(tmp_path, how, sparse=sparse)
        assert model_files(other.algorithm, tmp_path / f"other-{number}") == expected
        assert [r.metrics for r in other.session.reports] == [r.metrics for r in alone.session.reports]


def test_row_weights_balance_classes_the_same_for_all_workers(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    for number in range(5):
        x, weight = generator.normal(size=(60, 3)).astype(np.float32), generator.random(60).astype(np.float32)
        rows = {"train": Rows(x, (x[:, 0] > 0.5).astype(np.float32), weight)}
        balanced = functools.partial(make, num_models=1, positive_example_weight_mult="balanced")
        alone, other = (train_in_threads(balanced, rows, tmp_path, Circumstances(size))[0] for size in (1, 3))
        files = model_files(alone.algorithm, tmp_path / f"alone-{number}")
        assert model_files(other.algorithm, tmp_path / f"other-{number}") == files


def test_a_job_goes_on_from_any_pass(tmp_path: Path) -> None:
    whole = trained(tmp_path, Circumstances(), sparse=False)
    expected = model_files(whole.algorithm, tmp_path / "whole")
    rows = [report.rows for report in whole.session.reports]
    change = rows.index(ROWS)  # passes over the sample come before
    assert 2 < change < len(rows) - 1
    assert set(rows[change:]) == {ROWS}
    for step in (2, change, change + 1):
        (stopped,) = attempt_in_threads(make, channels(sparse=False), tmp_path, Circumstances(stop_at=step, snapshot_at=step))
        assert stopped.session.snapshot is not None
        resumed = trained(tmp_path, Circumstances(resumed=(stopped.session.snapshot,)), sparse=False)
        assert model_files(resumed.algorithm, tmp_path / f"resumed-{step}") == expected


def test_the_best_of_many_is_as_good_as_without_screening(tmp_path: Path) -> None:
    by_loss = {"binary_classifier_model_selection_criteria": "loss_function", "positive_example_weight_mult": 1.0}
    rows = channels(sparse=False)
    many = train_in_threads(lambda: make(**by_loss), rows, tmp_path, Circumstances())[0]
    losses = []
    for wd in (1e-5, 1e-4, 1e-3):
        one = functools.partial(make, **by_loss, num_models=1, wd=wd)
        alone = train_in_threads(one, rows, tmp_path, Circumstances())[0]
        losses.append(alone.session.metrics["validation:objective_loss"])
    assert many.session.metrics["validation:objective_loss"] < min(losses) * 1.001


def wide_rows(*, validated: bool) -> dict[str, Rows]:
    """Return rows of 4 of 5,000 columns, of three classes that a tenth of the columns tells apart."""
    generator = np.random.default_rng(5)

    def part(count: int) -> Rows:
        indices = np.sort(generator.integers(0, 5000, (count, 4)), axis=1)
        label = (indices.sum(axis=1) * 3 // 20_000).astype(np.float32)
        rows = Csr(np.arange(0, 4 * count + 1, 4), indices.ravel(), np.ones(4 * count, np.float32), 5000)
        return Rows(rows, label)

    return {"train": part(4200), **({"validation": part(300)} if validated else {})}


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_wide_rows_are_screened_by_the_columns_of_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: bool, rotated: bool
) -> None:
    if rotated:
        monkeypatch.setattr(rotation, "_PAYS", 0)
    given = {"predictor_type": "multiclass_classifier", "num_classes": 3, "num_models": 8}
    given |= {"positive_example_weight_mult": 1.0, "max_passes": 24, "normalize_data": False}
    channels, wide = wide_rows(validated=validated), functools.partial(make, **given)
    alone = train_in_threads(wide, channels, tmp_path, Circumstances())[0]
    expected = model_files(alone.algorithm, tmp_path / "alone")
    rows = [report.rows for report in alone.session.reports]
    assert rows[0] == 1050
    change = rows.index(4200)
    assert 2 < change < len(rows) - 1
    other = train_in_threads(wide, channels, tmp_path, Circumstances(3))[0]
    assert model_files(other.algorithm, tmp_path / "other") == expected
    for step in (2, change, change + 1):
        (stopped,) = attempt_in_threads(wide, channels, tmp_path, Circumstances(stop_at=step, snapshot_at=step))
        assert stopped.session.snapshot is not None
        resumed = train_in_threads(wide, channels, tmp_path, Circumstances(resumed=(stopped.session.snapshot,)))[0]
        assert model_files(resumed.algorithm, tmp_path / f"resumed-{step}") == expected


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("given", [{}, {"use_bias": False}, {"bias_wd_mult": 1.0}])
def test_rotated_rows_are_learnt_as_they_are(dense: bool, given: dict[str, Any]) -> None:
    generator = np.random.default_rng(3)
    x = (generator.normal(size=(90, 400)) * (generator.random((90, 400)) < 0.1)).astype(np.float32)
    x[7] = x[3]  # of a rank less than the rows
    y, weight = generator.integers(0, 3, 90).astype(np.float64), generator.random(90)
    rows = x if dense else to_csr(x)
    pieces = [rows_of(Piece(rows, y, weight, 64), 0, 64), rows_of(Piece(rows, y, weight, 64), 64, 90)]
    penalty = Penalty(np.array([1e-3, 1e-2]), np.zeros(2), given.get("bias_wd_mult", 0.0), given.get("use_bias", True))

    def solved(parts: list[Piece], curvature: Curvature, largest: Array, crew: Crew) -> Array:
        limits: dict[str, Any] = {"largest": largest, "largest_label": 1.0, "largest_weight": 1.0, "addends": 64 * 90}
        objective = Objective(Solo(), Softmax(), np.ones((3, 2)), crew=crew, **limits)
        solver = Solver(len(largest), penalty, 3, curvature, crew)
        heat = Heat(np.arange(2), solver, objective, lambda: parts)
        for _ in range(200):
            heat.advance(1e-9)
        assert solver.done.all()
        return solver.weights

    with Crew(2) as crew:
        use_bias = penalty.use_bias
        turned = rotation.rotation(
            Solo(), pieces, 400, 10**6, 1 / 3, copies=1, use_bias=use_bias, free_bias=penalty.bias_wd == 0, crew=crew
        )
        assert turned is not None
        assert len(turned.largest) < 90
        found = turned.back(solved(turned.pieces, turned.curvature, turned.largest, crew))
        largest = np.abs(x).max(axis=0).astype(np.float64)
        plain = Curvature(np.zeros(400), (x.astype(np.float64) ** 2).mean(axis=0), 1 / 3, use_bias=use_bias)
        expected = solved(pieces, plain, largest, crew)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_a_weak_penalty_is_come_to_by_stronger_ones_and_ends_where_others_are_answered_best(tmp_path: Path) -> None:
    given = {"predictor_type": "multiclass_classifier", "num_classes": 3, "normalize_data": False, "num_models": 1}
    weak = functools.partial(make, **given, positive_example_weight_mult=1.0, wd=1e-4 / 4200, solver_tolerance=1e-6)
    rows = wide_rows(validated=True)
    alone = train_in_threads(weak, rows, tmp_path, Circumstances())[0]
    train = {"train": rows["train"]}
    unwatched = train_in_threads(weak, train, tmp_path, Circumstances())[0]
    losses = [report.metrics["train:objective_loss"] for report in unwatched.session.reports]
    assert losses[-1] < 0.1 * losses[9], "the tenth pass is the last with the strongest penalty"
    seen = [r.metrics["validation:objective_loss"] for r in alone.session.reports if "validation:objective_loss" in r.metrics]
    assert len(alone.session.reports) < len(losses)
    assert seen[-1] == pytest.approx(min(seen), rel=1e-9), "the last is the model's"
    (stopped,) = attempt_in_threads(weak, rows, tmp_path, Circumstances(stop_at=12, snapshot_at=12))
    assert stopped.session.snapshot is not None
    resumed = train_in_threads(weak, rows, tmp_path, Circumstances(2, resumed=(stopped.session.snapshot,)))[0]
    assert model_files(resumed.algorithm, tmp_path / "resumed") == model_files(alone.algorithm, tmp_path / "alone")


def test_rotation_is_for_few_rows_and_many_weights() -> None:
    rows = Piece(np.ones((300, 500), np.float32), np.zeros(300), np.ones(300), 256)
    with Crew(1) as crew:
        how: dict[str, Any] = {"copies": 1, "use_bias": True, "free_bias": True, "crew": crew}
        assert rotation.rotation(Solo(), [rows], 500, 1, 1.0, **how) is None, "fewer weights than it would cost"
        assert rotation.rotation(Solo(), [], 500, 1000, 1.0, **how) is None


@pytest.mark.parametrize("rotated", [False, True])
def test_the_best_of_many_is_as_good_on_wide_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool) -> None:
    if rotated:
        monkeypatch.setattr(rotation, "_PAYS", 0)
    given = {"predictor_type": "multiclass_classifier", "num_classes": 3, "normalize_data": False}
    given |= {"positive_example_weight_mult": 1.0}
    rows = wide_rows(validated=True)
    many = train_in_threads(lambda: make(**given, num_models=32), rows, tmp_path, Circumstances())[0]
    losses = []
    for number in range(0, 32, 2):
        one = functools.partial(make, **given, num_models=1, wd=10 ** (5 * number / 32) / 4200)
        losses.append(train_in_threads(one, rows, tmp_path, Circumstances())[0].session.metrics["validation:objective_loss"])
    assert many.session.metrics["validation:objective_loss"] < min(losses) * 1.002


def test_the_sample_is_spread_over_the_channel() -> None:
    found = screening(32, 10 * READ_ROWS, 12)
    assert found is not None
    assert found.every == 20
    numbers = np.arange(READ_ROWS, dtype=np.float32)[:, None]
    whole = [Piece(numbers + batch * READ_ROWS, np.zeros(READ_ROWS), np.ones(READ_ROWS), 256, batch) for batch in range(10)]
    rows = np.concatenate([np.asarray(piece.features)[:, 0] for piece in found.of(Solo(), whole, 1).pieces])
    np.testing.assert_array_equal(rows // 256 % 20, 0)
    assert len(rows) == 10 * READ_ROWS // 20
    halves = [
        Piece(np.asarray(p.features)[a:b], p.label[a:b], p.weight[a:b], 256, p.batch, a)
        for p in whole for a, b in [(0, 3072), (3072, READ_ROWS)]
    ]  # fmt: skip
    parts = np.concatenate([np.asarray(piece.features)[:, 0] for piece in found.of(Solo(), halves, 1).pieces])
    np.testing.assert_array_equal(parts, rows)
    assert screening(4, 10 * READ_ROWS, 12) is None
    assert screening(32, 5000, 12) is None
    assert screening(32, 5000, 5001) is not None  # wide: fewer rows are enough
