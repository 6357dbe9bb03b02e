"""A script in a process forked from the warm server, which has loaded the libraries that the script's first attempt had loaded.

A script's first attempt gets a fresh interpreter. One that starts again after a loss would spend seconds on loading the same
libraries: here they are there already, and the process makes itself what `python script.py` would be: main module, arguments,
variables, import path, signals, random generators, and the order of its end. Where that cannot be, it becomes a fresh one.
"""

from __future__ import annotations

import atexit
import builtins
import importlib.machinery
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from .. import environment
from ..contracts import WorkerContext
from ..launch.child import Fresh
from .plan import Folders
from .start import Ready, ready

TARGET = f"{__name__}:run"
_READ_AT_START = ("CUDA", "GLIBC", "GOMP", "KMP", "LD_", "MALLOC", "MKL", "NUMBA", "OMP", "OPENBLAS", "PYTHON", "TORCH")


def may_fork(variables: Sequence[str], requirements: str | None) -> bool:
    """Return whether a script may be run so: not with packages or variables of its own that libraries read while they load."""
    return requirements is None and not any(name.startswith(_READ_AT_START) for name in variables)


def run(context: WorkerContext) -> None:
    """Do in this process what `phalanx.scripts.start` does in a fresh one.

    Raises:
        Fresh: only a fresh one will do.
        SystemExit: the script has ended.
    """
    scratch = Path(str(context.payload))
    if _hides(Folders(scratch, context.attempt).code):
        raise Fresh
    made = ready(scratch)
    environment.replace(made.variables)
    sys.path[:] = _import_path(made)
    sys.argv[:] = [made.plan.script, *made.arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    _run_as_main(made.folders.code / made.plan.script)


def _hides(code: Path) -> bool:
    """Return whether a module beside the script has the name of another that is loaded already."""
    return any((path.stem if path.suffix == ".py" else path.name) in sys.modules for path in code.iterdir())


def _import_path(made: Ready) -> list[str]:
    """Return what a fresh interpreter would look through."""
    own: list[str] = json.loads(made.folders.import_path.read_text(encoding="utf-8"))
    given = [folder for folder in made.variables["PYTHONPATH"].split(os.pathsep) if folder]
    return [str((made.folders.code / made.plan.script).parent), *given, *own]


def _run_as_main(script: Path) -> None:
    """Run a file as `__main__`, and end as an interpreter does: by SystemExit, after threads and exit handlers."""
    main = ModuleType("__main__")
    vars(main).update(
        __file__=str(script),
        __builtins__=builtins,
        __loader__=importlib.machinery.SourceFileLoader("__main__", str(script)),
        __cached__=None,
    )
    sys.modules["__main__"] = main
    code: Any = 0
    try:
        exec(compile(script.read_bytes(), script, "exec"), vars(main))
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without this frame
        sys.excepthook(type(error), error, error.__traceback__)
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    cast("Callable[[], None]", vars(threading)["_shutdown"])()  # waits for threads, ends pools of them
    atexit._run_exitfuncs()
    raise SystemExit(code)
