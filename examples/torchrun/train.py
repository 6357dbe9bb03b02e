"""A plain torch script with three lines of Phalanx: it joins the group, reports, and stops in order.

    python train.py
    torchrun --nproc-per-node 2 train.py
    phalanx run train.py --workers 2 -- --steps 200

Under `phalanx run` the job keeps the metrics, and model.pt becomes the artifact.
"""

import argparse

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import phalanx

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--lr", type=float, default=0.1)
arguments = parser.parse_args()

session = phalanx.session()
rank, size = session.world.rank, session.world.size
torch.manual_seed(session.seed)
rows = torch.rand(512, 2) * 2 - 1
target = (rows[:, :1] * rows[:, 1:] > 0).float()
module: nn.Module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).to(session.device)
learner = DistributedDataParallel(module) if size > 1 else module
optimizer = torch.optim.Adam(learner.parameters(), lr=arguments.lr)
mine = slice(rank, None, size)

for step in range(1, arguments.steps + 1):
    loss = nn.functional.binary_cross_entropy_with_logits(
        learner(rows[mine].to(session.device)), target[mine].to(session.device)
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    session.report(step, {"train:loss": loss.item()}, rows=len(rows), of=arguments.steps)

if rank == 0:
    session.model_dir.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), session.model_dir / "model.pt")
    print(f"loss after {arguments.steps} steps: {loss.item():.4f}")
if size > 1:
    torch.distributed.destroy_process_group()
