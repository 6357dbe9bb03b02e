"""The built-in algorithms as scikit-learn estimators, trained in this process on arrays.

    from phalanx.sklearn import KMeans, LinearLearnerClassifier, XGBoostRegressor, RandomCutForest
    labels = KMeans(n_clusters=20, n_jobs=-1).fit(x).labels_

Parameters are the algorithms' hyperparameters (`phalanx algorithms NAME`), but for those that follow from the data; besides
them every estimator has `random_state` (0: the seed of a job) and `n_jobs` (threads, as in scikit-learn). A user's mistake is a
ValueError, as scikit-learn wants it. A pickled estimator holds its model as the files of an artifact. scikit-learn asks for
inheritance, so there is some here and nowhere else.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import scipy.sparse
from joblib import effective_n_jobs  # type: ignore[import-untyped]
from sklearn.base import BaseEstimator, ClassifierMixin, ClusterMixin, OutlierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from . import hyperparameters, registry
from .algorithms.factorization_machines.hyperparameters import FactorizationMachinesHyperparameters
from .algorithms.kmeans.algorithm import KMeansHyperparameters
from .algorithms.linear_learner.hyperparameters import LinearLearnerHyperparameters
from .algorithms.random_cut_forest.algorithm import RandomCutForestHyperparameters
from .algorithms.xgboost.hyperparameters import XGBoostHyperparameters
from .contracts import Algorithm, Array, Csr
from .data.memory import array_shard
from .errors import UserError
from .testing.sessions import MemorySession

C = TypeVar("C", bound="type[_Estimator]")
T = TypeVar("T")

_FROM_DATA = {"feature_dim", "predictor_type", "num_classes", "num_class", "eval_metrics", "eval_metric", "seed", "nthread"}
_JOBS_ONLY = {"csv_weights", "kfold", "num_cv_round", "save_model_on_termination", "early_stopping_rounds"}
_SKLEARN_NAMES = {"k": "n_clusters", "num_round": "n_estimators"}
_NOT_PROBABILITIES = "only losses whose scores are probabilities"


def _parameters_of(algorithm: str, declared_by: type, defaults: Mapping[str, Any]) -> Callable[[C], C]:
    """Return a decorator that gives an estimator of `algorithm` an `__init__` with its hyperparameters as keywords."""
    declared = hyperparameters.describe(declared_by)
    shown = [one for one in declared if one.name not in _FROM_DATA | _JOBS_ONLY]
    names = {_SKLEARN_NAMES.get(one.name, one.name): one.name for one in shown}
    values = {_SKLEARN_NAMES.get(one.name, one.name): one.default for one in shown} | {"random_state": 0, "n_jobs": None}
    values |= defaults
    keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in values.items()]
    signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *keywords])

    def decorate(cls: C) -> C:
        def __init__(self: Any, *given: Any, **named: Any) -> None:
            bound = signature.bind(self, *given, **named)
            bound.apply_defaults()
            for name in values:
                setattr(self, name, bound.arguments[name])

        __init__.__signature__ = signature  # type: ignore[attr-defined]
        __init__.__qualname__ = f"{cls.__qualname__}.__init__"
        cls.__init__ = __init__  # type: ignore[method-assign]
        cls._algorithm, cls._names = algorithm, names
        helps = "\n".join(f"    {_SKLEARN_NAMES.get(one.name, one.name)}: {one.help}" for one in shown)
        cls.__doc__ = f"{cls.__doc__}\n\nParameters (keywords):\n{helps}\n    random_state: seed\n    n_jobs: threads\n"
        return cls

    return decorate


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What all have in common: rows become a channel in memory, parameters become hyperparameters."""

    _algorithm: ClassVar[str]
    _names: ClassVar[dict[str, str]]  # parameter -> hyperparameter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.non_deterministic = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
                state.pop("model_").save(Path(folder))
                state["_model_files"] = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("_model_files", None)
        super().__setstate__(state)
        if files is not None:
            with tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                self.model_ = registry.load(self._algorithm).load(Path(folder))

    def _learn(self, rows: Any, label: Array | None, weight: Array | None, settings: Mapping[str, Any]) -> None:
        """Train on validated rows; keep the model as `model_`."""
        cls = _as_value_error(lambda: registry.load(self._algorithm))
        given = {name: getattr(self, attribute) for attribute, name in self._names.items()}
        given |= settings
        wanted = _as_value_error(lambda: hyperparameters.parse(cls.Hyperparameters, given, owner=self._algorithm))
        state = self.random_state
        seed = int(state) if isinstance(state, int | np.integer) else int(check_random_state(state).randint(2**31 - 1))
        shard = array_shard(_features(rows), label, weight, seed=seed)
        model: Algorithm = cls(wanted)
        with tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
            threads = effective_n_jobs(self.n_jobs)
            session = MemorySession({"train": shard}, Path(folder), seed=seed, threads=threads)
            _as_value_error(lambda: model.fit(session))
        self.model_ = model
        self.n_iter_ = max(len(session.reports), 1)

    def _answer(self, rows: Any) -> dict[str, Array]:
        """Return the model's response for rows of the width that was trained on."""
        check_is_fitted(self, "model_")
        valid = validate_data(self, rows, accept_sparse="csr", dtype=np.float32, order="C", reset=False)
        features = _features(valid)
        return _as_value_error(lambda: self.model_.predict(features))


