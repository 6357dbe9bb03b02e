"""A folder of this machine on another one: packed, unpacked there, and what was made in it brought back.

What travels is a tar file. Links are followed when a folder is packed, for what they point to is not there; names that lead out
of the folder are refused when it is unpacked.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import PlatformError, UserError

MOST_BYTES = 512 << 20  # of what goes out: code, not data


@dataclass(frozen=True, slots=True)
class Parcel:
    """A folder, packed."""

    data: bytes
    files: int
    size: int  # bytes of the files


def pack(folder: Path, *, leave_out: Sequence[str] = ()) -> Parcel:
    """Pack a folder whole.

    Args:
        folder: what to pack.
        leave_out: names right below it that stay.

    Raises:
        UserError: it is too large to be code.
    """
    out = io.BytesIO()
    files = size = 0
    with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
        for path in _below(folder, leave_out):
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
