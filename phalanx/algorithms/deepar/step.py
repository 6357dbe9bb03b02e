"""One step of DeepAR's training: the loss of some windows and its gradient, added over the ranks by the strategy asked for.

`sum`, the default, adds all gradients in one exchange over any collective; the others are strategies of `phalanx.parallel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts import Array, Collective, MicroBatch, Recipe, Replica
from ...errors import AlgorithmError
from ...parallel.strategies import strategy_of
from .hyperparameters import DeepARHyperparameters
from .lstm import Dropout, Runner
from .network import Network, negative_log_likelihood
from .windows import Windows

_CLIP = 10.0  # largest norm of a gradient
_DECAY = 1e-8  # of weights


@final
class Loss(nn.Module):
    """The network and its loss as one module: `forward` returns the mean loss over the values that are known.

    Args:
        network: to learn.
        wanted: hyperparameters.
        runner: that the network's layers are computed with.
    """

    def __init__(self, network: Network, wanted: DeepARHyperparameters, runner: Runner) -> None:
        super().__init__()
        self.network = network
        self._wanted, self._runner = wanted, runner

    def forward(self, windows: Windows, keys: Array) -> Tensor:
        """Return the loss of windows; `keys` (B,) are of their dropout."""
        device = self.network.head.weight.device
        inputs, target, observed, scale = (
            torch.from_numpy(part).to(device) for part in (windows.inputs, windows.target, windows.observed, windows.scale)
        )
        static, cat = (part.to(device) for part in windows.still())
        parameters = self.network(inputs, static, cat, Dropout(self._wanted.dropout_rate, keys), self._runner)
        losses = negative_log_likelihood(self._wanted.likelihood, parameters, target, scale.expand(len(inputs), -1))
        return (losses * observed).sum() / max(float(windows.observed.sum()), 1.0)


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's windows of a global batch."""

    windows: Windows
    keys: Array  # (B,) uint32, of dropout
    weight: float  # its known values / those of the global batch


@final
class Stepper:
    """Does steps of Adam (Kingma and Ba, 2015).

    Args:
        loss: the module that is learned.
        wanted: hyperparameters.
        world: the ranks.
        device: torch's name of it.
        seed: of the job.

    Raises:
        UserError: the strategy does not fit; on every rank.
    """

    def __init__(self, loss: Loss, wanted: DeepARHyperparameters, world: Collective, device: str, seed: int) -> None:
        self._world = world
        self._loss = loss.to(device)
        self._parameters = list(loss.parameters())
        self._replica: Replica | None = None
        strategy: Literal["sum", "ddp", "horovod"] = wanted.strategy

        def made(parameters: object) -> torch.optim.Optimizer:
            return torch.optim.Adam(self._parameters, lr=wanted.learning_rate, weight_decay=_DECAY, fused=True)

        if strategy == "sum" or world.size == 1:
            self.optimizer = made(self._parameters)
            return
        recipe = Recipe(loss, None, made, torch.device(device), clip_norm=_CLIP, seed=seed)
        self._replica = strategy_of(strategy).prepare(recipe, world)
        self.optimizer = self._replica.optimizer

    def step(self, share: Share, rate: float) -> float:
        """Collective. Learn from this rank's windows at a learning rate; return the mean loss over the global batch.

        Raises:
            AlgorithmError: on every rank, that loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._replica is not None:
            batch = MicroBatch((share.windows, share.keys), None, share.weight, 0)
            return self._replica.train_step([batch]).loss
        loss = self._summed(share)
        if not math.isfinite(loss):
            raise AlgorithmError(f"the loss is {loss}: look at the learning rate and at the values of channel 'train'")
        nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        self.optimizer.step()
        return loss

    def close(self) -> None:
        """Give back what the strategy holds."""
        if self._replica is not None:
            self._replica.close()

    def _summed(self, share: Share) -> float:
        """Collective. Leave the gradients of the global batch; return its loss."""
        for parameter in self._parameters:
            parameter.grad = None
        total = self._loss(share.windows, share.keys) * share.weight
        total.backward()
        loss = float(total.detach())
        if self._world.size == 1:
            return loss
        flat = [torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in self._parameters]
        sums = self._world.all_reduce(np.append(torch.cat(flat).cpu().numpy(), np.float32(loss)))
        place = 0
        for parameter in self._parameters:
            found = torch.from_numpy(sums[place : place + parameter.numel()].reshape(parameter.shape))
            parameter.grad = found.to(parameter.device)
            place += parameter.numel()
        return float(sums[-1])
