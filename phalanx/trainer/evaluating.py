"""Evaluation and prediction with a replica: every rank computes its part of every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..contracts import Array, Collective, Recipe, Replica
from ..errors import UserError
from ..parallel.objective import scalar_loss
from ..parallel.states import to_array
from .batches import Mover, inputs_of, split
from .feeding import Feed, Portion, Share

Metric = Callable[[Any, Any], Any]
_BITS = 32


def evaluate(
    replica: Replica,
    feed: Feed,
    share: Share,
    mover: Mover,
    recipe: Recipe,
    metrics: Mapping[str, Metric],
    world: Collective,
) -> dict[str, float]:
    """Collective. Return the mean loss and metrics over all rows; metrics are added as integers, whose order is free.

    Raises:
        UserError: there are no rows.
    """
    rows, total = 0, 0.0
    sums = np.zeros((2, 1 + len(metrics)), dtype=np.int64)
    for portion in feed.epoch(0, share):
        rows += portion.rows
        if not metrics:
            total += replica.evaluate_step(mover.micro_batches(portion, 0)) * portion.rows
            continue
        sums += _measured(replica, portion, mover, recipe, metrics)
    if rows == 0:
        raise UserError("there are no rows to evaluate on")
    if not metrics:
        return {"loss": total / rows}
    copies = world.size // replica.data_size  # ranks that computed the same rows
    sums = world.all_reduce(sums)
    means = np.where(sums[1] > 0, np.nan, sums[0] / 2.0**_BITS / (copies * rows))
    return {"loss": float(means[0]), **{name: float(mean) for name, mean in zip(metrics, means[1:], strict=True)}}


def predict(replica: Replica, feed: Feed, share: Share, mover: Mover, recipe: Recipe, world: Collective) -> Any:
    """Collective. Return the outputs for all rows in order: a tensor, or a tuple or mapping of them."""
    owners = _owners(world.all_gather(replica.data_rank))
    found: list[list[Array]] = []
    shape: Any = None
    for portion in feed.epoch(0, share):
        outputs: list[list[Array]] = []
        for piece, batch in zip(portion.pieces, portion.batches, strict=True):
            output = replica.predict_step(mover.moved(inputs_of(batch, recipe.loss is not None)))
            parts, shape = _flat(output)
            outputs.append([to_array(part)[: None if piece.weight else 0] for part in parts])
        gathered = [world.all_gather(np.concatenate(pieces)) for pieces in zip(*outputs, strict=True)]
        found.append([np.concatenate([ranks[owner] for owner in owners]) for ranks in gathered])
    if not found:
        raise UserError("there are no rows to predict")
    tensors = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True)]
    if shape is None:
        return tensors[0]
    return tuple(tensors) if shape == "tuple" else dict(zip(shape, tensors, strict=True))


def _measured(replica: Replica, portion: Portion, mover: Mover, recipe: Recipe, metrics: Mapping[str, Metric]) -> Array:
    """Return this rank's sums over rows of the loss and every metric in units of 2^-32, and how many were not finite."""
    sums = np.zeros((2, 1 + len(metrics)), dtype=np.int64)
    for piece, batch in zip(portion.pieces, portion.batches, strict=True):
        inputs, target = (mover.moved(part) for part in split(batch))
        output = replica.predict_step(inputs)
        if piece.weight == 0 or recipe.loss is None:
            continue
        with torch.no_grad():
            values = [scalar_loss(recipe.loss(output, target), "loss function"), *(f(output, target) for f in metrics.values())]
        counted = np.array([float(value) for value in values]) * piece.weight * portion.rows
        finite = np.isfinite(counted)
        sums[0] += np.round(np.where(finite, counted, 0.0) * 2.0**_BITS).astype(np.int64)
        sums[1] += ~finite
    return sums


def _owners(data_ranks: list[int]) -> list[int]:
    """Return, for every data rank in order, the first rank that has it."""
    return [data_ranks.index(coordinate) for coordinate in range(max(data_ranks) + 1)]


def _flat(output: Any) -> tuple[list[torch.Tensor], Any]:
    """Return the tensors of an output and what they were in: None, "tuple" or the keys of a mapping."""
    if isinstance(output, torch.Tensor):
        return [output], None
    if isinstance(output, (tuple, list)) and output and all(isinstance(part, torch.Tensor) for part in output):
        return list(output), "tuple"
    if isinstance(output, Mapping) and output and all(isinstance(part, torch.Tensor) for part in output.values()):
        return list(output.values()), list(output)
    raise UserError(
        f"predict needs a module that returns a tensor, or a tuple or mapping of tensors, not {type(output).__name__}"
    )
