"""Deleting old checkpoints so that no reader ever gets a wrong one, and the newest that verifies always stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import PlatformError
from .manifest import DamagedError, Manifest, manifest_name, manifest_steps
from .place import Place
from .policy import Kept, Retention, kept
from .reading import manifest_at, verify


def prune(place: Place, job_id: str, retention: Retention) -> list[int]:
    """Delete what `retention` does not keep; return the steps that had a manifest, newest first.

    The newest checkpoint whose files all have their hashes is looked for first; it and everything newer stay. Of the older
    ones those of this job that are not kept go, whole or damaged, and what saves left that were never committed. The
    manifest goes before its files: a reader that has it already finds files missing and falls back to a newer list.

    Raises:
        PlatformError: the storage does not answer.
    """
    sizes = place.sizes()
    manifests = _readable(place, sizes, job_id)
    whole = [step for step, manifest in manifests.items() if _is_whole(place, manifest, sizes, content=False)]
    if not _doomed(manifests, whole, sizes, retention, max(whole, default=0)):
        return []  # before a whole checkpoint is read back for nothing
    anchor = next(
        (step for step in sorted(whole, reverse=True) if _is_whole(place, manifests[step], sizes, content=True)), None
    )
    if anchor is None:
        return []
    doomed = _doomed(manifests, [step for step in whole if step <= anchor], sizes, retention, anchor)
    for step in doomed:
        files = sorted(name for name in sizes if name.startswith(f"{step}/") and name != manifest_name(step))
        place.remove([manifest_name(step)])
        place.remove(files)
    return [step for step in doomed if step in manifests]


def _readable(place: Place, sizes: Mapping[str, int], job_id: str) -> dict[int, Manifest]:
    found = {}
    for step in manifest_steps(sizes):
        try:
            manifest = manifest_at(place, step, sizes[manifest_name(step)])
        except DamagedError:
            continue
        if manifest.job == job_id:
            found[step] = manifest
    return found


def _is_whole(place: Place, manifest: Manifest, sizes: Mapping[str, int], *, content: bool) -> bool:
    try:
        verify(place, manifest, sizes, content=content)
    except (DamagedError, PlatformError):
        return False
    return True


def _doomed(
    manifests: Mapping[int, Manifest], whole: Sequence[int], sizes: Mapping[str, int], retention: Retention, anchor: int
) -> list[int]:
    """Return the steps to delete, newest first, all older than `anchor`."""
    stays = kept([Kept(step, manifests[step].metrics) for step in whole], retention) | {anchor}
    committed = set(manifest_steps(sizes))
    steps = {int(name.split("/", 1)[0]) for name in sizes if "/" in name and name.split("/", 1)[0].isdecimal()}
    # a manifest that cannot be read, or is another job's, is not ours to delete
    ours = {step for step in steps if step in manifests or step not in committed}
    return sorted((step for step in ours if step < anchor and step not in stays), reverse=True)
