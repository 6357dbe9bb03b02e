"""The scikit-learn estimators: scikit-learn's own checks, and that they are the algorithms they stand for."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from phalanx import sklearn as face

SLOW = pytest.mark.slow
ESTIMATORS = [
    face.KMeans(n_clusters=3, local_lloyd_max_iter=20),
    face.RandomCutForest(num_trees=50, num_samples_per_tree=64),
    face.LinearLearnerClassifier(),
    face.XGBoostRegressor(n_estimators=3, max_depth=4),
    pytest.param(face.LinearLearnerRegressor(), marks=SLOW),
    pytest.param(face.XGBoostClassifier(n_estimators=5), marks=SLOW),
    pytest.param(face.FactorizationMachinesClassifier(num_factors=2), marks=SLOW),
    pytest.param(face.FactorizationMachinesRegressor(num_factors=2), marks=SLOW),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.filterwarnings("ignore::Warning")  # the checks warn of themselves
def test_scikit_learns_own_checks(estimator: Any) -> None:
    expected = face.expected_failed_checks(estimator)
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    status = {name: {one["check_name"] for one in results if one["status"] == name} for name in ("failed", "xfail", "skipped")}
    assert not {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"}
    assert status["xfail"] == set(expected), "a check that passes is not listed as one that does not"
    assert status["skipped"] <= {"check_array_api_input"}
    assert len(results) > 40


def test_kmeans_clusters_as_scikit_learn_does() -> None:
    rows = load_digits().data
    model = face.KMeans(n_clusters=10, n_jobs=2).fit(rows)
    assert model.inertia_ < 1.185e6  # scikit-learn over ten seeds: 1.165e6 to 1.178e6
    assert model.inertia_ == pytest.approx(-model.score(rows), rel=1e-6)
    np.testing.assert_array_equal(model.labels_, model.predict(scipy.sparse.csr_matrix(rows)))
    assert model.cluster_centers_.shape == (10, 64)
    np.testing.assert_array_equal(face.KMeans(n_clusters=10).fit(rows).cluster_centers_, model.cluster_centers_)


def test_they_work_in_pipelines_and_searches() -> None:
    rows, label = load_breast_cancer(return_X_y=True)
    assert cross_val_score(face.LinearLearnerClassifier(), rows, label, cv=3).mean() > 0.95
    search = GridSearchCV(face.XGBoostClassifier(n_estimators=10), {"max_depth": [1, 4]}, cv=2).fit(rows, label)
    assert search.best_score_ > 0.92
    plants, kind = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    line = make_pipeline(StandardScaler(), face.LinearLearnerClassifier()).fit(plants, names[kind])
    assert line.score(plants, names[kind]) > 0.94
    assert line.predict_proba(plants).sum(axis=1) == pytest.approx(1, abs=1e-6)
    patients, progress = load_diabetes(return_X_y=True)
    assert face.LinearLearnerRegressor().fit(patients, progress).score(patients, progress) > 0.45


def test_the_forest_finds_what_is_strange() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3))
    strange = np.array([[9.0, 9, 9], [-8, 8, 0]])
    forest = face.RandomCutForest(num_trees=50).fit(rows)
    assert forest.predict(strange).tolist() == [-1, -1]
    assert (forest.predict(rows) == 1).mean() > 0.95
    assert (face.RandomCutForest(num_trees=50, contamination=0.1).fit_predict(rows) == -1).mean() == pytest.approx(0.1)


def test_parameters_are_hyperparameters_with_scikit_learns_names() -> None:
    model = face.KMeans(n_clusters=5, solver="stream")
    parameters = model.get_params()
    assert {"n_clusters", "solver", "local_lloyd_tol", "random_state", "n_jobs"} <= set(parameters)
    assert not {"k", "feature_dim", "eval_metrics"} & set(parameters)
    assert clone(model).get_params() == parameters
    with pytest.raises(TypeError, match="clusters"):
        face.KMeans(clusters=5)
    assert "number of clusters" in str(face.KMeans.__doc__)


def test_mistakes_are_value_errors() -> None:
    rows, label = np.eye(8), np.arange(8) % 2
    with pytest.raises(ValueError, match="n_samples=8 should be at least n_clusters=9"):
        face.KMeans(n_clusters=9).fit(rows)
    with pytest.raises(ValueError, match="local_lloyd_tol=7"):
        face.KMeans(n_clusters=2, local_lloyd_tol=7).fit(rows)
    with pytest.raises(ValueError, match="contamination=2"):
        face.RandomCutForest(contamination=2).fit(rows)
    with pytest.raises(ValueError, match="at least two classes"):
        face.XGBoostClassifier().fit(rows, label * 0)
    with pytest.raises(ValueError, match="Only binary classification is supported"):
        face.FactorizationMachinesClassifier().fit(rows, np.arange(8) % 3)
    hinge = face.LinearLearnerClassifier(loss="hinge_loss").fit(rows, label)
    assert not hasattr(hinge, "predict_proba")
    assert set(hinge.predict(rows)) <= {0, 1}


def test_a_pickled_estimator_answers_as_before() -> None:
    rows, label = load_iris(return_X_y=True)
    for model in (face.KMeans(n_clusters=3).fit(rows), face.XGBoostClassifier(n_estimators=3).fit(rows, label)):
        np.testing.assert_array_equal(copy.deepcopy(model).predict(rows), model.predict(rows))


def test_bytes_are_clustered_like_floats() -> None:
    rows = load_digits().data
    by_bytes, by_floats = (face.KMeans(n_clusters=10, random_state=0).fit(rows.astype(kind)) for kind in (np.uint8, np.float32))
    np.testing.assert_array_equal(by_bytes.cluster_centers_, by_floats.cluster_centers_)
    np.testing.assert_array_equal(by_bytes.labels_, by_floats.labels_)
