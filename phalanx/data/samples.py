"""Real data sets that ship inside scikit-learn, written as the files a job reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import Array
from ..errors import UserError, nearest

_LOADERS = {
    "iris": "load_iris",
    "wine": "load_wine",
    "breast_cancer": "load_breast_cancer",
    "digits": "load_digits",
    "diabetes": "load_diabetes",
}
_SPLIT_SEED = 20240229
_SHARES = (("train", 0.70), ("validation", 0.15), ("test", 0.15))


def write_sample(name: str, folder: Path) -> list[tuple[Path, str]]:
    """Write a data set, split into train, validation and test rows (70, 15 and 15 %, always the same rows).

    Args:
        name: iris, wine, breast_cancer, digits (classification), diabetes (regression).
        folder: where the files go; made where it is missing.

    Returns:
        Every file, and what it is.

    Raises:
        UserError: an unknown name; a folder that cannot be written.
    """
    if name not in _LOADERS:
        raise UserError(f"there is no sample data '{name}'; {nearest(name, _LOADERS)}")
    from sklearn import datasets

    features, label = getattr(datasets, _LOADERS[name])(return_X_y=True)
    order = np.random.Generator(np.random.Philox(_SPLIT_SEED)).permutation(len(label))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_splits(folder, np.asarray(features)[order], np.asarray(label)[order])
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None


def _write_splits(folder: Path, features: Array, label: Array) -> list[tuple[Path, str]]:
    from .formats.recordio import write_dense

    written: list[tuple[Path, str]] = []
    begin = 0
    for split, share in _SHARES:
        end = len(label) if split == "test" else begin + round(share * len(label))
        x, y = features[begin:end], label[begin:end]
        begin = end
        shape = f"{len(y)} rows, {x.shape[1]} features"
        csv, libsvm, recordio = (folder / f"{split}.{suffix}" for suffix in ("csv", "libsvm", "recordio"))
        csv.write_text("".join(f"{_text(b)},{','.join(map(_text, a))}\n" for a, b in zip(x, y, strict=True)), encoding="utf-8")
        libsvm.write_text("".join(f"{_text(b)} {_sparse(a)}\n" for a, b in zip(x, y, strict=True)), encoding="utf-8")
        with recordio.open("wb") as file:
            write_dense(file, x.astype(np.float32), y.astype(np.float32))
        written += [
            (csv, f"{shape}, label first: text/csv"),
            (libsvm, f"{shape}, indices from 1: text/libsvm;index_base=1"),
            (recordio, f"{shape}: application/x-recordio-protobuf"),
        ]
        if split == "test":
            requests = folder / "test-features.csv"
            requests.write_text("".join(f"{','.join(map(_text, a))}\n" for a in x), encoding="utf-8")
            written.append((requests, f"{shape}, no label, for predict: text/csv;label_size=0"))
    return written


def _text(value: Any) -> str:
    """Return the shortest text that reads back as the same float32; whole numbers without a point."""
    number = np.float32(value)
    return str(int(number)) if number == int(number) else str(number)


def _sparse(row: Array) -> str:
    return " ".join(f"{index + 1}:{_text(value)}" for index, value in enumerate(row) if value != 0)
