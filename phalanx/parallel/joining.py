"""How ranks come together: through shared memory where all are on one machine, through a torch process group elsewhere."""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch
import torch.distributed as dist

from ..contracts import Collective
from .neighbours import Neighbours
from .torch_collective import TorchCollective, not_met, open_store

_c10d: Any = dist  # torch's stubs do not know its stores


def open_world(
    rank: int, size: int, addr: str, port: int, *, store_fd: int | None = None, timeout_s: float = 600
) -> Neighbours | TorchCollective:
    """Collective. Meet the other ranks at `addr:port` and return the collective of all; see `TorchCollective.open`.

    Raises:
        PlatformError: the others did not come in time.
    """
    store = open_store(rank, size, addr, port, store_fd=store_fd, timeout_s=timeout_s)
    return world_over(store, rank, size, addr, place=f"{addr}:{port}", timeout_s=timeout_s)


def world_over(
    store: Any, rank: int, size: int, addr: str, *, place: str | None = None, timeout_s: float = 600
) -> Neighbours | TorchCollective:
    """Collective. Meet the other ranks through a store that all of them have; see `TorchCollective.over`.

    Raises:
        PlatformError: the others did not come in time.
    """
    if not torch.cuda.is_available():
        words = _c10d.PrefixStore("neighbours", store)
        numbers = itertools.count()

        def gather(value: Any) -> list[Any]:
            number = next(numbers)
            words.set(f"{number}/{rank}", json.dumps(value))
            return [json.loads(words.get(f"{number}/{other}")) for other in range(size)]

        try:
            world = Neighbours.meet(gather, rank, size, timeout_s=timeout_s, store=store)
        except RuntimeError as error:
            raise not_met(rank, size, f"{place or addr} within {timeout_s:g} s", error) from error
        if world is not None:
            return world
    return TorchCollective.over(store, rank, size, addr, place=place, timeout_s=timeout_s)


def store_of(world: Collective) -> Any | None:
    """Return the key-value store that the ranks of a world met through; None where they are no processes, or just one."""
    return world.store if isinstance(world, (Neighbours, TorchCollective)) else None
