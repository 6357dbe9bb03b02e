"""The model of a script, asked from here: the process that runs the script's functions, and how to talk to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, final

from .. import environment
from ..contracts import Array, Features, Records
from ..errors import AlgorithmError, UserError, from_record
from . import requirements
from .paths import python_path
from .serving import features_to_bytes, from_npz, receive, send

_END_SECONDS = 5.0
_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".jsonlines": "application/jsonlines",
    ".csv": "text/csv",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".txt": "text/plain",
    ".parquet": "application/x-parquet",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}


@final
class ScriptModel:
    """Asks a script's model; `close` ends its process and removes its folder, as does the end of this one.

    Args:
        folder: the unpacked artifact; taken over.
        card: what it says of itself.

    Raises:
        UserError: the script has not the functions that it takes, or its requirements cannot be installed.
        AlgorithmError: the script, or its model_fn, raised.
    """

    def __init__(self, folder: tempfile.TemporaryDirectory[str], card: Mapping[str, Any]) -> None:
        code = Path(folder.name) / "code"
        program = "inference.py" if (code / "inference.py").is_file() else str(card["script"])
        wanted = card.get("requirements")
        overlay = requirements.installed(code / str(wanted)) if wanted and (code / str(wanted)).is_file() else None
        self._lock = threading.Lock()
        self._process, self._requests, self._answers = _start(Path(folder.name), program, overlay)
        self._finalizer = weakref.finalize(self, _end, self._process, self._requests, self._answers, folder)
        try:
            self._received()
        except BaseException:
            self.close()
            raise

    def answer(self, body: bytes, content_type: str, accept: str) -> bytes:
        """Return the script's answer to one request."""
        return self._asked({"kind": "request", "content_type": content_type, "accept": accept}, body)

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return predictions of features in memory: the columns of a mapping, or one called `prediction`."""
        if isinstance(requests, Records):
            raise UserError("a script's model takes arrays of numbers, not records: use `phalanx predict` on a file of them")
        return from_npz(self._asked({"kind": "features"}, features_to_bytes(requests)))

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._finalizer()

    def _asked(self, head: dict[str, Any], body: bytes) -> bytes:
        with self._lock:
            if not self._finalizer.alive:
                raise UserError("the model was closed; load it again")
            with contextlib.suppress(OSError):  # it has ended: what it said last, or its exit code, is told below
                send(self._requests, head, body)
            return self._received()

    def _received(self) -> bytes:
        found = receive(self._answers)
        if found is None:
            code = self._process.wait()
            raise AlgorithmError(f"the process of the script's model ended with exit code {code}; what it printed says why")
        head, body = found
        if head["error"] is not None:
            raise from_record(head["error"])
        return body


def content_type_of(name: str) -> str:
    """Return the content type that a file's name says, for a script's input_fn."""
    return _TYPES.get(PurePosixPath(name.split("?")[0].lower()).suffix, "application/octet-stream")


def _start(folder: Path, program: str, overlay: str | None) -> tuple[subprocess.Popen[bytes], BinaryIO, BinaryIO]:
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    here = environment.snapshot()
    variables = {**here, "SM_MODEL_DIR": str(folder), "SAGEMAKER_PROGRAM": program, "PYTHONUNBUFFERED": "1"}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "phalanx.scripts.serving", str(folder), program, str(theirs_in), str(theirs_out)],
            pass_fds=[theirs_in, theirs_out],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what the script prints is no answer
            env={**variables, "PYTHONPATH": python_path(overlay)},
        )
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return process, os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")


def _end(
    process: subprocess.Popen[bytes], requests: BinaryIO, answers: BinaryIO, folder: tempfile.TemporaryDirectory[str]
) -> None:
    with contextlib.suppress(OSError):  # it has ended
        requests.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    answers.close()
    folder.cleanup()
