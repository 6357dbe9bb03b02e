"""A module and its optimizer as a `State`, by the names of the bare module, so that any strategy can read another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..contracts import Array, Entry, State
from ..errors import UserError

MODULE, OPTIMIZER, GROUPS, SCALER = "module.", "optimizer.", "optimizer_groups", "scaler"


def to_array(tensor: torch.Tensor) -> Array:
    """Return a copy of `tensor` as numpy has it; bfloat16 as float32, which holds every value of it."""
    data = tensor.detach().cpu()
    if data.dtype == torch.bfloat16:
        data = data.float()
    return np.array(data.numpy())


def names_of(module: torch.nn.Module) -> dict[torch.Tensor, str]:
    """Return the name of every parameter, each once (tied ones under their first name)."""
    return {parameter: name for name, parameter in module.named_parameters()}


def training_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> State:
    """Return parameters, buffers, the optimizer's state and groups, and the scaler's, all of scope global."""
    state: dict[str, Entry] = {MODULE + n: Entry(to_array(t)) for n, t in module.named_parameters()}
    state |= {MODULE + n: Entry(to_array(t)) for n, t in module.named_buffers()}
    names = names_of(module)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            state[f"{OPTIMIZER}{names[parameter]}.{key}"] = Entry(to_array(value) if isinstance(value, torch.Tensor) else value)
    state[GROUPS] = Entry(group_options(optimizer))
    if scaler.is_enabled():
        state[SCALER] = Entry(scaler.state_dict())
    return state


def load_training_state(
    state: State, module: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Put back what `training_state` returned.

    Raises:
        UserError: the state is of another module or optimizer.
    """
    load_module(state, module)
    optimizer.state.clear()
    for name, parameter in module.named_parameters():
        values = optimizer_values(state, name)
        if values:
            optimizer.state[parameter] = {k: restored(v, parameter) for k, v in values.items()}
    load_group_options(state, optimizer)
    if SCALER in state:
        scaler.load_state_dict(dict(_json(state[SCALER])))


def load_module(state: State, module: torch.nn.Module) -> None:
    """Put back parameters and buffers.

    Raises:
        UserError: a name is missing or has another shape.
    """
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.detach().copy_(torch.from_numpy(checked(state, name, tuple(tensor.shape))))


def checked(state: State, name: str, shape: tuple[int, ...]) -> Array:
    """Return the saved value of the parameter or buffer `name`.

    Raises:
        UserError: it is not there, or of another shape.
    """
    entry = state.get(MODULE + name)
    if entry is None:
        raise UserError(f"the saved state has no '{name}': it is of another module")
    value = np.asarray(entry.value)
    if value.shape != shape:
        raise UserError(f"'{name}' was saved with shape {value.shape}, the module has {shape}: it is of another module")
    return value


def optimizer_values(state: State, name: str) -> dict[str, Any]:
    """Return what was saved of the optimizer for the parameter `name`: key -> array or JSON value."""
    prefix = f"{OPTIMIZER}{name}."
    return {key[len(prefix) :]: e.value for key, e in state.items() if key.startswith(prefix) and "." not in key[len(prefix) :]}


def restored(value: Any, parameter: torch.Tensor) -> Any:
    """Return a saved optimizer value as the optimizer keeps it: of the parameter's type and place where it has its shape."""
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(np.array(value))
    if tensor.shape == parameter.shape and tensor.is_floating_point():
        return tensor.to(parameter.device, parameter.dtype)
    return tensor


def group_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of every parameter group as JSON values."""
    return [{k: _plain(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def load_group_options(state: State, optimizer: torch.optim.Optimizer) -> None:
    """Put back the options of the parameter groups.

    Raises:
        UserError: another number of groups was saved.
    """
    saved = _json(state[GROUPS])
    if len(saved) != len(optimizer.param_groups):
        raise UserError(f"the saved optimizer has {len(saved)} parameter groups, this one {len(optimizer.param_groups)}")
    for group, options in zip(optimizer.param_groups, saved, strict=True):
        for key, value in options.items():
            now = group.get(key)
            if isinstance(now, torch.Tensor):
                now.fill_(value)
            else:
                group[key] = tuple(value) if isinstance(now, tuple) else value


def full_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all weights and persistent buffers on the CPU, by the names of `module.state_dict()`."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _json(entry: Entry) -> Any:
    value = entry.value
    return dict(value) if isinstance(value, Mapping) else value
