"""XGBoost under the algorithm suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from phalanx.testing.algorithm_checks import AlgorithmChecks
from phalanx.testing.sessions import Rows

pytest.importorskip("xgboost")


class TestXGBoost(AlgorithmChecks):
    name = "xgboost"
    hyperparameters: ClassVar[dict[str, Any]] = {
        "num_round": 8,
        "objective": "binary:logistic",
        "eval_metric": "logloss,auc",
        "subsample": 0.8,
    }
    metrics = (r"(train|validation):(logloss|auc)",)
    exact_over_workers = False

    def channels(self) -> dict[str, Rows]:
        features, label = load_breast_cancer(return_X_y=True)
        features, label = features.astype(np.float32), label.astype(np.float32)
        return {"train": Rows(features[::2], label[::2]), "validation": Rows(features[1::2], label[1::2])}

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        assert metrics["validation:auc"] > 0.97
