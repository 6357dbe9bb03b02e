"""A folder of this machine on another one: packed, unpacked there, and what was made in it brought back.

What travels is a tar file. Links are followed when a folder is packed, for what they point to is not there; names that lead out
of the folder are refused when it is unpacked.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from ..errors import PlatformError, UserError

MOST_BYTES = 512 << 20  # of what goes out: code, not data
MOST_AT_ONCE = 64 << 20  # of what comes back while the job runs


@dataclass(frozen=True, slots=True)
class Parcel:
    """A folder, packed."""

    data: bytes
    files: int
    size: int  # bytes of the files


def pack(folder: Path, *, leave_out: Sequence[str] = ()) -> Parcel:
    """Pack a folder; links to what git ignores where it lies stay behind.

    Args:
        folder: what to pack.
        leave_out: names right below it that stay.

    Raises:
        UserError: it is too large to be code.
    """
    out = io.BytesIO()
    files = size = 0
    ignored = _ignored([path for path in folder.rglob("*") if path.is_symlink()])
    with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
        for path in _below(folder, leave_out):
            if any(path == link or link in path.parents for link in ignored):
                continue
            if path.is_file():
                files, size = files + 1, size + path.stat().st_size
                if size > MOST_BYTES:
                    raise UserError(
                        f"more than {MOST_BYTES >> 20} MiB lie beside the script ({path.relative_to(folder)} and others): code "
                        "travels to nodes that do not see this machine's files, data does not: put it where all can read it: "
                        "s3://…"
                    )
            tar.add(path, arcname=path.relative_to(folder).as_posix(), recursive=False)
    return Parcel(out.getvalue(), files, size)


def unpack(data: bytes | BinaryIO, folder: Path) -> None:
    """Unpack what was packed into a folder, which is made for this user alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise PlatformError(f"files that came from another machine cannot be unpacked into {folder}: {error}") from error


def pack_results(folder: Path, names: Iterable[str], target: BinaryIO) -> int:
    """Pack what is there of the files and folders `names` below `folder` into a file; return how many files."""
    files = 0
    with tarfile.open(fileobj=target, mode="w", dereference=True) as tar:
        for name in names:
            root = folder / name
            for path in [root, *_below(root, ())] if root.is_dir() else [root] if root.is_file() else []:
                if path.is_file() or path.is_dir():
                    files += path.is_file()
                    tar.add(path, arcname=path.relative_to(folder).as_posix(), recursive=False)
    return files


@final
class Mirror:
    """What changes in some folders of this machine, to be done to their likes on another.

    Args:
        folder: they are below.
        names: of the folders.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names
        self._seen = self._marks()

    def changes(self) -> list[tuple[str, bytes]]:
        """Return files that are new or changed since the last call, by relative names; of many, a part, and the rest later.

        One that is being written comes again when it has changed again.
        """
        found: list[tuple[str, bytes]] = []
        size = 0
        for name, mark in self._marks().items():
            if self._seen.get(name) == mark or (found and size + mark[0] > MOST_AT_ONCE):
                continue
            with contextlib.suppress(FileNotFoundError):
                found.append((name, (self._folder / name).read_bytes()))
                size += mark[0]
                self._seen[name] = mark
        return found

    def _marks(self) -> dict[str, tuple[int, int]]:
        marks = {}
        for name in self._names:
            for path in sorted(self._folder.joinpath(name).rglob("*")):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():
                        about = path.stat()
                        marks[path.relative_to(self._folder).as_posix()] = (about.st_size, about.st_mtime_ns)
        return marks


def put_mirrored(folder: Path, changes: Iterable[tuple[str, bytes]]) -> None:
    """Write what a `Mirror` saw change below a folder here; readers see the old file or the whole new one."""
    for name, data in changes:
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise PlatformError(f"a node sent a file with the name {name}, which leads out of the job's folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(data)
        partial.replace(target)


def _ignored(links: Sequence[Path]) -> set[Path]:
    """Return the links to files and folders that git ignores; none where there is no git."""
    found: set[Path] = set()
    for link in links:
        target = link.resolve()
        with contextlib.suppress(OSError):
            asked = ["git", "-C", str(target.parent), "check-ignore", "-q", str(target)]
            if subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0:
                found.add(link)
    return found


def remove(folder: Path) -> None:
    """Remove an unpacked folder, and the one it was in where that is left empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def _below(folder: Path, leave_out: Sequence[str]) -> Iterable[Path]:
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        folders[:] = sorted(name for name in folders if here != folder or name not in leave_out)
        yield from (here / name for name in folders)
        yield from (here / name for name in sorted(names) if (here / name).exists())
