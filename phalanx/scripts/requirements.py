"""A script's requirements.txt, installed into a folder of its own beside the running environment, never into it.

What the environment has already is used; only what is missing is installed, with versions that fit. The folder is kept and used
again for the same file, Python and environment.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import environment, storage
from ..errors import UserError

_KEPT = ("torch", "torchvision", "torchaudio", "numpy", "phalanx-train", "deepspeed", "horovod", "ray")  # never replaced
_LAST_LINES = 6
_OFFLINE = ("NewConnectionError", "Temporary failure in name resolution", "Network is unreachable", "ConnectTimeoutError")


def installed(file: Path) -> str | None:
    """Return the folder that holds what `file` asks for beyond the running environment; None where nothing is missing.

    Raises:
        UserError: pip cannot install it; with its last words.
    """
    folder = _cache() / _key(file)
    if not folder.exists():
        _install(file, folder)
    return str(folder) if any(folder.iterdir()) else None


def _install(file: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="phalanx-pip-", dir=folder.parent) as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in _constraints()), encoding="utf-8")
        report, target = Path(scratch) / "report.json", Path(scratch) / "target"
        target.mkdir()
        _pip(file, ["--dry-run", "--report", str(report), "-r", file.name, "-c", str(constraints)])
        missing = _missing(report)
        if missing:
            _pip(file, ["--target", str(target), "--no-deps", *_sources(file), *missing])
            shutil.rmtree(target / "bin", ignore_errors=True)  # its scripts would name a folder that is about to move
        try:
            target.rename(folder)
        except OSError:  # another job was faster
            if not folder.exists():
                raise


def _missing(report: Path) -> list[str]:
    """Return what pip would install, each at the exact place that it found."""
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [f"{item['metadata']['name']} @ {_place(item['download_info'])}" for item in found]


def _place(found: Mapping[str, Any]) -> str:
    """Return where pip found a package, as it takes it again."""
    url, vcs = str(found["url"]), found.get("vcs_info")
    if vcs is not None:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"{url}#subdirectory={found['subdirectory']}" if "subdirectory" in found else url


def _sources(file: Path) -> list[str]:
    """Return the options of a requirements file that say where packages come from."""
    wanted = ("--index-url", "-i ", "--extra-index-url", "--find-links", "-f ", "--no-index", "--trusted-host")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [word for line in lines if line.startswith(wanted) for word in line.replace("=", " ", 1).split(maxsplit=1)]


def _pip(file: Path, arguments: Sequence[str]) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "--retries",
        "2",
        *arguments,
    ]
    variables = {k: v for k, v in environment.snapshot().items() if k not in ("PYTHONPATH", "PIP_TARGET", "PIP_USER")}
    done = subprocess.run(
        command, cwd=file.parent, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    sys.stderr.write(storage.redact(done.stdout))
    if done.returncode == 0:
        return
    lines = [line.strip() for line in storage.redact(done.stderr or done.stdout).splitlines() if line.strip()]
    said = "\n".join(lines[-_LAST_LINES:])
    sys.stderr.write(storage.redact(done.stderr))
    if "No module named pip" in said:
        raise UserError(
            f"{file.name} cannot be installed: this Python ({sys.executable}) has no pip; add it, or install by hand"
        )
    if any(word in done.stderr for word in _OFFLINE):
        raise UserError(
            f"{file.name} cannot be installed: the package index cannot be reached from here. Install what it names "
            f"beforehand, or put packages beside the script and name them with --find-links and --no-index\n{said}"
        )
    raise UserError(
        f"{file.name} cannot be installed; {', '.join(_constraints()[:2])} and others of the running environment stay as they "
        f"are. pip said:\n{said}"
    )


def _constraints() -> list[str]:
    """Return the versions that stay."""
    kept = []
    for name in _KEPT:
        try:
            kept.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return kept


def _key(file: Path) -> str:
    """Return a name for what `file` comes to in this environment."""
    here = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    digest = hashlib.sha256(file.read_bytes())
    for text in (platform.python_version(), platform.machine(), sys.prefix, *here):
        digest.update(f"\0{text}".encode())
    for path in _local_files(file):
        digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _local_files(file: Path) -> list[Path]:
    """Return all files of the packages and folders of this machine that a requirements file names."""
    found: set[Path] = set()
    for line in file.read_text(encoding="utf-8").splitlines():
        for word in line.replace("=", " ").split():
            path = file.parent / word.removeprefix("file://")
            if ("/" in word or word.startswith(".")) and path.exists():
                found |= {p for p in path.rglob("*") if p.is_file()} if path.is_dir() else {path}
    return sorted(p for p in found if not {"build", "__pycache__"} & set(p.parts) and ".egg-info" not in str(p))


def _cache() -> Path:
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "phalanx" / "requirements"
