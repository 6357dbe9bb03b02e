"""The first thing that a script's worker runs: folders, channels and requirements once a machine, then the script itself.

    python -P -m phalanx.scripts.start SCRATCH

The process becomes the script's: a fresh interpreter with the script's arguments and variables, in the code folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .. import environment, storage
from ..contracts import Json
from ..errors import PhalanxError, UserError, error_of_kind, from_record, to_record
from . import channels, requirements
from .paths import python_path
from .plan import Folders, Plan
from .variables import decoded, to_arguments, variables, write_config

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Ready:
    """A script's worker, ready to run the script."""

    plan: Plan
    folders: Folders
    arguments: list[str]
    variables: dict[str, str]  # the whole environment


def main(arguments: list[str]) -> int:
    """Return an exit code only where the script cannot be started."""
    try:
        made = ready(Path(arguments[0]))
        os.execve(sys.executable, [sys.executable, "-u", made.plan.script, *made.arguments], made.variables)
    except Exception as error:
        record = to_record(error)
        record["message"], record["details"] = storage.redact(record["message"]), storage.redact(record["details"])
        _send({"kind": "failure", "error": record})
        if not isinstance(error, UserError):
            sys.stderr.write(record["details"])
        return from_record(record).exit_code


def ready(scratch: Path) -> Ready:
    """Make everything ready for the script of this worker, whose place is in the environment.

    Raises:
        PhalanxError: the channels cannot be laid out, the requirements cannot be installed.
    """
    place = environment.placement() or environment.Placement(0, 1, 0, "127.0.0.1", 0)
    folders = Folders(scratch, int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0))
    plan = replace(Plan.read(folders.plan), workers=place.size)  # an elastic group may be smaller than was planned
    given = {name: decoded(value) for name, value in plan.hyperparameters.items()}
    if place.rank == 0:
        _send({"kind": "phase", "phase": "Downloading"})
    overlay = _prepared(plan, folders, given, is_first=place.local_rank == 0)
    if place.rank == 0:
        _send({"kind": "phase", "phase": "Training"})
    line = [*to_arguments(plan.hyperparameters), *plan.arguments]
    return Ready(plan, folders, line, _variables(plan, folders, given, place, overlay))


def _prepared(plan: Plan, folders: Folders, given: Mapping[str, Json], *, is_first: bool) -> str | None:
    """Make everything ready, or wait for the first rank of the machine to do so; return the folder of the requirements."""
    told = folders.own / "ready.json"
    if not is_first:
        while not told.exists():
            time.sleep(_POLL_SECONDS)
        answer = json.loads(told.read_text(encoding="utf-8"))
        if answer["error"] is not None:
            raise error_of_kind(answer["error"]["kind"], answer["error"]["message"])
        return None if answer["overlay"] is None else str(answer["overlay"])
    overlay: str | None = None
    try:
        folders.make()
        Path(plan.checkpoints).mkdir(parents=True, exist_ok=True)
        if _laid_out_for(folders) != plan.workers:  # by an attempt before
            channels.lay_out(plan, folders)
            write_config(plan, folders, given)
            _note_import_path(folders)
        if plan.requirements is not None:
            overlay = requirements.installed(folders.code / plan.requirements)
    except PhalanxError as error:
        _tell(told, {"overlay": None, "error": {"kind": error.kind, "message": error.message}})
        raise
    _tell(told, {"overlay": overlay, "error": None})
    return overlay


def _laid_out_for(folders: Folders) -> int | None:
    """Return for how many workers an attempt before has laid the channels out, None where none has."""
    try:
        json.loads((folders.config / "channels.json").read_text(encoding="utf-8"))  # written last
        return len(json.loads((folders.config / "resourceconfig.json").read_text(encoding="utf-8"))["hosts"])
    except (OSError, ValueError):
        return None


def _tell(path: Path, answer: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(".ready.partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.rename(path)


def _note_import_path(folders: Folders) -> None:
    """Write down where this interpreter, a fresh one, looks for modules."""
    given = (environment.get("PYTHONPATH") or "").split(os.pathsep)
    folders.import_path.write_text(json.dumps([path for path in sys.path if path not in given]), encoding="utf-8")


def _variables(
    plan: Plan, folders: Folders, given: Mapping[str, Json], place: environment.Placement, overlay: str | None
) -> dict[str, str]:
    """Return the script's whole environment."""
    here = environment.snapshot()
    found = variables(plan, folders, place.rank, given, _gpus(here, plan.workers))
    found |= environment.script_variables(seed=plan.seed, strategy=plan.strategy, checkpoints=plan.checkpoints)
    found["PYTHONPATH"] = python_path(str(folders.code), overlay)
    mine = {name: here[name] for name in plan.variables if name in here and name != "PYTHONPATH"}
    return {**here, **found, **mine}


def _gpus(here: Mapping[str, str], workers: int) -> int:
    """Return how many GPUs a worker may use."""
    count = len(environment.gpus(here))
    return max(1, count // workers) if count else 0


def _send(event: Mapping[str, Json]) -> None:
    environment.send_event({"at": time.time(), **event})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
