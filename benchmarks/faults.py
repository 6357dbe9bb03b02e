"""Jobs whose workers are killed at random times: every one must end with the model of its undisturbed run.

    python benchmarks/faults.py [--cases 500] [--seed 0] [--kinds kmeans script:ddp …] [--places file s3]

A case is a kind (an algorithm, blazingtext with a mode, or a script with a strategy), a number of workers, a place of
checkpoints, and one to three times at which a random rank is killed with SIGKILL, from the start of the job until after its
usual end. Undisturbed runs are made once a kind and number of workers. The S3 server is moto's, on loopback.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

import argparse
import hashlib
import json
import logging
import math
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import phalanx
from common import machine, table
from phalanx.data.samples import write_sample
from phalanx.testing.killing import killing_after

SCRIPT = """
import torch, phalanx
from torch import nn

session = phalanx.session()
torch.manual_seed(1)
inputs, target = torch.randn(240, 6), torch.randint(0, 3, (240,))
trainer = phalanx.Trainer(
    nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)),
    nn.functional.cross_entropy,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
)
trainer.fit((inputs, target), epochs=12, batch_size=24)
trainer.export()
"""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "kmeans": {"k": 10, "mini_batch_size": 60, "epochs": 3, "extra_center_factor": 2},
    "xgboost": {"num_round": 24, "objective": "multi:softprob", "num_class": 10, "max_depth": 3, "subsample": 0.7},
    "linear_learner": {
        "predictor_type": "multiclass_classifier",
        "num_classes": 10,
        "optimizer": "adam",
        "num_models": 2,
        "epochs": 4,
        "mini_batch_size": 100,
    },
    "random_cut_forest": {"num_trees": 50},
    "factorization_machines": {"predictor_type": "regressor", "num_factors": 4, "epochs": 4, "mini_batch_size": 100},
}
TEXTS: dict[str, dict[str, Any]] = {  # blazingtext, by mode
    "batch_skipgram": {"vector_dim": 16, "epochs": 3, "min_count": 1, "lines_per_step": 300},
    "cbow": {"vector_dim": 16, "epochs": 3, "min_count": 1, "lines_per_step": 300},
    "supervised": {"vector_dim": 16, "epochs": 3, "min_count": 1, "buckets": 1000, "lines_per_step": 300},
}
SERIES = {
    "time_freq": "H",
    "prediction_length": 6,
    "context_length": 12,
    "epochs": 3,
    "batches_per_epoch": 8,
    "mini_batch_size": 24,
    "num_cells": 8,
}
SCRIPTS = ("script:ddp", "script:zero2", "script:fsdp", "script:exact:micro_batches=12")
KINDS = [*ALGORITHMS, *(f"blazingtext:{mode}" for mode in TEXTS), "deepar", *SCRIPTS]


def job(kind: str, workers: int, data: Path, output: Path, name: str, **how: Any) -> phalanx.TrainingJob:
    given: dict[str, Any] = {"workers": workers, "output": str(output), "name": name, "threads_per_worker": 1, "seed": 3, **how}
    if kind.startswith("script:"):
        return phalanx.TrainingJob(script=str(data / "train.py"), strategy=kind.removeprefix("script:"), **given)
    if kind.startswith("blazingtext:"):
        mode = kind.removeprefix("blazingtext:")
        lines = phalanx.Channel(url=str(data / "train.txt"), content_type="text/plain")
        return phalanx.TrainingJob(
            algorithm="blazingtext", inputs={"train": lines}, hyperparameters={"mode": mode, **TEXTS[mode]}, **given
        )
    if kind == "deepar":
        return phalanx.TrainingJob(algorithm=kind, inputs={"train": str(data / "train.jsonl")}, hyperparameters=SERIES, **given)
    channel = phalanx.Channel(url=str(data / "train.csv"), content_type="text/csv;label_size=1")
    return phalanx.TrainingJob(algorithm=kind, inputs={"train": channel}, hyperparameters=ALGORITHMS[kind], **given)


def write_text(path: Path, lines: int = 3000) -> None:
    """Write labelled lines, each of one of ten topics' words."""
    draw = random.Random(5)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(lines):
            topic = draw.randrange(10)
            words = [f"word{topic}x{int(draw.paretovariate(1)) % 40}" for _ in range(12)]
            file.write(f"__label__{topic} {' '.join(words)}\n")


