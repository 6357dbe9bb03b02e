"""The functions that answer requests: a script's `model_fn`, `input_fn`, `predict_fn`, `output_fn`, and their stand-ins.

The stand-ins behave as those of SageMaker's containers for PyTorch, scikit-learn and XGBoost; which one it is shows in the
class of the model. No framework is imported here: whoever made the model has imported its own.
"""

from __future__ import annotations

import inspect
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np

from ..contracts import Array, Csr, Features, Records
from ..data.requests import decode
from ..errors import UserError

JSON, JSONLINES, CSV, NPY, NPZ = (
    "application/json",
    "application/jsonlines",
    "text/csv",
    "application/x-npy",
    "application/x-npz",
)
LIBSVM = ("text/libsvm", "text/x-libsvm")
_TEXT = (JSON, CSV)  # given to a script's input_fn as str; everything else as bytes
_ALIASES = {"json": JSON, "jsonlines": JSONLINES, "csv": CSV, "npy": NPY, "*/*": JSON, "": JSON}


@final
class Handlers:
    """Answers requests with the functions of a module.

    Args:
        module: the script, imported.
        folder: SM_MODEL_DIR.

    Raises:
        UserError: functions are missing, or do not go together.
    """

    def __init__(self, module: ModuleType, folder: Path) -> None:
        found = vars(module)
        self._transform: Callable[..., Any] | None = found.get("transform_fn")
        self._input: Callable[..., Any] | None = found.get("input_fn")
        self._predict: Callable[..., Any] | None = found.get("predict_fn")
        self._output: Callable[..., Any] | None = found.get("output_fn")
        if self._transform and (self._input or self._predict or self._output):
            raise UserError("the script has a transform_fn beside input_fn, predict_fn or output_fn: it takes their place")
        loads = found.get("model_fn")
        self._model = _called(loads, str(folder)) if loads else _torchscript(folder, str(module.__file__))

    def answer(self, body: bytes, content_type: str, accept: str) -> bytes:
        """Return the answer to one request.

        Args:
            body: of the request.
            content_type: of the request.
            accept: content type of the answer.

        Raises:
            UserError: the stand-ins do not know a content type.
        """
        given: str | bytes = body.decode("utf-8") if _plain(content_type) in _TEXT else body
        if self._transform:
            return _bytes(_called(self._transform, self._model, given, content_type, accept))
        data = _called(self._input, given, content_type) if self._input else prepared(decoded(body, content_type), self._model)
        prediction = self._predicted(data)
        return _bytes(_called(self._output, prediction, accept) if self._output else encoded(prediction, accept))

    def columns(self, features: Features) -> dict[str, Array]:
        """Return predictions of features in memory, past the functions for requests."""
        if self._transform:
            raise UserError("the script answers by transform_fn, which takes requests only: use `phalanx predict` on a file")
        prediction = self._predicted(prepared(array_of(features), self._model))
        if isinstance(prediction, Mapping):
            return {str(name): np.asarray(_numbers(values)) for name, values in prediction.items()}
        return {"prediction": np.asarray(_numbers(prediction))}

    def _predicted(self, data: Any) -> Any:
        return _called(self._predict, data, self._model) if self._predict else _predicted(data, self._model)


def prepared(array: Any, model: Any) -> Any:
    """Return data as models of this kind take it: a tensor, a DMatrix, an array."""
    kind = _kind(model)
    if kind == "torch":
        torch: Any = sys.modules["torch"]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.as_tensor(np.asarray(array)).to(device)
    if kind == "xgboost":
        xgboost: Any = sys.modules["xgboost"]
        return xgboost.DMatrix(array)
    return array


def encoded(prediction: Any, accept: str) -> bytes:
    """Return a prediction as JSON, JSON lines, CSV or NPY."""
    wanted = [_plain(part) for part in accept.split(",")]
    values = _numbers(prediction)
    for kind in (_ALIASES.get(name, name) for name in wanted):
        if kind == JSON:
            return json.dumps(values, default=_listed).encode()
        if kind == JSONLINES:
            return "".join(json.dumps(row, default=_listed) + "\n" for row in values).encode()
        if kind in (CSV, NPY):
            sink = io.BytesIO()
            if kind == CSV:
                np.savetxt(sink, np.asarray(values), delimiter=",", fmt="%s")
            else:
                np.save(sink, np.asarray(values), allow_pickle=False)
            return sink.getvalue()
    raise UserError(
        f"answers cannot be written as '{accept}': the script has no output_fn, and without one there are {JSON}, {JSONLINES}, "
        f"{CSV} and {NPY}"
    )


