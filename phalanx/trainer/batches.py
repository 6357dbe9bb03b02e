"""From a feed's portion to micro-batches on the device, one step ahead of the one being computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, final

import torch

from ..contracts import MicroBatch
from ..errors import UserError
from .cutting import seed_of
from .feeding import Portion, map_tensors

T = TypeVar("T")


@final
class Mover:
    """Makes micro-batches of portions.

    Args:
        device: where tensors go.
        seed: of the training; every micro-batch has generators of its own.
        has_loss: whether batches are (inputs, target); else the module takes the whole batch.
        channels_last: lay images out with their channels last.
    """

    def __init__(self, device: torch.device, *, seed: int, has_loss: bool, channels_last: bool = False) -> None:
        self._device = device
        self._seed = seed
        self._has_loss = has_loss
        self._channels_last = channels_last

    def micro_batches(self, portion: Portion, step: int) -> list[MicroBatch]:
        """Return the micro-batches of a step, counted from 1.

        Raises:
            UserError: a batch has no target.
        """
        made = []
        for piece, batch in zip(portion.pieces, portion.batches, strict=True):
            inputs, target = split(batch) if self._has_loss else (batch, None)
            made.append(
                MicroBatch(self.moved(inputs), self.moved(target), piece.weight, seed_of(self._seed, step, piece.number))
            )
        return made

    def moved(self, value: Any) -> Any:
        """Return `value` with its tensors on the device."""
        if self._device.type == "cpu" and not self._channels_last:
            return value
        return map_tensors(value, self._move)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.to(self._device, non_blocking=True)
        if self._channels_last and moved.ndim == 4:
            return moved.contiguous(memory_format=torch.channels_last)
        return moved


def split(batch: Any) -> tuple[Any, Any]:
    """Return inputs and target of a batch.

    Raises:
        UserError: it is no pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list, Mapping)) else "")
    raise UserError(
        f"a batch must be (inputs, target), this one is {what}; give collate= to make it so, or loss=None for a module "
        "that takes the whole batch and returns its loss"
    )


def inputs_of(batch: Any, has_loss: bool) -> Any:
    """Return what a prediction is made from: the inputs of (inputs, target), or all there is."""
    if isinstance(batch, (tuple, list)):
        if len(batch) == 1:
            return batch[0]
        if len(batch) == 2 and has_loss:
            return batch[0]
    return batch


def ahead(items: Iterator[T], prepare: Callable[[T], Any]) -> Iterator[tuple[T, Any, bool]]:
    """Yield (item, what `prepare` made of it, whether it is the last), with the next item prepared before this one is used."""
    ready: tuple[T, Any] | None = None
    for item in items:
        following = (item, prepare(item))
        if ready is not None:
            yield (*ready, False)
        ready = following
    if ready is not None:
        yield (*ready, True)
