"""A script in the style of SageMaker's script mode: argparse over SM_*, DistributedDataParallel, model_fn."""

import argparse
import json
import logging
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return self.layers(x)


def rows(folder):
    lines = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name)) as file:
            lines += [[float(part) for part in line.split(",")] for line in file]
    data = torch.tensor(lines)
    return data[:, 1:], data[:, :1]


def train(args):
    hosts = json.loads(args.hosts)
    is_distributed = len(hosts) > 1
    if is_distributed:
        os.environ["MASTER_ADDR"] = hosts[0]
        dist.init_process_group(args.backend, rank=hosts.index(args.current_host), world_size=len(hosts))
    torch.manual_seed(args.seed)
    features, target = rows(args.train)
    model = Net(args.hidden_width)
    learner = DistributedDataParallel(model) if is_distributed else model
    optimizer = torch.optim.SGD(learner.parameters(), lr=args.lr)
    for epoch in range(1, args.epochs + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(learner(features), target)
        loss.backward()
        optimizer.step()
        logger.info(f"Train Epoch: {epoch} Loss: {loss.item():.6f}")
    if args.current_host == hosts[0]:
        with open(os.path.join(args.model_dir, "width.json"), "w") as file:
            json.dump({"width": args.hidden_width}, file)
        torch.save(model.state_dict(), os.path.join(args.model_dir, "model.pth"))
        with open(os.path.join(args.output_data_dir, "history.txt"), "w") as file:
            file.write("done")
    if is_distributed:
        dist.destroy_process_group()


def model_fn(model_dir):
    with open(os.path.join(model_dir, "width.json")) as file:
        model = Net(json.load(file)["width"])
    model.load_state_dict(torch.load(os.path.join(model_dir, "model.pth")))
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--hidden-width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", type=str, default="gloo")
    parser.add_argument("--hosts", type=str, default=os.environ["SM_HOSTS"])
    parser.add_argument("--current-host", type=str, default=os.environ["SM_CURRENT_HOST"])
    parser.add_argument("--model-dir", type=str, default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--output-data-dir", type=str, default=os.environ["SM_OUTPUT_DATA_DIR"])
    parser.add_argument("--train", type=str, default=os.environ["SM_CHANNEL_TRAINING"])
    parser.add_argument("--num-gpus", type=int, default=os.environ["SM_NUM_GPUS"])
    train(parser.parse_args())
