"""Goodput of a job whose workers are killed at random times: which share of the time was training that counts.

    python benchmarks/goodput.py [--minutes 5] [--every 60] [--workers 2] [--seed 0]

A script trains a small GPT with `phalanx.Trainer`; a random rank is killed with SIGKILL at times of a Poisson process with a
mean of `--every` seconds between them. Checkpoints are taken as `auto` has it. Afterwards the model is compared with that of a
run that nobody disturbed (`--no-compare` leaves that out). Must reach: 90 % at a kill every 60 s.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

import argparse
import json
import random
import tempfile
from pathlib import Path

import phalanx
from common import machine, table, versions
from phalanx.testing.killing import killing_after

SCRIPT = """
import sys
import torch, phalanx
from torch import nn

session = phalanx.session()
torch.manual_seed(0)
WIDTH, LENGTH, VOCABULARY = 128, 32, 256


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        layers = [nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True) for _ in range(4)]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x):
        h = self.tokens(x) + self.places
        for layer in self.layers:
            h = layer(h)
        return self.head(h).transpose(1, 2)


rows = torch.randint(0, VOCABULARY, (1024, LENGTH), generator=torch.Generator().manual_seed(1))
trainer = phalanx.Trainer(Gpt(), nn.functional.cross_entropy, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-4))
trainer.fit((rows, rows.roll(-1, 1)), steps=int(sys.argv[1]), batch_size=16)
trainer.export()
"""
PARTS = ("wall_s", "training_s", "stall_s", "lost_work_s", "restart_s", "goodput")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="of training, about")
    parser.add_argument("--every", type=float, default=60, help="mean seconds between kills")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="phalanx-goodput-") as folder:
        output = Path(folder)
        script = output / "train.py"
        script.write_text(SCRIPT)

        def run(name: str, steps: int, **how: object) -> dict[str, float]:
            job = phalanx.TrainingJob(
                script=str(script), arguments=[str(steps)], workers=arguments.workers, output=folder, name=name, **how
            )
            job.run(progress=False)
            found: dict[str, float] = json.loads((output / name / "status.json").read_text())["goodput"]
            return found

        probe = run("probe", 100)
        steps = int(arguments.minutes * 60 / (probe["training_s"] / 100))
        kills = [draw.expovariate(1 / arguments.every)]
        while kills[-1] < 4 * 60 * arguments.minutes:
            kills.append(kills[-1] + draw.expovariate(1 / arguments.every))
        ranks = [draw.randrange(arguments.workers) for _ in kills]
        with killing_after(kills, output / "killed", ranks) as killed:
            found = run("killed", steps, max_restarts=len(kills))
        same = ""
        if arguments.compare:
            run("whole", steps)
            models = [(output / name / "model.tar.gz").read_bytes() for name in ("killed", "whole")]
            same = "the same" if models[0] == models[1] else "ANOTHER"
    rate = found["wall_s"] / max(1, len(killed))
    print(
        f"{machine()}; {versions('torch')}; {arguments.workers} workers, {steps} steps; model of the undisturbed run: {same}\n"
    )
    print(table(["kills", "seconds a kill", *PARTS], [[len(killed), f"{rate:.1f}", *(found[part] for part in PARTS)]]))
    if same == "ANOTHER":
        sys.exit(1)


if __name__ == "__main__":
    main()
