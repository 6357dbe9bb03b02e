"""A trained model: loaded from its artifact, asked in memory or over files.

model = phalanx.load("runs/demo/model.tar.gz")
model.predict(x)["closest_cluster"]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from . import registry, storage
from .contracts import Algorithm, Array, Csr, Features, Records
from .data.requests import ResponseWriter, read_requests
from .errors import UserError
from .worker import MODEL_CARD, MODEL_FORMAT

REQUEST_ROWS = 8192


@final
class Model:
    """A model and what its artifact says of it.

    Attributes:
        algorithm: the name it was trained under.
        hyperparameters: all of them, defaults included.
        learned: the algorithm's own object.
    """

    def __init__(self, algorithm: str, hyperparameters: Mapping[str, Any], learned: Algorithm) -> None:
        self.algorithm = algorithm
        self.hyperparameters = dict(hyperparameters)
        self.learned = learned

    def predict(self, requests: Any) -> dict[str, Array]:
        """Return the response's columns, one row per request.

        Args:
            requests: array-like of shape (N, D), a scipy sparse matrix, a `Csr`, `Records`, or a list of records.

        Raises:
            UserError: the width is not the one the model was trained on.
        """
        return self.learned.predict(_as_features(requests))


def load(artifact: str | Path) -> Model:
    """Return the model in a `model.tar.gz` (a path or any fsspec URL). No pickle is ever loaded.

    Raises:
        UserError: no such file, a damaged archive, one that Phalanx did not write, or an algorithm that is not installed.
    """
    url = str(artifact)
    with tempfile.TemporaryDirectory(prefix="phalanx-model-") as folder:
        names = storage.unpack(url, Path(folder))
        if MODEL_CARD not in names:
            raise UserError(f"{storage.redact(url)} holds no {MODEL_CARD}: it is no artifact of Phalanx")
        card = _read_card(Path(folder) / MODEL_CARD, url)
        _verify(Path(folder), card["files"], url)
        cls = registry.load(card["algorithm"])
        try:
            learned: Algorithm = cls.load(Path(folder))
        except UserError:
            raise
        except Exception as error:  # damaged files show themselves in many ways
            raise UserError(f"{storage.redact(url)} is damaged: {type(error).__name__}: {error}") from error
    return Model(card["algorithm"], card["hyperparameters"], learned)


def predict_file(model: Model, source: str, sink: str, *, content_type: str | None, accept: str) -> int:
    """Answer every request in `source`, in bounded memory; return how many.

    Args:
        model: to ask.
        source: path or URL of the requests.
        sink: where the answers go; `-` is standard output.
        content_type: of the requests; None: by the file's name.
        accept: content type of the answers.

    Raises:
        UserError: a request that cannot be read (with its line), or an unknown content type.
    """
    width = getattr(model.learned, "columns", None)
    rows = 0
    writer: ResponseWriter | None = None
    index_base = registry.entry(model.algorithm).index_base  # libsvm rows count as they did in training
    chunks = read_requests(source, content_type, columns=width, batch_rows=REQUEST_ROWS, index_base=index_base)
    with storage.replacing_writer(sink) as out:
        for features in chunks:
            if writer is None:
                writer = ResponseWriter(out, accept)
            writer.write(model.predict(features))
            rows += len(features)
        if writer is None:
            raise UserError(f"{storage.redact(source)} holds no requests")
        writer.close()
    return rows


def _read_card(path: Path, url: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] > MODEL_FORMAT:
            raise UserError(
                f"{storage.redact(url)} was written by a newer Phalanx (format {card['format']}); upgrade to read it"
            )
        found = {"algorithm": str(card["algorithm"]), "hyperparameters": dict(card["hyperparameters"])}
        return {**found, "files": dict(card["files"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{storage.redact(url)} is damaged: {MODEL_CARD}: {error}") from None


def _verify(folder: Path, expected: Mapping[str, str], url: str) -> None:
    """Check every file's hash before a library reads it: not every reader survives a flipped bit."""
    found = storage.hashes(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            state = "is missing" if name not in found else "is not what was saved"
            raise UserError(f"{storage.redact(url)} is damaged: {name} {state}; train again, or take another copy")


def _as_features(requests: Any) -> Features:
    if isinstance(requests, (Csr, Records)):
        return requests
    if hasattr(requests, "tocsr"):  # scipy's sparse matrices, which need not be imported to be recognised
        matrix = requests.tocsr().sorted_indices()
        values = matrix.data.astype(np.float32)
        return Csr(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), values, int(matrix.shape[1]))
    try:
        array = np.asarray(requests, dtype=np.float32)
    except (TypeError, ValueError):
        if isinstance(requests, list):
            return Records(requests)
        raise UserError("requests must be an array of numbers with shape (rows, columns), a sparse matrix or records") from None
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2:
        raise UserError(f"requests must have the shape (rows, columns), not {array.shape}")
    return array
