"""Putting the newest checkpoint back that verifies: all ranks the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from ..contracts import Collective, Entry, Json, Stateful
from ..errors import PlatformError, UserError
from ..parallel.collective import together
from .arrays import parse
from .manifest import DamagedError, Manifest, digest, manifest_name, manifest_steps, read_manifest, write_manifest
from .patience import patiently
from .place import Place
from .reading import manifest_at, read_file, verify
from .state import Assembly, States


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A checkpoint that was not restored."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored and what was not; the same on all ranks."""

    step: int  # 0: nothing was
    attempt: int = 0
    world: int = 0  # ranks that saved it
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    passed_over: tuple[PassedOver, ...] = ()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How reading a checkpoint went on one rank."""

    states: dict[str, dict[str, Entry]] | None = None
    why: str | None = None  # it cannot be restored
    storage: bool = False  # and that is the storage's fault
    unclaimed: tuple[str, ...] = ()
    misfit: UserError | None = None  # it is whole, but of another kind of job


def restore(place: Place, world: Collective, job_id: str, parts: Mapping[str, Stateful]) -> Restored:
    """Collective. Put back the newest checkpoint of job `job_id` that verifies on all ranks.

    Rank 0 chooses by the manifests; every rank reads and verifies its files before any part is touched; what one rank finds
    damaged all pass over.

    Raises:
        UserError: the newest one that verifies is of another kind of job.
        PlatformError: the storage does not answer, and nothing that it holds could be read.
    """
    targets = {name: dict(part.state_dict()) for name, part in parts.items()}
    search = _Search(place, job_id)
    passed: list[PassedOver] = []
    storage_said: list[str] = []
    while True:
        found = world.broadcast(together(world, "finding the newest checkpoint", lambda: _found(search, world.rank)))
        for step, why, storage in found["passed_over"]:
            passed.append(PassedOver(step, why))
            storage_said += [f"step {step}: {why}"] if storage else []
        if found["manifest"] is None:
            if storage_said:
                raise PlatformError(f"no checkpoint at {place.url} could be read; {storage_said[0]}")
            return Restored(0, passed_over=tuple(passed))
        manifest = read_manifest(found["manifest"].encode(), found["step"])
        outcome = patiently(world, lambda m=manifest: _read(place, m, targets, world.rank, world.size))  # type: ignore[misc]
        together(world, f"fitting the checkpoint of step {manifest.step}", lambda o=outcome: _raise_misfit(o))  # type: ignore[misc]
        outcomes = world.all_gather([outcome.why, outcome.storage])
        bad = next((found for found in outcomes if found[0] is not None), None)
        if bad is None:
            break
        passed.append(PassedOver(manifest.step, str(bad[0])))
        storage_said += [f"step {manifest.step}: {bad[0]}"] if bad[1] else []
    _refuse_unclaimed(world, manifest, outcome)
    for name, part in parts.items():
        part.load_state_dict((outcome.states or {})[name])
    return Restored(manifest.step, manifest.attempt, manifest.world, manifest.metrics, tuple(passed))


@final
class _Search:
    """Rank 0's search, newest step first. It lists anew every time: others may commit and delete meanwhile."""

    def __init__(self, place: Place, job_id: str) -> None:
        self._place = place
        self._job_id = job_id
        self._tried: set[tuple[int, str]] = set()

    def next(self) -> dict[str, Json]:
        """Return the next manifest to try (None: there is no more), its step, and what was passed over on the way."""
        passed: list[list[Json]] = []
        while True:
            before = len(passed)
            sizes = self._place.sizes()
            for step in manifest_steps(sizes):
                try:
                    manifest = manifest_at(self._place, step, sizes[manifest_name(step)])
                    text = write_manifest(manifest)
                    if not self._is_new(step, digest(text)):
                        continue
                    if manifest.job != self._job_id:
                        raise DamagedError(f"it belongs to the job '{manifest.job}', not to '{self._job_id}'")
                    verify(self._place, manifest, sizes, content=False)
                except DamagedError as error:
                    passed += [[step, str(error), False]] if self._is_new(step, str(error)) else []
                except PlatformError as error:
                    passed += [[step, str(error), True]] if self._is_new(step, str(error)) else []
                else:
                    return {"manifest": text.decode(), "step": step, "passed_over": passed}
            if len(passed) == before:
                return {"manifest": None, "step": 0, "passed_over": passed}

    def _is_new(self, step: int, what: str) -> bool:
        is_new = (step, what) not in self._tried
        self._tried.add((step, what))
        return is_new


def _found(search: _Search, rank: int) -> dict[str, Json]:
    return search.next() if rank == 0 else {}


def _read(place: Place, manifest: Manifest, targets: States, rank: int, size: int) -> _Outcome:
    """Read what this rank needs, and verify besides its share of the files that perhaps nobody needs."""
    try:
        assembly = Assembly(manifest, targets, rank)
        savers = {entry.file: entry.rank for entry in manifest.entries}
        for file in manifest.files:
            if file.name not in assembly.files and savers.get(file.name, 0) % size != rank:
                continue
            content = read_file(place, manifest.step, file)
            if file.name in assembly.files:
                assembly.add(file.name, parse(content) if file.name.endswith(".safetensors") else None, content)
        return _Outcome(assembly.finish(), unclaimed=tuple(sorted(assembly.unclaimed)))
    except UserError as error:
        return _Outcome(misfit=error)
    except DamagedError as error:
        return _Outcome(why=str(error))
    except PlatformError as error:
        return _Outcome(why=str(error), storage=True)


def _raise_misfit(outcome: _Outcome) -> None:
    if outcome.misfit is not None:
        raise outcome.misfit


def _refuse_unclaimed(world: Collective, manifest: Manifest, outcome: _Outcome) -> None:
    """Raise where a sharded value has a place on no rank: leaving it out would be another model."""
    nobody = set.intersection(*(set(names) for names in world.all_gather(list(outcome.unclaimed))))
    if nobody:
        raise UserError(
            f"the checkpoint of step {manifest.step} holds {', '.join(sorted(nobody)[:3])}, for which this job has no place: "
            "it was saved by another kind of job; give this one its own place for checkpoints"
        )
