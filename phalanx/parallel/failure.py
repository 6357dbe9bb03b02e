"""When one rank fails while the others wait in torch's own collectives: all learn of it, and of what caused it.

A rank that fails writes its error into the store the ranks met through, then cuts the connections of its process groups. The
others fail as well, with a lost connection; they look into the store and raise what they find there.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ..contracts import Collective
from ..errors import PhalanxError, PlatformError, Stopped, UserError, from_record, to_record
from . import connections
from .joining import store_of
from .neighbours import Neighbours
from .torch_collective import lost_words

_LOST = (
    "onnection",
    "closed by peer",
    "timed out",
    "Timed out",
    "Timeout",
    "NCCL",
    "aborted",
    "process group",
    "not initialized",
)
_WAIT_S = 5.0
_POLL_S = 0.02
_KEY = "phalanx-failure"


@contextlib.contextmanager
def shared_failure(world: Collective) -> Iterator[None]:
    """Collective. Within, an error of one rank becomes an error of all, which keeps its kind and names the rank."""
    try:
        yield
    except Stopped:
        raise  # all ranks stop at the same step
    except Exception as error:
        if world.size == 1 or store_of(world) is None:
            raise
        raise _agreed(error, world) from error


def _agreed(error: Exception, world: Collective) -> Exception:
    met: Any = store_of(world)
    store: Any = dist.PrefixStore(_KEY, met)  # type: ignore[attr-defined]
    record = {**to_record(error), "lost": _is_lost(error)}
    try:
        store.set(str(world.rank), json.dumps(record))
        connections.groups.cut(_port(store))
        if isinstance(world, Neighbours):
            world.cut()
        records = _collect(store, world)
        store.add("read", 1)
        if world.rank == 0:  # the store may live in this process
            _until(lambda: int(store.add("read", 0)) >= world.size)
    except RuntimeError:  # the store is gone
        records = {world.rank: record}
    rank, cause = min(records.items(), key=lambda item: (item[1]["lost"], item[1]["kind"] != UserError.kind, item[1]["time"]))
    if rank == world.rank or cause["lost"]:
        return _own(error)
    found = from_record(cause)
    found.message = f"rank {rank}: {found.message}"
    found.args = (found.message,)
    return found


def _collect(store: Any, world: Collective) -> dict[int, dict[str, Any]]:
    """Return what the ranks wrote: waits for all of them, or for a moment."""
    found: dict[int, dict[str, Any]] = {}

    def all_there() -> bool:
        for rank in range(world.size):
            if rank not in found and store.check([str(rank)]):
                found[rank] = json.loads(store.get(str(rank)))
        return len(found) == world.size

    _until(all_there)
    return found


def _port(store: Any) -> int:
    """Return the port of the TCP store under a chain of prefixes; 0 where there is none."""
    while isinstance(store, dist.PrefixStore):  # type: ignore[attr-defined]
        store = store.underlying_store
    return int(store.port) if isinstance(store, dist.TCPStore) else 0  # type: ignore[attr-defined]


def _until(done: Any) -> None:
    end = time.monotonic() + _WAIT_S
    while not done() and time.monotonic() < end:
        time.sleep(_POLL_S)


def _is_lost(error: Exception) -> bool:
    if isinstance(error, PlatformError):
        return "lost contact" in error.message
    return isinstance(error, (RuntimeError, dist.DistError)) and any(sign in str(error) for sign in _LOST)


def _own(error: Exception) -> Exception:
    if isinstance(error, PhalanxError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return PlatformError(f"out of memory: {lost_words(error)}")
    if _is_lost(error):
        return PlatformError(f"lost contact with another worker: {lost_words(RuntimeError(str(error)))}")
    return error
