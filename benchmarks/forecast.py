"""DeepAR against GluonTS on M4 hourly: loss at the same number of batches, windows a second, forecasts.

    python benchmarks/forecast.py --data DIR --peer PYTHON [--epochs 5] [--seeds 0 1 2 3 4]
    python benchmarks/forecast.py --data DIR --workers [--epochs 5] [--seeds 0 1 2]
    python benchmarks/forecast.py --data DIR --full [--epochs 100] [--seeds 0]
    python benchmarks/forecast.py --data DIR --full --validate
    python benchmarks/forecast.py --data DIR --picture FILE.svg [--epochs 5]

`DIR/m4` holds the competition's Hourly-train.csv and Hourly-test.csv; PYTHON is an interpreter that has gluonts with torch.
Both draw 50 batches of 32 windows an epoch, with contexts of 48 values, 2 layers of 40 cells, 100 samples, and 2 threads.
Must reach: a lower mean_wQuantileLoss, 3 times the windows a second, 3 times the series times paths a second. `--workers` runs
Phalanx on 1 worker with 2 threads and on 2 workers with 1 thread each. `--full` runs Phalanx alone with the default settings:
0.035 or lower. `--validate` judges by the last 48 values of the training part, which is what settings may be chosen by.
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
from phalanx.tracking.forecasts import forecasts_figure
from phalanx.tracking.reading import load_job

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


def write(source: Path, folder: Path, *, validate: bool = False) -> list[dict[str, object]]:
    """Write the channels; return the requests."""

    def rows(name: str) -> list[list[float]]:
        with (source / "m4" / name).open() as file:
            reader = csv.reader(file)
            next(reader)
            return [[float(value) for value in row[1:] if value] for row in reader]

    train, ends = rows("Hourly-train.csv"), rows("Hourly-test.csv")
    if validate:
        train, ends = [row[:-AHEAD] for row in train], [row[-AHEAD:] for row in train]
    known: list[dict[str, object]] = []
    with (folder / "train.jsonl").open("w") as one, (folder / "test.jsonl").open("w") as other:
        for number, (values, end) in enumerate(zip(train, ends, strict=True)):
            record: dict[str, object] = {"start": "2000-01-01 00:00:00", "target": values, "cat": [number]}
            known.append(record)
            one.write(json.dumps(record) + "\n")
            other.write(json.dumps({**record, "target": [*values, *end]}) + "\n")
    return known


def ours(
    folder: Path, requests: list[dict[str, object]], seed: int, given: dict[str, object], workers: int = 1
) -> dict[str, float]:
    """Return what one run of Phalanx came to."""
    name = f"run-{workers}-{seed}"
    result = phalanx.TrainingJob(
        algorithm="deepar",
        inputs={"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        hyperparameters={"time_freq": "H", "prediction_length": AHEAD, **given},
        workers=workers,
        threads_per_worker=2 // workers,
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


def picture(folder: Path, file: Path) -> None:
    """Draw some forecasts of the job in `folder` as its report does, as an svg."""
    data, layout = forecasts_figure(load_job(str(folder)).forecasts())
    parts = []
    for panel, note in enumerate(layout["annotations"]):
        traces = [trace for trace in data if trace["xaxis"] == f"x{panel + 1 if panel else ''}"]
        known = np.array([y for trace in traces for y in trace["y"] if y is not None])
        low, high = float(known.min()), float(known.max())
        first, last = min(trace["x"][0] for trace in traces), max(max(trace["x"]) for trace in traces)
        left, top = 450 * (panel % 2), 170 * (panel // 2)
        for trace in traces:
            points = " ".join(
                f"{left + 10 + 430 * (x - first) / (last - first):.1f},{top + 160 - 130 * (y - low) / (high - low):.1f}"
                for x, y in zip(trace["x"], trace["y"], strict=True)
                if y is not None
            )
            colour, width = trace["line"].get("color", "none"), trace["line"]["width"]
            shape = (
                f'polygon fill="{trace["fillcolor"]}"'
                if "fill" in trace
                else f'polyline fill="none" stroke="{colour}" stroke-width="{width}"'
            )
            parts.append(f'<{shape} points="{points}"/>')
        parts.append(f'<text x="{left + 10}" y="{top + 20}">{note["text"]}</text>')
    height = 170 * -(-len(layout["annotations"]) // 2) + 5
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="900" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n",
        encoding="utf-8",
    )


def row(name: str, epochs: int, found: list[dict[str, float]], batch: int, paths: int) -> list[str]:
    """Return a line of the table."""
    losses, windows = [f["loss"] for f in found], epochs * BATCHES * batch
    rates = [windows / f["train_s"] for f in found], [paths / f["forecast_s"] for f in found]
    each = f"{mean(losses):.4f}", f"{pstdev(losses):.4f}", f"{mean(rates[0]):.0f}", f"{mean(rates[1]):.0f}"
    return [name, str(epochs), str(len(found)), *each]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", help="an interpreter with gluonts")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--picture", type=Path, help="only draw the picture of the documentation")
    arguments = parser.parse_args()
    if not (arguments.full or arguments.workers or arguments.picture or arguments.peer):
        parser.error("--peer PYTHON is needed, or --full, or --workers")
    headers = ["", "epochs", "seeds", "mean_wQuantileLoss", "sd", "windows/s", "series x paths/s"]
    with tempfile.TemporaryDirectory(prefix="phalanx-forecast-") as scratch:
        folder = Path(scratch)
        requests = write(arguments.data, folder, validate=arguments.validate)
        print(f"{machine()}; {versions('torch', 'numba')}; {len(requests)} series\n")
        paths = len(requests) * SAMPLES
        epochs = arguments.epochs or (100 if arguments.full else 5)
        given: dict[str, object] = {"epochs": epochs, "context_length": AHEAD}
        if arguments.full:
            found = [ours(folder, requests, seed, given) for seed in arguments.seeds]
            print(table(headers, [row("Phalanx", epochs, found, 128, paths)]))
            return
        given |= {"mini_batch_size": BATCH, "batches_per_epoch": BATCHES}
        if arguments.picture is not None:
            ours(folder, requests, 0, given)
            picture(folder / "run-1-0", arguments.picture)
            return
        if arguments.workers:
            names = {1: "1 worker, 2 threads", 2: "2 workers, 1 thread each"}
            rows = [
                row(name, epochs, [ours(folder, requests, s, given, workers) for s in arguments.seeds], BATCH, paths)
                for workers, name in names.items()
            ]
            print(table(headers, rows))
            print(f"\nefficiency of 2 workers: {float(rows[1][5]) / float(rows[0][5]):.2f}")
            return
        runs: dict[str, list[dict[str, float]]] = {"GluonTS": [], "Phalanx": []}
        for seed in arguments.seeds:
            command = [arguments.peer, "-c", PEER, str(folder), str(epochs), str(seed)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs["GluonTS"].append(json.loads(told.strip().splitlines()[-1]))
            runs["Phalanx"].append(ours(folder, requests, seed, given))
        rows = [row(name, epochs, found, BATCH, paths) for name, found in runs.items()]
        pairs = zip(rows[0][3:], rows[1][3:], strict=True)
        ratios = ["ratio", "", "", *(f"{float(b) / float(a):.2f}" if float(a) else "" for a, b in pairs)]
        print(table(headers, [*rows, ratios]))


if __name__ == "__main__":
    main()
