"""Factorization machines beyond the conformance suite: formulas, solvers, widths, streams, labels, damaged models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from phalanx import hyperparameters
from phalanx.algorithms.factorization_machines.algorithm import FactorizationMachines
from phalanx.contracts import Algorithm, Array, Batch, Csr, Shard, State
from phalanx.errors import UserError
from phalanx.testing.algorithm_checks import model_files, to_csr
from phalanx.testing.sessions import Circumstances, MemorySession, Rows, train_in_threads

NAMED = ("adam", "sgd", "adagrad", "ftrl")


def made(**settings: Any) -> FactorizationMachines:
    """Return an untrained machine."""
    given = {"predictor_type": "binary_classifier", "num_factors": 2, "mini_batch_size": 100, **settings}
    return FactorizationMachines(hyperparameters.parse(FactorizationMachines.Hyperparameters, given, owner="fm"))


def trained(folder: Path, channels: dict[str, Rows], **settings: Any) -> tuple[FactorizationMachines, dict[str, float]]:
    """Return a trained machine and its last metrics."""
    model = made(**settings)
    session = MemorySession({name: rows.shard() for name, rows in channels.items()}, folder)
    model.fit(session)
    return model, session.metrics


def crossed(rows: int = 400) -> Rows:
    """Return rows whose label is the exclusive or of two features: no linear model finds it."""
    bits = np.random.default_rng(0).integers(0, 2, (rows, 2))
    x = np.concatenate([bits, 1 - bits], axis=1).astype(np.float32)
    return Rows(x, (bits[:, 0] ^ bits[:, 1]).astype(np.float32))


def test_scores_are_those_of_the_formula(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(60, 5)).astype(np.float32)
    y = (3 + x[:, 0] + 2 * x[:, 1] * x[:, 2]).astype(np.float32)
    model, _ = trained(tmp_path, {"train": Rows(x, y)}, predictor_type="regressor", num_factors=3, epochs=5)
    assert model.table is not None
    linear, factors, bias = model.table[:-1, 0], model.table[:-1, 1:].astype(np.float64), float(model.table[-1, 0])
    pairs = sum((factors[i] @ factors[j]) * x[:, i] * x[:, j] for i in range(5) for j in range(i + 1, 5))
    np.testing.assert_allclose(model.predict(x)["score"], bias + x @ linear + pairs, rtol=1e-4, atol=1e-4)


def test_interactions_are_learnt(tmp_path: Path) -> None:
    model, metrics = trained(tmp_path, {"train": crossed(), "test": crossed(100)})
    assert metrics["test:binary_classification_accuracy"] == 1
    assert metrics["test:binary_f_beta"] == 1
    answer = model.predict(np.array([[1, 0, 0, 1], [1, 1, 0, 0]], np.float32))
    assert answer["predicted_label"].tolist() == [1, 0]
    assert answer["score"].dtype == np.float32


@pytest.mark.parametrize("solver", NAMED)
def test_every_named_solver_lowers_the_loss(tmp_path: Path, solver: str) -> None:
    rates = {"bias_lr": 0.1, "linear_lr": 0.1, "factors_lr": 0.3, "bias_wd": 0, "linear_wd": 0, "factors_init_sigma": 0.5}
    model, metrics = trained(tmp_path, {"train": crossed()}, solver=solver, epochs=60, **rates)
    assert metrics["train:binary_classification_cross_entropy"] < 0.3, "chance is 0.69"
    assert model.hyperparameters.method == solver


def test_named_solvers_begin_as_the_managed_ones_do() -> None:
    wanted = made(solver="adam").hyperparameters
    bias, linear, factors = wanted.parts(1000, 10.0, 30.0)
    assert (bias.rate, linear.rate, factors.rate) == (0.1, 0.001, 0.0001)
    assert (bias.decay, linear.decay, factors.decay) == (0.01, 0.001, 0.00001)
    assert (bias.spread, linear.spread, factors.spread) == (0.01, 0.01, 0.001)
    assert wanted.passes(1000) == 1


def test_parts_that_are_switched_off_stay_zero(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {"train": crossed()}, use_bias=False, use_linear=False, epochs=3)
    assert model.table is not None
    assert not model.table[:, 0].any()
    assert model.table[:-1, 1:].any()


def test_a_constant_beginning(tmp_path: Path) -> None:
    settings = {"solver": "sgd", "linear_lr": 0, "bias_lr": 0, "factors_lr": 0}
    model, _ = trained(
        tmp_path, {"train": crossed()}, linear_init_method="constant", linear_init_value=0.5,
        factors_init_method="uniform", factors_init_scale=0.25, **settings,
    )  # fmt: skip
    assert model.table is not None
    assert (model.table[:-1, 0] == 0.5).all()
    assert 0 < np.abs(model.table[:-1, 1:]).max() < 0.25
    with pytest.raises(UserError, match="linear_init_value=1 belongs to linear_init_method=constant"):
        made(linear_init_value=1)


def test_a_gradient_is_clipped(tmp_path: Path) -> None:
    x, y = np.ones((10, 1), np.float32), np.full(10, 1000, np.float32)
    model, _ = trained(
        tmp_path, {"train": Rows(x, y)}, predictor_type="regressor", solver="sgd", clip_gradient=0.5, bias_init_sigma=0,
        bias_lr=1, linear_lr=0, factors_lr=0,
    )  # fmt: skip
    assert model.table is not None
    assert model.table[-1, 0] == 0.5


def test_row_weights_count_as_repeated_rows(tmp_path: Path) -> None:
    x, y = crossed(50).features, crossed(50).label
    assert isinstance(x, np.ndarray)
    assert y is not None
    weight = np.tile([1, 2], 25).astype(np.float32)
    twice = np.repeat(np.arange(50), weight.astype(int))
    settings = {"solver": "sgd", "epochs": 4, "linear_lr": 0.5, "factors_lr": 0.5}
    weighted, _ = trained(tmp_path, {"train": Rows(x, y, weight)}, **settings)
    repeated, _ = trained(tmp_path, {"train": Rows(x[twice], y[twice])}, **settings)
    np.testing.assert_allclose(weighted.predict(x)["score"], repeated.predict(x)["score"], rtol=1e-5)


def test_labels_of_minus_one_are_the_class_zero(tmp_path: Path) -> None:
    rows = crossed()
    assert rows.label is not None
    plain, _ = trained(tmp_path, {"train": rows}, epochs=3)
    signed, _ = trained(tmp_path, {"train": Rows(rows.features, rows.label * 2 - 1)}, epochs=3)
    np.testing.assert_array_equal(plain.table, signed.table)
    with pytest.raises(UserError, match="labels -1 and 0"):
        trained(tmp_path, {"train": Rows(np.eye(3, dtype=np.float32), np.array([-1, 0, 1], np.float32))})


def test_the_width_costs_no_memory(tmp_path: Path) -> None:
    columns = 2**40
    indptr = np.arange(0, 601, 3)
    generator = np.random.default_rng(0)
    indices = np.sort(generator.choice(np.array([3, 2**20, 2**33, columns - 2, columns - 1]), (200, 3)), axis=1)
    indices[:, 1] = 7
    indices.sort(axis=1)
    rows = Csr(indptr, indices.ravel(), np.ones(600, np.float32), columns)
    model, _ = trained(tmp_path, {"train": Rows(rows, np.ones(200, np.float32))}, epochs=2)
    assert model.columns == columns
    assert model.occurring.tolist() == [3, 7, 2**20, 2**33, columns - 2, columns - 1]
    new = Csr(np.array([0, 1, 1]), np.array([12345]), np.ones(1, np.float32), columns)
    known, unknown = model.predict(new)["score"]
    assert known == unknown, "a column that never occurred adds nothing"


def test_feature_dim_may_be_wider_than_sparse_rows(tmp_path: Path) -> None:
    dense = crossed()
    assert isinstance(dense.features, np.ndarray)
    model, _ = trained(tmp_path, {"train": Rows(to_csr(dense.features), dense.label)}, feature_dim=10, epochs=1)
    assert model.columns == 10
    assert len(model.predict(np.zeros((2, 10), np.float32))["score"]) == 2
    with pytest.raises(UserError, match="4 features where 10 are expected"):
        trained(tmp_path, {"train": dense}, feature_dim=10)
    with pytest.raises(UserError, match="4 features where feature_dim=3"):
        trained(tmp_path, {"train": dense}, feature_dim=3)


def test_the_best_epoch_by_validation_is_kept(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    x = np.eye(40, dtype=np.float32)[generator.integers(0, 40, 300)]
    noise = Rows(x, generator.integers(0, 2, 300).astype(np.float32))
    other = Rows(x, generator.integers(0, 2, 300).astype(np.float32))
    settings = {"epochs": 60, "factors_wd": 0, "linear_wd": 0, "early_stopping_patience": 3}
    model = made(**settings)
    session = MemorySession({"train": noise.shard(), "validation": other.shard(replicate=True)}, tmp_path)
    model.fit(session)
    losses = [
        report.metrics["validation:binary_classification_cross_entropy"]
        for report in session.reports
        if "validation:binary_classification_cross_entropy" in report.metrics
    ]
    assert len(losses) < 60
    assert losses[-1] == min(losses), "what is measured last is the model"
    assert other.label is not None
    score = model.predict(x)["score"].astype(np.float64)
    found = -np.mean(np.where(other.label > 0, np.log(score), np.log1p(-score)))
    assert found == pytest.approx(min(losses), rel=1e-5)


def test_numbers_of_another_unit_change_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(300, 4)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + x[:, 2]).astype(np.float32)
    small, _ = trained(tmp_path, {"train": Rows(x, y)}, predictor_type="regressor")
    large, _ = trained(tmp_path, {"train": Rows(x * 1024, y * 4096 + 8192)}, predictor_type="regressor")
    scaled = (large.predict(x * 1024)["score"] - 8192) / 4096
    np.testing.assert_allclose(scaled, small.predict(x)["score"], atol=5e-3)


def test_a_streamed_channel_is_not_held(tmp_path: Path) -> None:
    rows = crossed()
    model = made(epochs=30)
    stream = _Stream(rows.shard())
    model.fit(MemorySession({"train": stream}, tmp_path))
    assert stream.epochs == [0, *range(30)], "one pass to see what occurs, then the epochs"
    assert isinstance(rows.features, np.ndarray)
    assert (model.predict(rows.features)["predicted_label"] == rows.label).all()


def test_steps_that_grow_without_bounds_are_a_users_error(tmp_path: Path) -> None:
    x = np.full((200, 3), 1000, np.float32)
    with pytest.raises(UserError, match="training diverges at step"):
        trained(
            tmp_path, {"train": Rows(x, x[:, 0])}, predictor_type="regressor", solver="sgd", epochs=50, linear_lr=100,
            factors_lr=100,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("features", "label", "message"),
    [
        ([[1, np.nan]], [1], "row 1: feature 2 is nan"),
        ([[1, 2]], [0.5], "the label is 0.5; binary_classifier needs 0 or 1"),
        ([[1, 2]], None, "has no labels"),
    ],
)
def test_rows_that_cannot_be_learnt_from(tmp_path: Path, features: Any, label: Any, message: str) -> None:
    rows = Rows(np.array(features, np.float32), None if label is None else np.array(label, np.float32))
    with pytest.raises(UserError, match=message):
        trained(tmp_path, {"train": rows})


def test_rows_of_nothing_but_zeros_are_learnt_by_the_bias(tmp_path: Path) -> None:
    label = np.array([1, 1, 1, 0] * 50, np.float32)
    model, _ = trained(tmp_path, {"train": Rows(np.zeros((200, 3), np.float32), label)})
    assert model.predict(np.zeros((1, 3), np.float32))["score"][0] == pytest.approx(0.75, abs=0.02)


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, {"train": crossed()}, epochs=1)
    folder = tmp_path / "model"
    files = model_files(model, folder)
    assert set(files) == {"factors.npy", "columns.npy", "factorization-machines.json"}

    def refused(name: str, value: Array, message: str) -> None:
        np.save(folder / name, value)
        with pytest.raises(UserError, match=message):
            FactorizationMachines.load(folder)
        (folder / name).write_bytes(files[name])

    assert model.table is not None
    refused("factors.npy", model.table[:, :-1], "holds no model")
    refused("factors.npy", model.table * np.nan, "not finite")
    refused("columns.npy", model.occurring[::-1].copy(), "ascending order")
    card = json.loads(files["factorization-machines.json"])
    assert card["feature_dim"] == 4


@final
class _Stream:
    """A shard whose rows must not be held."""

    streaming = True

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.epochs: list[int] = []
        self.rows, self.columns, self.parts = shard.rows, shard.columns, shard.parts

    def where(self, position: int, *, epoch: int = 0, shuffle: bool = False) -> str:
        return self._shard.where(position, epoch=epoch, shuffle=shuffle)

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        self.epochs.append(epoch)
        assert shuffle or len(self.epochs) == 1
        return self._shard.batches(rows, epoch=epoch, shuffle=shuffle)

    def state_dict(self) -> State:
        return self._shard.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._shard.load_state_dict(state)


@pytest.mark.parametrize(("pairs", "expected"), [(True, {30.0, 3.0}), (False, {300.0, 3000.0})])
def test_the_penalty_on_factors_is_what_held_out_rows_ask_for(tmp_path: Path, pairs: bool, expected: set[float]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20 if not pairs else 6)).astype(np.float32)
    y = x[:, 0] * x[:, 1] + x[:, 2] if pairs else x[:, :5].sum(axis=1)
    channels = {"train": Rows(x, (y + rng.normal(size=400)).astype(np.float32))}

    def make() -> Algorithm:
        return made(predictor_type="regressor", num_factors=4, epochs=20)

    alone = train_in_threads(make, channels, tmp_path, Circumstances())[0]
    assert float(alone.algorithm.state_dict()["strength"].value) in expected
    other = train_in_threads(make, channels, tmp_path, Circumstances(3))[0]
    assert model_files(other.algorithm, tmp_path / "other") == model_files(alone.algorithm, tmp_path / "alone")


@pytest.mark.parametrize("kind", ["cancer", "diabetes", "linear", "pairs"])
def test_a_machine_is_no_worse_than_its_linear_part(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "cancer":
        x, y = load_breast_cancer(return_X_y=True)
    elif kind == "diabetes":
        x, y = load_diabetes(return_X_y=True, scaled=False)
    else:
        x = rng.normal(size=(450, 30)) + 5
        y = x @ rng.normal(size=30) + rng.normal(size=450) * 5 if kind == "linear" else x[:, 0] * x[:, 1] + x[:, 2]
    classes, folds = kind == "cancer", rng.permutation(len(x)) % 3
    given = {"predictor_type": "binary_classifier" if classes else "regressor", "num_factors": 8, "mini_batch_size": 1000}
    losses = np.zeros((3, 2))
    for fold in range(3):
        left, taught = folds == fold, folds != fold
        rows = Rows(x[taught].astype(np.float32), y[taught].astype(np.float32))
        model, _ = trained(tmp_path, {"train": rows}, **given)
        peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if classes else Ridge())
        peer.fit(x[taught], y[taught])
        found = model.predict(x[left].astype(np.float32))["score"]
        expected = peer.predict_proba(x[left])[:, 1] if classes else peer.predict(x[left])
        losses[fold] = [
            log_loss(y[left], answer) if classes else np.mean((answer - y[left]) ** 2) ** 0.5 for answer in (found, expected)
        ]
    ours, linear = losses.mean(axis=0)
    assert ours < (0.3 if kind == "pairs" else 1.03) * linear


@pytest.mark.parametrize("sparse", [False, True])
def test_columns_of_many_numbers_are_standardised_the_same_for_all_workers(tmp_path: Path, sparse: bool) -> None:
    rng = np.random.default_rng(6)
    x = np.stack([rng.normal(size=300) * 3 + 100, rng.integers(0, 4, 300), rng.random(300) < 0.8, np.full(300, 7)], axis=1)
    x = x.astype(np.float32)
    y = (x[:, 0] - 100) * x[:, 1] + x[:, 2]
    channels = {"train": Rows(to_csr(x) if sparse else x, y)}

    def make() -> Algorithm:
        return made(predictor_type="regressor", num_factors=3, epochs=60, mini_batch_size=40, factors_wd=0.01)

    alone = train_in_threads(make, channels, tmp_path, Circumstances())[0]
    other = train_in_threads(make, channels, tmp_path, Circumstances(3))[0]
    assert model_files(other.algorithm, tmp_path / "other") == model_files(alone.algorithm, tmp_path / "alone")
    error = alone.algorithm.predict(x)["score"] - y
    assert np.std(error) < 0.4 * np.std(y)
    far = x.copy()
    far[:, 0] += 100_000  # hardly varies: float32 could not tell its mean from its weights
    beyond = train_in_threads(make, {"train": Rows(far, y)}, tmp_path, Circumstances())[0]
    assert np.std(beyond.algorithm.predict(far)["score"] - y) < 1.2 * np.std(y)
