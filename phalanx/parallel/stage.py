"""One stage of a pipeline: layers in a row, in the recipe's precision, with the seeds of their micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch.utils.checkpoint import checkpoint

from ..contracts import MicroBatch, Recipe
from .objective import autocast, seed_generators


@final
class Stage(torch.nn.Module):
    """Layers that are called one after another; every `interval` of them are computed again in the backward pass."""

    def __init__(self, layers: Sequence[torch.nn.Module], recipe: Recipe, interval: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self._recipe = recipe
        self._interval = interval
        self._seeds: list[int] = []

    def begin(self, seeds: Sequence[int]) -> None:
        """Set the seeds of the next forward passes, one each."""
        self._seeds = list(seeds)

    def forward(self, inputs: Any) -> Any:
        """Return what the last layer makes of it."""
        if self._seeds:
            seed_generators(self._seeds.pop(0), self._recipe.device)
        with autocast(self._recipe):
            step = self._interval if self.training else 0
            if not step:
                return self._run(inputs, 0, len(self.layers))
            for start in range(0, len(self.layers), step):
                inputs = checkpoint(self._run, inputs, start, start + step, use_reentrant=False)
            return inputs

    def _run(self, inputs: Any, start: int, stop: int) -> Any:
        for layer in list(self.layers)[start:stop]:
            inputs = layer(inputs)
        return inputs


def chunks(micro: MicroBatch, count: int) -> list[MicroBatch]:
    """Return `count` parts of a micro-batch whose weights add up to its own; first rows stand in, with weight 0, where it is
    too small.
    """
    if count == 1:
        return [micro]
    rows = len(micro.target)
    length, longer = divmod(rows, count)
    found, start = [], 0
    for number in range(count):
        stop = start + length + (number < longer)
        weight = micro.weight * (stop - start) / rows
        part = slice(start, stop) if stop > start else slice(0, 1)
        found.append(MicroBatch(micro.inputs[part], micro.target[part], weight, micro.seed + number))
        start = stop
    return found
