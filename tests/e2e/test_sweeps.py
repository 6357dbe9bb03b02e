"""Sweeps of real jobs: parallel, stopped early, killed and resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

import phalanx
from phalanx.contracts import Workers, WorkerSpec
from phalanx.errors import AlgorithmError, Stopped, UserError
from phalanx.launch.prepared import PreparedLauncher
from phalanx.tuning import sweepfile
from phalanx.tuning.trial import Trial, job_of
from phalanx.tuning.view import SilentView

RANGES = {"eta": phalanx.Continuous(0.05, 0.5, "log"), "max_depth": phalanx.Integer(2, 6)}


def xgboost_job(data: Path, **more: Any) -> phalanx.TrainingJob:
    settings = {"num_round": 12, "objective": "binary:logistic", **more.pop("hyperparameters", {})}
    inputs = {"train": str(data / "train.csv"), "validation": str(data / "validation.csv")}
    return phalanx.TrainingJob(algorithm="xgboost", inputs=inputs, hyperparameters=settings, **more)


def tuner(data: Path, output: Path, **more: Any) -> phalanx.Tuner:
    given: dict[str, Any] = {
        "name": "s",
        "ranges": RANGES,
        "max_jobs": 6,
        "max_parallel_jobs": 2,
        "early_stopping": "off",
        **more,
    }
    job = given.pop("job", None) or xgboost_job(data)
    return phalanx.Tuner(job, output=str(output), **given)


def table(folder: Path) -> list[tuple[Any, ...]]:
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    return [(t["number"], t["values"], t["status"], t["objective"]) for t in trials]


class Acting(SilentView):
    """A view that acts once, when so many trials have ended."""

    def __init__(self, act: Any, *, after: int) -> None:
        self._act, self._left = act, after

    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


def test_a_sweep_and_what_it_leaves(cancer: Path, tmp_path: Path) -> None:
    sweep = tuner(cancer, tmp_path, objective="validation:auc")
    best = sweep.run(progress=False)
    frame = sweep.dataframe()
    assert list(frame.columns) == [
        *("eta", "max_depth", "TrainingJobName", "TrainingJobStatus", "FinalObjectiveValue"),
        *("TrainingStartTime", "TrainingEndTime", "TrainingElapsedTimeSeconds"),
    ]
    assert set(frame["TrainingJobStatus"]) == {"Completed"}
    assert frame["max_depth"].dtype == float
    assert best.objective == frame["FinalObjectiveValue"].max() == best.metrics["validation:auc"]
    assert best.artifact is not None
    with phalanx.load(best.artifact) as model:
        assert model is not None
    told = sweep.describe()
    assert told["objectives"] == [{"metric": "validation:auc", "direction": "maximize"}]
    assert told["TrainingJobStatusCounters"]["Completed"] == 6
    assert told["status"] == "Completed"
    assert "2 cores" in told["why"] or "cores" in told["why"]
    job = json.loads((Path(best.folder) / "job.json").read_text())
    assert job["hyperparameters"]["eta"] == best.hyperparameters["eta"]
    with pytest.raises(UserError, match="exists already"):
        tuner(cancer, tmp_path, objective="validation:auc").run(progress=False)
    more = tuner(cancer, tmp_path, objective="validation:auc", max_jobs=7, resume=True)
    more.run(progress=False)
    assert len(more.trials()) == 7
    with pytest.raises(UserError, match="begun with other ranges"):
        tuner(cancer, tmp_path, objective="validation:auc", ranges={"eta": RANGES["eta"]}, resume=True).run(progress=False)


def test_from_a_thread_with_the_algorithms_own_ranges(cancer: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    sweep = tuner(cancer, tmp_path, ranges=None, max_jobs=3)
    thread = threading.Thread(target=lambda: found.append(sweep.run(progress=False)))
    thread.start()
    thread.join()
    assert found
    assert "subsample" in found[0].hyperparameters
    assert sweep.describe()["objectives"] == [{"metric": "validation:logloss", "direction": "minimize"}]


def test_proposals_do_not_depend_on_how_many_run_at_once(cancer: Path, tmp_path: Path) -> None:
    for name, at_once in (("one", 1), ("two", 2)):
        tuner(cancer, tmp_path, name=name, max_jobs=13, max_parallel_jobs=at_once, deterministic=True).run(progress=False)
    assert table(tmp_path / "one") == table(tmp_path / "two")


def test_poor_trials_are_stopped_and_keep_their_checkpoint(cancer: Path, tmp_path: Path) -> None:
    job = xgboost_job(cancer, hyperparameters={"num_round": 2000})
    ranges = {"eta": phalanx.Categorical([0.5, 0.4, 0.3, 1e-7, 2e-7, 3e-7])}
    sweep = tuner(cancer, tmp_path, job=job, ranges=ranges, strategy="grid", early_stopping="asha", min_steps=20)
    best = sweep.run(progress=False)
    assert best.hyperparameters["eta"] >= 0.3
    stopped = [t for t in sweep.trials() if t.status == "Stopped"]
    assert {t.values["eta"] for t in stopped} >= {2e-7} or len(stopped) >= 2
    for trial in stopped:
        assert trial.step < 2000
        assert (tmp_path / "s" / trial.job / "checkpoints").exists()


@pytest.mark.slow
def test_a_stopped_trial_of_two_workers_stops_on_both_and_goes_on(cancer: Path, tmp_path: Path) -> None:
    job = xgboost_job(cancer, hyperparameters={"num_round": 600}, workers=2)
    ranges = {"eta": phalanx.Categorical([0.5, 0.4, 0.3, 1e-7, 2e-7, 3e-7])}
    given = {"job": job, "ranges": ranges, "strategy": "grid", "early_stopping": "asha", "min_steps": 20}
    sweep = tuner(cancer, tmp_path, **given, max_parallel_jobs=1)
    sweep.run(progress=False)
    stopped = [t for t in sweep.trials() if t.status == "Stopped"]
    assert stopped
    for trial in stopped:
        assert trial.stopped_at is not None
        told = json.loads((tmp_path / "s" / trial.job / "status.json").read_text())
        assert (told["status"], len(told["workers"])) == ("Stopped", 2)
        assert trial.stopped_at <= told["checkpoint"]["step"] == told["step"] < 600  # both ranks at one step, and it is saved
    static = {"num_round": 600, "objective": "binary:logistic"}
    resumed = job_of(job, stopped[0], static=static, folder=str(tmp_path / "s"), threads=1)
    assert resumed.resume
    assert resumed.run(progress=False).step == 600


@pytest.mark.slow
def test_a_database_holds_the_study(cancer: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    tuner(cancer, tmp_path, storage=url, max_jobs=3).run(progress=False)
    more = tuner(cancer, tmp_path, storage=url, max_jobs=5, resume=True)
    more.run(progress=False)
    study = optuna.load_study(study_name="s", storage=url)
    assert [trial.value for trial in study.trials] == [(trial.objective or [None])[0] for trial in more.trials()]
    assert not (tmp_path / "s" / "optuna.journal").exists()
    other = tmp_path / "other"
    with pytest.raises(UserError, match="holds a study 's' already"):
        tuner(cancer, other, storage=url).run(progress=False)


def test_stop_and_resume(cancer: Path, tmp_path: Path) -> None:
    calm = tuner(cancer, tmp_path, name="calm", deterministic=True)
    calm.run(progress=False)
    sweep = tuner(cancer, tmp_path, name="wild", deterministic=True)
    with pytest.raises(Stopped):
        sweep.run(progress=Acting(sweep.stop, after=2))
    assert json.loads((tmp_path / "wild" / "sweep.json").read_text())["status"] == "Stopped"
    assert len(table(tmp_path / "wild")) < 6
    tuner(cancer, tmp_path, name="wild", deterministic=True, resume=True).run(progress=False)
    assert table(tmp_path / "wild") == table(tmp_path / "calm")


@pytest.mark.slow
def test_kill_the_driver_and_resume(cancer: Path, tmp_path: Path) -> None:
    def command(name: str, *more: str) -> list[str]:
        given = ["--train", str(cancer / "train.csv"), "--validation", str(cancer / "validation.csv")]
        given += ["--set", "num_round=200", "--set", "objective=binary:logistic", "--range", "eta=0.05:0.5"]
        given += ["--max-jobs", "5", "--max-parallel", "2", "--deterministic", "--early-stopping", "off"]
        place = ["--output", str(tmp_path), "--name", name]
        return [sys.executable, "-m", "phalanx.cli", "tune", "xgboost", *given, *place, *more]

    subprocess.run(command("calm"), check=True, capture_output=True)
    with subprocess.Popen(command("wild"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as driver:
        assert driver.stderr is not None
        for line in driver.stderr:
            if line.startswith("trial"):
                break
        below = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGKILL)
        driver.stderr.close()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive
    done = subprocess.run(command("wild", "--resume", "--json"), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["error"] is None
    assert table(tmp_path / "wild") == table(tmp_path / "calm")
    assert len(list((tmp_path / "wild").glob("wild-*"))) == 5


FALLS_ONCE = """
import argparse, os, signal
from pathlib import Path
import phalanx

