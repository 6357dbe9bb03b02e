"""The fence: which attempt of a job may commit checkpoints, so that workers which were cut off and live on can commit none.

    URL/fence/JOB.json      {"run": …, "attempt": N}: written by the launcher's side before it starts attempt N of a run

Rank 0 looks before it commits, commits with a put that never takes the place of a newer attempt's manifest, and looks again: a
commit that was overtaken is taken back. (What is left of one whose worker dies in between is whole: it verifies as any other.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .. import storage
from ..errors import PlatformError, UserError
from .manifest import DamagedError, Manifest, manifest_name, read_manifest, write_manifest
from .place import Place


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets a worker commit."""

    run: str  # one call of `TrainingJob.run()`
    attempt: int


def fence_name(job: str) -> str:
    """Return where a job's fence stands, below the folder of its checkpoints."""
    return f"fence/{job}.json"


def put_fence(url: str, job: str, given: Pass) -> None:
    """Let only this attempt commit, from now on.

    Raises:
        PlatformError: the storage does not answer.
    """
    text = json.dumps({"run": given.run, "attempt": given.attempt})
    storage.put_bytes(storage.join(url, fence_name(job)), text.encode())


def check(place: Place, job: str, mine: Pass) -> None:
    """Raise PlatformError where another attempt has taken over."""
    name = fence_name(job)
    size = place.sizes("fence").get(name)
    if size is None:
        return
    try:
        found = json.loads(place.read(name, size).tobytes())
        there = Pass(str(found["run"]), int(found["attempt"]))
    except (UserError, ValueError, KeyError, TypeError):  # it is being replaced: whoever does so is newer
        raise PlatformError("another attempt of the job is taking over: nothing is committed here") from None
    if there != mine:
        raise PlatformError(
            f"attempt {there.attempt} of the job has taken over from attempt {mine.attempt}: nothing is committed here"
        )


def commit(place: Place, manifest: Manifest, mine: Pass) -> None:
    """Commit a checkpoint unless another attempt has taken over, before or meanwhile.

    Raises:
        PlatformError: it has; or the storage does not answer.
    """
    name, data = manifest_name(manifest.step), write_manifest(manifest)
    check(place, manifest.job, mine)
    if not place.put_new(name, data):
        there = _at(place, manifest.step)
        if there is not None and there.job == manifest.job and there.attempt > mine.attempt:
            raise PlatformError(f"attempt {there.attempt} of the job has committed step {manifest.step} already")
        place.put(name, data)
    try:
        check(place, manifest.job, mine)
    except PlatformError:
        there = _at(place, manifest.step)
        if there is not None and there.files == manifest.files and there.attempt == manifest.attempt:
            place.remove([name])
        raise


def _at(place: Place, step: int) -> Manifest | None:
    name = manifest_name(step)
    size = place.sizes(str(step)).get(name)
    try:
        return None if size is None else read_manifest(place.read(name, size).tobytes(), step)
    except (DamagedError, UserError):
        return None
