"""Sums of one number a rank through shared memory, where all ranks are on one machine.

An exchange through sockets takes longer than the step of a small model can hide.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import final

from .. import pulse
from ..contracts import Collective
from ..errors import PlatformError

_SLOT = 8  # bytes that are stored at once: a float32 and the number of the call that it belongs to
_TOKEN = 16
_FOLDER = Path("/dev/shm")
_POLL_S = 1e-4
_PATIENCE_S = 1800.0


@final
class LocalSum:
    """Adds up one number of every rank.

    `put`, then an exchange of the same ranks, then `total`, which then hardly waits. Two sums may be under way at once: a rank
    may put the next number while another has not read yet, and cannot be further ahead, for it needs that rank's number.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int) -> None:
        self._memory = memory
        self._rank, self._size = rank, size
        self._number = 0

    @classmethod
    def open(cls, world: Collective) -> LocalSum | None:
        """Collective. Return the sum of these ranks, None where they do not share memory."""
        token = os.urandom(_TOKEN)
        path, memory = None, None
        with contextlib.suppress(OSError):
            if world.rank == 0:
                path, memory = _created(token, 2 * world.size * _SLOT)
        place, wanted = world.broadcast(["" if path is None else str(path), token.hex()])
        if world.rank and place:
            with contextlib.suppress(OSError, ValueError):
                memory = _opened(Path(place), bytes.fromhex(wanted))
        shared = all(world.all_gather(memory is not None))
        if path is not None:
            path.unlink()
        return cls(memory, world.rank, world.size) if shared and memory is not None else None

    def put(self, value: float) -> None:
        """Leave this rank's number, which is kept as a float32."""
        self._number += 1
        struct.pack_into("=fI", self._memory, self._place(self._rank), value, self._number % 2**32)

    def total(self) -> float:
        """Collective. Return the sum over the ranks, the same on all.

        Raises:
            PlatformError: a rank left no number for half an hour.
        """
        end = 0.0
        while True:
            found = [struct.unpack_from("=fI", self._memory, self._place(rank)) for rank in range(self._size)]
            missing = [rank for rank, (_, number) in enumerate(found) if number != self._number % 2**32]
            if not missing:
                if end:
                    pulse.now.waited()
                return float(sum(value for value, _ in found))
            now = time.monotonic()
            if not end:
                end = now + _PATIENCE_S
                pulse.now.wait("sum of the loss")
            if now > end:
                raise PlatformError(f"lost contact with rank {missing[0]}: it left no loss for {_PATIENCE_S:.0f} s")
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    def _place(self, rank: int) -> int:
        return _TOKEN + (2 * rank + self._number % 2) * _SLOT


def _created(token: bytes, size: int) -> tuple[Path, mmap.mmap]:
    handle, name = tempfile.mkstemp(prefix="phalanx-sum-", dir=_FOLDER if _FOLDER.is_dir() else None)
    with os.fdopen(handle, "r+b") as file:
        file.write(token + bytes(size))
        file.flush()
        return Path(name), mmap.mmap(file.fileno(), 0)


def _opened(path: Path, token: bytes) -> mmap.mmap | None:
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    if memory[:_TOKEN] == token:
        return memory
    memory.close()
    return None