p = argparse.ArgumentParser()
p.add_argument("--lr", type=float)
p.add_argument("--place")
a = p.parse_args()
session = phalanx.session()
first = session.restore({}) + 1
begun = Path(a.place, f"{a.lr!r}")
falls = not begun.exists()
with begun.open("a") as file:
    file.write(f"{first}\\n")
for step in range(first, 13):
    if falls and step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    session.report(step, {"loss": a.lr / step})
"""


def test_a_worker_that_is_killed_is_no_lost_trial(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(FALLS_ONCE)
    begun = tmp_path / "begun"
    begun.mkdir()
    job = phalanx.TrainingJob(script=str(script), hyperparameters={"place": str(begun)}, checkpoint_every=2)
    goal: Any = {"objective": "loss", "direction": "minimize"}
    ranges = {"lr": phalanx.Continuous(0.1, 1.0)}
    given = {"ranges": ranges, "max_jobs": 3, "max_parallel_jobs": 2, "early_stopping": "off"}
    sweep = phalanx.Tuner(job, name="s", output=str(tmp_path), **goal, **given)
    sweep.run(progress=False)
    assert [(t.status, t.step, t.retries) for t in sweep.trials()] == [("Completed", 12, 1)] * 3
    for trial in sweep.trials():
        attempts = [int(line) for line in (begun / repr(trial.values["lr"])).read_text().split()]
        assert len(attempts) == 2
        assert attempts[0] == 1 < attempts[1] <= 7  # the second went on from a checkpoint
        recorded = (tmp_path / "s" / trial.job / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in recorded] == list(range(1, 13))


def test_the_process_that_workers_are_forked_from_is_killed(
    cancer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left starts from the warm server, and reads its own data."""
    killed: list[int] = []
    start = PreparedLauncher.start

    def killing(self: PreparedLauncher, spec: WorkerSpec) -> Workers:
        workers = start(self, spec)
        if not killed:
            born = workers.members[0].pid
            template = psutil.Process(born).parent()
            assert template is not None
            killed.append(template.pid)
            template.kill()  # its worker, which has hardly begun, falls with it
        return workers

    monkeypatch.setattr(PreparedLauncher, "start", killing)
    sweep = tuner(cancer, tmp_path, max_jobs=3, max_parallel_jobs=1)
    sweep.run(progress=False)
    assert len(killed) == 1
    assert [(t.status, t.step) for t in sweep.trials()] == [("Completed", 12)] * 3
    assert [t.retries for t in sweep.trials()] == [1, 0, 0]


