"""A small GPT that learns to continue a text file, byte by byte; the strategy is one argument.

    python train.py --text book.txt
    torchrun --nproc-per-node 2 train.py --strategy zero2
    phalanx run train.py --workers 2 --strategy pipeline -- --steps 50

Without --text it reads the documentation of the Python language that comes with Python.
"""

import argparse
import inspect
import pydoc_data.topics
from pathlib import Path

import torch
from torch import nn

import phalanx

parser = argparse.ArgumentParser()
parser.add_argument("--text", type=Path, default=Path(inspect.getfile(pydoc_data.topics)))
parser.add_argument("--strategy", default=None)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--length", type=int, default=64)
parser.add_argument("--batch-size", type=int, default=16)
arguments = parser.parse_args()


class Embedding(nn.Module):
    """Bytes and their places as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, arguments.width)
        self.places = nn.Parameter(torch.randn(arguments.length, arguments.width) * 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bytes(x) + self.places


class Block(nn.Module):
    """Attention to what came before, then two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        width = arguments.width
        self.before_attention, self.before_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before_attention(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.dense(self.before_dense(x))


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


torch.manual_seed(0)
layers = [
    Embedding(),
    *(Block() for _ in range(arguments.layers)),
    nn.LayerNorm(arguments.width),
    nn.Linear(arguments.width, 256),
]
text = torch.frombuffer(bytearray(arguments.text.read_bytes()), dtype=torch.uint8).long()
pieces = text[: len(text) // arguments.length * arguments.length].reshape(-1, arguments.length)
inputs, target = pieces[:, :], torch.cat([pieces[:, 1:], pieces.roll(-1, 0)[:, :1]], dim=1)
held_out = torch.arange(len(inputs)) % 50 == 0

trainer = phalanx.Trainer(
    layers,
    loss,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    strategy=arguments.strategy,
    accumulate=2,
    clip_norm=1.0,
    schedule=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=arguments.steps),
)
history = trainer.fit(
    (inputs[~held_out], target[~held_out]),
    validation=(inputs[held_out], target[held_out]),
    steps=arguments.steps,
    batch_size=arguments.batch_size,
)
trainer.export()
if trainer.world.rank == 0:
    print(f"strategy {trainer.strategy.name}: loss {history.losses[0]:.3f} -> {history.evaluations[-1]['validation:loss']:.3f}")
