"""An exponential moving average of the weights (Polyak & Juditsky, 1992), kept beside the replica on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch

from ..contracts import Entry, State
from ..errors import UserError
from ..parallel.states import to_array


@final
class Average:
    """The average of a module's trained weights; sharded ones are averaged shard by shard.

    Args:
        module: whose parameters are averaged.
        decay: weight of the average in every update, 0 to 1.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"ema={decay!r} is not allowed: a decay between 0 and 1, as 0.999")
        self._decay = decay
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._live = [_local(p) for p in module.parameters() if p.requires_grad]
        self._kept = [tensor.clone() for tensor in self._live]

    def update(self) -> None:
        """Take the weights after a step in."""
        with torch.no_grad():
            torch._foreach_lerp_(self._kept, self._live, 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within: the module has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> State:
        """Return the averages of this rank's weights."""
        return {f"ema.{name}": Entry(to_array(t), "rank") for name, t in zip(self._names, self._kept, strict=True)}

    def load_state_dict(self, state: State) -> None:
        """Put the averages back."""
        for name, tensor in zip(self._names, self._kept, strict=True):
            entry: Any = state[f"ema.{name}"].value
            tensor.copy_(torch.from_numpy(entry))

    def _swap(self) -> None:
        with torch.no_grad():
            for live, kept in zip(self._live, self._kept, strict=True):
                held = live.clone()
                live.copy_(kept)
                kept.copy_(held)


def _local(parameter: torch.nn.Parameter) -> torch.Tensor:
    data = parameter.detach()
    to_local: Any = getattr(data, "to_local", None)
    local: torch.Tensor = data if to_local is None else to_local()
    return local
