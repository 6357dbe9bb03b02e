"""`fsdp`: parameters, gradients and optimizer state in shards, gathered block by block (torch's FSDP2).

Zhao et al., 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"; Rajbhandari et al., 2020 (ZeRO-3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from ..contracts import Collective, MicroBatch, Recipe, Replica, State, StepOutput
from ..errors import UserError
from . import checkpointing
from .objective import (
    Objective,
    apply_gradients,
    check_micro_batches,
    evaluating,
    refuse_not_finite,
    scaler_for,
    seed_generators,
    trainable,
)
from .process_group import ensure_default_group
from .sharding import full, full_weights_of, load_sharded_state, local, sharded_state
from .uniform import broadcast_module, check_same_module

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@final
@dataclass(frozen=True, slots=True)
class FSDP:
    """Fully sharded data parallel.

    Args:
        reshard_after_forward: give a block's gathered parameters back after its forward pass, and gather them again for the
            backward pass: less memory, more communication.
        offload: "cpu": keep shards and optimizer state in the memory of the machine, not of the GPU.
        replicas: copies of the model, each sharded over world / replicas ranks (hybrid sharding).
    """

    reshard_after_forward: bool = True
    offload: Literal["none", "cpu"] = "none"
    replicas: int = 1
    name = "fsdp"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        if self.offload not in ("none", "cpu"):
            raise UserError(f"offload={self.offload!r} is not allowed; allowed: none, cpu")
        if self.replicas < 1 or world.size % self.replicas:
            raise UserError(f"{world.size} workers cannot be {self.replicas} copies of the model: replicas must divide them")
        return FsdpReplica(recipe, world, self)


@final
class FsdpReplica:
    """`contracts.Replica` of `fsdp`."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, options: FSDP) -> None:
        self.data_rank, self.data_size = world.rank, world.size
        self._recipe = recipe
        self._world = world
        module = recipe.module.to(recipe.device)
        trainable(module)
        check_same_module(module, world)
        ensure_default_group(world, recipe.device)
        if world.size > 1:
            broadcast_module(module)
        if recipe.activation_checkpointing:
            checkpointing.apply(module)
        self._module = module
        self._shard(_mesh(recipe.device, world.size, options.replicas), options)
        if recipe.compile:
            module.compile()
        self._objective = Objective(recipe)
        self._parameters = trainable(module)
        self._optimizer = recipe.make_optimizer(self._parameters)
        self._scaler = scaler_for(recipe)
        self._called: set[str] = set()
        self._names = list(module.named_parameters())
        self._watch_calls()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The user's optimizer, over sharded parameters."""
        return self._optimizer

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> StepOutput:
        """See `contracts.Replica`."""
        recipe = self._recipe
        check_micro_batches(micro_batches, recipe)
        if not self._module.training:
            self._module.train()
        losses: list[torch.Tensor] = []
        self._called.clear()
        for micro in micro_batches:
            self._root.set_requires_gradient_sync(micro is micro_batches[-1])
            seed_generators(micro.seed, recipe.device)
            loss = self._objective(micro.inputs, micro.target) * micro.weight
            losses.append(loss.detach())
            self._scaler.scale(loss * self.data_size).backward()
        total = self._exchanged(torch.stack([loss.double() for loss in losses]).sum())
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        else:
            refuse_not_finite(float(total), losses, self._world)
        norm = self._clip()
        applied = apply_gradients(self._optimizer, self._scaler)
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutput(float(total), norm, applied)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        total = torch.zeros(1, dtype=torch.float64, device=self._recipe.device)
        with evaluating(self._objective):
            for micro in micro_batches:  # also those of weight 0: gathering parameters is Collective
                loss = self._objective(micro.inputs, micro.target)
                if micro.weight:
                    total += loss.double() * micro.weight
        dist.all_reduce(total)
        return float(total)

    def predict_step(self, inputs: Any) -> Any:
        """See `contracts.Replica`."""
        with evaluating(self._objective):
            return self._objective.output(inputs)

    def state_dict(self) -> State:
        """Return this rank's shards."""
        return sharded_state(*self._named(), self._optimizer, self._scaler)

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` returned, also on another number of ranks."""
        load_sharded_state(state, *self._named(), self._optimizer, self._scaler)

    def export(self) -> dict[str, torch.Tensor] | None:
        """See `contracts.Replica`."""
        return full_weights_of(self._module, self._world.rank == 0)

    def close(self) -> None:
        """See `contracts.Replica`."""

    def _shard(self, mesh: DeviceMesh, options: FSDP) -> None:
        """Shard every repeated block by itself, and what is left with the root; tied parameters stay with the root."""
        dtype = _DTYPES[self._recipe.precision]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
        offload = CPUOffloadPolicy() if options.offload == "cpu" and self._recipe.device.type != "cpu" else OffloadPolicy()
        for block in checkpointing.blocks_of(self._module):
            if block is not self._module and not _shares(block, self._module) and _learns(block):
                self._cut(block, mesh, policy, offload, options)
        self._root = self._cut(self._module, mesh, policy, offload, options)

    def _cut(
        self, module: torch.nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, offload: OffloadPolicy, options: FSDP
    ) -> FSDPModule:
        again = options.reshard_after_forward
        made = fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=again)
        made.set_reduce_scatter_unused_params(True)  # else ranks that use other parameters exchange buffers of other sizes
        return made

    def _named(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return dict(self._module.named_parameters()), dict(self._module.named_buffers())

    def _exchanged(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the sum of the losses; take the gradient from parameters that no rank has used, as plain torch leaves them.

        Their gradients are zero. Whether a parameter was used is seen where its module was called; where a module reads
        another's parameters without calling it, by a gradient that is not zero.
        """
        used = [
            p.requires_grad and (name in self._called or (p.grad is not None and bool(local(p.grad).any())))
            for name, p in self._names
        ]
        packed = torch.tensor([0.0, *used], dtype=torch.float64, device=self._recipe.device)
        packed[0] = loss
        dist.all_reduce(packed)
        for (_, parameter), count in zip(self._names, packed[1:].tolist(), strict=True):
            if not count:
                parameter.grad = None
        return packed[0]

    def _watch_calls(self) -> None:
        """Note which modules are called: their own parameters are used."""
        for prefix, module in self._module.named_modules():
            own = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)]
            if own:
                module.register_forward_pre_hook(partial(self._note, own))

    def _note(self, names: list[str], module: torch.nn.Module, inputs: Any) -> None:
        self._called.update(names)

    def _clip(self) -> float | None:
        largest = self._recipe.clip_norm
        if largest is None:
            return None
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, largest)
        return float(full(norm))


def _mesh(device: torch.device, size: int, replicas: int) -> DeviceMesh:
    if replicas == 1:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))


def _shares(block: torch.nn.Module, module: torch.nn.Module) -> bool:
    """Return whether a parameter of `block` is used elsewhere in `module` too."""
    inside = {id(m) for m in block.modules()}
    own = {id(p) for p in block.parameters()}
    return any(id(p) in own for m in module.modules() if id(m) not in inside for p in m.parameters(recurse=False))


def _learns(block: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in block.parameters())
