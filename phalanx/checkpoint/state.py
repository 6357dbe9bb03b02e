"""A rank's state as files, and files as state again: on the same number of ranks or on another."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from ..contracts import Array, Entry, Json, State
from ..errors import AlgorithmError, UserError
from .arrays import code_of, fill, layout
from .manifest import DamagedError, EntryRecord, Manifest

States = Mapping[str, State]  # by part
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset, extent


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of one rank's state, laid out as the files that it will be."""

    files: Mapping[str, memoryview]  # by name within the save's folder
    entries: tuple[EntryRecord, ...]  # their files are relative to the save's folder

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(len(data) for data in self.files.values())


@final
class Copier:
    """Copies states into memory of its own, which the next copy uses again: fresh pages would cost more than the copying."""

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def copy(self, states: States, rank: int) -> Snapshot:
        """Return a copy of what rank `rank` saves of `states`; it ends the life of the copy before.

        Raises:
            AlgorithmError: a state holds what no checkpoint can.
        """
        arrays: dict[str, Array] = {}
        values: dict[str, dict[str, Json]] = {}
        files: dict[str, memoryview] = {}
        entries: list[EntryRecord] = []
        for part, name, entry in _entries(states):
            where = f"{part}/{name}"
            if entry.scope == "global" and rank != 0:
                continue  # the same on every rank: saved once
            value = np.asarray(entry.value) if isinstance(entry.value, np.generic) else entry.value
            if isinstance(value, np.ndarray):
                arrays[where] = value
                entries.append(_array_entry(part, name, entry, value, rank))
                continue
            if entry.scope == "sharded":
                raise AlgorithmError(f"'{where}' is sharded but no array: {type(value).__name__}")
            if isinstance(value, (bytes, bytearray, memoryview)):
                file = f"rank-{rank}-{len(files)}.bin"
                files[file] = memoryview(bytes(value))
                entries.append(EntryRecord(part, name, entry.scope, "bytes", rank, file))
                continue
            values.setdefault(part, {})[name] = checked_json(value, where)
            entries.append(EntryRecord(part, name, entry.scope, "json", rank, f"rank-{rank}.json"))
        if values:
            files[f"rank-{rank}.json"] = memoryview(json.dumps(values, separators=(",", ":")).encode())
        if arrays:
            files[f"rank-{rank}.safetensors"] = self._copy_arrays(arrays)
        return Snapshot(files, tuple(entries))

    def _copy_arrays(self, arrays: Mapping[str, Array]) -> memoryview:
        plan = layout(arrays)
        if len(self._memory) < plan.size:
            self._memory = np.empty(0, dtype=np.uint8)  # give back before taking: never both
            self._memory = np.empty(plan.size, dtype=np.uint8)
        target = self._memory[: plan.size]
        fill(target, plan, arrays)
        return target.data


