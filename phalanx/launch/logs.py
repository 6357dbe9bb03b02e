"""The end of workers' logs, for the errors that name them."""

from __future__ import annotations

from pathlib import Path
from typing import final

_TAIL, _MOST = 4096, 1 << 16


@final
class Logs:
    """The logs of one attempt, which are appended to those of the attempts before."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._paths = [folder / f"rank-{rank}.log" for rank in range(workers)]
        self._begin = [self.size(rank) for rank in range(workers)]

    def size(self, rank: int) -> int:
        """Return the bytes in a rank's log by now."""
        try:
            return self._paths[rank].stat().st_size
        except OSError:
            return 0

    def tail(self, rank: int) -> str:
        """Return the last lines that a rank wrote in this attempt."""
        return self._read(rank, max(self._begin[rank], self.size(rank) - _TAIL), _TAIL)

    def since(self, rank: int, begin: int) -> str:
        """Return what a rank has written since its log had `begin` bytes."""
        return self._read(rank, begin, _MOST)

    def _read(self, rank: int, begin: int, most: int) -> str:
        try:
            with self._paths[rank].open("rb") as file:
                file.seek(begin)
                return file.read(most).decode("utf-8", "replace")
        except OSError:
            return ""
