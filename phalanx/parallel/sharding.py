"""What strategies whose parameters are DTensors share: states by shards, full weights, gradients' norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..contracts import Entry, State
from ..errors import UserError
from .states import (
    GROUPS,
    MODULE,
    OPTIMIZER,
    SCALER,
    group_options,
    load_group_options,
    optimizer_values,
    to_array,
)

_ABSENT = "optimizer_absent"  # parameters that had no gradient so far


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor, which shares its memory."""
    data = tensor.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def entry_of(tensor: torch.Tensor) -> Entry:
    """Return this rank's part of a tensor with its place in the whole."""
    if not isinstance(tensor, DTensor):
        return Entry(to_array(tensor))
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    part = to_array(local(tensor))
    offset = tuple(min(o, s) for o, s in zip(offset, tensor.shape, strict=True))
    return Entry(part, "sharded", tuple(tensor.shape), offset)


def sharded_state(
    parameters: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> State:
    """Return this rank's parts of parameters and optimizer; buffers, groups and scaler whole.

    Every parameter that learns has its optimizer's entries from the first moment on, so that a fresh replica can say which
    parts of a saved state it wants.
    """
    state: dict[str, Entry] = {MODULE + n: entry_of(t) for n, t in parameters.items()}
    state |= {MODULE + n: Entry(to_array(t)) for n, t in buffers.items()}
    names = {tensor: name for name, tensor in parameters.items()}
    absent = [names[p] for p in _learning(optimizer) if p not in optimizer.state]
    with _primed(optimizer, absent=bool(absent)) as values:
        for parameter, kept in values.items():
            for key, value in kept.items():
                entry = entry_of(value) if isinstance(value, torch.Tensor) else Entry(value)
                state[f"{OPTIMIZER}{names[parameter]}.{key}"] = entry
    state[_ABSENT] = Entry(absent)
    state[GROUPS] = Entry(group_options(optimizer))
    if scaler.is_enabled():
        state[SCALER] = Entry(scaler.state_dict())
    return state


def load_sharded_state(
    state: State,
    parameters: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Put back what `sharded_state` returned, on this or another number of ranks.

    Raises:
        UserError: the state is of another module or optimizer.
    """
    absent = set(_list(state.get(_ABSENT)))
    with torch.no_grad():
        for name, tensor in [*parameters.items(), *buffers.items()]:
            local(tensor).copy_(_part(state, MODULE + name, tensor))
    optimizer.state.clear()
    learning = set(_learning(optimizer))
    for name, parameter in parameters.items():
        if name in absent or parameter not in learning:
            continue
        for key, value in optimizer_values(state, name).items():
            optimizer.state[parameter][key] = _value(state, f"{OPTIMIZER}{name}.{key}", value, parameter)
    load_group_options(state, optimizer)
    if SCALER in state:
        scaler.load_state_dict(dict(state[SCALER].value))


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Collective. Return the whole of a tensor."""
    data = tensor.detach()
    return data.full_tensor() if isinstance(data, DTensor) else data


def full_weights_of(module: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor] | None:
    """Collective. Return the whole weights and persistent buffers on the CPU where `keep`, one at a time."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        whole = full(tensor)
        if keep:
            found[name] = whole.cpu().clone().contiguous()
    return found if keep else None


@contextmanager
def _primed(optimizer: torch.optim.Optimizer, *, absent: bool) -> Iterator[Mapping[Any, Mapping[str, Any]]]:
    """Within: the optimizer's state, with what parameters without one would begin with. Its state is as before afterwards."""
    if not absent:
        yield dict(optimizer.state)
        return
    real = dict(optimizer.state)
    parameters = _learning(optimizer)
    gradients = [p.grad for p in parameters]
    weights = [local(p).clone() for p in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter not in real else None
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        type(optimizer).step(optimizer)  # not the instance's: schedules count its calls
        yield dict(optimizer.state)
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        with torch.no_grad():
            for parameter, gradient, weight in zip(parameters, gradients, weights, strict=True):
                parameter.grad = gradient
                local(parameter).copy_(weight)
        optimizer.state.clear()
        optimizer.state.update(real)


def _learning(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _part(state: State, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a saved value, cut out of it where it was saved whole."""
    entry = state.get(key)
    if entry is None:
        raise UserError(f"the saved state has no '{key}': it is of another module or strategy")
    value = np.asarray(entry.value)
    wanted = tuple(local(tensor).shape)
    if value.shape != wanted and isinstance(tensor, DTensor) and value.shape == tuple(tensor.shape):
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        value = value[tuple(slice(o, o + n) for o, n in zip(offset, wanted, strict=True))]
    if value.shape != wanted:
        raise UserError(f"'{key}' was saved with shape {value.shape}, this rank has {wanted}: it is of another module")
    return torch.from_numpy(np.array(value))


def _value(state: State, key: str, value: Any, parameter: torch.Tensor) -> Any:
    """Return a saved optimizer value as the optimizer keeps it: sharded as its parameter is where it has its shape."""
    if not isinstance(value, np.ndarray):
        return value
    entry = state[key]
    whole = entry.shape if entry.scope == "sharded" else value.shape
    if whole != tuple(parameter.shape) or value.ndim == 0:
        return torch.from_numpy(np.array(value))
    made = torch.zeros_like(parameter.detach())
    local(made).copy_(_part(state, key, made))
    return made


def _list(entry: Entry | None) -> Sequence[str]:
    return [] if entry is None else list(entry.value)
