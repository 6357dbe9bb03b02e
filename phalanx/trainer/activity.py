"""How often the units of ReLU, tanh and sigmoid layers are at work, seen where torch's functions are called.

Modules and plain calls (`F.relu`, `x.tanh()`) are seen alike, under the name of the module that calls them. Code that
`torch.compile` has made is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

Bounds = Mapping[str, Sequence[float]]  # of the inputs of tanh and sigmoid between which a unit is at work
_KINDS: dict[Any, str] = {
    **dict.fromkeys((torch.relu, torch.relu_, functional.relu, torch.Tensor.relu, torch.Tensor.relu_), "relu"),
    **dict.fromkeys((torch.tanh, functional.tanh, torch.Tensor.tanh), "tanh"),
    **dict.fromkeys((torch.sigmoid, functional.sigmoid, torch.Tensor.sigmoid), "sigmoid"),
}
_LEAST_ROWS = 128  # of a unit, before its share of them says something
_QUANTILES = 101
_MODULES = (torch.nn.ReLU, torch.nn.Tanh, torch.nn.Sigmoid)


@dataclass(slots=True)
class _Units:
    """A layer's units, counted over looks."""

    kind: str
    active: torch.Tensor  # (units,) rows in which each was at work
    rows: int
    zeros: float  # sum over looks of the share of outputs that are 0
    looks: int


@final
class Activity:
    """Counts over forward passes; a context manager around each that is to be seen.

    Args:
        module: whose layers are named.
        bounds: of tanh and sigmoid.
        name: that goes before the layers' names.
    """

    def __init__(self, module: torch.nn.Module, bounds: Bounds, name: str = "") -> None:
        self._root = module
        prefix = f"{name}." if name else ""
        self._names = {id(part): f"{prefix}{part_name or 'module'}" for part_name, part in module.named_modules()}
        self._unknown = "" if name else "module"  # of modules that are not ours; "": not looked at, they may be another's
        self._bounds = bounds
        self._stack: list[tuple[str, bool]] = []  # modules that are being called; whether each is an activation and no more
        self._calls: dict[str, int] = {}
        self._layers: dict[str, _Units] = {}
        self._mode: _Mode | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._stack.clear()
        self._calls.clear()
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        self._end()
        for hook in self._hooks:
            hook.remove()

    def within(self, module: torch.nn.Module) -> None:
        """Say that it was entered while this module is being called already, by a hook of it."""
        self._enter(module, ())

    def read(self) -> dict[str, dict[str, Any]]:
        """Return what has enough rows by now, as `Tensors.activations` has it, and begin anew with these."""
        found = {}
        for name, units in list(self._layers.items()):
            if units.rows >= _LEAST_ROWS:
                share = (units.active.double() / units.rows).sort().values
                places = torch.linspace(0, len(share) - 1, _QUANTILES).round().long()
                active = [round(value, 5) for value in share[places.to(share.device)].tolist()]
                found[name] = {"kind": units.kind, "active": active, "units": len(share), "zero": units.zeros / units.looks}
                del self._layers[name]
        return found

    def look(self, kind: str, given: torch.Tensor, output: torch.Tensor) -> None:
        """Count a call."""
        place, is_activation = self._stack[-1] if self._stack else (self._unknown, False)
        if not place:
            return
        name = place if is_activation else f"{place}.{kind}"
        call = self._calls[name] = self._calls.get(name, 0) + 1
        name = name if call == 1 else f"{name} ({call})"
        with torch.no_grad():
            if kind == "relu":
                active = output.detach() != 0  # also where it is no number
            else:
                low, high = self._bounds.get(kind, (-float("inf"), float("inf")))
                active = ~((given.detach() <= low) | (given.detach() >= high))
            axis = 1 if active.ndim >= 4 else active.ndim - 1  # channels of images, features of all else
            others = [number for number in range(active.ndim) if number != axis]
            counts = active.sum(dim=others) if others else active.long()
            rows = active.numel() // max(1, active.shape[axis])
            zero = float((output.detach() == 0).float().mean()) if kind != "relu" else 1 - float(counts.sum()) / active.numel()
        units = self._layers.get(name)
        if units is None or units.active.shape != counts.shape:
            self._layers[name] = _Units(kind, counts, rows, zero, 1)
            return
        units.active = units.active + counts
        units.rows, units.zeros, units.looks = units.rows + rows, units.zeros + zero, units.looks + 1

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if not self._stack and self._mode is None:  # only within forward passes: other code is not slowed
            self._mode = _Mode(self)
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        if module is self._root:
            self._calls.clear()
        name = self._names.get(id(module)) or (self._stack[-1][0] if self._stack else self._unknown)
        self._stack.append((name, isinstance(module, _MODULES)))

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()
        if not self._stack:
            self._end()

    def _end(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None


@final
class _Mode(TorchFunctionMode):
    """Sees every call of a function of torch."""

    def __init__(self, activity: Activity) -> None:
        super().__init__()
        self._activity = activity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and look at it if it is one of ours."""
        output = func(*args, **(kwargs or {}))
        kind = _KINDS.get(func)
        if kind is not None and isinstance(output, torch.Tensor) and output.ndim and output.numel():
            self._activity.look(kind, args[0] if args else output, output)
        return output
