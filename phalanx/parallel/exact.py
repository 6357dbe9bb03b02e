"""`exact`: data parallel whose result does not depend on the number of workers, to the bit.

A global batch is cut into a fixed number of micro-batches, whoever computes them. Their gradients are rounded to integers at a
scale that all share, and added as integers: such a sum depends neither on its order nor on how it is split over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..contracts import Collective, Entry, MicroBatch, Recipe, Replica, State, StepOutput
from ..errors import AlgorithmError, UserError
from . import checkpointing
from .lanes import Lane
from .objective import (
    Objective,
    autocast,
    check_micro_batches,
    clip,
    evaluating,
    refuse_not_finite,
    scaler_for,
    seed_generators,
    trainable,
)
from .process_group import ensure_default_group
from .states import full_weights, load_training_state, training_state
from .uniform import broadcast_module, check_same_module

_BITS = 44  # of a gradient as large as the scale: its rounding error is 2^-44 of the largest, far below float32's own
_ABOVE, _BELOW = 12, 16  # powers of two that the largest gradient may move off the scale before a step is computed anew
_LOSS_BITS = 40
_STATE = "exact"


@final
@dataclass(frozen=True, slots=True)
class Exact:
    """Data parallel, bit-equal on any number of workers that divides `micro_batches`.

    Args:
        micro_batches: pieces of every global batch, over all workers.
        threads: of each worker; products of matrices depend on it.
    """

    micro_batches: int = 12
    threads: int = 1
    name = "exact"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`; `recipe.accumulate` is `micro_batches` / workers."""
        if self.share(world.size) != recipe.accumulate:
            raise UserError(
                f"strategy 'exact' has micro_batches={self.micro_batches} in place of accumulate={recipe.accumulate}"
            )
        if recipe.precision == "fp16":
            raise UserError("strategy 'exact' goes with precision fp32 or bf16: the scale of fp16 would follow from the split")
        if any(isinstance(part, _BatchNorm) and part.track_running_stats for part in recipe.module.modules()):
            raise UserError("strategy 'exact' cannot keep the running statistics of batch norm; use GroupNorm or LayerNorm")
        return ExactReplica(recipe, world, self)

    def share(self, workers: int) -> int:
        """Return the micro-batches that each of so many workers computes.

        Raises:
            UserError: they cannot be shared evenly.
        """
        if self.micro_batches < 1 or self.micro_batches % workers:
            fitting = [str(n) for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]
            raise UserError(
                f"{self.micro_batches} micro-batches cannot be shared evenly by {workers} workers: "
                f"give {', '.join(fitting)} workers, or other micro_batches"
            )
        return self.micro_batches // workers


