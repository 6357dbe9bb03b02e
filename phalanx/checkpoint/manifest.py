"""What makes a checkpoint: the manifest, written last, with the hash of every file and of itself.

Files of a step S of a store at URL:

    URL/S/manifest.json                              the commit: one put
    URL/S/ATTEMPT-NONCE-N/rank-R.safetensors         arrays; names of its own for every save of every saver
    URL/S/ATTEMPT-NONCE-N/rank-R.json                JSON values
    URL/S/ATTEMPT-NONCE-N/rank-R-I.bin               the bytes of a library's own format
    URL/S/ATTEMPT-NONCE-N/rank-R.record.json         what rank R wrote; rank 0 makes the manifest of these
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import xxhash

from ..contracts import Json

FORMAT = "phalanx-checkpoint"
VERSION = 1
_MANIFEST = re.compile(r"(\d+)/manifest\.json")
Kind = Literal["array", "json", "bytes"]
Scope = Literal["global", "rank", "sharded"]


class DamagedError(Exception):
    """A checkpoint is not what was written: its text says in what. Never leaves this room."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file: relative to its step's folder."""

    name: str
    size: int  # bytes
    xxh3: str  # xxh3-128 of its bytes, 32 hexadecimal digits


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One entry of a part's state and where it lies."""

    part: str
    name: str
    scope: Scope
    kind: Kind
    rank: int  # that saved it
    file: str  # relative to the step's folder
    dtype: str | None = None  # of arrays: as safetensors names it
    extent: tuple[int, ...] | None = None  # of arrays: the shape of what lies here
    shape: tuple[int, ...] | None = None  # sharded: of the whole value
    offset: tuple[int, ...] | None = None  # sharded: of this piece in it


@dataclass(frozen=True, slots=True)
class RankRecord:
    """What one rank wrote of one save; `failed` says why it could not."""

    rank: int
    files: tuple[FileRecord, ...] = ()
    entries: tuple[EntryRecord, ...] = ()
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint."""

    job: str
    attempt: int
    step: int
    world: int  # ranks that saved it
    time: float  # s since 1970 by the saver's clock; for people, nothing is decided by it
    metrics: Mapping[str, float | None]
    parts: tuple[str, ...]
    files: tuple[FileRecord, ...]
    entries: tuple[EntryRecord, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.size for file in self.files)


def manifest_name(step: int) -> str:
    """Return where the manifest of a step lies."""
    return f"{step}/manifest.json"


def manifest_steps(names: Sequence[str] | Mapping[str, int]) -> list[int]:
    """Return the steps that have a manifest among the files `names`, newest first."""
    found = (_MANIFEST.fullmatch(name) for name in names)
    return sorted({int(match[1]) for match in found if match and match[1] == str(int(match[1]))}, reverse=True)


def record_name(folder: str, rank: int) -> str:
    """Return where rank `rank` of the save in `folder` (relative to the URL) puts its record."""
    return f"{folder}/rank-{rank}.record.json"


def digest(data: bytes | memoryview) -> str:
    """Return the xxh3-128 of `data`; other threads run meanwhile."""
    return xxhash.xxh3_128_hexdigest(data)


def write_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest."""
    document = asdict(manifest) | {"format": FORMAT, "version": VERSION}
    document["files"] = {file.name: {"size": file.size, "xxh3": file.xxh3} for file in manifest.files}
    document["entries"] = [_entry_document(entry) for entry in manifest.entries]
    return _seal(document)


def read_manifest(data: bytes, step: int) -> Manifest:
    """Return the manifest of step `step`.

    Raises:
        DamagedError: it is not what was written, or of another format.
    """
    document = _unseal(data)
    if document.get("format") != FORMAT:
        raise DamagedError("its manifest is none of this format")
    if document.get("version") != VERSION:
        raise DamagedError(f"its format has version {document.get('version')}; this release reads version {VERSION}")
    try:
        manifest = Manifest(
            job=document["job"],
            attempt=document["attempt"],
            step=document["step"],
            world=document["world"],
            time=document["time"],
            metrics=document["metrics"],
            parts=tuple(document["parts"]),
            files=tuple(FileRecord(name, found["size"], found["xxh3"]) for name, found in document["files"].items()),
            entries=tuple(_entry(found) for found in document["entries"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"its manifest lacks something: {error!r}") from None
    if manifest.step != step:
        raise DamagedError(f"its manifest is one of step {manifest.step}")
    known = {file.name for file in manifest.files}
    if any(entry.file not in known for entry in manifest.entries) or any(not _is_below(name) for name in known):
        raise DamagedError("its manifest names files that it does not list")
    return manifest


def write_record(record: RankRecord) -> bytes:
    """Return the bytes of a rank's record."""
    document = asdict(record)
    document["entries"] = [_entry_document(entry) for entry in record.entries]
    return _seal(document)


def read_record(data: bytes) -> RankRecord:
    """Return a rank's record.

    Raises:
        DamagedError: it is not what was written.
    """
    document = _unseal(data)
    files = tuple(FileRecord(**found) for found in document["files"])
    return RankRecord(document["rank"], files, tuple(_entry(found) for found in document["entries"]), document["failed"])


def _entry_document(entry: EntryRecord) -> dict[str, Json]:
    return {key: value for key, value in asdict(entry).items() if value is not None}


def _entry(found: dict[str, Json]) -> EntryRecord:
    tuples: dict[str, Json] = {key: tuple(found[key]) for key in ("extent", "shape", "offset") if key in found}
    fields: dict[str, Json] = {**found, **tuples}
    return EntryRecord(**fields)


def _is_below(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _canonical(document: Mapping[str, Json]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _seal(document: dict[str, Json]) -> bytes:
    return _canonical(document | {"xxh3": digest(_canonical(document))})


def _unseal(data: bytes) -> dict[str, Json]:
    try:
        document = json.loads(data)
        claimed = document.pop("xxh3")
        actual = digest(_canonical(document))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError("its manifest is torn or damaged") from None
    if claimed != actual:
        raise DamagedError("its manifest is damaged: it does not have the hash that it says")
    return document  # type: ignore[no-any-return]
