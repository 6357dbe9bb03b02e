"""Factorization machines pass the conformance suite: classes and numbers, dense and sparse rows, every solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from phalanx.testing.algorithm_checks import AlgorithmChecks, to_csr
from phalanx.testing.sessions import Rows

CLASSES = "(train|validation|test):binary_(classification_accuracy|classification_cross_entropy|f_beta)"
NUMBERS = "(train|validation|test):(rmse|mse|absolute_loss)"


class TestClasses(AlgorithmChecks):
    name = "factorization_machines"
    hyperparameters: ClassVar[dict[str, Any]] = {
        "predictor_type": "binary_classifier",
        "num_factors": 4,
        "mini_batch_size": 100,
        "epochs": 12,
    }
    metrics = (CLASSES,)
    exact_over_workers = True

    def channels(self) -> dict[str, Rows]:
        x, y = load_breast_cancer(return_X_y=True)
        x, y = x.astype("float32"), y.astype("float32")
        return {"train": Rows(x[:400], y[:400]), "validation": Rows(x[400:480], y[400:480]), "test": Rows(x[480:], y[480:])}

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["test:binary_classification_accuracy"] > 0.92
        assert metrics["test:binary_classification_cross_entropy"] < 0.25


class TestNumbers(AlgorithmChecks):
    name = "factorization_machines"
    hyperparameters: ClassVar[dict[str, Any]] = {
        "predictor_type": "regressor",
        "num_factors": 2,
        "mini_batch_size": 110,
        "epochs": 20,
    }
    metrics = (NUMBERS,)
    exact_over_workers = True

    def channels(self) -> dict[str, Rows]:
        x, y = load_diabetes(return_X_y=True)
        x, y = x.astype("float32"), y.astype("float32")
        return {"train": Rows(x[:340], y[:340]), "test": Rows(x[340:], y[340:])}

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["test:rmse"] < 65  # the label's mean as the answer of all: 77


def products(rows: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return one-hot rows of two fields of five values and a label that is their product's sign: no linear model finds it."""
    generator = np.random.default_rng(3)
    picked = generator.integers(0, 5, (rows, 2))
    signs = np.array([-1, 1, 1, -1, 1])
    x = np.zeros((rows, 5000), np.float32)
    x[np.arange(rows), 37 + picked[:, 0] * 400] = 1
    x[np.arange(rows), 2800 + picked[:, 1] * 400] = 1
    return x, (signs[picked].prod(axis=1) > 0).astype(np.float32)


class TestWideSparse(AlgorithmChecks):
    """More columns than a table is reduced for, so that columns are exchanged one by one."""

    name = "factorization_machines"
    hyperparameters: ClassVar[dict[str, Any]] = {
        "predictor_type": "binary_classifier",
        "num_factors": 3,
        "solver": "adagrad",
        "linear_lr": 0.1,
        "factors_lr": 0.3,
        "factors_init_sigma": 0.1,
        "mini_batch_size": 100,
        "epochs": 10,
    }
    metrics = (CLASSES,)
    exact_over_workers = True

    @pytest.fixture(autouse=True)
    def _narrow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("phalanx.algorithms.factorization_machines.tables._DENSE_COLUMNS", 4)

    def channels(self) -> dict[str, Rows]:
        x, y = products(500)
        return {"train": Rows(to_csr(x[:400]), y[:400]), "test": Rows(to_csr(x[400:]), y[400:])}

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["test:binary_classification_accuracy"] > 0.98
