"""Where a list of layers is cut into the stages of a pipeline."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UserError

_REPEATS = 3


def layers_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a Sequential (nested ones flattened) or a ModuleList, in the order they run.

    Raises:
        UserError: the module is neither; shows how to rewrite it.
    """
    if not isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList)):
        raise UserError(
            f"a pipeline takes torch.nn.Sequential, not {type(module).__name__}: write the module as layers that each take "
            "what the one before returned, as torch.nn.Sequential(embedding, *blocks, head), or use strategy='zero2'"
        )
    found: list[torch.nn.Module] = []
    for layer in module:
        found += layers_of(layer) if type(layer) is torch.nn.Sequential else [layer]
    return found


def cut(layers: Sequence[torch.nn.Module], stages: int, weights: Sequence[float]) -> list[int]:
    """Return `stages + 1` bounds: stage s has layers bounds[s] to bounds[s+1] - 1; the heaviest is as light as can be.

    Every stage has a parameter that learns, and layers that share parameters are on one stage.

    Raises:
        UserError: there are too few layers for so many stages.
    """
    count = len(layers)
    if stages > count:
        raise UserError(f"{stages} stages need at least as many layers, the module has {count}: give stages={count} or fewer")
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    joined = _shared(layers)
    best: list[list[tuple[float, list[int]] | None]] = [[None] * (count + 1) for _ in range(stages + 1)]
    best[0][0] = (0.0, [0])
    for stage in range(1, stages + 1):
        for stop in range(stage, count + 1):
            for start in range(stage - 1, stop):
                before = best[stage - 1][start]
                if before is None or not any(learns[start:stop]) or (stop < count and stop in joined):
                    continue
                heaviest = max(before[0], sum(weights[start:stop]))
                now = best[stage][stop]
                if now is None or heaviest < now[0]:
                    best[stage][stop] = (heaviest, [*before[1], stop])
    found = best[stages][count]
    if found is None:
        shared = "; layers that share parameters must be on one stage" if joined else ""
        raise UserError(
            f"{count} layers, {sum(learns)} of them with parameters that learn, cannot be cut into {stages} stages that "
            f"each learn something{shared}: give fewer stages"
        )
    return found[1]


def weights_of(layers: Sequence[torch.nn.Module], balance: str, sample: Any) -> list[float]:
    """Return how heavy each layer is: "parameters", "uniform", "type:regex" of class names, "time" of a forward pass.

    Raises:
        UserError: an unknown balance, a regex that fits no layer, "time" without a sample.
    """
    if balance == "parameters":
        return [float(sum(p.numel() for p in layer.parameters())) for layer in layers]
    if balance == "uniform":
        return [1.0] * len(layers)
    if balance == "time":
        if sample is None:
            raise UserError("balance='time' runs the layers once: give Pipeline(sample=inputs), a batch as the module takes it")
        return _times(layers, sample)
    if balance.startswith("type:"):
        try:
            pattern = re.compile(balance[len("type:") :], re.IGNORECASE)
        except re.error as error:
            raise UserError(f"balance='{balance}' is no regular expression: {error}") from None
        found = [1.0 if pattern.search(type(layer).__name__) else 0.0 for layer in layers]
        if not any(found):
            names = ", ".join(sorted({type(layer).__name__ for layer in layers}))
            raise UserError(f"balance='{balance}' fits no layer; there are {names}")
        return found
    raise UserError(f"balance must be 'parameters', 'time', 'uniform' or 'type:regex', not '{balance}'")


def _times(layers: Sequence[torch.nn.Module], sample: Any) -> list[float]:
    found = []
    with torch.no_grad(), torch.random.fork_rng():
        for layer in layers:
            was = layer.training
            layer.eval()
            taken = []
            for _ in range(_REPEATS):
                begin = time.perf_counter()
                output = layer(sample)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - begin)
            found.append(min(taken))
            sample = output
            layer.train(was)
    return found


def _shared(layers: Sequence[torch.nn.Module]) -> set[int]:
    """Return the bounds that would part layers which share a parameter."""
    first: dict[int, int] = {}
    found: set[int] = set()
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            start = first.setdefault(id(parameter), number)
            found.update(range(start + 1, number + 1))
    return found
