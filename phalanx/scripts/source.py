"""The script's own folder: checked, and copied to where the job runs it.

It runs in a copy. What is trained is then what stood there when the job began, also after a restart; what goes into the
artifact is the same; nothing is written into the user's folder (compiled modules, files that a script leaves in its working
directory) unless a script names it; and it is what happens on a machine that is not the user's. Large files and folders
without code are linked instead: they are there, and cost nothing.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

MAX_FILES = 10_000  # of code
MAX_COPIED = 1 << 20  # bytes of a file that is copied, where it is no code
REQUIREMENTS = "requirements.txt"
_LOOKED_AT = 2_000  # entries of a folder, in the search for code
_CODE = (".py", ".whl")  # a requirement may name a wheel that lies beside the script
_NO_CODE = ("__pycache__", "node_modules", "site-packages")


@dataclass(frozen=True, slots=True)
class Source:
    """A script and the folder that goes with it."""

    folder: Path
    script: str  # relative to it
    requirements: str | None  # relative to it


def find(script: str, source_dir: str | None) -> Source:
    """Return where a script lies.

    Args:
        script: path of a Python file, below `source_dir` where that is given.
        source_dir: folder that the script needs; default: the script's own.

    Raises:
        UserError: there is none, or it is no Python.
    """
    if not isinstance(script, str) or not script.endswith(".py"):
        raise UserError(f"script={script!r} is not allowed: it must be the path of a Python file, as train.py")
    if source_dir is not None:
        folder = Path(source_dir).expanduser()
        if not folder.is_dir():
            raise UserError(f"source_dir={source_dir} is not a folder")
        given = Path(script).expanduser()
        path = given if given.is_absolute() or not (folder / given).exists() else folder / given
        if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"the script {script} does not lie in the source folder {source_dir}")
    else:
        path = Path(script).expanduser()
        folder = path.parent
    if not path.is_file():
        raise UserError(f"there is no script at {path}")
    _check_syntax(path)
    relative = path.resolve().relative_to(folder.resolve()).as_posix()
    wanted = folder / REQUIREMENTS if (folder / REQUIREMENTS).is_file() else path.parent / REQUIREMENTS
    requirements = wanted.resolve().relative_to(folder.resolve()).as_posix() if wanted.is_file() else None
    return Source(folder.resolve(), relative, requirements)


def copy(source: Source, target: Path, *, leave_out: Path | None) -> list[str]:
    """Copy a source folder to `target`, which must not exist; return the names of what was copied, not linked.

    Args:
        source: what to copy.
        target: where to.
        leave_out: a folder below it that has nothing to do with the code: the job's output.

    Raises:
        UserError: it holds too many files to be code.
    """
    target.mkdir(parents=True)
    names: list[str] = []
    for number, (path, linked) in enumerate(_entries(source.folder, None if leave_out is None else leave_out.resolve())):
        if number >= MAX_FILES:
            raise UserError(
                f"{source.folder} holds more than {MAX_FILES} files: put the script into a folder of its own, "
                "or name the folder that it needs with --source-dir"
            )
        name = path.relative_to(source.folder).as_posix()
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        if linked:
            copied.symlink_to(path)
        else:
            shutil.copyfile(path, copied)
            names.append(name)
    return names


def _check_syntax(path: Path) -> None:
    try:
        ast.parse(path.read_bytes(), filename=path.name)
    except SyntaxError as error:
        line = f" line {error.lineno}" if error.lineno else ""
        text = f": {error.text.strip()}" if error.text else ""
        raise UserError(f"{path}{line} is no Python: {error.msg}{text}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as Python: {error}") from None


def _entries(folder: Path, leave_out: Path | None) -> Iterator[tuple[Path, bool]]:
    """Yield every file or folder to take over, and whether it is linked."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _NO_CODE or path == leave_out or (path / "pyvenv.cfg").exists():
            continue
        if path.is_dir():
            if not path.is_symlink() and _has_code(path):
                yield from _entries(path, leave_out)
            else:
                yield path, True
        elif path.is_file():
            yield path, path.stat().st_size > MAX_COPIED and path.suffix not in _CODE


def _has_code(folder: Path) -> bool:
    looked = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NO_CODE]
        looked += len(names) + len(folders)
        if any(name.endswith(_CODE) for name in names):
            return True
        if looked > _LOOKED_AT:
            return False
    return False
