"""Which matrices are cut, and how: a user's plan checked, or one derived."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from ..errors import UserError, nearest

_STYLES = ("column", "row")
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Mish, nn.Identity)
_EXAMPLE = 'phalanx.parallel.Tensor(plan={"blocks.*.up": "column", "blocks.*.down": "row"})'


def derived_plan(module: nn.Module) -> dict[str, str]:
    """Return a plan: pairs of Linear layers with element-wise functions between them, and torch's Transformer layers.

    Raises:
        UserError: there is nothing of that kind; shows what a plan looks like.
    """
    plan: dict[str, str] = {}
    for name, part in module.named_modules():
        if isinstance(part, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            plan |= {_join(name, "linear1"): "column", _join(name, "linear2"): "row"}
        elif isinstance(part, nn.Sequential):
            plan |= _pairs(name, part, set(plan))
    tied = _shared(module)
    plan = {name: style for name, style in plan.items() if name not in tied}
    if not _complete(plan):
        names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        raise UserError(
            "no plan can be derived for this module: there is no pair of Linear layers with an element-wise function between "
            f"them in a Sequential, and no Transformer layer of torch's; give one, as {_EXAMPLE}; its Linear layers are "
            f"{', '.join(names[:8]) or 'none'}"
        )
    return plan


def check_plan(module: nn.Module, plan: Mapping[str, str], size: int) -> dict[str, str]:
    """Return a plan by whole names.

    Raises:
        UserError: a pattern fits nothing, a style is none, or a layer cannot be cut in `size`.
    """
    modules = dict(module.named_modules())
    found: dict[str, str] = {}
    for pattern, style in plan.items():
        if style not in _STYLES:
            raise UserError(f"plan['{pattern}']={style!r} is not allowed; {nearest(str(style), _STYLES)}")
        names = fnmatch.filter(modules, pattern)
        if not names:
            linear = [name for name, part in modules.items() if isinstance(part, nn.Linear)]
            raise UserError(f"plan['{pattern}'] fits no module; {nearest(pattern, linear)}")
        for name in names:
            if not isinstance(modules[name], (nn.Linear, nn.Embedding)):
                kind = type(modules[name]).__name__
                raise UserError(f"plan['{pattern}'] fits '{name}', a {kind}: only Linear and Embedding layers can be cut")
            found[name] = style
    for name, style in found.items():
        weight: torch.Tensor = modules[name].weight
        axis = 0 if (style == "column") == isinstance(modules[name], nn.Linear) else 1
        if weight.shape[axis] < size:
            raise UserError(f"'{name}' has {weight.shape[axis]} {style}s and cannot be cut over {size} workers")
    return found


def styles(plan: Mapping[str, str]) -> dict[str, ParallelStyle]:
    """Return torch's styles of a plan."""
    return {name: ColwiseParallel() if style == "column" else RowwiseParallel() for name, style in plan.items()}


def _pairs(prefix: str, part: nn.Sequential, taken: set[str]) -> dict[str, str]:
    """Return the pairs among the children of a Sequential."""
    plan: dict[str, str] = {}
    first: str | None = None
    between = 0
    for name, child in part.named_children():
        full = _join(prefix, name)
        if isinstance(child, nn.Linear) and full not in taken:
            if first is not None and between:
                plan |= {first: "column", full: "row"}
                first = None
            else:
                first = full
            between = 0
        elif isinstance(child, _ELEMENTWISE):
            between += 1
        else:
            first = None
    return plan


def _complete(plan: Mapping[str, str]) -> bool:
    return {"column", "row"} <= set(plan.values())


def _shared(module: nn.Module) -> set[str]:
    """Return the names of modules whose parameters are used elsewhere too: they stay whole."""
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