SEES = """
import argparse, os
from pathlib import Path
import phalanx

p = argparse.ArgumentParser()
p.add_argument("--lr", type=float)
p.add_argument("--place")
a = p.parse_args()
session = phalanx.session()
first = session.restore({}) + 1
seen = os.environ["CUDA_VISIBLE_DEVICES"]
held = Path(a.place, "held-" + seen)
held.mkdir()  # fails where another trial has it
for step in range(first, 20):
    session.report(step, {"loss": a.lr / step}, of=19)
held.rmdir()
with Path(a.place, "seen").open("a") as file:
    file.write(seen + os.environ["SM_NUM_GPUS"] + "\\n")
"""


def test_each_trial_has_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are declared: there is none here, and nothing but the variable is looked at."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,9")
    script = tmp_path / "train.py"
    script.write_text(SEES)
    job = phalanx.TrainingJob(script=str(script), hyperparameters={"place": str(tmp_path)}, threads_per_worker=1)
    goal: Any = {"objective": "loss", "direction": "minimize", "ranges": {"lr": phalanx.Continuous(0.1, 1.0)}}
    given: Any = {"max_jobs": 6, "max_parallel_jobs": 3, "gpus_per_job": 1, "early_stopping": "off"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    sweep = phalanx.Tuner(job, name="s", output=str(tmp_path), **goal, **given)
    sweep.run(progress=False)
    assert [t.status for t in sweep.trials()] == ["Completed"] * 6
    seen = [line[:1] for line in (tmp_path / "seen").read_text().split()]
    assert len(seen) == 6
    assert set(seen) == {"4", "6", "9"}
    assert {line[1:] for line in (tmp_path / "seen").read_text().split()} == {"1"}
    assert "3 at once, 1 x 1 threads and 1 GPU each: this machine has 3 cores and 3 GPUs" in sweep.describe()["why"]


def test_completion(cancer: Path, tmp_path: Path) -> None:
    sweep = tuner(cancer, tmp_path, objective="validation:auc", completion=phalanx.Completion(target=0.5), max_parallel_jobs=1)
    sweep.run(progress=False)
    assert sweep.describe()["reason"] == "TargetReached"
    assert len(sweep.trials()) == 1
    ranges = {"verbosity": phalanx.Categorical([0, 1, 2, 3])}
    patient = phalanx.Completion(not_improving=3)
    same = tuner(cancer, tmp_path, name="same", ranges=ranges, strategy="grid", completion=patient, max_jobs=4)
    same.run(progress=False)
    assert same.describe()["reason"] in ("NotImproving", "MaxJobs")


def test_several_objectives_and_constraints(cancer: Path, tmp_path: Path) -> None:
    job = xgboost_job(cancer, hyperparameters={"eval_metric": "auc,logloss"})
    sweep = tuner(
        cancer,
        tmp_path,
        job=job,
        objective=["validation:auc", "validation:logloss"],
        constraints={"train:logloss": (None, 0.2)},
    )
    sweep.run(progress=False)
    front = sweep.best_trials()
    assert front
    assert all(best.metrics["train:logloss"] <= 0.2 for best in front if best.metrics["train:logloss"] is not None)
    assert "FinalObjectiveValue:validation:logloss" in sweep.dataframe().columns


def test_warm_start(cancer: Path, tmp_path: Path) -> None:
    tuner(cancer, tmp_path, name="parent", objective="validation:auc").run(progress=False)
    parent = str(tmp_path / "parent")
    legacy = phalanx.WarmStart([parent])
    child = tuner(cancer, tmp_path, name="child", objective="validation:auc", warm_start=legacy, max_jobs=2)
    child.run(progress=False)
    assert child.describe()["overall"]["sweep"] == parent
    told = table(tmp_path / "parent")
    best = max(told, key=lambda row: row[3][0])[1]
    other = phalanx.WarmStart([parent], "transfer_learning")
    moved = tuner(cancer, tmp_path, name="moved", objective="validation:auc", warm_start=other, max_jobs=1)
    moved.run(progress=False)
    assert table(tmp_path / "moved")[0][1] == best
    with pytest.raises(UserError, match=r"has the objective maximize validation:auc, this one minimize validation:logloss"):
        tuner(cancer, tmp_path, name="x", objective="validation:logloss", warm_start=phalanx.WarmStart([parent]))
    with pytest.raises(UserError, match="there is no sweep at"):
        tuner(cancer, tmp_path, name="x", warm_start=phalanx.WarmStart([str(tmp_path)]))


def test_a_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', type=float)\n"
        "p.add_argument('--kind')\na = p.parse_args()\nprint(f'loss={(a.lr - 0.1) ** 2:.6f}')\n"
    )
    job = phalanx.TrainingJob(script=str(script), metric_definitions=[{"name": "loss", "regex": r"loss=(\S+)"}])
    ranges = {"lr": phalanx.Continuous(0.01, 1.0), "kind": phalanx.Categorical(["a", "b"])}
    with pytest.raises(UserError, match="which way is better for 'loss'"):
        phalanx.Tuner(job, name="s", output=str(tmp_path), objective="loss", ranges=ranges)
    goal: Any = {"objective": "loss", "direction": "minimize"}
    sweep = phalanx.Tuner(job, name="s", output=str(tmp_path), **goal, ranges=ranges, max_jobs=2, strategy="random")
    best = sweep.run(progress=False)
    assert best.objective == pytest.approx((best.hyperparameters["lr"] - 0.1) ** 2, abs=1e-6)


