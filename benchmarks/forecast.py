"""DeepAR against GluonTS on M4 hourly: loss at the same number of batches, windows a second, forecasts.

    python benchmarks/forecast.py --data DIR --peer PYTHON [--epochs 5] [--seeds 0 1 2]
    python benchmarks/forecast.py --data DIR --full [--epochs 100]

`DIR/m4` holds the competition's Hourly-train.csv and Hourly-test.csv; PYTHON is an interpreter that has gluonts with torch.
Both draw 50 batches of 32 windows an epoch, with contexts of 48 values, 2 layers of 40 cells, 100 samples, and 2 threads.
Must reach: a lower mean_wQuantileLoss, 3 times the windows a second, 3 times the series times paths a second. `--full` runs
Phalanx alone with its default settings: 0.035 or lower.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

import argparse
import csv
import json
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import mean, pstdev

import numpy as np

import phalanx
from common import machine, table, versions
from phalanx.contracts import Records

AHEAD, BATCHES, BATCH, SAMPLES = 48, 50, 32, 100
PEER = """
import json, sys, time, warnings, logging
warnings.filterwarnings("ignore"); logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import numpy as np, torch, lightning.pytorch as pl
from gluonts.dataset.common import ListDataset
from gluonts.evaluation import Evaluator, make_evaluation_predictions
from gluonts.torch.model.deepar import DeepAREstimator
torch.set_num_threads(2)
folder, epochs, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pl.seed_everything(seed)
def dataset(name):
    with open(f"{folder}/{name}.jsonl") as file:
        records = [json.loads(line) for line in file]
    return ListDataset([{"start": r["start"], "target": r["target"], "feat_static_cat": r["cat"]} for r in records], freq="h")
train, test = dataset("train"), dataset("test")
estimator = DeepAREstimator(freq="h", prediction_length=48, context_length=48, num_layers=2, hidden_size=40, batch_size=32,
    num_batches_per_epoch=50, num_feat_static_cat=1, cardinality=[len(train)],
    trainer_kwargs={"max_epochs": epochs, "enable_progress_bar": False, "logger": False, "default_root_dir": folder})
begun = time.perf_counter(); predictor = estimator.train(train); trained = time.perf_counter() - begun
begun = time.perf_counter()
forecasts, series = make_evaluation_predictions(test, predictor=predictor, num_samples=100)
forecasts, series = list(forecasts), list(series); forecast = time.perf_counter() - begun
quantiles = [i / 10 for i in range(1, 10)]
measured, _ = Evaluator(quantiles=quantiles, num_workers=0)(series, forecasts)
print(json.dumps({"train_s": trained, "forecast_s": forecast, "loss": measured["mean_wQuantileLoss"]}))
"""


def write(source: Path, folder: Path) -> list[dict[str, object]]:
    """Write the channels; return the requests."""

    def rows(name: str) -> list[list[float]]:
        with (source / "m4" / name).open() as file:
            reader = csv.reader(file)
            next(reader)
            return [[float(value) for value in row[1:] if value] for row in reader]

    train, ends = rows("Hourly-train.csv"), rows("Hourly-test.csv")
    known: list[dict[str, object]] = []
    with (folder / "train.jsonl").open("w") as one, (folder / "test.jsonl").open("w") as other:
        for number, (values, end) in enumerate(zip(train, ends, strict=True)):
            record: dict[str, object] = {"start": "2000-01-01 00:00:00", "target": values, "cat": [number]}
            known.append(record)
            one.write(json.dumps(record) + "\n")
            other.write(json.dumps({**record, "target": [*values, *end]}) + "\n")
    return known


def ours(folder: Path, requests: list[dict[str, object]], seed: int, given: dict[str, object]) -> dict[str, float]:
    """Return what one run of Phalanx came to."""
    name = f"run-{seed}"
    result = phalanx.TrainingJob(
        algorithm="deepar",
        inputs={"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        hyperparameters={"time_freq": "H", "prediction_length": AHEAD, **given},
        threads_per_worker=2,
        seed=seed,
        output=str(folder),
        name=name,
    ).run(progress=False)
    times = [json.loads(line)["time"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    trained = (times[-2] - times[0]) * len(times) / (len(times) - 2)  # the last step forecasts as well
    model = phalanx.load(str(result.artifact))
    model.predict(Records(requests[:1]))
    begun = time.perf_counter()
    model.predict(Records(requests))
    return {
        "train_s": trained,
        "forecast_s": time.perf_counter() - begun,
        "loss": float(result.metrics["test:mean_wQuantileLoss"] or np.nan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", help="an interpreter with gluonts")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    if not arguments.full and arguments.peer is None:
        parser.error("--peer PYTHON is needed, or --full")
    with tempfile.TemporaryDirectory(prefix="phalanx-forecast-") as scratch:
        folder = Path(scratch)
        requests = write(arguments.data, folder)
        print(f"{machine()}; {versions('torch')}; {len(requests)} series\n")
        if arguments.full:
            epochs = arguments.epochs or 100
            found = [ours(folder, requests, seed, {"epochs": epochs, "context_length": 72}) for seed in arguments.seeds]
            print(table(["epochs", "seeds", "mean_wQuantileLoss", "sd", "train s"], [[
                epochs, len(found), f"{mean(f['loss'] for f in found):.4f}", f"{pstdev(f['loss'] for f in found):.4f}",
                f"{mean(f['train_s'] for f in found):.1f}"]]))  # fmt: skip
            return
        epochs = arguments.epochs or 5
        given: dict[str, object] = {
            "epochs": epochs,
            "mini_batch_size": BATCH,
            "context_length": 48,
            "batches_per_epoch": BATCHES,
        }
        runs: dict[str, list[dict[str, float]]] = {"GluonTS": [], "Phalanx": []}
        for seed in arguments.seeds:
            command = [arguments.peer, "-c", PEER, str(folder), str(epochs), str(seed)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs["GluonTS"].append(json.loads(told.strip().splitlines()[-1]))
            runs["Phalanx"].append(ours(folder, requests, seed, given))
        windows, paths = epochs * BATCHES * BATCH, len(requests) * SAMPLES
        rows = [
            [
                name,
                epochs,
                len(found),
                f"{mean(f['loss'] for f in found):.4f}",
                f"{pstdev(f['loss'] for f in found):.4f}",
                f"{mean(windows / f['train_s'] for f in found):.0f}",
                f"{mean(paths / f['forecast_s'] for f in found):.0f}",
            ]
            for name, found in runs.items()
        ]
        ratios = [
            "ratio",
            "",
            "",
            *(f"{float(b) / float(a):.2f}" if float(a) else "" for a, b in zip(rows[0][3:], rows[1][3:], strict=True)),
        ]
        print(table(["", "epochs", "seeds", "mean_wQuantileLoss", "sd", "windows/s", "series x paths/s"], [*rows, ratios]))


if __name__ == "__main__":
    main()
