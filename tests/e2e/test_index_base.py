"""Where libsvm rows begin to count: predictions count as training did, without being told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - sets environment variables, which a test must not

import phalanx
from phalanx import archive
from phalanx.contracts import Array, Csr
from phalanx.model import predict_file
from phalanx.worker import MODEL_CARD


def write_libsvm(path: Path, features: Array, label: Array, base: int) -> None:
    lines = [
        f"{int(y)} " + " ".join(f"{column + base}:{value!r}" for column, value in enumerate(row.tolist()))
        for y, row in zip(label, features, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("algorithm", "base", "said", "remembered"),
    [
        ("xgboost", 0, "text/libsvm", None),
        ("xgboost", 0, "text/libsvm;index_base=0", None),
        ("xgboost", 1, "text/libsvm;index_base=1", 1),
        ("kmeans", 1, "text/libsvm", None),
        ("kmeans", 0, "text/libsvm;index_base=0", 0),
    ],
)
def test_predictions_count_as_training_did(
    algorithm: str, base: int, said: str, remembered: int | None, tmp_path: Path
) -> None:
    features = np.random.default_rng(0).random((300, 3)).astype(np.float32)
    label = (features[:, 0] > 0.5).astype(np.float32)
    write_libsvm(tmp_path / "rows.libsvm", features, label, base)
    given: dict[str, Any] = {"xgboost": {"num_round": 3, "objective": "binary:logistic"}, "kmeans": {"k": 4}}[algorithm]
    job = phalanx.TrainingJob(
        algorithm=algorithm,
        inputs={"train": phalanx.Channel(str(tmp_path / "rows.libsvm"), content_type=said)},
        hyperparameters=given,
        output=str(tmp_path),
        name="job",
    )
    artifact = str(job.run(progress=False).artifact)
    archive.unpack(artifact, tmp_path / "model")
    assert json.loads((tmp_path / "model" / MODEL_CARD).read_text()).get("index_base") == remembered

    model = phalanx.load(artifact)
    assert (
        predict_file(model, str(tmp_path / "rows.libsvm"), str(tmp_path / "out.csv"), content_type=None, accept="text/csv")
        == 300
    )
    found = np.loadtxt(tmp_path / "out.csv", delimiter=",", ndmin=2)
    rows = Csr(np.arange(0, 901, 3), np.tile(np.arange(3), 300), features.ravel(), 3)
    expected = model.predict(rows)
    np.testing.assert_allclose(found, np.stack(list(expected.values()), axis=1), rtol=1e-6)
    if algorithm == "xgboost":
        assert ((found[:, 0] > 0.5) == label).mean() > 0.99
