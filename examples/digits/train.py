"""An image classifier on scikit-learn's handwritten digits, the same on one process and on many.

python train.py
torchrun --nproc-per-node 2 train.py
phalanx run train.py --workers 2 --set epochs=8
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import phalanx

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=3e-3)
arguments = parser.parse_args()

pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
labels = torch.tensor(digits)
held_out = torch.arange(len(labels)) % 5 == 0


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


trainer = phalanx.Trainer(
    nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 16, 10),
    ),
    nn.functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=arguments.lr),
    metrics={"accuracy": accuracy},
)
history = trainer.fit(
    (images[~held_out], labels[~held_out]),
    validation=(images[held_out], labels[held_out]),
    epochs=arguments.epochs,
    batch_size=arguments.batch_size,
    keep_best=True,
)
trainer.export()
if trainer.world.rank == 0 and history.best is not None:
    print(f"best epoch {history.best['epoch']}: accuracy {history.best['validation:accuracy']:.4f}")