@_parameters_of("kmeans", KMeansHyperparameters, {"n_clusters": 8, "solver": "lloyd"})
class KMeans(ClusterMixin, _Estimator):  # type: ignore[misc]
    """K-means; `solver="stream"` is the web-scale one of jobs.

    Attributes:
        cluster_centers_: (k, D) float32.
        labels_: (N,) nearest centre of every training row.
        inertia_: sum of squared distances, as rows weigh.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Cluster rows (N, D), dense or sparse; dense ones of bytes (uint8) are held as they are.

        Raises:
            ValueError: rows or parameters that do not fit.
        """
        rows = validate_data(self, X, accept_sparse="csr", dtype=(np.float32, np.uint8), order="C")
        count, wanted = rows.shape[0], self.n_clusters
        if count < wanted:
            raise ValueError(f"n_samples={count} should be at least n_clusters={wanted}")
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        self._learn(rows, None, weight, {})
        self.cluster_centers_ = self.model_.centers
        answer = self.model_.predict(_features(rows))
        self.labels_ = answer["closest_cluster"].astype(np.int32)
        squares = answer["distance_to_cluster"].astype(np.float64) ** 2
        self.inertia_ = float(squares.sum() if weight is None else squares @ weight)
        return self

    def predict(self, X: Any) -> Array:
        """Return the nearest centre of every row, (N,) int32."""
        labels: Array = self._answer(X)["closest_cluster"].astype(np.int32)
        return labels

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the sum of squared distances of rows to their centres."""
        return -float((self._answer(X)["distance_to_cluster"].astype(np.float64) ** 2).sum())


@_parameters_of("random_cut_forest", RandomCutForestHyperparameters, {"contamination": "auto"})
class RandomCutForest(OutlierMixin, _Estimator):  # type: ignore[misc]
    """Anomalies by a random cut forest.

    `contamination` is the share of training rows that count as anomalies; auto: those with a score above mean + 3σ.

    Attributes:
        offset_: `decision_function` is `score_samples` less this.
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what rows (N, D), dense or sparse, look like.

        Raises:
            ValueError: rows or parameters that do not fit.
        """
        share: float | Literal["auto"] = self.contamination
        if share != "auto" and not 0 < share <= 0.5:
            raise ValueError(f"contamination={share} must be auto or above 0 and at most 0.5")
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float32, order="C", ensure_min_samples=2)
        self._learn(rows, None, None, {})
        scores = -self.model_.predict(_features(rows))["score"].astype(np.float64)
        self.offset_ = float(scores.mean() - 3 * scores.std() if share == "auto" else np.percentile(scores, 100 * share))
        return self

    def score_samples(self, X: Any) -> Array:
        """Return minus the anomaly score of every row, (N,): the lower, the stranger."""
        scores: Array = -self._answer(X)["score"].astype(np.float64)
        return scores

    def decision_function(self, X: Any) -> Array:
        """Return `score_samples` less `offset_`: below 0 is an anomaly."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Array:
        """Return -1 for anomalies and 1 for all others, (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def _gives_probabilities(estimator: Any) -> bool:
    if getattr(estimator, "loss", "auto") in ("auto", "logistic", "softmax_loss"):
        return True
    raise AttributeError(f"predict_proba: {_NOT_PROBABILITIES}, and loss={estimator.loss} is none of them")


class _Classifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Classes become numbers from 0, and back."""

    _two_classes_only: ClassVar[bool] = False

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = not self._two_classes_only
        return tags

    def _settings(self, classes: int) -> dict[str, Any]:
        raise NotImplementedError

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from rows (N, D), dense or sparse, and their classes (N,).

        Raises:
            ValueError: rows, classes or parameters that do not fit.
        """
        rows, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32, order="C")
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        if len(self.classes_) < 2 or (weight is not None and len(np.unique(codes[weight > 0])) < 2):
            raise ValueError(f"{type(self).__name__} needs rows of at least two classes; the data have one class")
        if self._two_classes_only and len(self.classes_) > 2:
            kind = type_of_target(y, input_name="y")
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        self._learn(rows, codes.astype(np.float32), weight, self._settings(len(self.classes_)))
        return self

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return the probability of every class, (N, classes), in the order of `classes_`."""
        score = self._answer(X)["score"].astype(np.float64)
        return np.stack([1 - score, score], axis=1) if score.ndim == 1 else score

    def predict(self, X: Any) -> Array:
        """Return the class of every row, (N,)."""
        answer = self._answer(X)
        score = answer["score"].astype(np.float64)
        if "predicted_label" in answer and not self._most_probable():
            codes = answer["predicted_label"]
        else:
            codes = (score > 0.5).astype(np.int64) if score.ndim == 1 else score.argmax(axis=1)
        classes: Array = self.classes_[codes]
        return classes

    def _most_probable(self) -> bool:
        """Return whether the most probable class is the answer, also where a threshold would say otherwise."""
        return True