def checked_json(value: Json, where: str) -> Json:
    """Return `value` if it comes back from JSON as it is (tuples as lists).

    Raises:
        AlgorithmError: it would not: a key that is no text, an object.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        for item in value:
            checked_json(item, where)
        return value
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise AlgorithmError(f"'{where}' has the key {key!r}: keys of JSON values are text")
            checked_json(item, where)
        return value
    raise AlgorithmError(
        f"'{where}' holds a {type(value).__name__}, which no checkpoint holds; allowed: numpy arrays, JSON values, bytes"
    )


def _entries(states: States) -> Iterable[tuple[str, str, Entry]]:
    for part, state in states.items():
        if not part or "/" in part:
            raise AlgorithmError(f"'{part}' cannot be the name of a part: give one without '/'")
        for name, entry in state.items():
            yield part, name, entry


def _array_entry(part: str, name: str, entry: Entry, value: Array, rank: int) -> EntryRecord:
    code = code_of(f"{part}/{name}", value)
    file = f"rank-{rank}.safetensors"
    if entry.scope != "sharded":
        return EntryRecord(part, name, entry.scope, "array", rank, file, code, value.shape)
    offset, extent, shape = entry.offset, value.shape, entry.shape
    if offset is None or shape is None or not len(offset) == len(shape) == len(extent):
        raise AlgorithmError(f"'{part}/{name}' is sharded: it needs the whole shape and an offset of {value.ndim} numbers each")
    if any(start < 0 or start + count > whole for start, count, whole in zip(offset, extent, shape, strict=True)):
        raise AlgorithmError(f"'{part}/{name}': a piece of {extent} at {offset} does not lie in {shape}")
    plain = tuple(int(n) for n in shape), tuple(int(n) for n in offset)
    return EntryRecord(part, name, "sharded", "array", rank, file, code, extent, *plain)


@dataclass(slots=True)
class _Want:
    """One array that is put together of pieces."""

    box: Box
    scope: str
    shape: tuple[int, ...]
    value: Array | None = None
    covered: set[Box] = field(default_factory=set)


@final
class Assembly:
    """The state of this rank's parts, growing file by file.

    Args:
        manifest: the checkpoint.
        targets: the parts' states as they are: say which slices of sharded values this rank wants.
        rank: of this world.

    Raises:
        UserError: the checkpoint is of other parts or shapes than this job has.
    """

    def __init__(self, manifest: Manifest, targets: States, rank: int) -> None:
        missing = sorted(set(targets) - set(manifest.parts))
        if missing:
            raise UserError(
                f"the checkpoint of step {manifest.step} holds {', '.join(manifest.parts)}, but not {', '.join(missing)}: "
                "it was saved by another kind of job; give this one its own place for checkpoints"
            )
        self._states: dict[str, dict[str, Entry]] = {part: {} for part in targets}
        self._wants: dict[tuple[str, str], _Want] = {}
        self._by_file: dict[str, list[EntryRecord]] = {}
        self._unclaimed: set[str] = set()
        for entry in manifest.entries:
            if entry.part in targets and self._is_wanted(entry, targets[entry.part], rank):
                self._by_file.setdefault(entry.file, []).append(entry)
        _refuse_unknown(manifest, targets)

    @property
    def files(self) -> set[str]:
        """Files that this rank needs."""
        return set(self._by_file)

    @property
    def unclaimed(self) -> set[str]:
        """Sharded values of the parts, as part/name, that this rank has no place for."""
        return self._unclaimed

    def add(self, file: str, arrays: Mapping[str, Array] | None, content: Array) -> None:
        """Take what is wanted of one file.

        Args:
            file: its name.
            arrays: of a safetensors file, by part/name.
            content: its bytes.

        Raises:
            DamagedError: an entry that the manifest promises is not in it.
        """
        values = json.loads(content.tobytes()) if arrays is None and file.endswith(".json") else {}
        for entry in self._by_file.get(file, ()):
            if entry.kind == "bytes":
                self._states[entry.part][entry.name] = Entry(content.tobytes(), entry.scope)
            elif entry.kind == "json":
                self._states[entry.part][entry.name] = Entry(_found(values.get(entry.part, {}), entry.name, file), entry.scope)
            else:
                self._add_array(entry, _found(arrays or {}, f"{entry.part}/{entry.name}", file))

    def finish(self) -> dict[str, dict[str, Entry]]:
        """Return the states of all parts.

        Raises:
            DamagedError: pieces of a sharded value are missing.
        """
        for (part, name), want in self._wants.items():
            if not _covers(want.covered, want.box):
                raise DamagedError(f"'{part}/{name}' lacks pieces")
            value = np.empty(want.box[1], dtype=np.float32) if want.value is None else want.value
            if want.scope == "sharded":
                self._states[part][name] = Entry(value, "sharded", want.shape, want.box[0])
            else:
                self._states[part][name] = Entry(value)
        return self._states

    def _is_wanted(self, entry: EntryRecord, target: State, rank: int) -> bool:
        if entry.scope == "rank":
            return entry.rank == rank  # a rank that is new starts afresh
        wanted = target.get(entry.name)
        if entry.scope == "global" and (entry.kind != "array" or wanted is None or wanted.scope != "sharded"):
            return True
        if wanted is None:
            self._unclaimed.add(f"{entry.part}/{entry.name}")  # another rank's: a stage of a pipeline
            return False
        want = self._wants.setdefault((entry.part, entry.name), _want_of(entry, wanted))
        return _overlap(_box_of(entry), want.box) is not None or math.prod(want.box[1]) == 0

    def _add_array(self, entry: EntryRecord, value: Array) -> None:
        if value.shape != entry.extent:
            raise DamagedError(f"'{entry.part}/{entry.name}' has the shape {value.shape}, not {entry.extent}")
        want = self._wants.get((entry.part, entry.name))
        if want is None:
            self._states[entry.part][entry.name] = Entry(value, entry.scope)
            return
        box = _box_of(entry)
        if want.box in want.covered:
            return  # a replica of what is there already
        if box == want.box:
            want.value, want.covered = value, {box}
            return
        if want.value is None:
            want.value = np.empty(want.box[1], dtype=value.dtype)
        common = _overlap(box, want.box)
        if common is not None:
            want.value[_slices(common, want.box[0])] = value[_slices(common, box[0])]
            want.covered.add(common)


def _found(values: Mapping[str, Json], key: str, file: str) -> Json:
    if key not in values:
        raise DamagedError(f"{file} does not hold '{key}'")
    return values[key]


def _refuse_unknown(manifest: Manifest, targets: States) -> None:
    saved = {(entry.part, entry.name) for entry in manifest.entries}
    for part, target in targets.items():
        for name, entry in target.items():
            if entry.scope == "sharded" and (part, name) not in saved:
                raise UserError(f"the checkpoint of step {manifest.step} does not hold '{part}/{name}' that this job has")


def _want_of(saved: EntryRecord, wanted: Entry) -> _Want:
    shape = saved.shape if saved.scope == "sharded" else saved.extent
    if shape is None:
        raise DamagedError(f"'{saved.part}/{saved.name}' has no shape")
    value_shape = np.shape(wanted.value) if isinstance(wanted.value, np.ndarray) else shape
    is_sharded = wanted.scope == "sharded"
    whole = tuple(wanted.shape or value_shape) if is_sharded else tuple(value_shape)
    if whole != shape:
        raise UserError(
            f"the checkpoint holds '{saved.part}/{saved.name}' of shape {shape}, this job has {whole}: "
            "it was saved with other hyperparameters; give this job its own place for checkpoints"
        )
    if is_sharded and wanted.offset is not None:
        return _Want((tuple(wanted.offset), tuple(value_shape)), "sharded", shape)
    return _Want(((0,) * len(shape), shape), "global", shape)


def _box_of(entry: EntryRecord) -> Box:
    extent = entry.extent or ()
    return (entry.offset if entry.offset is not None else (0,) * len(extent), extent)


def _overlap(a: Box, b: Box) -> Box | None:
    """Return what two boxes share; None where that holds no element."""
    starts = tuple(max(x, y) for x, y in zip(a[0], b[0], strict=True))
    ends = (min(x + m, y + n) for x, m, y, n in zip(a[0], a[1], b[0], b[1], strict=True))
    extent = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return (starts, extent) if all(count > 0 for count in extent) else None


def _slices(box: Box, origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s - o, s - o + n) for s, n, o in zip(box[0], box[1], origin, strict=True))


def _covers(boxes: set[Box], whole: Box) -> bool:
    """Return whether `boxes`, all within `whole`, fill it."""
    if math.prod(whole[1]) == 0:
        return True
    if any(_overlap(a, b) for a, b in itertools.combinations(boxes, 2)):  # replicas cut in different ways: count elements
        seen = np.zeros(whole[1], dtype=bool)
        for box in boxes:
            seen[_slices(box, whole[0])] = True
        return bool(seen.all())
    return sum(math.prod(extent) for _, extent in boxes) == math.prod(whole[1])
