"""Reading and verifying: one file, one checkpoint, the list of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..contracts import Array
from ..errors import PlatformError, UserError
from .manifest import DamagedError, FileRecord, Manifest, digest, manifest_name, manifest_steps, read_manifest
from .place import Place


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One line of a list of checkpoints."""

    step: int
    time: float | None  # s since 1970 by the saver's clock; None where the manifest cannot be read
    bytes: int  # of all its files but the manifest
    verified: bool
    why: str  # it is not verified; "" where it is
    job: str = ""
    attempt: int = 0
    world: int = 0  # ranks that saved it
    metrics: Mapping[str, float | None] = field(default_factory=dict)


def read_file(place: Place, step: int, file: FileRecord) -> Array:
    """Return the verified bytes of a file.

    Raises:
        DamagedError: it is not what was written.
        PlatformError: the storage does not answer.
    """
    try:
        data = place.read(f"{step}/{file.name}", file.size)
    except UserError as error:
        raise DamagedError(error.message) from None
    if digest(data.data) != file.xxh3:
        raise DamagedError(f"{file.name} is damaged: it does not have the hash that the manifest says")
    return data


def manifest_at(place: Place, step: int, size: int) -> Manifest:
    """Return the manifest of a step.

    Raises:
        DamagedError: it is not what was written.
        PlatformError: the storage does not answer.
    """
    try:
        data = place.read(manifest_name(step), size)
    except UserError as error:
        raise DamagedError(error.message) from None
    return read_manifest(data.tobytes(), step)


def verify(place: Place, manifest: Manifest, sizes: Mapping[str, int], *, content: bool) -> None:
    """Check that a checkpoint's files are there; with `content` that they are what was written.

    Raises:
        DamagedError: they are not.
        PlatformError: the storage does not answer.
    """
    for file in manifest.files:
        found = sizes.get(f"{manifest.step}/{file.name}")
        if found is None:
            raise DamagedError(f"{file.name} is missing")
        if found != file.size:
            raise DamagedError(f"{file.name} has {found} bytes, not {file.size}")
    if content:
        for file in manifest.files:
            read_file(place, manifest.step, file)


def list_checkpoints(place: Place, *, content: bool = True) -> list[CheckpointInfo]:
    """Return all checkpoints, newest step first.

    Args:
        place: where.
        content: read and hash every file; else only names and sizes are checked.

    Raises:
        PlatformError: the list of files cannot be had.
    """
    sizes = place.sizes()
    return [_info(place, step, sizes, content) for step in manifest_steps(sizes)]


def _info(place: Place, step: int, sizes: Mapping[str, int], content: bool) -> CheckpointInfo:
    try:
        manifest = manifest_at(place, step, sizes[manifest_name(step)])
    except (DamagedError, PlatformError) as error:
        there = sum(size for name, size in sizes.items() if name.startswith(f"{step}/"))
        return CheckpointInfo(step, None, there, False, str(error))
    why = ""
    try:
        verify(place, manifest, sizes, content=content)
    except (DamagedError, PlatformError) as error:
        why = str(error)
    return CheckpointInfo(
        step, manifest.time, manifest.bytes, not why, why, manifest.job, manifest.attempt, manifest.world, manifest.metrics
    )
