"""`tensor`: the matrices of a layer cut over ranks that compute one batch together, times data parallel.

Shoeybi et al., 2019, "Megatron-LM"; made of torch's DTensor. A column-cut Linear is followed by a row-cut one, so that a pair
costs one all-reduce forward and one backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from ..contracts import Collective, MicroBatch, Recipe, Replica, State, StepOutput
from . import checkpointing
from .mesh import Mesh
from .objective import (
    Objective,
    apply_gradients,
    autocast,
    check_micro_batches,
    evaluating,
    refuse_not_finite,
    scaler_for,
    seed_generators,
    trainable,
)
from .process_group import ensure_default_group
from .sharding import full_weights_of, load_sharded_state, local, sharded_state
from .tensor_plan import check_plan, derived_plan, styles
from .uniform import broadcast_module, check_same_module


@final
@dataclass(frozen=True, slots=True)
class Tensor:
    """Tensor parallel; workers = size x copies.

    Args:
        size: ranks that share the matrices; None: all.
        plan: pattern of module names ("blocks.*.up") -> "column" or "row"; None: derived for pairs of Linear layers in a
            Sequential and for torch's Transformer layers (their feed-forward part; attention stays whole on every rank).
    """

    size: int | None = None
    plan: Mapping[str, str] | None = field(default=None, hash=False)
    name = "tensor"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        mesh = Mesh.of(world.size, tensor=world.size if self.size is None else self.size)
        plan = derived_plan(recipe.module) if self.plan is None else check_plan(recipe.module, self.plan, mesh.tensor)
        return TensorReplica(recipe, world, mesh, plan)


@final
class TensorReplica:
    """`contracts.Replica` of `tensor`."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, mesh: Mesh, plan: Mapping[str, str]) -> None:
        self.data_rank, self.data_size = world.rank // mesh.tensor, mesh.data
        self._recipe = recipe
        self._world = world
        self._copies = mesh.tensor
        module = recipe.module.to(recipe.device)
        trainable(module)
        check_same_module(module, world)
        ensure_default_group(world, recipe.device)
        if world.size > 1:
            broadcast_module(module)
        torch.backends.mha.set_fastpath_enabled(False)  # its kernel reads the weights past DTensor
        grid: DeviceMesh = init_device_mesh(recipe.device.type, (mesh.data, mesh.tensor), mesh_dim_names=("data", "tensor"))
        self._data_group = grid["data"].get_group()
        self._tensor_group = grid["tensor"].get_group()
        parallelize_module(module, grid["tensor"], styles(plan))
        if recipe.activation_checkpointing:
            checkpointing.apply(module)
        self._module = module
        self._objective = Objective(recipe)
        self._called: Any = torch.compile(self._objective) if recipe.compile else self._objective
        self._parameters = trainable(module)
        self._optimizer = recipe.make_optimizer(self._parameters)
        for group in self._optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = False  # cut and whole parameters stand side by side
        self._scaler = scaler_for(recipe)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The user's optimizer, over cut and whole parameters."""
        return self._optimizer

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> StepOutput:
        """See `contracts.Replica`."""
        recipe = self._recipe
        check_micro_batches(micro_batches, recipe)
        if not self._module.training:
            self._module.train()
        losses: list[torch.Tensor] = []
        for micro in micro_batches:
            seed_generators(micro.seed, recipe.device)
            with autocast(recipe):
                loss = self._called(micro.inputs, micro.target) * micro.weight
            losses.append(loss.detach())
            self._scaler.scale(loss).backward()
        total = self._sum_over_copies(losses)
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        else:
            refuse_not_finite(total, losses, self._world)
        norm = self._clip()
        applied = apply_gradients(self._optimizer, self._scaler)
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutput(total, norm, applied)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        total = torch.zeros(1, dtype=torch.float64, device=self._recipe.device)
        with evaluating(self._objective), autocast(self._recipe):
            for micro in micro_batches:  # also those of weight 0: ranks of a tensor group compute together
                loss = self._objective(micro.inputs, micro.target)
                if micro.weight:
                    total += loss.double() * micro.weight
        dist.all_reduce(total, group=self._data_group)
        return float(total)

    def predict_step(self, inputs: Any) -> Any:
        """See `contracts.Replica`."""
        with evaluating(self._objective), autocast(self._recipe):
            return self._objective.output(inputs)

    def state_dict(self) -> State:
        """Return this rank's parts of cut parameters, and the others whole."""
        return sharded_state(*self._named(), self._optimizer, self._scaler)

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` returned, also on another number of ranks."""
        load_sharded_state(state, *self._named(), self._optimizer, self._scaler)

    def export(self) -> dict[str, torch.Tensor] | None:
        """See `contracts.Replica`."""
        return full_weights_of(self._module, self._world.rank == 0)

    def close(self) -> None:
        """See `contracts.Replica`."""

    def _named(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return dict(self._module.named_parameters()), dict(self._module.named_buffers())

    def _sum_over_copies(self, losses: Sequence[torch.Tensor]) -> float:
        """Add up gradients and loss over the copies of the model; a parameter that no copy used keeps no gradient."""
        used = [float(p.grad is not None) for p in self._parameters]
        packed = torch.tensor([0.0, *used], dtype=torch.float64, device=self._recipe.device)
        packed[0] = torch.stack([loss.double() for loss in losses]).sum()
        if self.data_size == 1:
            return float(packed[0])
        dist.all_reduce(packed, group=self._data_group)
        flying = []
        for parameter, count in zip(self._parameters, packed[1:].tolist(), strict=True):
            if count:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                flying.append(dist.all_reduce(local(parameter.grad), group=self._data_group, async_op=True))
        for work in flying:
            if work is not None:
                work.wait()
        return float(packed[0])

    def _clip(self) -> float | None:
        """Clip to the norm of the whole gradient: cut parts add up over the tensor group, whole ones count once."""
        largest = self._recipe.clip_norm
        if largest is None:
            return None
        squares = torch.zeros(2, dtype=torch.float64, device=self._recipe.device)  # of cut parts, of whole ones
        grads = [p.grad for p in self._parameters if p.grad is not None]
        for grad in grads:
            squares[0 if _is_cut(grad) else 1] += local(grad).double().square().sum()
        dist.all_reduce(squares[:1], group=self._tensor_group)
        norm = float(squares.sum().sqrt())
        if norm > largest:
            for grad in grads:
                local(grad).mul_(largest / (norm + 1e-6))
        return norm


def _is_cut(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, DTensor) and any(placement.is_shard() for placement in tensor.placements)
