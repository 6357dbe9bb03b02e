"""`pipeline`: the layers cut into stages that work on different micro-batches at once, times data parallel.

DeepSpeed's PipelineModule (Narayanan et al., 2019, "PipeDream"; its one-forward-one-backward order). Where the layers are cut
is found by `balance`; a stage is one layer to DeepSpeed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import torch
import torch.distributed as dist

from ..contracts import Collective, MicroBatch, Recipe, Replica, State, StepOutput
from ..errors import UserError
from . import deepspeed_setup
from .balance import cut, layers_of, weights_of
from .mesh import Mesh
from .objective import autocast, check_micro_batches, refuse_not_finite, scalar_loss, trainable
from .stage import Stage, chunks
from .stage_states import StageStates
from .uniform import broadcast_module, check_same_module

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool)


@final
@dataclass(frozen=True, slots=True)
class Pipeline:
    """Layers on several workers; workers = stages x copies.

    Args:
        stages: parts that the layers are cut into.
        micro_batches: pieces that a step's rows are cut into, a multiple of `accumulate`; None: `accumulate` itself. More of
            them keep the stages busier: (stages - 1) / (micro_batches + stages - 1) of the time is idle.
        zero: 1 cuts the optimizer's state over the copies of a stage.
        balance: what makes stages equal: "parameters", "time" (of a forward pass of `sample`), "uniform" (numbers of layers),
            "type:regex" (numbers of layers whose class fits).
        activation_checkpoint_interval: so many layers are computed again together in the backward pass; 0: none.
        sample: inputs for balance="time".
    """

    stages: int = 2
    micro_batches: int | None = None
    zero: Literal[0, 1] = 0
    balance: str = "parameters"
    activation_checkpoint_interval: int = 0
    sample: torch.Tensor | None = field(default=None, compare=False)
    name = "pipeline"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        if self.zero not in (0, 1):
            raise UserError(
                f"a pipeline goes with zero=0 or 1, not {self.zero!r}: stages 2 and 3 cut gradients that a pipeline adds up "
                "over micro-batches; use strategy='zero2' or 'zero3' without a pipeline"
            )
        Mesh.of(world.size, pipeline=self.stages)
        if recipe.loss is None:
            raise UserError("a pipeline needs Trainer(module, loss): its last stage computes the loss")
        if recipe.precision == "fp16":
            raise UserError("a pipeline trains in 'fp32' or 'bf16', not 'fp16': give precision='bf16'")
        total = recipe.accumulate if self.micro_batches is None else self.micro_batches
        if total < 1 or total % recipe.accumulate:
            raise UserError(f"micro_batches={total} must be a multiple of accumulate={recipe.accumulate}")
        return PipelineReplica(recipe, world, self)


@final
class PipelineReplica:
    """`contracts.Replica` of pipelines."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, options: Pipeline) -> None:
        layers = layers_of(recipe.module)
        trainable(recipe.module)
        check_same_module(recipe.module, world)
        weights = world.broadcast(weights_of(layers, options.balance, options.sample) if world.rank == 0 else [])
        bounds = cut(layers, options.stages, weights)
        self.data_size = world.size // options.stages
        self.data_rank = world.rank % self.data_size
        self._index = world.rank // self.data_size
        self._recipe, self._world = recipe, world
        self._splits = (options.micro_batches or recipe.accumulate) // recipe.accumulate
        deepspeed_setup.join(world, recipe.device)
        recipe.module.to(recipe.device)
        broadcast_module(recipe.module)
        interval = options.activation_checkpoint_interval or int(recipe.activation_checkpointing)
        stages = [Stage(layers[a:b], recipe, interval) for a, b in itertools.pairwise(bounds)]
        self._stage = stages[self._index]
        if recipe.compile:
            self._stage.compile()
        self._losses: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []  # of forward passes without learning, on the last stage
        self._stepped, self._norm, self._loss = False, torch.zeros(()), math.nan
        self._zero = options.zero
        self._optimizer = recipe.make_optimizer(trainable(self._stage))
        self._hook = self._optimizer.register_step_pre_hook(self._before_update)
        self._engine: Any = self._made(stages)
        self._states = StageStates(recipe.module, stages, self._engine, self._index, self.data_size, world, zero=options.zero)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The user's optimizer, of this stage's parameters."""
        return self._optimizer

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> StepOutput:
        """See `contracts.Replica`."""
        check_micro_batches(micro_batches, self._recipe)
        pieces = [piece for micro in micro_batches for piece in chunks(micro, self._splits)]
        self._losses, self._stepped = [], False
        self._stage.begin([piece.seed for piece in pieces])
        self._engine.train_batch(iter([(_tensor(piece.inputs), piece) for piece in pieces]))
        self._stage.begin([])
        norm = None
        if self._recipe.clip_norm is not None:
            norm = float(self._engine.get_global_grad_norm()) if self._zero else float(self._norm)
        return StepOutput(self._loss, norm)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        outputs = self._forward([micro.inputs for micro in micro_batches])
        total = torch.zeros(1, dtype=torch.float64, device=self._recipe.device)
        with torch.no_grad(), autocast(self._recipe):
            for micro, output in zip(micro_batches, outputs, strict=bool(outputs)):
                if micro.weight:
                    total += self._computed(output, micro.target).double() * micro.weight
        dist.all_reduce(total)
        return float(total)

    def predict_step(self, inputs: Any) -> Any:
        """See `contracts.Replica`."""
        outputs = self._forward([inputs])
        group, source = self._engine.mpu.get_pipe_parallel_group(), self._engine._loss_stage_global_rank()
        meta = torch.zeros(16, dtype=torch.int64, device=self._recipe.device)
        if outputs:
            shape = outputs[0].shape
            meta[: 2 + len(shape)] = torch.tensor([_DTYPES.index(outputs[0].dtype), len(shape), *shape])
        dist.broadcast(meta, source, group=group)
        code, dimensions, *sizes = meta.tolist()
        found = outputs[0].contiguous() if outputs else meta.new_empty(sizes[:dimensions], dtype=_DTYPES[code])
        dist.broadcast(found, source, group=group)
        return found

    def state_dict(self) -> State:
        """Collective. Return module and optimizer of all stages, the same on every rank."""
        return self._states.gather()

    def load_state_dict(self, state: State) -> None:
        """Collective. Put back what any strategy's `state_dict` returned; the number of stages may be another."""
        self._states.load(state)

    def export(self) -> dict[str, torch.Tensor] | None:
        """See `contracts.Replica`."""
        return self._states.export()

    def close(self) -> None:
        """See `contracts.Replica`."""
        if self._engine is not None:
            self._hook.remove()
            self._engine.destroy()
            self._engine = None

    def _made(self, stages: Sequence[Stage]) -> Any:
        pipe = deepspeed_setup.load().pipe
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = pipe.PipelineModule(
                list(stages),
                num_stages=len(stages),
                loss_fn=self._weighted_loss,
                partition_method="uniform",
                activation_checkpoint_interval=0,
                dynamic_shape=True,
            )
        zero = {"stage": self._zero, "micro_batches": self._recipe.accumulate * self._splits}
        recipe = self._recipe if self._zero else replace(self._recipe, clip_norm=None)  # without ZeRO we clip: see below
        return deepspeed_setup.initialize(recipe, self._world, module, self._optimizer, zero)

    def _weighted_loss(self, output: Any, piece: MicroBatch) -> torch.Tensor:
        """On the last stage: the loss, such that DeepSpeed's means over micro-batches and copies make a weighted sum."""
        if not self._stage.training:
            self._outputs.append(output.detach())
            nothing: torch.Tensor = output.new_zeros(())
            return nothing
        with autocast(self._recipe):
            loss = self._computed(output, piece.target) * piece.weight
        self._losses.append(loss.detach())
        scaled: torch.Tensor = loss.float() * float(self.data_size * self._engine.gradient_accumulation_steps())
        return scaled

    def _computed(self, output: Any, target: Any) -> torch.Tensor:
        assert self._recipe.loss is not None  # prepare has seen to it
        return scalar_loss(self._recipe.loss(output, target), "loss function")

    def _before_update(self, *_: Any) -> None:
        """Collective. Just before the optimizer steps: agree on the loss, refuse one that is not finite, clip."""
        if self._stepped:  # ZeRO steps once a parameter group
            return
        self._stepped = True
        grads = [p.grad for p in self._stage.parameters() if p.grad is not None]
        sums = torch.zeros(2, dtype=torch.float64, device=self._recipe.device)
        if self._losses:
            sums[0] = torch.stack(self._losses).double().sum()
        if self._recipe.clip_norm is not None and not self._zero and grads:
            sums[1] = torch.nn.utils.get_total_norm(grads).double() ** 2
        dist.all_reduce(sums)
        self._loss = float(sums[0])
        refuse_not_finite(self._loss, self._losses, self._world)
        if self._recipe.clip_norm is not None and not self._zero:
            self._norm = (sums[1] / self.data_size).sqrt()
            torch.nn.utils.clip_grads_with_norm_(list(self._stage.parameters()), self._recipe.clip_norm, self._norm.float())

    def _forward(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Collective. Return the outputs on the last stage, nothing elsewhere."""
        self._outputs = []
        self._engine.eval_batch(
            iter([(_tensor(x), None) for x in inputs]),
            reduce_output=None,
            bcast_loss=False,
            num_micro_batches=len(inputs),
        )
        self._engine.module.train()
        found, self._outputs = self._outputs, []
        return found


def _tensor(inputs: Any) -> torch.Tensor:
    if isinstance(inputs, (tuple, list)) and len(inputs) == 1:
        inputs = inputs[0]
    if not isinstance(inputs, torch.Tensor):
        raise UserError(f"a pipeline's inputs must be one tensor, not {type(inputs).__name__}: its layers are called in a row")
    return inputs