def test_refused_at_once(cancer: Path, tmp_path: Path) -> None:
    eta = RANGES["eta"]
    for given, says in (
        ({"ranges": {"etaa": eta}}, r"ranges\.etaa: xgboost has no hyperparameter 'etaa'; did you mean 'eta'"),
        ({"ranges": {"eta": phalanx.Continuous(0.1, 2.0)}}, r"ranges\.eta: eta=2\.0 is not allowed"),
        ({"ranges": {"num_round": phalanx.Integer(1, 9)}}, "num_round has both a value and a range"),
        ({"ranges": {"eta": eta, "learning_rate": eta}}, "are the same hyperparameter"),
        ({"ranges": {"max_depth": phalanx.Continuous(2, 6)}}, r"ranges\.max_depth: max_depth=3\.48"),
        ({"ranges": {"eta": 3}}, "is no range"),
        ({"strategy": "bayes"}, "did you mean 'bayesian'"),
        ({"strategy": "grid"}, "make eta a Categorical"),
        ({"early_stopping": "on"}, "early_stopping='on' is not allowed"),
        ({"max_jobs": 0}, "max_jobs=0 is not allowed"),
        ({"objective": "validation:acu"}, "acu"),
        ({"direction": "up"}, "minimize or maximize"),
        ({"name": "no spaces"}, "name 'no spaces' is not allowed"),
        ({"objective": ["validation:auc", "validation:error"], "early_stopping": "asha"}, "needs one objective"),
        ({"completion": None, "constraints": {"a": 3}}, r"constraints\.a=3"),
        ({"constraints": {"a": ("x", None)}}, r"constraints\.a=\('x', None\) is not allowed"),
        ({"constraints": {"a": (2, 1)}}, "nothing is at least 2 and at most 1"),
        ({"constraints": ["a"]}, "give a mapping of metrics"),
        ({"ranges": ["eta"]}, "give a mapping, as"),
        ({"ranges": {3: eta}}, "give a mapping, as"),
        ({"storage": {}}, r"storage=\{\} is not allowed"),
        ({"objective": 3}, "it must be a text, or a list of texts"),
        ({"strategy": None}, "strategy=None is not allowed"),
        ({"early_stopping": True}, "early_stopping='True' is not allowed"),
        ({"deterministic": "no"}, "it must be true or false"),
        ({"min_steps": 10, "max_steps": 5}, "at most max_steps=5"),
        ({"name": 5}, "name '5' is not allowed"),
        ({"warm_start": "runs/x"}, r"give a phalanx\.WarmStart"),
        ({"completion": {"target": 1}}, r"give a phalanx\.Completion"),
        (
            {"strategy": "grid", "ranges": {"max_depth": phalanx.Integer(1, 20), "seed": phalanx.Integer(0, 10**9)}},
            "use random",
        ),
    ):
        with pytest.raises(UserError, match=says):
            tuner(cancer, tmp_path, **given)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match=r"nosuch://x cannot be used"):
        tuner(cancer, tmp_path, storage="nosuch://x").run(progress=False)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="only_if='a' must be a mapping"):
        phalanx.Integer(1, 2, only_if="a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="warm_start needs the field 'parents'"):
        sweepfile.from_mapping({"job": {"algorithm": "kmeans", "inputs": {}}, "name": "x", "warm_start": {}}, {})
    for field in ("target", "max_runtime_s"):
        with pytest.raises(UserError, match=rf"completion\.{field}=nan"):
            phalanx.Completion(**{field: float("nan")})


def test_an_objective_that_never_comes(cancer: Path, tmp_path: Path) -> None:
    job = phalanx.TrainingJob(algorithm="kmeans", inputs={"train": str(cancer / "train.csv")}, hyperparameters={"k": 3})
    sweep = phalanx.Tuner(
        job,
        name="s",
        output=str(tmp_path),
        objective="test:msd",
        ranges={"init_method": phalanx.Categorical(["random", "kmeans++"])},
    )
    with pytest.raises(UserError, match=r"never reported: the first trial reported train:msd; .* no channel 'test'"):
        sweep.run(progress=False)


def test_what_fails_every_time_ends_the_sweep(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise ValueError('no such column')\n")
    job = phalanx.TrainingJob(script=str(script))
    ranges = {"lr": phalanx.Continuous(0.01, 1.0)}
    sweep = phalanx.Tuner(
        job, name="s", output=str(tmp_path), objective="loss", direction="minimize", ranges=ranges, max_parallel_jobs=2
    )
    with pytest.raises(AlgorithmError, match=r"the first 3 trials of the sweep failed: .*no such column"):
        sweep.run(progress=False)
    assert sweep.describe()["status"] == "Failed"


@pytest.mark.slow
def test_yaml_show_and_report(cancer: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"""
job:
  algorithm: xgboost
  inputs: {{train: {cancer}/train.csv, validation: {cancer}/validation.csv}}
  hyperparameters: {{num_round: 5, objective: "binary:logistic"}}
name: filed
output: {tmp_path}
objective: validation:auc
ranges:
  eta: {{low: 1e-2, high: 0.5, scaling: log}}
  booster: [gbtree, dart]
  rate_drop: {{low: 0.0, high: 0.5, only_if: {{booster: dart}}}}
max_jobs: 5
early_stopping: off
completion: {{not_improving: 10}}
""")

    def phalanx_command(*given: str) -> str:
        command = [sys.executable, "-m", "phalanx.cli", *given]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "best" in phalanx_command("tune", str(sweep), "--max-jobs", "4")
    shown = phalanx_command("show", str(tmp_path / "filed"))
    assert "maximize validation:auc" in shown
    assert "4 Completed" in shown
    page = Path(phalanx_command("report", str(tmp_path / "filed")).strip())
    assert "Parallel coordinates of validation:auc" in page.read_text()
    assert "<script src=" not in page.read_text()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is not None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path / 'browser'}"]
        flags += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
        shown_page = subprocess.run([browser, *flags], check=True, capture_output=True, text=True, timeout=120)
        assert shown_page.stdout.count('class="main-svg"') >= 5  # drawn, plot by plot
        assert "CONSOLE" not in shown_page.stderr
    with pytest.raises(UserError, match="a sweep has no field 'max_job'; did you mean 'max_jobs'"):
        sweepfile.from_mapping({"job": {}, "name": "x", "max_job": 3}, {})
