"""Folders of this machine for the nodes of a cluster, through Ray's runtime_env, which leaves out what .gitignore does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cluster import Cluster
from ..errors import UserError
from ..scratch import Scratch

_OWN = "phalanx"
_LEFT_OUT = (".git", ".venv", "venv", "__pycache__")


def runtime_env(cluster: Cluster, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the runtime_env of a cluster's workers, {} where they get nothing; says what is shipped.

    Raises:
        UserError: a folder is not there, or two of them would be the working directory.
    """
    found: dict[str, Any] = {}
    modules: list[str] = []
    for text in cluster.ship:
        folder = Path(__file__).parents[1] if text == _OWN else Path(text).expanduser()
        if not folder.is_dir():
            raise UserError(f"cluster.ship: there is no folder at {text}")
        folder = folder.resolve()
        if (folder / "__init__.py").exists():
            modules.append(str(folder))
        elif "working_dir" in found:
            raise UserError(
                f"cluster.ship: {found['working_dir']} and {folder} are no packages, and there is one working directory"
            )
        else:
            found["working_dir"] = str(folder)
        files, size = _measure(folder)
        tell(f"ships {folder.name}: {files} files, {size:,} bytes")
    if modules:
        found["py_modules"] = modules
    found = _uploaded(found)
    if cluster.packages:
        found["pip"] = list(cluster.packages)
        tell(f"the nodes install {', '.join(cluster.packages)}")
    return found


def _uploaded(given: dict[str, Any]) -> dict[str, Any]:
    """Return a runtime_env whose folders are in the cluster; Ray itself uploads only what is given to `ray.init`."""
    if not given:
        return {}
    from ray._private.runtime_env.py_modules import upload_py_modules_if_needed
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    found: dict[str, Any] = {**given, "excludes": list(_LEFT_OUT)}
    with Scratch("ship") as scratch:
        for upload in (upload_py_modules_if_needed, upload_working_dir_if_needed):
            found = upload(found, include_gitignore=True, scratch_dir=str(scratch), logger=logging.getLogger(__name__))
    return {name: value for name, value in found.items() if name != "excludes"}


def _measure(folder: Path) -> tuple[int, int]:
    """Return the files that Ray will pack, and their bytes; by Ray's own walk, so that it is true."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: list[int] = []
    left_out = [_get_excludes(folder, list(_LEFT_OUT))]
    _dir_travel(
        folder, left_out, lambda path: sizes.append(path.stat().st_size) if path.is_file() else None, include_gitignore=True
    )
    return len(sizes), sum(sizes)
