"""`zero1`, `zero2`, `zero3`: data parallel with the optimizer's state, the gradients, the weights cut over the ranks.

DeepSpeed's ZeRO (Rajbhandari et al., 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.distributed as dist

from ..contracts import Collective, Entry, MicroBatch, Recipe, Replica, State, StepOutput
from ..errors import UserError
from . import checkpointing, deepspeed_setup
from .deepspeed_states import fill_missing_gradient, full_parameters, load_zero_state, zero_state
from .local_sum import LocalSum
from .objective import (
    Objective,
    autocast,
    check_micro_batches,
    evaluating,
    refuse_not_finite,
    seed_generators,
    trainable,
)
from .uniform import broadcast_module, check_same_module

_LATE = "zero_late"
_ELEMENTS_PER_MB = (1 << 20) // 4


@final
@dataclass(frozen=True, slots=True)
class ZeRO:
    """Data parallel of which every rank keeps a part only.

    Args:
        stage: what is cut over the ranks: 1 the optimizer's state, 2 gradients as well, 3 weights as well.
        offload: "cpu" keeps the optimizer's state (stage 3: the weights' parts too) in the host's memory.
        bucket_mb: gradients are exchanged in buckets of so many MiB.
        keep_below: weights of fewer elements stay whole on every rank (stage 3).
        uneven_use: "auto": whether ranks use different parameters is looked for in the first step; True where it may happen
            later on. Gradients are then exchanged after the backward pass instead of while it runs.
    """

    stage: int = 1
    offload: Literal["none", "cpu"] = "none"
    bucket_mb: float = 100
    keep_below: int = 100_000
    uneven_use: bool | Literal["auto"] = "auto"

    @property
    def name(self) -> str:
        """As `--strategy` has it."""
        return f"zero{self.stage}"

    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """See `contracts.Strategy`."""
        if self.stage not in (1, 2, 3):
            raise UserError(f"ZeRO has stages 1, 2 and 3, not {self.stage!r}")
        if self.offload not in ("none", "cpu"):
            raise UserError(f"offload must be 'none' or 'cpu', not {self.offload!r}")
        if recipe.precision == "fp16":
            raise UserError("ZeRO trains in 'fp32' or 'bf16', not 'fp16': give precision='bf16', or strategy='ddp'")
        if recipe.compile and self.stage == 3:
            raise UserError("compile=True does not go with 'zero3', whose weights come and go: use 'zero2', or compile=False")
        return ZeROReplica(recipe, world, self)

    def config(self) -> dict[str, Any]:
        """Return DeepSpeed's `zero_optimization`."""
        bucket = max(1, int(self.bucket_mb * _ELEMENTS_PER_MB))
        found: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": torch.cuda.is_available() and self.stage > 1,
            "contiguous_gradients": True,
        }
        if self.stage == 3:
            found |= {"stage3_param_persistence_threshold": self.keep_below, "stage3_prefetch_bucket_size": bucket}
        if self.offload == "cpu":
            place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
            found["offload_optimizer"] = place
            if self.stage == 3:
                found["offload_param"] = dict(place)
        return found


class _Weighted(torch.nn.Module):
    """An objective in the recipe's precision, times the micro-batch's weight."""

    def __init__(self, objective: Objective, recipe: Recipe) -> None:
        super().__init__()
        self.objective = objective
        self._recipe = recipe

    def forward(self, inputs: Any, target: Any, weight: float) -> torch.Tensor:
        """Return `weight` times the mean loss."""
        with autocast(self._recipe):
            loss: torch.Tensor = self.objective(inputs, target)
        return loss.float() if weight == 1 else loss.float() * weight


