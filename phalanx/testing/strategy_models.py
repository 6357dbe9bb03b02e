"""The small modules, losses and batches that the strategy suite trains, and the plain torch loop it compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..contracts import MicroBatch
from ..trainer.cutting import pieces, seed_of

FEATURES, CLASSES = 12, 6
Loss = Any


class Tied(nn.Module):
    """An embedding that is used again as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(FEATURES, 8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, FEATURES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for tokens made of `x`."""
        tokens = (x.abs() * 10).long() % FEATURES
        found: torch.Tensor = self.head(torch.tanh(self.inner(self.embedding(tokens).mean(1))))
        return found[:, :CLASSES]


class Unused(nn.Module):
    """A module with a layer that is never called, and one that is called for some rows, so that a rank may not use it."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(FEATURES, CLASSES)
        self.sometimes = nn.Linear(FEATURES, CLASSES)
        self.never = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        found: torch.Tensor = self.used(x)
        rows = x[:, 0] > 1.3
        if bool(rows.any()):
            found = found.index_add(0, rows.nonzero()[:, 0], self.sometimes(x[rows]))
        return found


class Uncalled(nn.Module):
    """A module with a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(FEATURES, CLASSES)
        self.never = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        found: torch.Tensor = self.used(x)
        return found


class Convolution(nn.Module):
    """A convolution with group normalisation: no batch statistics, which depend on how rows are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Linear(8 * FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        found: torch.Tensor = self.last(torch.relu(self.norm(self.first(x[:, None]))).flatten(1))
        return found


def mlp() -> nn.Module:
    """Return three layers in a Sequential."""
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def frozen() -> nn.Module:
    """Return an mlp whose first layer does not learn."""
    made = mlp()
    for parameter in made[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    return made


def dropout() -> nn.Module:
    """Return an mlp that draws random numbers."""
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def batch_norm() -> nn.Module:
    """Return an mlp with batch statistics."""
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def transformer() -> nn.Module:
    """Return one of torch's own Transformer layers between two linear ones."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Unflatten(1, (1, 16)), layer, nn.Flatten(), nn.Linear(16, CLASSES))


MODELS = {
    "mlp": mlp,
    "tied": Tied,
    "unused": Unused,
    "uncalled": Uncalled,
    "convolution": Convolution,
    "frozen": frozen,
    "dropout": dropout,
    "batch_norm": batch_norm,
    "transformer": transformer,
}
OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A training to repeat: everything in JSON values."""

    model: str = "mlp"
    optimizer: str = "adamw"
    batches: tuple[int, ...] = (24, 24, 24, 24)  # rows of the global batch of every step
    accumulate: int = 1
    clip_norm: float | None = None
    precision: str = "fp32"
    seed: int = 3
    activation_checkpointing: bool = False


def build(case: Case) -> nn.Module:
    """Return the case's module, the same wherever it is built."""
    torch.default_generator.manual_seed(case.seed)
    return MODELS[case.model]()


def batch(case: Case, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (rows, FEATURES) and targets (rows,) of a step."""
    generator = torch.Generator().manual_seed(1000 * case.seed + step)
    rows = case.batches[step - 1]
    inputs = torch.randn(rows, FEATURES, generator=generator)
    return inputs, torch.randint(0, CLASSES, (rows,), generator=generator)


def micro_batches(case: Case, step: int, data_rank: int, data_size: int) -> list[MicroBatch]:
    """Return a rank's part of a step."""
    inputs, target = batch(case, step)
    cut = pieces(len(inputs), data_rank=data_rank, data_size=data_size, accumulate=case.accumulate)
    return [
        MicroBatch(inputs[p.start : p.stop], target[p.start : p.stop], p.weight, seed_of(case.seed, step, p.number))
        for p in cut
    ]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to."""

    losses: Sequence[float]
    norms: Sequence[float]
    weights: dict[str, torch.Tensor]


def plain(case: Case) -> Trained:
    """Train the case as torch's tutorials do, in one process with whole batches."""
    module = build(case)
    optimizer = OPTIMIZERS[case.optimizer]([p for p in module.parameters() if p.requires_grad])
    losses, norms = [], []
    for step in range(1, len(case.batches) + 1):
        inputs, target = batch(case, step)
        loss = nn.functional.cross_entropy(module(inputs), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        largest = float("inf") if case.clip_norm is None else case.clip_norm
        norm = torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], largest)
        optimizer.step()
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    return Trained(losses, norms, {name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
