"""A classifier of handwritten digits with `phalanx.Trainer`, started by torchrun, and going on after a loss.

    torchrun --nproc-per-node 2 digits.py
    torchrun --nproc-per-node 2 --no-python phalanx run digits.py --launcher attach
    torchrun --nproc-per-node 2 --max-restarts 3 --no-python phalanx run digits.py --launcher attach -- --fall-at 60

The first line trains. The second makes a job of it: with a record, checkpoints, and model.tar.gz. In the third the last worker
is killed at step 60, once; torchrun starts the group again, and the job goes on from its newest checkpoint without being asked.
"""

import argparse
import os
import signal

import torch
from sklearn.datasets import load_digits
from torch import nn

import phalanx

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--fall-at", type=int, default=0, help="Kill the last worker at this step, the first time.")
arguments = parser.parse_args()

session = phalanx.session()
pixels, digits = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
held_out = torch.arange(len(labels)) % 5 == 0
seen, fell = 0, session.checkpoints / "fell"


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    global seen
    seen += 1
    if seen == arguments.fall_at and session.world.rank == session.world.size - 1 and not fell.exists():
        fell.parent.mkdir(parents=True, exist_ok=True)
        fell.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.cross_entropy(output, target)


trainer = phalanx.Trainer(
    nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    loss_of,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
)
history = trainer.fit(
    (images[~held_out], labels[~held_out]),
    validation=(images[held_out], labels[held_out]),
    epochs=arguments.epochs,
    batch_size=64,
    keep_best=True,
)
trainer.export()
if session.world.rank == 0 and history.best is not None:
    print(f"best epoch {history.best['epoch']}: accuracy {history.best['validation:accuracy']:.4f}")
