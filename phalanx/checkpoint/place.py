"""Where checkpoints are kept, as the store sees it: six calls, so that a place that fails can stand in for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, final

from .. import storage
from ..contracts import Array


class Place(Protocol):
    """A folder of files with relative names. Nothing is renamed, no file is written twice but manifests."""

    @property
    def url(self) -> str:
        """The folder, for error texts."""
        ...

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a file. Readers see what was there before or all of `data`; what fails half way may leave anything."""
        ...

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet, whole; return whether it was not there."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of all files below `folder`, by their names in the place; none where there is no such folder."""
        ...

    def read(self, name: str, size: int) -> Array:
        """Return the `size` bytes of a file, writable uint8.

        Raises:
            UserError: it is not there or has another size.
            PlatformError: the storage does not answer.
        """
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files in this order; those that are not there are no error."""
        ...


@final
class StoragePlace:
    """`Place` at a local path or any URL that `phalanx.storage` knows."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        return storage.redact(self._url)

    def put(self, name: str, data: bytes | memoryview) -> None:
        storage.put_bytes(storage.join(self._url, name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        return storage.put_new(storage.join(self._url, name), data)

    def sizes(self, folder: str = "") -> dict[str, int]:
        if not folder:
            return storage.sizes_below(self._url)
        found = storage.sizes_below(storage.join(self._url, folder))
        return {f"{folder}/{name}": size for name, size in found.items()}

    def read(self, name: str, size: int) -> Array:
        return storage.read_exactly(storage.join(self._url, name), size)

    def remove(self, names: Iterable[str]) -> None:
        storage.remove_below(self._url, names)
