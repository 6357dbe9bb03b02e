"""The state of a pipeline: every stage's entries by the bare module's names, gathered so that other stages can load them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch

from ..contracts import Collective, Entry, State
from .deepspeed_states import load_zero_state, zero_state
from .stage import Stage
from .states import (
    GROUPS,
    MODULE,
    OPTIMIZER,
    checked,
    full_weights,
    group_options,
    load_group_options,
    optimizer_values,
    restored,
    to_array,
)


@final
class StageStates:
    """Reads and writes weights and optimizer of the own stage, and of all stages together."""

    def __init__(
        self,
        module: torch.nn.Module,
        stages: Sequence[Stage],
        engine: Any,
        index: int,
        data_size: int,
        world: Collective,
        *,
        zero: int,
    ) -> None:
        self._module, self._engine, self._world, self._zero = module, engine, world, zero
        self._leaders = [stage * data_size for stage in range(len(stages))]
        parameters = {id(p) for p in stages[index].parameters()}
        buffers = {id(b) for b in stages[index].buffers()}
        self._named = {n: p for n, p in module.named_parameters() if id(p) in parameters}
        self._buffers = {n: b for n, b in module.named_buffers() if id(b) in buffers}

    def gather(self) -> State:
        """Collective. Return all stages' entries on every rank."""
        return self._shared(self._own())

    def load(self, state: State) -> None:
        """Collective. Put back the own stage's part of a whole state."""
        if self._zero:
            load_zero_state(state, self._engine, self._named, self._buffers)
            return
        optimizer = self._engine.basic_optimizer
        with torch.no_grad():
            for name, tensor in {**self._named, **self._buffers}.items():
                tensor.copy_(torch.from_numpy(checked(state, name, tuple(tensor.shape))))
        optimizer.state.clear()
        for name, parameter in self._named.items():
            values = optimizer_values(state, name)
            if values:
                optimizer.state[parameter] = {k: restored(v, parameter) for k, v in values.items()}
        load_group_options(state, optimizer)

    def export(self) -> dict[str, torch.Tensor] | None:
        """Collective. Return the whole module's weights on rank 0."""
        own = {n: Entry(to_array(t)) for n, t in {**self._named, **self._buffers}.items()}
        everyone = self._shared(own)
        if self._world.rank:
            return None
        with torch.no_grad():  # what rank 0 has of other stages is old
            for name, tensor in [*self._module.named_parameters(), *self._module.named_buffers()]:
                if name not in self._named and name not in self._buffers:
                    tensor.copy_(torch.from_numpy(everyone[name].value))
        return full_weights(self._module)

    def _own(self) -> State:
        if self._zero:
            return zero_state(self._engine, self._named, self._buffers)
        optimizer = self._engine.basic_optimizer
        state = {MODULE + n: Entry(to_array(t)) for n, t in {**self._named, **self._buffers}.items()}
        for name, parameter in self._named.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                kept = to_array(value) if isinstance(value, torch.Tensor) else value
                state[f"{OPTIMIZER}{name}.{key}"] = Entry(kept)
        state[GROUPS] = Entry(group_options(optimizer))
        return state

    def _shared(self, own: State) -> State:
        names = self._world.all_gather(list(own))
        found: dict[str, Entry] = {}
        for leader in self._leaders:
            for name in names[leader]:
                if name not in found:
                    value = self._world.broadcast(own[name].value if self._world.rank == leader else None, leader)
                    found[name] = Entry(value)
        return found