@final
class ExactReplica:
    """`contracts.Replica` of `exact`."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, options: Exact) -> None:
        self.data_rank, self.data_size = world.rank, world.size
        self._recipe = recipe
        self._world = world
        self._options = options
        torch.set_num_threads(options.threads)
        self._module = recipe.module.to(recipe.device)
        self._parameters = trainable(self._module)
        check_same_module(self._module, world)
        if world.size > 1:
            ensure_default_group(world, recipe.device)
            broadcast_module(self._module)
        self._lane = Lane(world, recipe.device)
        if recipe.activation_checkpointing:
            checkpointing.apply(self._module)
        self._objective = Objective(recipe)
        self._called: Any = torch.compile(self._objective) if recipe.compile else self._objective
        self._optimizer = recipe.make_optimizer(self._parameters)
        self._scaler = scaler_for(recipe)
        self._exponent: int | None = None  # of the scale: a power of two about as large as the largest gradient
        sizes = [p.numel() for p in self._parameters]
        self._sums = torch.zeros(sum(sizes), dtype=torch.int64, device=recipe.device)
        self._views = [v.view_as(p) for v, p in zip(torch.split(self._sums, sizes), self._parameters, strict=True)]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The user's optimizer."""
        return self._optimizer

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> StepOutput:
        """See `contracts.Replica`."""
        recipe = self._recipe
        check_micro_batches(micro_batches, recipe)
        if not self._module.training:
            self._module.train()
        while True:
            losses, largest, used = self._pass(micro_batches)
            loss = self._added([loss.double() for loss in losses])
            refuse_not_finite(loss, losses, self._world)
            seen = torch.tensor([largest, *used], dtype=torch.float64, device=recipe.device)
            self._lane.reduce(seen, "max")
            if not math.isfinite(float(seen[0])):
                raise AlgorithmError("a gradient is not finite: look at the learning rate and the data")
            exponent = math.frexp(float(seen[0]))[1]
            fits = self._exponent is not None and -_BELOW <= exponent - self._exponent <= _ABOVE
            if fits or float(seen[0]) == 0:
                break
            self._exponent = exponent  # the first step, or one unlike those before: again, at its own scale
        self._lane.reduce(self._sums)
        scale = 2.0 ** ((self._exponent or 0) - _BITS)
        for parameter, sums, wanted in zip(self._parameters, self._views, seen[1:].tolist(), strict=True):
            parameter.grad = (sums.double() * scale).to(parameter.dtype) if wanted else None
        if float(seen[0]):
            self._exponent = exponent
        norm = clip(self._parameters, recipe.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutput(loss, norm)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        losses = []
        with evaluating(self._objective), autocast(self._recipe):
            for micro in micro_batches:
                if micro.weight:
                    losses.append(self._objective(micro.inputs, micro.target).double() * micro.weight)
        return self._added(losses)

    def predict_step(self, inputs: Any) -> Any:
        """See `contracts.Replica`."""
        with evaluating(self._objective), autocast(self._recipe):
            return self._objective.output(inputs)

    def state_dict(self) -> State:
        """Return module, optimizer and scale; the same on every rank."""
        kept = {"exponent": self._exponent, "micro_batches": self._options.micro_batches, "threads": self._options.threads}
        return {**training_state(self._module, self._optimizer, self._scaler), _STATE: Entry(kept)}

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` returned, on any number of ranks.

        Raises:
            UserError: it was saved with other micro-batches or threads: what follows would not be the same.
        """
        kept: Any = state[_STATE].value if _STATE in state else {}
        for name, now in (("micro_batches", self._options.micro_batches), ("threads", self._options.threads)):
            if kept.get(name) != now:
                raise UserError(f"the state was saved with {name}={kept.get(name)}, this training has {now}: they must agree")
        load_training_state(state, self._module, self._optimizer, self._scaler)
        self._exponent = kept["exponent"]

    def export(self) -> dict[str, torch.Tensor] | None:
        """See `contracts.Replica`."""
        return full_weights(self._module) if self._world.rank == 0 else None

    def close(self) -> None:
        """See `contracts.Replica`."""
        self._lane.close()

    def _pass(self, micro_batches: Sequence[MicroBatch]) -> tuple[list[torch.Tensor], float, list[float]]:
        """Compute every micro-batch; return its losses, the largest gradient met, and which parameters were used.

        Gradients are added to the integer sums at the scale there is; without one they are only looked at.
        """
        self._sums.zero_()
        losses: list[torch.Tensor] = []
        largest = torch.zeros((), dtype=torch.float64, device=self._recipe.device)
        used = [0.0] * len(self._parameters)
        factor = None if self._exponent is None else 2.0 ** (_BITS - self._exponent)
        for micro in micro_batches:
            seed_generators(micro.seed, self._recipe.device)
            with autocast(self._recipe):
                loss = self._called(micro.inputs, micro.target) * micro.weight
            losses.append(loss.detach())
            loss.backward()
            for number, parameter in enumerate(self._parameters):
                if parameter.grad is None:
                    continue
                gradient, parameter.grad = parameter.grad.double(), None
                if micro.weight:
                    used[number] = 1.0
                    largest = torch.maximum(largest, gradient.abs().max())
                    if factor is not None:
                        self._views[number].add_(torch.round(gradient.mul_(factor)).long())
        return losses, float(largest), used

    def _added(self, losses: Sequence[torch.Tensor]) -> float:
        """Return the sum of losses over all ranks, added as integers; not finite where one is not."""
        values = [float(loss) for loss in losses]
        finite = all(math.isfinite(value) for value in values)
        total = sum(round(value * 2**_LOSS_BITS) for value in values) if finite else 0
        packed = torch.tensor([0 if finite else 1, total], dtype=torch.int64, device=self._recipe.device)
        self._lane.reduce(packed)
        return math.nan if int(packed[0]) else int(packed[1]) / 2**_LOSS_BITS
