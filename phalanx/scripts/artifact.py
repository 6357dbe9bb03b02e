"""What a script leaves, made an artifact: its model folder, its code, and the card that says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import storage
from ..contracts import Json

CODE = "code"


def has_model(folder: Path) -> bool:
    """Return whether a script saved something."""
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def seal(folder: Path, code: Path, names: Sequence[str], *, card: str, head: Mapping[str, Json]) -> None:
    """Put the code and the card into a model folder; the card comes last.

    Files that the script put into `code/` itself stay as they are.

    Args:
        folder: SM_MODEL_DIR.
        code: the folder that the script ran in.
        names: the files in it that are code, not what the script left there.
        card: name of the card.
        head: what it says besides the files' hashes.
    """
    for name in names:
        target = folder / CODE / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(code / name, target)
    (folder / card).unlink(missing_ok=True)
    values = {**head, "files": storage.hashes(folder)}
    (folder / card).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
