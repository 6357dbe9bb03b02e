"""A script's model in a process of its own: its code is the user's, and must not meet ours.

    python -P -m phalanx.scripts.serving FOLDER PROGRAM REQUESTS_FD ANSWERS_FD

Requests and answers are frames: a JSON head and a body, each after its length.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from ..contracts import Array, Csr, Features
from ..errors import UserError, to_record

_LENGTHS = struct.Struct("<QQ")


def send(sink: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    """Write one frame."""
    text = json.dumps(head).encode()
    sink.write(_LENGTHS.pack(len(text), len(body)) + text)
    sink.write(body)
    sink.flush()


def receive(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None at the end."""
    lengths = source.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head_size, body_size = _LENGTHS.unpack(lengths)
    head, body = source.read(head_size), source.read(body_size)
    return (json.loads(head), body) if len(body) == body_size else None


def to_npz(columns: dict[str, Any]) -> bytes:
    """Return arrays as bytes."""
    sink = io.BytesIO()
    np.savez(sink, **columns)
    return sink.getvalue()


def from_npz(body: bytes) -> dict[str, Any]:
    """Return the arrays that `to_npz` wrote."""
    with np.load(io.BytesIO(body), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def features_to_bytes(features: Array | Csr) -> bytes:
    """Return features as bytes."""
    if isinstance(features, Csr):
        width = np.asarray(features.columns)
        return to_npz({"indptr": features.indptr, "indices": features.indices, "values": features.values, "columns": width})
    return to_npz({"dense": features})


def _features(body: bytes) -> Features:
    found = from_npz(body)
    if "dense" in found:
        dense: Array = found["dense"]
        return dense
    return Csr(found["indptr"], found["indices"], found["values"], int(found["columns"]))


def main(arguments: list[str]) -> None:
    """Load the script and its model, then answer until nobody asks any more."""
    folder, program = Path(arguments[0]), arguments[1]
    requests, answers = os.fdopen(int(arguments[2]), "rb"), os.fdopen(int(arguments[3]), "wb")
    try:
        from .handlers import Handlers

        handlers = Handlers(_imported(folder / "code", program), folder)
    except (Exception, SystemExit) as error:
        send(answers, {"error": _record(error)})
        return
    send(answers, {"error": None})
    while (asked := receive(requests)) is not None:
        head, body = asked
        try:
            if head["kind"] == "features":
                answer = to_npz(dict(handlers.columns(_features(body))))
            else:
                answer = handlers.answer(body, head["content_type"], head["accept"])
        except Exception as error:
            send(answers, {"error": _record(error)})
        else:
            send(answers, {"error": None}, answer)


def _imported(code: Path, program: str) -> ModuleType:
    """Return the script as a module; what stands behind its `if __name__ == "__main__"` does not run."""
    path = code / program
    sys.path[:0] = list(dict.fromkeys([str(path.parent), str(code)]))
    os.chdir(code)
    sys.argv = [program]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{program} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _record(error: BaseException) -> dict[str, Any]:
    if isinstance(error, SystemExit):
        error = UserError(
            f"the script ended while it was imported (exit code {error.code}): what trains must stand behind "
            'if __name__ == "__main__":'
        )
    return to_record(error)


if __name__ == "__main__":
    main(sys.argv[1:])
