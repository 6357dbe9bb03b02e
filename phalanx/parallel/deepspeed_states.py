"""Weights and optimizer states of a DeepSpeed engine by the names of the bare module, full on every rank.

ZeRO keeps them in flat fp32 tensors, one a parameter group (stages 1, 2) or sub-group (stage 3), of which a rank holds a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..contracts import Entry, State
from ..errors import UserError
from .states import GROUPS, MODULE, OPTIMIZER, checked, group_options, load_group_options, optimizer_values, to_array


@dataclass(frozen=True, slots=True)
class _Part:
    """A rank's part of a parameter: elements [start, start + length) of it stand at `at` of the flat tensor `flat`."""

    flat: torch.Tensor
    at: int
    start: int
    length: int


def zero_state(engine: Any, named: Mapping[str, torch.nn.Parameter], buffers: Mapping[str, torch.Tensor]) -> State:
    """Collective. Return what the ranks of the engine's data group hold together."""
    inner, group = engine.optimizer.optimizer, engine.optimizer.dp_process_group
    state = {MODULE + n: Entry(to_array(weight)) for n, weight in full_parameters(named).items()}
    state |= {MODULE + n: Entry(to_array(t)) for n, t in buffers.items()}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        part = _part(engine.optimizer, parameter)
        shape = _shape(parameter)
        for key, value in _agreed_keys(inner, part, parameter, group).items():
            if value is None:
                full = torch.zeros(shape.numel(), device=parameter.device)
                if part.length:
                    full[part.start : part.start + part.length] = inner.state[part.flat][key][part.at : part.at + part.length]
                dist.all_reduce(full, group=group)
                state[f"{OPTIMIZER}{name}.{key}"] = Entry(to_array(full.view(shape)))
            else:
                state[f"{OPTIMIZER}{name}.{key}"] = Entry(to_array(value) if isinstance(value, torch.Tensor) else value)
    state[GROUPS] = Entry(group_options(inner))
    return state


def load_zero_state(
    state: State, engine: Any, named: Mapping[str, torch.nn.Parameter], buffers: Mapping[str, torch.Tensor]
) -> None:
    """Collective. Put back what `zero_state` returned, or any strategy's whole state.

    Raises:
        UserError: the state is of another module or optimizer.
    """
    inner = engine.optimizer.optimizer
    for name, buffer in buffers.items():
        buffer.copy_(torch.from_numpy(checked(state, name, tuple(buffer.shape))))
    weights = {n: torch.from_numpy(checked(state, n, tuple(_shape(p)))) for n, p in named.items()}
    set_parameters(named, weights)
    inner.state.clear()
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        part = _part(engine.optimizer, parameter)
        _put(part.flat.data, part, weights[name])
        for key, value in optimizer_values(state, name).items():
            kept = inner.state[part.flat]
            if isinstance(value, np.ndarray) and value.shape == tuple(_shape(parameter)):
                if key not in kept:
                    kept[key] = torch.zeros_like(part.flat.data)
                _put(kept[key], part, torch.from_numpy(value))
            else:
                kept[key] = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
    load_group_options(state, inner)


def full_parameters(named: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Collective. Return copies of the parameters on the CPU; those of stage 3 are gathered one after another."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in named.items():
        if _partitioned(parameter):
            with _gathered(parameter, None):
                found[name] = parameter.detach().cpu().clone().contiguous()
        else:
            found[name] = parameter.detach().cpu().clone().contiguous()
    return found


def set_parameters(named: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]) -> None:
    """Collective. Give the parameters these values."""
    with torch.no_grad():
        for name, parameter in named.items():
            if _partitioned(parameter):
                with _gathered(parameter, 0):
                    parameter.copy_(weights[name])
            else:
                parameter.copy_(weights[name])


def fill_missing_gradient(parameter: torch.nn.Parameter) -> None:
    """Collective. Give a parameter that this rank did not use a gradient of zeros, where it has none."""
    if _partitioned(parameter):
        with _gathered(parameter, None):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)


def _gathered(parameter: torch.nn.Parameter, modifier_rank: int | None) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank)


def _partitioned(parameter: Any) -> bool:
    return getattr(parameter, "ds_id", None) is not None


def _shape(parameter: Any) -> torch.Size:
    return torch.Size(parameter.ds_shape) if _partitioned(parameter) else parameter.shape


def _part(optimizer: Any, parameter: Any) -> _Part:
    if _partitioned(parameter):
        index, at, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = length * dist.get_rank(optimizer.dp_process_group)
        flat = optimizer.fp32_partitioned_groups_flat[index]
        return _Part(flat, at, start, max(0, min(length, parameter.ds_numel - start)))  # the last parts are padded
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it is on other ranks
        for index, members in enumerate(optimizer.bit16_groups):
            if any(member is parameter for member in members):
                return _Part(optimizer.single_partition_of_fp32_groups[index], 0, 0, 0)
        raise UserError("a parameter is not in the optimizer: give it all parameters that learn")
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    return _Part(flat, here.start, whole.start, whole.numel)


def _put(flat: torch.Tensor, part: _Part, full: torch.Tensor) -> None:
    if part.length:
        flat[part.at : part.at + part.length] = full.reshape(-1)[part.start : part.start + part.length].to(flat)


def _agreed_keys(inner: Any, part: _Part, parameter: Any, group: Any) -> dict[str, Any]:
    """Return key -> None for values as large as the parameter, key -> value for others (the count of steps)."""
    kept = inner.state.get(part.flat, {})
    return {k: None if isinstance(v, torch.Tensor) and v.shape == part.flat.shape and v.ndim else v for k, v in kept.items()}
