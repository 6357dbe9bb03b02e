"""`horovod`: a copy of the module on every rank, gradients averaged by Horovod while they are computed.

Sergeev & Del Balso, 2018, "Horovod: fast and easy distributed deep learning in TensorFlow".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from ..contracts import Collective, MicroBatch, Recipe, Replica, State, StepOutput
from ..errors import PlatformError, UserError
from . import checkpointing, horovod_bootstrap
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
from .states import full_weights, load_training_state, training_state
from .uniform import check_same_module

_COMPRESSIONS = {"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}


@final
@dataclass(frozen=True, slots=True)
class Horovod:
    """Data parallel through Horovod.

    Args:
        compression: "fp16": gradients travel in half precision.
        adasum: combine gradients by Adasum (Maleki et al., 2021) instead of averaging them; Horovod must be built with MPI or
            NCCL for it.
        fusion_mb: gradients are exchanged in buffers of so many MiB; None: Horovod's default of 128.
    """

    compression: Literal["none", "fp16"] = "none"
    adasum: bool = False
    fusion_mb: float | None = None
    name = "horovod"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        if self.compression not in _COMPRESSIONS:
            raise UserError(f"compression={self.compression!r} is not allowed; allowed: {', '.join(_COMPRESSIONS)}")
        if self.adasum and not (hvd.mpi_built() or hvd.nccl_built()):
            raise UserError("adasum needs a Horovod built with MPI or NCCL; this one has Gloo alone: use adasum=False")
        check_same_module(recipe.module, world)
        horovod_bootstrap.start(world, fusion_mb=self.fusion_mb)
        return HorovodReplica(recipe, world, self)


@final
class HorovodReplica:
    """`contracts.Replica` of `horovod`."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, options: Horovod) -> None:
        self.data_rank, self.data_size = world.rank, world.size
        self._recipe = recipe
        self._world = world
        self._module = recipe.module.to(recipe.device)
        self._parameters = trainable(self._module)
        with _in_contact():
            hvd.broadcast_parameters(dict(self._module.named_parameters()), root_rank=0)
            hvd.broadcast_parameters({n: b for n, b in self._module.named_buffers() if b.numel()}, root_rank=0)
        if recipe.activation_checkpointing:
            checkpointing.apply(self._module)
        self._objective = Objective(recipe)
        self._called: Any = torch.compile(self._objective) if recipe.compile else self._objective
        self._optimizer = recipe.make_optimizer(self._parameters)
        self._scaler = scaler_for(recipe)
        self._compression = _COMPRESSIONS[options.compression]
        self._op = hvd.Adasum if options.adasum else hvd.Sum
        self._flying: dict[int, tuple[int, Any, Any]] = {}  # parameter's number -> handle, what travels, how to unpack it
        self._last = False  # whether the micro-batch being computed is the step's last
        self._hooks = [_on_gradient(p, partial(self._send, number)) for number, p in enumerate(self._parameters)]

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
        losses: list[torch.Tensor] = []
        for micro in micro_batches:
            self._last = micro is micro_batches[-1]
            seed_generators(micro.seed, recipe.device)
            with autocast(recipe):
                loss = self._called(micro.inputs, micro.target) * micro.weight
            losses.append(loss.detach())
            with _in_contact():
                self._scaler.scale(loss).backward()
        with _in_contact():
            total = self._collect(losses)
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        else:
            refuse_not_finite(total, losses, self._world)
        norm = clip(self._parameters, recipe.clip_norm)
        applied = apply_gradients(self._optimizer, self._scaler)
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutput(total, norm, applied)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        total = torch.zeros(1, dtype=torch.float64, device=self._recipe.device)
        with evaluating(self._objective), autocast(self._recipe):
            for micro in micro_batches:
                if micro.weight:
                    total += self._objective(micro.inputs, micro.target).double() * micro.weight
        with _in_contact():
            return float(hvd.allreduce(total, op=hvd.Sum, name="evaluation"))

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
        """See `contracts.Replica`. Horovod itself goes on: another replica may use it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _send(self, number: int) -> None:
        """Start to exchange a gradient as soon as it is complete."""
        if not self._last:
            return
        gradient = self._parameters[number].grad
        travelling, context = self._compression.compress(gradient)
        handle = hvd.allreduce_async_(travelling, name=f"gradient.{number}", op=self._op)
        self._flying[number] = handle, travelling, context

    def _collect(self, losses: Sequence[torch.Tensor]) -> float:
        """Wait for all gradients; return the loss over all ranks.

        A parameter that this rank did not use in the last micro-batch is sent now, with zeros where it was not used at all;
        one that no rank used keeps no gradient.
        """
        used = torch.tensor([p.grad is not None for p in self._parameters])
        packed = torch.cat([torch.stack([loss.double().cpu() for loss in losses]).sum()[None], used.double()])
        for number, parameter in enumerate(self._parameters):
            if number not in self._flying:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self._send(number)
        packed = hvd.allreduce(packed, op=hvd.Sum, name="loss")
        for number, (handle, travelling, context) in self._flying.items():
            hvd.synchronize(handle)
            unpacked = self._compression.decompress(travelling, context)
            parameter = self._parameters[number]
            if packed[1 + number] == 0:
                parameter.grad = None
            elif unpacked is not parameter.grad:
                parameter.grad = unpacked
        self._flying.clear()
        return float(packed[0])


def _on_gradient(parameter: torch.nn.Parameter, act: Any) -> Any:
    register: Any = parameter.register_post_accumulate_grad_hook
    return register(lambda _: act())


@contextlib.contextmanager
def _in_contact() -> Iterator[None]:
    """Within, Horovod's error about a rank that is gone is the platform's, in the words that `failure` knows."""
    try:
        yield
    except HorovodInternalError as error:
        raise PlatformError(f"lost contact with another worker: {error}") from error
