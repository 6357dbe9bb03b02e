"""DeepAR's network (Salinas et al., 2020): LSTMs whose output says the distribution of the next value, scaled.

Legend of shapes: B windows, T steps, I inputs, S static inputs with the embeddings, H cells, P parameters of the distribution.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from .hyperparameters import Likelihood
from .lstm import Dropout, Runner, layers_of

PARAMETERS: dict[Likelihood, int] = {"gaussian": 2, "student-T": 3, "beta": 2, "negative-binomial": 2, "deterministic-L1": 1}
_TINY = 1e-6
STATIC = 1  # inputs of a window beside the embeddings: the logarithm of its scale


@final
class Network(nn.Module):
    """Embeddings, stacked LSTMs, and the layer that gives the parameters.

    The lags also go straight to the parameters, through weights that are 0 at first: what repeats itself need not be kept in
    the cells, and the level of long forecasts does not drift (the highway of Lai, Chang, Yang and Liu, 2018).

    Args:
        inputs: numbers of a step, without static ones; lags come first.
        lags: how many of them.
        cardinality: values of each category.
        embedding: most numbers of an embedding.
        layers: of LSTMs.
        cells: of each.
        likelihood: what the outputs are parameters of.
        seed: of the weights; the process's own generator is left alone.
    """

    def __init__(
        self,
        inputs: int,
        lags: int,
        cardinality: list[int],
        embedding: int,
        layers: int,
        cells: int,
        likelihood: Likelihood,
        seed: int,
    ) -> None:
        super().__init__()
        self.inputs, self.lags = inputs, lags
        sizes = [min(embedding, (count + 1) // 2 + 1) for count in cardinality]
        with torch.random.fork_rng(devices=[]):
            self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in zip(cardinality, sizes, strict=True))
            widths = [inputs + STATIC + sum(sizes), *[cells] * (layers - 1)]
            self.lstms = nn.ModuleList(nn.LSTM(width, cells) for width in widths)
            self.head = nn.Linear(cells, PARAMETERS[likelihood])
            self.highway = nn.Linear(lags, PARAMETERS[likelihood], bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weights in self.named_parameters():
                bound = 1.0 if name.startswith("embeddings") else 1 / math.sqrt(cells)
                weights.uniform_(-bound, bound, generator=generator)
            self.highway.weight.zero_()

    def embedded(self, static: Tensor, cat: Tensor) -> Tensor:
        """Return what is the same for all steps of windows (B, S): static inputs, and what stands for categories (B, C)."""
        return torch.cat([static, *(table(cat[:, i]) for i, table in enumerate(self.embeddings))], dim=1)

    def weights(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return the weights of inputs (4 H, …) and states (4 H, H) of each layer, and the two biases (4 H,) that are added."""
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for lstm in self.lstms:
            assert isinstance(lstm, nn.LSTM)
            w, v, b, c = lstm.all_weights[0]
            found.append((w, v, b, c))
        return found

    def forward(self, inputs: Tensor, static: Tensor, cat: Tensor, dropout: Dropout, runner: Runner) -> Tensor:
        """Return parameters (T, B, P).

        Args:
            inputs: (T, B, I).
            static: (B, 1).
            cat: (B, C) categories.
            dropout: of the outputs of each layer.
            runner: that computes the layers where they are on the CPU.
        """
        whole = self.embedded(static, cat)
        fused = inputs.device.type == "cpu"
        hidden = self._fused(inputs, whole, dropout, runner) if fused else self._plain(inputs, whole, dropout)
        found: Tensor = self.head(hidden) + self.highway(inputs[..., : self.lags])
        return found

    def _fused(self, inputs: Tensor, whole: Tensor, dropout: Dropout, runner: Runner) -> Tensor:
        (of_inputs, of_states, of_bias), *others = ((w, v, b + c) for w, v, b, c in self.weights())
        bias = torch.addmm(of_bias, whole, of_inputs[:, self.inputs :].T)
        weights = [of_inputs[:, : self.inputs], of_states, *(weight for layer in others for weight in layer)]
        return layers_of(runner, dropout, inputs, bias, weights)

    def _plain(self, inputs: Tensor, whole: Tensor, dropout: Dropout) -> Tensor:
        hidden = torch.cat([inputs, whole.expand(len(inputs), -1, -1)], dim=2)
        for lstm in self.lstms:
            hidden = functional.dropout(lstm(hidden)[0], dropout.rate)
        return hidden


def negative_log_likelihood(likelihood: Likelihood, parameters: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of each value.

    Args:
        likelihood: the distribution.
        parameters: (…, P) as the network gives them.
        y: (…) values, not scaled.
        scale: (…) of each value.
    """
    if likelihood == "beta":
        a, b = _beta(parameters)
        y = y.clamp(1e-4, 1 - 1e-4)
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b) - (a - 1) * y.log() - (b - 1) * (1 - y).log()
    if likelihood == "negative-binomial":
        mean, shape = _negative_binomial(parameters, scale)
        size = 1 / shape
        return (
            torch.lgamma(size)
            + torch.lgamma(y + 1)
            - torch.lgamma(y + size)
            - size * torch.log(size / (size + mean))
            - y * torch.log(mean / (size + mean))
        )
    z = y / scale
    if likelihood == "deterministic-L1":
        return (z - parameters[..., 0]).abs()
    location, spread = parameters[..., 0], functional.softplus(parameters[..., 1]) + _TINY
    z = (z - location) / spread
    if likelihood == "gaussian":
        return 0.5 * z**2 + spread.log() + scale.log() + 0.5 * math.log(2 * math.pi)
    degrees = 2 + functional.softplus(parameters[..., 2])
    return (
        torch.lgamma(degrees / 2)
        - torch.lgamma((degrees + 1) / 2)
        + 0.5 * torch.log(math.pi * degrees)
        + (degrees + 1) / 2 * torch.log1p(z**2 / degrees)
        + spread.log()
        + scale.log()
    )


def _beta(parameters: Tensor) -> tuple[Tensor, Tensor]:
    a, b = functional.softplus(parameters[..., 0]) + 1e-2, functional.softplus(parameters[..., 1]) + 1e-2
    return a, b


def _negative_binomial(parameters: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and shape: the variance is mean + shape * mean²."""
    mean = (functional.softplus(parameters[..., 0]) + _TINY) * scale
    shape = functional.softplus(parameters[..., 1]) / torch.sqrt(scale) + 1e-4
    return mean, shape