def decoded(body: bytes, content_type: str) -> Any:
    """Return the array in a request; text becomes float32, as models expect.

    Raises:
        UserError: it is none, or its content type is not known.
    """
    kind = _ALIASES.get(_plain(content_type), _plain(content_type))
    try:
        if kind == JSON:
            given = json.loads(body)
            return np.asarray(given["instances"] if isinstance(given, dict) and "instances" in given else given, np.float32)
        if kind == CSV:
            return np.genfromtxt(io.BytesIO(body), dtype=np.float32, delimiter=",", ndmin=2)
        if kind == NPY:
            return np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, TypeError) as error:
        raise UserError(f"the request is no {kind} of numbers: {error}") from None
    if kind in LIBSVM:
        return array_of(decode(body, "text/libsvm", columns=None, index_base=0))
    raise UserError(
        f"requests of the type '{content_type}' cannot be read: the script has no input_fn, and without one there are {JSON}, "
        f"{CSV}, {NPY} and {LIBSVM[0]}"
    )


def array_of(features: Features) -> Any:
    """Return features as libraries take them: an array, or scipy's sparse rows."""
    if isinstance(features, Records):
        raise UserError("a script's model takes arrays of numbers, not records: use `phalanx predict` on a file of them")
    if not isinstance(features, Csr):
        return features
    from scipy.sparse import csr_matrix

    return csr_matrix((features.values, features.indices, features.indptr), (len(features), features.columns))


def _predicted(data: Any, model: Any) -> Any:
    kind = _kind(model)
    if kind == "torch":
        torch: Any = sys.modules["torch"]
        with torch.no_grad():
            return model.to(data.device).eval()(data)
    if kind == "xgboost":
        return model.predict(data, validate_features=False)
    if callable(getattr(model, "predict", None)):
        return model.predict(data)
    if callable(model):
        return model(data)
    raise UserError(f"the script has no predict_fn, and its model_fn returned {type(model).__name__}, which has no predict()")


def _kind(model: Any) -> str:
    """Return which framework's model it is, where that matters."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("torch.nn"):
            return "torch"
        if cls.__module__.startswith("xgboost") and cls.__name__ == "Booster":
            return "xgboost"
    return "other"


def _torchscript(folder: Path, script: str) -> Any:
    """Return what stands in for model_fn: a TorchScript file, where there is exactly one."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in (".pt", ".pth")]
    chosen = folder / "model.pt" if (folder / "model.pt") in paths else paths[0] if len(paths) == 1 else None
    missing = f"{Path(script).name} has no model_fn(model_dir), which loads the model it saved: add it to answer requests"
    if chosen is None:
        raise UserError(missing)
    import torch

    try:
        return torch.jit.load(str(chosen), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UserError(f"{missing} ({chosen.name} is no TorchScript: {str(error).splitlines()[0]})") from None


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a script's function, with a context of None where it takes one more argument."""
    takes = len(inspect.signature(function).parameters)
    return function(*arguments, None) if takes == len(arguments) + 1 else function(*arguments)


def _plain(content_type: str) -> str:
    return content_type.split(";")[0].strip().lower()


def _numbers(prediction: Any) -> Any:
    """Return a prediction without its framework."""
    for cls in type(prediction).__mro__:
        if cls.__module__.startswith("torch"):
            return prediction.detach().cpu().numpy()
    return prediction


def _listed(value: Any) -> Any:
    """Return what json.dumps does not know as something that it does."""
    plain = _numbers(value)
    if isinstance(plain, (np.ndarray, np.generic)):
        return plain.tolist()
    raise UserError(f"the prediction holds a {type(value).__name__}, which is no JSON: write an output_fn for it")


def _bytes(answer: Any) -> bytes:
    """Return what an output_fn gave: text, bytes, or one of them with its content type."""
    body = answer[0] if isinstance(answer, tuple) else answer
    if isinstance(body, (bytes, bytearray)):
        return bytes(body)
    return body.encode() if isinstance(body, str) else json.dumps(body, default=_listed).encode()
