"""A script that trained with DDP and now trains with Horovod: one word of it has changed, the strategy.

python train.py
torchrun --nproc-per-node 2 train.py
torchrun --nproc-per-node 2 train.py --strategy ddp          # as it was
phalanx run train.py --workers 2

Horovod is installed by scripts/install_horovod.sh. Both strategies come to the same weights.
"""

import argparse

import torch
from torch import nn

import phalanx

parser = argparse.ArgumentParser()
parser.add_argument("--strategy", default="horovod")  # was "ddp"
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()

torch.manual_seed(0)
points = torch.rand(600, 2) * 2 - 1
inside = (points.square().sum(1) < 0.6).long()

trainer = phalanx.Trainer(
    nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)),
    nn.functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    strategy=arguments.strategy,
    clip_norm=1.0,
    seed=0,
)
history = trainer.fit((points, inside), epochs=arguments.epochs, batch_size=50)
trainer.export()
if trainer.world.rank == 0:
    print(f"{trainer.strategy.name}, {trainer.world.size} ranks: loss {history.losses[-1]:.6f}")
