"""The same module on every rank: checked before anybody waits for anybody, then made so."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..contracts import Collective
from ..errors import UserError


def check_same_module(module: torch.nn.Module, world: Collective) -> None:
    """Collective. Raise on every rank where the ranks built different modules.

    Raises:
        UserError: names the first parameter or buffer that differs, and how.
    """
    if world.size == 1:
        return
    own = [[name, list(t.shape), str(t.dtype), t.requires_grad] for name, t in _tensors(module)]
    everyone = world.all_gather(own)
    for rank, other in enumerate(everyone):
        if other == everyone[0]:
            continue
        for ours, theirs in zip([*everyone[0], None], [*other, None], strict=False):
            if ours != theirs:
                raise UserError(
                    f"rank {rank} built another module than rank 0: it has {_told(theirs)}, rank 0 has {_told(ours)}; "
                    "all ranks must build the same module"
                )


def broadcast_module(module: torch.nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Collective. Give every rank of `group` the parameters and buffers of its first rank."""
    source = dist.get_global_rank(group, 0) if group is not None else 0
    with torch.no_grad():
        for _, tensor in _tensors(module):
            data = tensor.detach()
            if data.is_contiguous():
                dist.broadcast(data, source, group=group)
            else:
                copy = data.contiguous()
                dist.broadcast(copy, source, group=group)
                data.copy_(copy)


def _tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _told(entry: list[object] | None) -> str:
    if entry is None:
        return "nothing there"
    name, shape, dtype, learned = entry
    return f"'{name}' {shape} {dtype}{'' if learned else ' (frozen)'}"