class _Regressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """Numbers."""

    _settings: ClassVar[Mapping[str, Any]] = {"predictor_type": "regressor"}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from rows (N, D), dense or sparse, and their numbers (N,).

        Raises:
            ValueError: rows, numbers or parameters that do not fit.
        """
        rows, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32, order="C", y_numeric=True)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        self._learn(rows, np.asarray(y, dtype=np.float32), weight, self._settings)
        return self

    def predict(self, X: Any) -> Array:
        """Return the number of every row, (N,) float64."""
        numbers: Array = self._answer(X)["score"].astype(np.float64)
        return numbers


@_parameters_of("linear_learner", LinearLearnerHyperparameters, {})
class LinearLearnerClassifier(_Classifier):
    """Linear learner: two classes or more.

    With two classes the answer is the more probable one, or, where
    `binary_classifier_model_selection_criteria` is not accuracy, what the threshold that was calibrated for it says.
    """

    def _settings(self, classes: int) -> dict[str, Any]:
        if classes == 2:
            return {"predictor_type": "binary_classifier"}
        return {"predictor_type": "multiclass_classifier", "num_classes": classes}

    def _most_probable(self) -> bool:
        plain = self.binary_classifier_model_selection_criteria == "accuracy"
        return plain and self.loss in ("auto", "logistic", "softmax_loss")


@_parameters_of("linear_learner", LinearLearnerHyperparameters, {})
class LinearLearnerRegressor(_Regressor):
    """Linear learner: a number."""


@_parameters_of("xgboost", XGBoostHyperparameters, {"n_estimators": 100, "objective": "auto"})
class XGBoostClassifier(_Classifier):
    """Gradient boosted trees: two classes or more; `objective` follows from their number."""

    def _settings(self, classes: int) -> dict[str, Any]:
        if classes == 2:
            return {"objective": "binary:logistic"}
        return {"objective": "multi:softprob", "num_class": classes}


@_parameters_of("xgboost", XGBoostHyperparameters, {"n_estimators": 100})
class XGBoostRegressor(_Regressor):
    """Gradient boosted trees: a number."""

    _settings: ClassVar[Mapping[str, Any]] = {}


@_parameters_of("factorization_machines", FactorizationMachinesHyperparameters, {})
class FactorizationMachinesClassifier(_Classifier):
    """Factorization machines: two classes."""

    _two_classes_only = True

    def _settings(self, classes: int) -> dict[str, Any]:
        return {"predictor_type": "binary_classifier"}


@_parameters_of("factorization_machines", FactorizationMachinesHyperparameters, {})
class FactorizationMachinesRegressor(_Regressor):
    """Factorization machines: a number."""


_WEIGHTS_COUNT_ROWS = {
    "KMeans": "starts are drawn from a sample by row number, and lost or repeated rows are numbered anew",
    "LinearLearnerClassifier": "the penalty wd=auto is 1/rows, and means and deviations are those of rows, not of weights",
    "LinearLearnerRegressor": "the penalty wd=auto is 1/rows, and means and deviations are those of rows, not of weights",
    "FactorizationMachinesClassifier": "mini-batches are cut by row number, and lost or repeated rows are numbered anew",
    "FactorizationMachinesRegressor": "mini-batches are cut by row number, and lost or repeated rows are numbered anew",
}


def expected_failed_checks(estimator: BaseEstimator) -> dict[str, str]:
    """Return which of scikit-learn's checks an estimator does not pass, and why: for `check_estimator` and its like."""
    reason = _WEIGHTS_COUNT_ROWS.get(type(estimator).__name__)
    names = [f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")]
    return {} if reason is None else dict.fromkeys(names, reason)


def _features(rows: Any) -> Array | Csr:
    """Return validated rows as the algorithms take them."""
    if not scipy.sparse.issparse(rows):
        kind = np.uint8 if rows.dtype == np.uint8 else np.float32
        own: Array = np.require(rows, kind, ["C_CONTIGUOUS", "WRITEABLE"])  # kernels take no read-only arrays
        return own
    rows = rows.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()  # sorts them too
    values, indptr, indices = rows.data.astype(np.float32), rows.indptr.astype(np.int64), rows.indices.astype(np.int64)
    return Csr(indptr, indices, values, int(rows.shape[1]))


def _as_value_error(action: Callable[[], T]) -> T:
    try:
        return action()
    except UserError as error:
        raise ValueError(str(error)) from error
