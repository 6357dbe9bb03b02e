"""A trained model: loaded from its artifact, asked in memory or over files.

model = phalanx.load("runs/demo/model.tar.gz")
model.predict(x)["closest_cluster"]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, final

import numpy as np

from . import archive, registry, storage
from .contracts import Array, Csr, Features, Records
from .data.requests import ResponseWriter, read_requests
from .errors import UserError
from .scripts.model import ScriptModel, content_type_of
from .worker import MODEL_CARD, MODEL_FORMAT

REQUEST_ROWS = 8192


class Learned(Protocol):
    """What answers: an algorithm's own object, or the process of a script's model."""

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return one array per column of the response, a row per request."""
        ...


@final
class Model:
    """A model and what its artifact says of it. One that a script made holds a process until `close`, or until it is gone.

    Attributes:
        algorithm: the name it was trained under; of a script its file name.
        hyperparameters: all of them, defaults included.
        learned: the algorithm's own object.
        index_base: where the columns of libsvm rows begin to count whose content type does not say: as in training.
    """

    def __init__(
        self, algorithm: str, hyperparameters: Mapping[str, Any], learned: Learned, *, index_base: int | None = None
    ) -> None:
        self.algorithm = algorithm
        self.hyperparameters = dict(hyperparameters)
        self.learned = learned
        self.index_base = index_base

    def predict(self, requests: Any) -> dict[str, Array]:
        """Return the response's columns, one row per request.

        Args:
            requests: array-like of shape (N, D), a scipy sparse matrix, a `Csr`, `Records`, or a list of records.

        Raises:
            UserError: the width is not the one the model was trained on.
        """
        return self.learned.predict(_as_features(requests))

    def close(self) -> None:
        """Give back what the model holds. Safe to call twice."""
        if isinstance(self.learned, ScriptModel):
            self.learned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(artifact: str | Path) -> Model:
    """Return the model in a `model.tar.gz` (a path or any fsspec URL).

    No pickle is ever loaded from an algorithm's artifact. That of a script holds the script, whose `model_fn` is run in a
    process of its own: load those of people you trust.

    Raises:
        UserError: no such file, a damaged archive, one that Phalanx did not write, or an algorithm that is not installed.
        AlgorithmError: the script's model_fn failed.
    """
    url = str(artifact)
    folder = tempfile.TemporaryDirectory(prefix="phalanx-model-")
    kept = False
    try:
        names = archive.unpack(url, Path(folder.name))
        if MODEL_CARD not in names:
            raise UserError(f"{storage.redact(url)} holds no {MODEL_CARD}: it is no artifact of Phalanx")
        card = _read_card(Path(folder.name) / MODEL_CARD, url)
        _verify(Path(folder.name), card["files"], url)
        if card["script"] is None:
            learned = _learned(card["algorithm"], Path(folder.name), url)
            return Model(card["algorithm"], card["hyperparameters"], learned, index_base=card["index_base"])
        model = Model(card["script"], card["hyperparameters"], ScriptModel(folder, card))
        kept = True
        return model
    finally:
        if not kept:
            folder.cleanup()


def _learned(algorithm: str, folder: Path, url: str) -> Learned:
    cls = registry.load(algorithm)
    try:
        learned: Learned = cls.load(folder)
    except UserError:
        raise
    except Exception as error:  # damaged files show themselves in many ways
        raise UserError(f"{storage.redact(url)} is damaged: {type(error).__name__}: {error}") from error
    return learned


def predict_file(model: Model, source: str, sink: str, *, content_type: str | None, accept: str) -> int:
    """Answer every request in `source`, in bounded memory; return how many.

    A script's model gets each file as one request, whole.

    Args:
        model: to ask.
        source: path or URL of the requests.
        sink: where the answers go; `-` is standard output.
        content_type: of the requests; None: by the file's name.
        accept: content type of the answers.

    Raises:
        UserError: a request that cannot be read (with its line), or an unknown content type.
    """
    if isinstance(model.learned, ScriptModel):
        return _predict_whole(model.learned, source, sink, content_type, accept)
    width = getattr(model.learned, "columns", None)
    rows = 0
    writer: ResponseWriter | None = None
    # libsvm rows count as they did in training
    entry = registry.entry(model.algorithm)
    index_base = entry.index_base if model.index_base is None else model.index_base
    chunks = read_requests(source, content_type, columns=width, batch_rows=REQUEST_ROWS, index_base=index_base)
    with storage.replacing_writer(sink) as out:
        for features in chunks:
            if writer is None:
                writer = ResponseWriter(out, accept, entry.answers)
            writer.write(model.predict(features))
            rows += len(features)
        if writer is None:
            raise UserError(f"{storage.redact(source)} holds no requests")
        writer.close()
    return rows


def _predict_whole(learned: ScriptModel, source: str, sink: str, content_type: str | None, accept: str) -> int:
    files = storage.list_files(source)
    with storage.replacing_writer(sink) as out:
        for file in files:
            out.write(learned.answer(storage.read_bytes(file.url), content_type or content_type_of(file.url), accept))
    return len(files)


def _read_card(path: Path, url: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] > MODEL_FORMAT:
            raise UserError(
                f"{storage.redact(url)} was written by a newer Phalanx (format {card['format']}); upgrade to read it"
            )
        found = {"files": dict(card["files"]), "hyperparameters": dict(card["hyperparameters"])}
        if "script" in card:
            return {**found, "script": str(card["script"]), "requirements": card.get("requirements")}
        base = card.get("index_base")
        if base not in (None, 0, 1):
            raise ValueError(f"index_base={base!r} is neither 0 nor 1")
        return {**found, "script": None, "algorithm": str(card["algorithm"]), "index_base": base}
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
