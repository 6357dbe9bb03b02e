"""`auto`: the simplest strategy whose memory suffices, from sizes alone."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import final

import torch

from ..contracts import Collective, Recipe, Replica
from .strategies import strategy_of

_HEADROOM = 0.7  # of a device's memory may hold weights, gradients and optimizer; the rest is for activations and buffers
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen and why."""

    strategy: str
    reason: str


def choose(parameter_bytes: int, device_memory: int, workers: int, *, optimizer_factor: float = 2.0) -> Choice:
    """Return the strategy for a module.

    A pure function: a copy needs its parameters, as much again for gradients, and `optimizer_factor` times as much for the
    optimizer; gradients and their buckets of DDP are counted twice.

    Args:
        parameter_bytes: of all parameters.
        device_memory: bytes that one worker has.
        workers: of the group.
        optimizer_factor: optimizer state per byte of parameter; 2 for Adam in fp32.
    """
    whole = parameter_bytes * (2 + optimizer_factor)
    copy = whole + (parameter_bytes if workers > 1 else 0)
    room = _HEADROOM * device_memory
    told = f"a copy needs {copy / _GIB:.2f} GiB, a worker has {room / _GIB:.2f} GiB for weights, gradients and optimizer"
    if workers == 1:
        return Choice("single", f"one worker; {told}")
    if copy <= room:
        return Choice("ddp", f"it fits: {told}")
    part = whole / workers + parameter_bytes / 4  # the largest block, gathered
    fits = "" if part <= room else f"; a shard needs {part / _GIB:.2f} GiB, which may be too much: take more workers or offload"
    return Choice("fsdp", f"{told}: it is cut into {workers} shards{fits}")


@final
@dataclass(frozen=True, slots=True)
class Auto:
    """Chooses by `choose`, and says on stderr what and why.

    Args:
        device_memory: bytes that one worker has; None: of its GPU, or its share of the machine's memory.
    """

    device_memory: int | None = None
    name = "auto"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        size = sum(p.numel() * p.element_size() for p in recipe.module.parameters())
        memory = self.device_memory if self.device_memory is not None else _memory(recipe.device, world)
        smallest = min(world.all_gather(memory))
        choice = choose(size, smallest, world.size)
        if world.rank == 0:
            sys.stderr.write(f"strategy auto: {choice.strategy}; {choice.reason}\n")
        return strategy_of(choice.strategy).prepare(recipe, world)


def _memory(device: torch.device, world: Collective) -> int:
    """Collective. Return the bytes that this worker may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    name = socket.gethostname()
    sharing = world.all_gather(name).count(name)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // sharing)
