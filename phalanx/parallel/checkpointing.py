"""Activation checkpointing: a block's activations are computed again in the backward pass instead of being kept.

Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

import torch
from torch.distributed._composable import checkpoint  # type: ignore[attr-defined]


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the repeated blocks of a module: the members of its outermost ModuleLists.

    Where it has none: of its outermost Sequentials. Blocks without parameters are left out.
    """
    for kind in (torch.nn.ModuleList, torch.nn.Sequential):
        found = [
            block
            for holder in _outermost(module, kind)
            for block in holder.children()
            if next(block.parameters(), None) is not None
        ]
        if found:
            return found
    return []


def apply(module: torch.nn.Module) -> None:
    """Checkpoint every repeated block of `module`, or the whole where it has none; names of parameters stay."""
    for block in blocks_of(module) or [module]:
        checkpoint(block)


def _outermost(module: torch.nn.Module, kind: type[torch.nn.Module]) -> list[torch.nn.Module]:
    if isinstance(module, kind):
        return [module]
    return [found for child in module.children() for found in _outermost(child, kind)]
