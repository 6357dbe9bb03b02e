"""From a micro-batch to its loss: calling the module, precision, generators, what strategies share of a step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch

from ..contracts import Collective, MicroBatch, Recipe
from ..errors import AlgorithmError, UserError

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def call_module(module: torch.nn.Module, inputs: Any) -> Any:
    """Return the module's output: a tuple or list becomes its arguments, a mapping its keywords."""
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(inputs)


def scalar_loss(found: Any, of: str) -> torch.Tensor:
    """Return the loss in what a loss function or a module gave: a scalar tensor, `.loss`, `["loss"]`, or first of a tuple.

    A tensor with a value for every row is averaged.

    Raises:
        UserError: there is no tensor in it.
    """
    if isinstance(found, Mapping):
        found = found.get("loss")
    elif isinstance(found, (tuple, list)):
        found = found[0] if found else None
    elif not isinstance(found, torch.Tensor):
        found = getattr(found, "loss", None)
    if not isinstance(found, torch.Tensor) or found.ndim > 1:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        hint = "give Trainer(module, loss) a loss function" if of == "module" else "it must return a scalar tensor"
        raise UserError(f"the {of} returned no loss but {what}: {hint}")
    return found if found.ndim == 0 else found.mean()


@final
class Objective(torch.nn.Module):
    """A module and its loss as one module: `forward(inputs, target)` returns the loss."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.module = recipe.module
        self._loss = recipe.loss

    def output(self, inputs: Any) -> Any:
        """Return what the module makes of `inputs`."""
        return call_module(self.module, inputs)

    def forward(self, inputs: Any, target: Any) -> torch.Tensor:
        """Return the mean loss over the rows of `inputs`."""
        output = call_module(self.module, inputs)
        if self._loss is None:
            return scalar_loss(output, "module")
        return scalar_loss(self._loss(output, target), "loss function")


def autocast(recipe: Recipe) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which forward passes run in the recipe's precision."""
    dtype = _AUTOCAST.get(recipe.precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(recipe.device.type, dtype)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device`, without the costs of `torch.manual_seed`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Within: the module is in evaluation mode and no gradients are kept."""
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was)


def trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters to learn, each once.

    Raises:
        UserError: there are none.
    """
    found = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not found:
        raise UserError("the module has no parameters to train: all are frozen, or it has none")
    return found


def check_micro_batches(micro_batches: Sequence[MicroBatch], recipe: Recipe) -> None:
    """Raise where a step was given another number of micro-batches than it is made of."""
    if len(micro_batches) != recipe.accumulate:
        raise ValueError(f"a step takes {recipe.accumulate} micro-batches, got {len(micro_batches)}")


def clip(parameters: Sequence[torch.nn.Parameter], largest: float | None) -> float | None:
    """Clip the gradients to a global 2-norm of `largest`; return the norm before, None where there is nothing to clip to."""
    return None if largest is None else float(torch.nn.utils.clip_grad_norm_(parameters, largest))


def scaler_for(recipe: Recipe) -> torch.amp.GradScaler:
    """Return the scaler of fp16 losses; switched off in other precisions."""
    return torch.amp.GradScaler(recipe.device.type, enabled=recipe.precision == "fp16")


def apply_gradients(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Step the optimizer; return whether it was: gradients of fp16 that overflowed are left out, and the scale comes down."""
    if not scaler.is_enabled():
        optimizer.step()
        return True
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return bool(scaler.get_scale() >= before)


def refuse_not_finite(loss: float, own: Sequence[torch.Tensor], world: Collective) -> None:
    """Collective where `loss`, the same on all ranks, is not finite: raise before the weights are touched.

    Args:
        loss: of the global batch.
        own: losses of this rank's micro-batches.
        world: the ranks.

    Raises:
        AlgorithmError: the loss is not finite; names the ranks whose rows made it so.
    """
    if math.isfinite(loss):
        return
    finite = all(bool(torch.isfinite(part.detach()).all()) for part in own)
    guilty = [rank for rank, well in enumerate(world.all_gather(finite)) if not well]
    where = f" on rank {', '.join(map(str, guilty))}" if guilty and world.size > 1 else ""
    raise AlgorithmError(f"the loss is {loss}{where}: look at the learning rate and at these rows")