@final
class ZeROReplica:
    """`contracts.Replica` of ZeRO."""

    data_rank: int
    data_size: int

    def __init__(self, recipe: Recipe, world: Collective, options: ZeRO) -> None:
        self.data_rank, self.data_size = world.rank, world.size
        self._recipe, self._world, self._options = recipe, world, options
        self._module = recipe.module.to(recipe.device)
        self._parameters = trainable(self._module)
        check_same_module(self._module, world)
        if recipe.activation_checkpointing:
            checkpointing.apply(self._module)
        deepspeed_setup.join(world, recipe.device)
        broadcast_module(self._module)
        self._objective = Objective(recipe)
        self._optimizer = recipe.make_optimizer(self._parameters)
        weighted: Any = _Weighted(self._objective, recipe)
        self._engine: Any = deepspeed_setup.initialize(
            recipe,
            world,
            torch.compile(weighted) if recipe.compile else weighted,
            self._optimizer,
            options.config(),
        )
        self._local_sum = LocalSum.open(world) if world.size > 1 and recipe.device.type == "cpu" else None
        self._named = dict(self._module.named_parameters())
        self._buffers = dict(self._module.named_buffers())
        self._late = options.stage == 1 or options.uneven_use is True  # exchange after the backward pass
        self._exploring = options.stage > 1 and options.uneven_use == "auto" and world.size > 1

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The user's optimizer; its parameters are DeepSpeed's flat parts."""
        found: torch.optim.Optimizer = self._engine.optimizer.optimizer
        return found

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> StepOutput:
        """See `contracts.Replica`."""
        check_micro_batches(micro_batches, self._recipe)
        if not self._engine.training:
            self._engine.train()
        if not self._module.training:  # to set it goes through all modules
            self._module.train()
        losses: list[torch.Tensor] = []
        late = self._late or self._exploring
        with self._engine.coalesce_grad_reduction() if late else contextlib.nullcontext():
            for number, micro in enumerate(micro_batches):
                seed_generators(micro.seed, self._recipe.device)
                if not late:
                    self._engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
                loss = self._engine(micro.inputs, micro.target, micro.weight * self.data_size)
                losses.append(loss.detach())
                if number == len(micro_batches) - 1:
                    summed = self._begin_sum(losses)
                self._engine.backward(loss)
                if not late and number < len(micro_batches) - 1:
                    self._engine.step()
            if late and self.data_size > 1:
                self._even_out()
        loss_sum = summed() / self.data_size
        refuse_not_finite(loss_sum, losses, self._world)
        if late:
            self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        norm = None if self._recipe.clip_norm is None else float(self._engine.get_global_grad_norm())
        return StepOutput(loss_sum, norm)

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """See `contracts.Replica`."""
        total = torch.zeros(1, dtype=torch.float64, device=self._recipe.device)
        with evaluating(self._module), autocast(self._recipe):
            for micro in micro_batches:  # all of them: stage 3 gathers weights while it computes
                loss = self._objective(micro.inputs, micro.target).double()
                if micro.weight:
                    total += loss * micro.weight
        dist.all_reduce(total)
        return float(total)

    def predict_step(self, inputs: Any) -> Any:
        """See `contracts.Replica`."""
        with evaluating(self._module), autocast(self._recipe):
            return self._objective.output(inputs)

    def state_dict(self) -> State:
        """Collective. Return module and optimizer, full on every rank."""
        state = dict(zero_state(self._engine, self._named, self._buffers))
        if not self._exploring:  # going on must add gradients up in the same order
            state[_LATE] = Entry(self._late)
        return state

    def load_state_dict(self, state: State) -> None:
        """Collective. Put back what any strategy's `state_dict` returned, of any number of ranks."""
        load_zero_state(state, self._engine, self._named, self._buffers)
        if self._exploring and _LATE in state:
            self._exploring, self._late = False, bool(state[_LATE].value)

    def export(self) -> dict[str, torch.Tensor] | None:
        """See `contracts.Replica`."""
        weights = full_parameters(self._named)
        if self._world.rank:
            return None
        names = {id(p): n for n, p in self._named.items()}
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            first = names.get(id(tensor))
            found[name] = tensor.detach().cpu().clone().contiguous() if first is None else weights[first].clone()
        return found

    def close(self) -> None:
        """See `contracts.Replica`."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
        if self._local_sum is not None:
            self._local_sum.close()
            self._local_sum = None

    def _begin_sum(self, losses: Sequence[torch.Tensor]) -> Callable[[], float]:
        """Collective. Begin to add up the ranks' losses; the function returned is called after gradients were exchanged."""
        own = torch.stack(list(losses)).sum().double() if len(losses) > 1 else losses[0].double()
        local = self._local_sum
        if local is not None:
            local.put(float(own))
            return local.total
        work: Any = dist.all_reduce(own, async_op=True)  # while the backward pass runs

        def total() -> float:
            work.wait()
            return float(own)

        return total

    def _even_out(self) -> None:
        """Collective. Give all ranks gradients of the same parameters: exchanged ones must be the same on all.

        A parameter that no rank used keeps none.
        """
        used = torch.tensor([p.grad is not None for p in self._parameters], device=self._recipe.device)
        both = torch.stack([used, ~used]).int()
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        somewhere, missing = both.bool()
        for index in (somewhere & missing).nonzero().flatten().tolist():
            fill_missing_gradient(self._parameters[index])
        if self._exploring:
            self._exploring = False
            self._late = bool(missing.any())
