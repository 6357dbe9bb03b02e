"""Statistics of a training loop that is not a Trainer's: `session.watch(module, optimizer)`.

A step begins where the module is first called with gradients on, and ends with the optimizer's step; its number is that of the
`report` which follows.
"""

from __future__ import annotations

from typing import Any, final

import torch

from .. import pulse
from .statistics import Statistics


def watch(module: torch.nn.Module, optimizer: torch.optim.Optimizer, *, loss: object = None, name: str = "") -> None:
    """See `ScriptSession.watch`."""
    _Watched(module, optimizer, loss if isinstance(loss, torch.nn.Module) else None, name)


@final
class _Watched:
    """Lives in the hooks that it registers."""

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.nn.Module | None, name: str
    ) -> None:
        inner: Any = getattr(module, "_orig_mod", None)  # of torch.compile
        plain = module if inner is None else inner
        if isinstance(plain, torch.nn.parallel.DistributedDataParallel):
            plain = plain.module
        sharded = any(getattr(parameter, "to_local", None) is not None for parameter in plain.parameters())
        self._statistics = Statistics(
            plain, optimizer, strategy="fsdp" if sharded else "ddp", compiled=inner is not None, name=name
        )
        self._pairs: list[tuple[torch.Tensor, Any]] = []
        self._step: int | None = None  # under way
        module.register_forward_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)
        if loss is not None:
            loss.register_forward_pre_hook(self._keep)

    def _begin(self, module: torch.nn.Module, inputs: Any) -> None:
        step = pulse.now.step + 1
        if self._step == step or not (module.training and torch.is_grad_enabled()):
            return
        self._statistics.drop()
        self._pairs.clear()
        self._step = step
        self._statistics.begin(step)
        self._statistics.within(module)

    def _keep(self, loss: torch.nn.Module, inputs: Any) -> None:
        look = self._statistics.look
        if look is not None and look.labels and len(inputs) == 2 and isinstance(inputs[0], torch.Tensor):
            self._pairs.append((inputs[0].detach(), inputs[1]))

    def _end(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._step is not None:
            self._step = None
            self._statistics.end([output for output, _ in self._pairs], [target for _, target in self._pairs])
