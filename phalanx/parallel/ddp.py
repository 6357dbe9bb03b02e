"""`single` and `ddp`: a copy of the module on every rank, gradients averaged while they are computed.

torch's DistributedDataParallel (Li et al., 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training").
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..contracts import Collective, MicroBatch, Recipe, Replica, State, StepOutput
from ..errors import UserError
from . import checkpointing
from .lanes import Lane
from .objective import (
    Objective,
    apply_gradients,
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


@final
@dataclass(frozen=True, slots=True)
class Single:
    """One process, no communication."""

    name = "single"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        if world.size > 1:
            raise UserError(f"strategy 'single' trains on 1 worker, not {world.size}; use 'ddp', or start one worker")
        return DataParallelReplica(recipe, world, DDP())


@final
@dataclass(frozen=True, slots=True)
class DDP:
    """Data parallel.

    Args:
        bucket_mb: gradients are exchanged in buckets of so many MiB.
        find_unused_parameters: "auto": looked for in the first step, and on from then on only if that step left some out.
    """

    bucket_mb: float = 25
    find_unused_parameters: bool | Literal["auto"] = "auto"
    name = "ddp"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        return DataParallelReplica(recipe, world, self)


class _Counted(torch.nn.Module):
    """An objective whose loss reaches all ranks with the gradients, at no further exchange.

    `total` is a parameter of value 0 that is multiplied with the loss: its gradient is the loss, and averaged as all are.
    """

    def __init__(self, objective: Objective, like: torch.Tensor, *, compiled: bool) -> None:
        super().__init__()
        self.objective: Any = torch.compile(objective) if compiled else objective
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self.total = torch.nn.Parameter(torch.zeros(1, dtype=dtype, device=like.device))
        self.given: list[tuple[torch.nn.Parameter, torch.Tensor]] = []  # gradients that a backward pass is to come to

    def forward(self, inputs: Any, target: Any, weight: float) -> torch.Tensor:
        """Return `weight` times the mean loss, (1,)."""
        if self.given:
            return torch.stack([(p * g).sum().float() for p, g in self.given]).sum()
        loss: torch.Tensor = self.objective(inputs, target)
        if weight != 1:
            loss = loss * weight
        return torch.addcmul(loss, self.total, loss.detach())


@final
class DataParallelReplica:
    """`contracts.Replica` of `single` and `ddp`."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, options: DDP) -> None:
        self.data_rank, self.data_size = world.rank, world.size
        self._recipe = recipe
        self._options = options
        self._world = world
        self._module = recipe.module.to(recipe.device)
        self._parameters = trainable(self._module)
        check_same_module(self._module, world)
        if recipe.activation_checkpointing:
            checkpointing.apply(self._module)
        self._objective = Objective(recipe)
        self._counted = _Counted(self._objective, self._parameters[0], compiled=recipe.compile)
        self._optimizer = recipe.make_optimizer(self._parameters)
        self._scaler = scaler_for(recipe)
        self._total = self._counted.total
        self._wrapped: Any = None  # none is needed on one rank, and in the first step where unused parameters are looked for
        if world.size > 1:
            ensure_default_group(world, recipe.device)
            broadcast_module(self._module)
        self._lane = Lane(world, recipe.device)
        if world.size > 1 and options.find_unused_parameters != "auto":
            self._wrapped = self._wrap(find_unused=options.find_unused_parameters)
            if not options.find_unused_parameters:
                self._reduce([(p, torch.zeros_like(p)) for p in [*self._parameters, self._total]])
                self._forget()

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
        last = micro_batches[-1]
        losses: list[torch.Tensor] = []
        exploring = self._wrapped is None and self._world.size > 1
        for micro in micro_batches:
            with contextlib.nullcontext() if micro is last or self._wrapped is None else self._wrapped.no_sync():
                seed_generators(micro.seed, recipe.device)
                loss = self._loss(micro)
                losses.append(loss)
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if exploring:
            self._explore()
        scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
        loss_sum = float(self._total.grad) / scale  # type: ignore[arg-type]
        self._total.grad = None
        if not self._scaler.is_enabled():
            refuse_not_finite(loss_sum, losses, self._world)
        else:
            self._scaler.unscale_(self._optimizer)
        norm = clip(self._parameters, recipe.clip_norm)
        applied = apply_gradients(self._optimizer, self._scaler)
        self._forget_gradients()
        return StepOutput(loss_sum, norm, applied)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        total = torch.zeros(1, dtype=torch.float64, device=self._recipe.device)
        with evaluating(self._objective), autocast(self._recipe):
            for micro in micro_batches:
                if micro.weight:
                    total += self._objective(micro.inputs, micro.target).double() * micro.weight
        self._lane.reduce(total)
        return float(total)

    def predict_step(self, inputs: Any) -> Any:
        """See `contracts.Replica`."""
        with evaluating(self._objective), autocast(self._recipe):
            return self._objective.output(inputs)

    def state_dict(self) -> State:
        """Return module and optimizer; the same on every rank."""
        return training_state(self._module, self._optimizer, self._scaler)

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` returned."""
        load_training_state(state, self._module, self._optimizer, self._scaler)

    def export(self) -> dict[str, torch.Tensor] | None:
        """See `contracts.Replica`."""
        return full_weights(self._module) if self._world.rank == 0 else None

    def close(self) -> None:
        """See `contracts.Replica`."""
        self._wrapped = None
        self._lane.close()

    def _loss(self, micro: MicroBatch) -> torch.Tensor:
        try:
            with autocast(self._recipe):
                found: torch.Tensor = (self._wrapped or self._counted)(
                    micro.inputs, micro.target, micro.weight * self.data_size
                )
                return found
        except RuntimeError as error:
            if "Expected to have finished reduction" not in str(error):
                raise
            raise UserError(
                "some parameters were used in the first step and not in a later one: "
                "give strategy=phalanx.parallel.DDP(find_unused_parameters=True)"
            ) from error

    def _wrap(self, *, find_unused: bool) -> DistributedDataParallel:
        wrapped = DistributedDataParallel(
            self._counted,
            bucket_cap_mb=self._options.bucket_mb,
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,
            init_sync=False,
        )
        self._lane.carry(wrapped)
        return wrapped

    def _forget_gradients(self) -> None:
        """Do what the optimizer's own `zero_grad` does, at a fraction of its cost, unless it is one of its own kind."""
        if type(self._optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
            self._optimizer.zero_grad(set_to_none=True)
            return
        self._forget()

    def _forget(self) -> None:
        for parameter in (*self._parameters, self._total):
            parameter.grad = None

    def _reduce(self, gradients: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
        """Leave the averages of gradients over the ranks in the parameters, as a step of the wrapper would.

        The order in which three or more ranks add depends on where in a bucket a number lies, and the wrapper lays its buckets
        out anew after its first backward pass. Only where that pass is no step have all steps, of an attempt that goes on too,
        the same sums.
        """
        self._counted.given = gradients
        try:
            self._wrapped(None, None, 1.0).backward()
        finally:
            self._counted.given = []

    def _explore(self) -> None:
        """After the first backward pass, which ran without a wrapper: average the gradients and choose the wrapper.

        A parameter that no rank used keeps no gradient; one that some ranks used gets the average over all.
        """
        parameters = [*self._parameters, self._total]
        used = torch.tensor([p.grad is not None for p in parameters], device=self._recipe.device)
        anywhere, everywhere = used.int(), used.int()
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        found = [
            (parameter, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            for parameter, wanted in zip(parameters, anywhere.tolist(), strict=True)
            if wanted
        ]
        find_unused = not bool(everywhere.all())
        self._wrapped = self._wrap(find_unused=find_unused)
        if any(gradient.is_sparse for _, gradient in found):
            for parameter, gradient in found:
                dist.all_reduce(gradient)
                parameter.grad = gradient.div_(self.data_size)
            return
        self._forget()
        if not find_unused:
            self._reduce([(parameter, torch.zeros_like(gradient)) for parameter, gradient in found])
            self._forget()
        self._reduce(found)
