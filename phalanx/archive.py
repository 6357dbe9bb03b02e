"""Artifacts as `model.tar.gz`: packed so that equal contents are equal bytes, unpacked so that a hostile one does no harm."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from . import storage
from .errors import PlatformError, UserError

_CHUNK = 1 << 20
_LEVEL = 3  # of gzip: packs trees in half the time of its usual 6, to a twentieth more bytes; weights are the same either way
_MAX_MEMBERS = 100_000


def pack(folder: Path, archive: Path) -> None:
    """Write `folder` as a tar.gz whose bytes depend on the files' names and contents alone (entries sorted, times 0)."""
    partial = archive.with_name(f".{archive.name}.partial")
    with (
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = path.stat().st_size
            info.mode = 0o644
            with path.open("rb") as source:
                tar.addfile(info, source)
    os.replace(partial, archive)


def unpack(url: str, folder: Path, *, max_bytes: int = 1 << 38) -> list[str]:
    """Unpack the tar.gz at `url` into `folder`; return the names. Only plain files and folders, only below `folder`.

    Raises:
        UserError: no such archive, it is damaged, or it holds something an artifact never holds (absolute paths, `..`, links,
            devices, more than `max_bytes`).
    """
    names: list[str] = []
    total = 0
    with storage.open_reader(url) as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r:gz") as tar:
                for member in tar:
                    _refuse_unsafe(member, url)
                    total += member.size
                    if total > max_bytes or len(names) >= _MAX_MEMBERS:
                        raise UserError(
                            f"{storage.redact(url)} unpacks to more than {max_bytes} bytes or {_MAX_MEMBERS} files: refused"
                        )
                    target = folder / member.name
                    if member.isdir():
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    _copy_member(tar, member, target)
                    names.append(member.name)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            raise UserError(f"{storage.redact(url)} is not a readable tar.gz archive: {error}") from None
        except (UserError, PlatformError):
            raise
        except Exception as error:  # zlib.error, struct.error: whatever a hostile header sets off
            raise UserError(f"{storage.redact(url)} is damaged: {error}") from None
    return names


def _copy_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.TarError(f"{member.name} has no content")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
    if target.stat().st_size != member.size:
        raise tarfile.TarError(f"{member.name} is cut short")


def _refuse_unsafe(member: tarfile.TarInfo, url: str) -> None:
    path = PurePosixPath(member.name)
    if (
        not (member.isfile() or member.isdir())
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in member.name
        or "\0" in member.name
    ):
        raise UserError(
            f"{storage.redact(url)} holds '{member.name}', which is no plain file below the archive's own folder: refused"
        )
