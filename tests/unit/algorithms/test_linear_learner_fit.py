"""The linear learner: losses against finite differences, the solver against scikit-learn, thresholds, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from phalanx import hyperparameters
from phalanx.algorithms.kernels import logistic
from phalanx.algorithms.linear_learner import metrics as measures
from phalanx.algorithms.linear_learner.algorithm import LinearLearner
from phalanx.algorithms.linear_learner.hyperparameters import LOSSES, LinearLearnerHyperparameters
from phalanx.algorithms.linear_learner.losses import Logistic, loss_of
from phalanx.contracts import Array
from phalanx.errors import UserError
from phalanx.testing.algorithm_checks import to_csr
from phalanx.testing.sessions import MemorySession, Rows


def wanted(**given: object) -> LinearLearnerHyperparameters:
    return hyperparameters.parse(LinearLearnerHyperparameters, given, owner="linear_learner")


def fitted(folder: Path, rows: dict[str, Rows], **given: object) -> tuple[LinearLearner, dict[str, float]]:
    model = LinearLearner(wanted(**given))
    session = MemorySession({name: channel.shard() for name, channel in rows.items()}, folder)
    model.fit(session)
    return model, session.metrics


def cancer() -> tuple[Array, Array]:
    x, y = load_breast_cancer(return_X_y=True)
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in LOSSES.items() for name in names if name != "logistic"]
)
def test_slopes_are_those_of_the_loss(kind: str, name: str) -> None:
    classes = {"num_classes": 4} if kind == "multiclass_classifier" else {}
    settings = wanted(predictor_type=kind, loss=name, quantile=0.3, **classes)
    loss, rng = loss_of(settings), np.random.default_rng(1)
    z = rng.normal(size=(50, 2, settings.outputs)) * 3
    y = rng.normal(size=50) * 3 if kind == "regressor" else rng.integers(0, max(settings.outputs, 2), 50).astype(float)
    assert not isinstance(loss, Logistic)
    _, slope = loss.evaluate(z.copy(), y)
    step = 0.02 if kind != "regressor" else 1e-6  # classifiers compute in float32
    for k in range(settings.outputs):
        moved = np.zeros_like(z)
        moved[:, :, k] = step
        above, _ = loss.evaluate(z + moved, y)
        below, _ = loss.evaluate(z - moved, y)
        difference = (above.astype(float) - below) / (2 * step)
        close = np.isclose(slope[:, :, k], difference, atol=1e-3)
        assert close.mean() > 0.97, "all but rows at a kink"
    gap = np.abs(z) + np.abs(y)[:, None, None]
    assert (np.abs(slope) <= loss.largest_slope(gap) + 1e-6).all()


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_logistic_loss_and_gradient_are_exact_enough(candidates: int, *, weighted: bool, sparse: bool) -> None:
    rng = np.random.default_rng(2)
    rows, columns = 515, 7  # no whole number of chunks
    x = (rng.normal(size=(rows, columns)) * (rng.uniform(size=(rows, columns)) < 0.6)).astype(np.float32)
    x[0] *= 1e4  # scores of thousands: a loss of as much, a slope of 0 or 1
    y = (rng.uniform(size=rows) < 0.5).astype(np.float64)
    factor = rng.uniform(0, 3, (rows, candidates)) if weighted else np.ones((rows, candidates))
    weights = rng.normal(size=(columns + 1, candidates))
    z, sign = x.astype(np.float64) @ weights[:-1] + weights[-1], (1 - 2 * y)[:, None]
    slope = sign / (1 + np.exp(np.minimum(-z * sign, 700))) * factor
    anchors = (np.full(columns, 1.0), np.full(candidates, 1.5 * 2.0**20), *[np.full(candidates, 1.5 * 2.0**20)] * 2)
    gradient, loss = np.zeros_like(weights), np.zeros(candidates)
    given = (y, factor if weighted else np.empty((0, candidates)))
    if sparse:
        rows_of = to_csr(x)
        parts = (rows_of.indptr, rows_of.indices.astype(np.int64), rows_of.values)
        logistic.sparse_logistic(*parts, *given, weights, *anchors, True, gradient, loss)
    else:
        narrow = weights[:-1].astype(np.float32)
        logistic.dense_logistic(x, *given, 64, narrow, weights[-1], *anchors, True, gradient, loss)
    close = 1e-9 if sparse else 1e-4  # dense products are float32
    np.testing.assert_allclose(loss, (np.logaddexp(0, z * sign) * factor).sum(axis=0), rtol=close)
    expected = np.vstack([x.astype(np.float64).T @ slope, slope.sum(axis=0)])
    np.testing.assert_allclose(gradient, expected, rtol=close, atol=close * 100)


def test_logistic_regression_is_that_of_scikit_learn(tmp_path: Path) -> None:
    x, y = cancer()
    x = StandardScaler().fit_transform(x).astype(np.float32)
    model, _ = fitted(
        tmp_path, {"train": Rows(x, y)}, predictor_type="binary_classifier", normalize_data=False, unbias_data=False,
        solver_tolerance=1e-8,
    )  # fmt: skip
    peer = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x, y)
    assert model.weights is not None
    np.testing.assert_allclose(model.weights[:-1, 0], peer.coef_[0], atol=5e-3)
    np.testing.assert_allclose(model.weights[-1, 0], peer.intercept_[0], atol=5e-3)
    np.testing.assert_allclose(model.predict(x)["score"], peer.predict_proba(x)[:, 1], atol=2e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_rows_of_one_candidate_are_learnt_as_dense_ones(tmp_path: Path, weighted: bool) -> None:
    x, y = cancer()
    x = np.where(x > np.median(x, axis=0), x / x.max(axis=0), 0).astype(np.float32)
    weight = np.random.default_rng(0).random(len(x)).astype(np.float32) if weighted else None
    given: dict[str, object] = {"predictor_type": "binary_classifier", "normalize_data": False, "solver_tolerance": 1e-8}
    given |= {"unbias_data": False} | ({"positive_example_weight_mult": 3.0} if weighted else {})
    found = [fitted(tmp_path, {"train": Rows(rows, y, weight)}, **given)[0] for rows in (x, to_csr(x))]
    assert found[0].weights is not None
    assert found[1].weights is not None
    np.testing.assert_allclose(found[1].weights, found[0].weights, atol=2e-3)


def test_classes_are_learnt_as_by_scikit_learn(tmp_path: Path) -> None:
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.float32)
    peer = LogisticRegression(C=1.0, max_iter=500).fit(x[:1200], y[:1200])
    model, metrics = fitted(
        tmp_path, {"train": Rows(x[:1200], y[:1200]), "test": Rows(x[1200:], y[1200:])}, predictor_type="multiclass_classifier",
        num_classes=10, normalize_data=False,
    )  # fmt: skip
    score = model.predict(x[1200:])["score"]
    ours = -float(np.log(score[np.arange(len(score)), y[1200:].astype(int)]).mean())
    assert ours < 1.01 * log_loss(y[1200:], peer.predict_proba(x[1200:]))
    assert metrics["test:objective_loss"] == pytest.approx(ours, rel=1e-3)
    assert metrics["test:multiclass_top_k_accuracy"] >= metrics["test:multiclass_accuracy"] > 0.88


@pytest.mark.parametrize("sparse", [False, True])
def test_ridge_and_lasso(tmp_path: Path, *, sparse: bool) -> None:
    x, y = load_diabetes(return_X_y=True)
    x = StandardScaler().fit_transform(x).astype(np.float32)
    y = y - y.mean()
    rows = {"train": Rows(to_csr(x) if sparse else x, y.astype(np.float32))}
    plain = {"predictor_type": "regressor", "normalize_data": False, "normalize_label": False, "solver_tolerance": 1e-9}
    model, _ = fitted(tmp_path, rows, wd=0.2, **plain)
    ridge = Ridge(alpha=0.1 * len(y)).fit(x, y)  # mean of e² + wd/2·|w|²
    assert model.weights is not None
    np.testing.assert_allclose(model.weights[:-1, 0], ridge.coef_, atol=0.05)
    model, _ = fitted(tmp_path, rows, wd=0.0, l1=10.0, **plain)
    lasso = Lasso(alpha=5.0, tol=1e-8).fit(x, y)  # half of mean e² there
    assert model.weights is not None
    np.testing.assert_allclose(model.weights[:-1, 0], lasso.coef_, atol=0.1)
    assert (model.weights[:-1, 0] == 0).sum() == (lasso.coef_ == 0).sum() > 0


@pytest.mark.parametrize("name", ["hinge_loss", "logistic"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_mini_batches_learn(tmp_path: Path, name: str, optimizer: str) -> None:
    x, y = cancer()
    rows = {"train": Rows(x[:400], y[:400]), "validation": Rows(x[400:], y[400:])}
    model, metrics = fitted(
        tmp_path, rows, predictor_type="binary_classifier", loss=name, optimizer=optimizer, mini_batch_size=50, num_models=8
    )
    assert metrics["validation:binary_classification_accuracy"] > 0.95
    assert set(model.predict(x[:9])) == {"score", "predicted_label"}


def test_quantiles_lie_where_they_should(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)).astype(np.float32)
    y = (x @ [1.0, 2.0, -1.0] + rng.normal(size=2000) * 2 + 5).astype(np.float32)
    model, _ = fitted(
        tmp_path, {"train": Rows(x, y)}, predictor_type="regressor", loss="quantile_loss", quantile=0.9, mini_batch_size=100
    )
    assert (y < model.predict(x)["score"]).mean() == pytest.approx(0.9, abs=0.02)


def test_thresholds() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(500) < 0.2).astype(float)
    score = np.round(label * 0.5 + rng.normal(size=500), 1)  # with ties
    threshold, value = measures.calibrate(
        score, label, wanted(predictor_type="binary_classifier", binary_classifier_model_selection_criteria="f1")
    )
    assert value == pytest.approx(f1_score(label, score >= threshold))
    assert value == pytest.approx(max(f1_score(label, score >= cut) for cut in np.unique(score)))
    assert measures.area(score, label) == pytest.approx(roc_auc_score(label, score))
    settings = wanted(
        predictor_type="binary_classifier", binary_classifier_model_selection_criteria="precision_at_target_recall"
    )
    threshold, _ = measures.calibrate(score, label, settings)
    assert measures.binary(score, label, threshold, 1.0)["recall"] >= 0.8


def test_class_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(3000) < 0.05).astype(np.float32)
    x = (rng.normal(size=(3000, 2)) + y[:, None]).astype(np.float32)
    rows = {"train": Rows(x, y), "test": Rows(x, y)}
    _, plain = fitted(tmp_path, rows, predictor_type="binary_classifier")
    _, weighted = fitted(tmp_path, rows, predictor_type="binary_classifier", positive_example_weight_mult="balanced")
    assert weighted["test:recall"] > plain["test:recall"] + 0.3
    repeated = np.where(y > 0, 19, 1).astype(np.float32)
    by_row, _ = fitted(tmp_path, {"train": Rows(x, y, weight=repeated)}, predictor_type="binary_classifier")
    by_class, _ = fitted(tmp_path, rows, predictor_type="binary_classifier", positive_example_weight_mult=19.0)
    assert by_row.weights is not None
    assert by_class.weights is not None
    np.testing.assert_allclose(by_row.weights, by_class.weights, rtol=0.02, atol=0.02)


def test_labels_minus_one_and_one(tmp_path: Path) -> None:
    x, y = cancer()
    one, _ = fitted(tmp_path, {"train": Rows(x, y)}, predictor_type="binary_classifier")
    other, _ = fitted(tmp_path, {"train": Rows(x, 2 * y - 1)}, predictor_type="binary_classifier")
    np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("label", "given", "match"),
    [
        ([0, 1, 2], {"predictor_type": "binary_classifier"}, r"row 3: the label is 2; binary_classifier needs 0 or 1"),
        ([-1, 0, 1], {"predictor_type": "binary_classifier"}, "labels -1 and 0"),
        ([0, 1, 3], {"predictor_type": "multiclass_classifier", "num_classes": 3}, r"whole number from 0 to 2"),
        ([0, np.nan, 1], {"predictor_type": "regressor"}, "row 2: the label is nan"),
        (None, {"predictor_type": "regressor"}, "no labels"),
        ([0, 1, 1], {"predictor_type": "regressor", "feature_dim": 3}, "feature_dim=3"),
    ],
)
def test_mistakes_in_data(tmp_path: Path, label: list[float] | None, given: dict[str, object], match: str) -> None:
    y = None if label is None else np.array(label, dtype=np.float32)
    with pytest.raises(UserError, match=match):
        fitted(tmp_path, {"train": Rows(np.ones((3, 2), dtype=np.float32), y)}, **given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"predictor_type": "multiclass_classifier"}, "needs num_classes"),
        ({"predictor_type": "regressor", "num_classes": 3}, "leave it out"),
        ({"predictor_type": "regressor", "loss": "logistic"}, "squared_loss"),
        ({"predictor_type": "regressor", "positive_example_weight_mult": 2}, "binary_classifier"),
        ({"predictor_type": "binary_classifier", "balance_multiclass_weights": True}, "multiclass_classifier"),
    ],
)
def test_mistakes_in_hyperparameters(given: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        wanted(**given)


def test_of_candidates_that_are_equally_right_the_likelier_is_chosen(tmp_path: Path) -> None:
    rows = np.repeat(np.array([[-1.0], [1.0]], np.float32), 40, axis=0)
    label = (rows[:, 0] > 0).astype(np.float32)
    flipped = np.where(np.arange(80) % 10 == 0, 1 - label, label)  # dear to who is sure; the same rows are right for all
    channels = {"train": Rows(rows, label), "validation": Rows(rows, flipped)}
    model, metrics = fitted(tmp_path, channels, predictor_type="binary_classifier", num_models=8)
    assert metrics["validation:binary_classification_accuracy"] == pytest.approx(0.9)
    assert metrics["validation:objective_loss"] < 0.36  # at best -0.9 log 0.9 - 0.1 log 0.1 = 0.325
    assert model.chosen["wd"] > 1 / 80