def write_series(path: Path, count: int = 30) -> None:
    """Write series of hours, each with a day's pattern."""
    draw = random.Random(5)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            target = [(2 + number) * (2 + math.sin(hour * math.pi / 12)) + draw.gauss(0, 1) for hour in range(120)]
            file.write(json.dumps({"start": "2024-01-01 00:00:00", "target": target, "cat": [number % 3]}) + "\n")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.tar.gz").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--places", nargs="+", default=["file", "s3"], choices=["file", "s3"])
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="phalanx-faults-") as folder:
        output = Path(folder)
        data = output / "data"
        data.mkdir()
        write_sample("digits", data)
        (data / "train.py").write_text(SCRIPT)
        write_text(data / "train.txt")
        write_series(data / "train.jsonl")
        s3 = _object_store() if "s3" in arguments.places else None
        wholes: dict[tuple[str, int], tuple[str, float]] = {}
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in arguments.kinds}
        for case in range(arguments.cases):
            kind, workers, place = draw.choice(arguments.kinds), draw.choice([1, 2, 2, 3, 4]), draw.choice(arguments.places)
            if (kind, workers) not in wholes:
                name = f"whole-{len(wholes)}"
                begun = time.monotonic()
                job(kind, workers, data, output, name, checkpoint_every="never").run(progress=False)
                wholes[kind, workers] = digest(output / name), time.monotonic() - begun
            expected, usual = wholes[kind, workers]
            kills = sorted(draw.uniform(0.05, 1.2 * usual + 0.3) for _ in range(draw.choice([1, 1, 2, 3])))
            ranks = [draw.randrange(workers) for _ in kills]
            every = draw.choice([1, 3, "auto", "1s"])
            name = f"case-{case}"
            where = None if place == "file" else f"{s3}/{name}"
            count = counts[kind]
            try:
                running = job(kind, workers, data, output, name, max_restarts=5, checkpoint_every=every, checkpoints=where)
                with killing_after(kills, output / name, ranks) as killed:
                    result = running.run(progress=False)
                outcome = "same" if digest(output / name) == expected else "WRONG MODEL"
                count["restarts"] += result.restarts
                count["kills"] += len(killed)
            except phalanx.PhalanxError as error:
                outcome = "NOT RECOVERED"
                print(f"case {case}: {kind} on {workers}, {place}, every {every}, killed at {kills}: {error}", flush=True)
            if outcome == "WRONG MODEL":
                print(f"case {case}: {kind} on {workers}, {place}, every {every}, killed at {kills}: {outcome}", flush=True)
            count[outcome] += 1
        rows = [
            [kind, sum(c[o] for o in OUTCOMES), c["kills"], c["restarts"], *(c[o] for o in OUTCOMES)]
            for kind, c in counts.items()
        ]
    print(f"{machine()}; {arguments.cases} cases, seed {arguments.seed}\n")
    print(table(["kind", "cases", "killed processes", "restarts", *OUTCOMES], rows))
    if any(c["WRONG MODEL"] or c["NOT RECOVERED"] for c in counts.values()):
        sys.exit(1)


OUTCOMES = ("same", "WRONG MODEL", "NOT RECOVERED")


def _object_store() -> str:
    """Start moto's S3 server in this process; return a bucket's URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test-key", AWS_DEFAULT_REGION="us-east-1")
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    boto3.client("s3").create_bucket(Bucket="faults")
    return "s3://faults"


if __name__ == "__main__":
    main()
