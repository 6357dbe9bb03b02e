"""Which bytes a job learnt from: the hash of every local file of its channels, in data.jsonl in the job's folder.

Hashed beside the job by one thread, XXH3 of 128 bits (as `xxhsum -H2` prints it). Files that were not done when the job ended,
and files of object stores, stand there with their sizes only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, final

import xxhash

from .. import storage

_BLOCK = 1 << 20
_KNOWN: dict[tuple[str, int, int], str] = {}  # path, size, nanoseconds of its last change -> hash: trials share their data


@final
class DataHashes:
    """Hashes a job's files while it runs; a context manager.

    Args:
        files: channel -> its files.
        folder: where the job's record grows.
    """

    def __init__(self, files: Mapping[str, Sequence[storage.File]], folder: Path) -> None:
        self._files = [(channel, file) for channel, found in files.items() for file in found]
        self._path = folder / "data.jsonl"
        self._found: dict[str, str] = {}  # URL -> hash
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hash, name="phalanx-data-hashes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        lines = [
            {"channel": channel, "file": file.name, "bytes": file.size, "xxh3_128": self._found.get(file.url)}
            for channel, file in self._files
        ]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def _hash(self) -> None:
        for _, file in self._files:
            if self._over.is_set():
                return
            if file.url not in self._found and storage.is_local(file.url):
                found = self._of(storage.local_path(file.url))
                if found is not None:
                    self._found[file.url] = found

    def _of(self, path: Path) -> str | None:
        """Return a file's hash, None if the job ends before, or it cannot be read (the job will say so)."""
        digest = xxhash.xxh3_128()
        try:
            stat = path.stat()
            key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
            if key in _KNOWN:
                return _KNOWN[key]
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    if self._over.is_set():
                        return None
        except OSError:
            return None
        return _KNOWN.setdefault(key, digest.hexdigest())
