"""Whole jobs through real worker groups: record, artifact, errors, restarts, stops."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import fsspec
import numpy as np
import psutil
import pytest

import phalanx
from phalanx import archive
from phalanx.testing.launcher_checks import descendants
from phalanx.tracking.console import PlainProgress

LABELLED = "text/csv;label_size=1"


@final
class AtStep:
    """A progress that calls `action` once, at the first step it hears of."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._done = False

    def started(self, name: str, headline: str) -> None: ...
    def status(self, secondary: str, message: str) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        if not self._done:
            self._done = True
            self._action()


def kmeans_job(data: Path, output: Path | str, **changes: Any) -> phalanx.TrainingJob:
    fields: dict[str, Any] = {
        "algorithm": "kmeans",
        "inputs": {"train": phalanx.Channel(url=str(data / "train.csv"), content_type=LABELLED)},
        "hyperparameters": {"k": 10, "mini_batch_size": 500},
        "output": str(output),
        "name": "job",
        **changes,
    }
    return phalanx.TrainingJob(**fields)


def endless(data: Path, output: Path, **changes: Any) -> phalanx.TrainingJob:
    return kmeans_job(data, output, hyperparameters={"k": 10, "mini_batch_size": 500, "epochs": 10**6}, **changes)


def status_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())  # type: ignore[no-any-return]


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_job_leaves_its_record_and_its_artifact(digits: Path, tmp_path: Path) -> None:
    result = kmeans_job(digits, tmp_path, workers=2).run(progress=False)
    folder = tmp_path / "job"
    assert result.status == "Completed"
    assert result.artifact == str(folder / "model.tar.gz")
    status = status_of(folder)
    assert [t["status"] for t in status["transitions"]] == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert [w["rank"] for w in status["workers"]] == [0, 1]
    assert status["restarts"] == 0
    assert result.billable_seconds > 0
    lines = metrics_of(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(np.isfinite(line.get("train:msd", line.get("train:stream_msd"))) for line in lines)
    job = json.loads((folder / "job.json").read_text())
    assert job["hyperparameters"]["k"] == 10
    assert job["hyperparameters"]["init_method"] == "random"
    assert job["provenance"]["data"]["train"]["files"] == 1
    assert {"rank-0.log", "rank-1.log"} <= {p.name for p in (folder / "logs").iterdir()}
    assert not (folder / "failure").exists()


def test_the_artifact_does_not_know_workers_names_or_times(digits: Path, tmp_path: Path) -> None:
    archives = []
    for workers in (1, 2, 3):
        result = kmeans_job(digits, tmp_path, workers=workers, name=f"with-{workers}").run(progress=False)
        assert result.artifact is not None
        archives.append(Path(result.artifact).read_bytes())
    assert archives[0] == archives[1] == archives[2]
    with tarfile.open(tmp_path / "with-1" / "model.tar.gz") as tar:
        members = tar.getmembers()
    assert all(m.mtime == 0 and m.uid == 0 and not m.uname for m in members)
    assert [m.name for m in members] == sorted(m.name for m in members)


def test_a_loaded_model_predicts(digits: Path, tmp_path: Path) -> None:
    result = kmeans_job(digits, tmp_path).run(progress=False)
    assert result.artifact is not None
    model = phalanx.load(result.artifact)
    rows = np.loadtxt(digits / "train.csv", delimiter=",", dtype=np.float32)[:50, 1:]
    answer = model.predict(rows)
    assert answer["closest_cluster"].shape == (50,)
    assert set(np.unique(answer["closest_cluster"])) <= set(range(10))
    assert (answer["distance_to_cluster"] >= 0).all()
    with pytest.raises(phalanx.UserError, match="64"):
        model.predict(rows[:, :5])


@pytest.mark.filterwarnings("ignore:.*Unknown file format")  # plain xgboost guesses right: UBJSON
def test_xgboost_on_two_workers_learns_and_opens_in_plain_xgboost(cancer: Path, tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    job = phalanx.TrainingJob(
        algorithm="xgboost",
        inputs={"train": str(cancer / "train.csv"), "validation": str(cancer / "validation.csv")},
        hyperparameters={"num_round": "20", "objective": "binary:logistic", "eval_metric": "auc,logloss"},
        workers=2,
        output=str(tmp_path),
        name="trees",
    )
    result = job.run(progress=False)
    assert result.step == 20
    assert result.metrics["validation:auc"] is not None
    assert result.metrics["validation:auc"] > 0.95
    archive.unpack(str(result.artifact), tmp_path / "model")
    rows = np.loadtxt(cancer / "validation.csv", delimiter=",", dtype=np.float32)
    plain = xgboost.Booster(model_file=str(tmp_path / "model" / "xgboost-model")).predict(xgboost.DMatrix(rows[:, 1:]))
    ours = phalanx.load(str(result.artifact)).predict(rows[:, 1:])["score"]
    np.testing.assert_allclose(plain, ours, rtol=1e-6)


def test_an_existing_folder_is_never_touched(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine").write_text("keep")
    with pytest.raises(phalanx.UserError, match="exists already"):
        kmeans_job(digits, tmp_path).run(progress=False)
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", "empty|no rows"),
        ("1,2,3\n4,5\n", "line 2"),
        ("1,2,3\n4,x,6\n", "line 2"),
        ("1,2,3\nnan,5,6\n", "line 2"),
        ("a,b,c\n1,2,3\n", "header"),
    ],
    ids=["empty", "ragged", "text", "nan label", "header"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_is_one_clear_error(tmp_path: Path, text: str, pattern: str, workers: int) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(phalanx.UserError, match=pattern) as caught:
        kmeans_job(tmp_path, tmp_path, workers=workers, hyperparameters={"k": 1}).run(progress=False)
    assert "train" in str(caught.value)
    assert caught.value.result.status == "Failed"
    assert not (tmp_path / "job" / "model.tar.gz").exists()
    assert (tmp_path / "job" / "failure").read_text().startswith("UserError: ")
    assert status_of(tmp_path / "job")["status"] == "Failed"


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"algorithm": "kmean"}, "did you mean 'kmeans'"),
        ({"hyperparameters": {"k": 0}}, r"k=0 is not allowed.*\[1, inf\)"),
        ({"hyperparameters": {"k": 3, "epoch": 1}}, "did you mean 'epochs'"),
        ({"hyperparameters": {}}, "needs the hyperparameter k"),
        ({"workers": 0}, "workers=0"),
        ({"name": "a b"}, "name 'a b'"),
        ({"inputs": {"train": "nowhere.csv"}}, "no file at nowhere.csv"),
        ({"inputs": {}}, "needs a channel 'train'"),
        ({"launcher": "locl"}, "did you mean 'local'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_request_starts_nothing(digits: Path, tmp_path: Path, changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(phalanx.UserError, match=pattern):
        kmeans_job(digits, tmp_path, **changes).run(progress=False)
    assert not list(tmp_path.iterdir())


def test_more_clusters_than_rows_says_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("0,1,2\n" * 20)
    with pytest.raises(phalanx.UserError, match=r"k=999.*999.*20"):
        kmeans_job(tmp_path, tmp_path, workers=2, hyperparameters={"k": 999}).run(progress=False)


def test_a_killed_worker_fails_the_job_as_the_platforms(digits: Path, tmp_path: Path) -> None:
    def kill() -> None:
        os.kill(status_of(tmp_path / "job")["workers"][1]["pid"], signal.SIGKILL)

    with pytest.raises(phalanx.PlatformError, match=r"rank 1|worker 1") as caught:
        endless(digits, tmp_path, workers=2).run(progress=AtStep(kill))
    assert caught.value.result.status == "Failed"
    assert not (tmp_path / "job" / "model.tar.gz").exists()


def test_a_killed_worker_is_replaced_within_the_budget(digits: Path, tmp_path: Path) -> None:
    def kill() -> None:
        os.kill(status_of(tmp_path / "job")["workers"][0]["pid"], signal.SIGKILL)

    hyperparameters = {"k": 10, "mini_batch_size": 500, "epochs": 300}
    job = kmeans_job(digits, tmp_path, workers=2, max_restarts=1, hyperparameters=hyperparameters)
    result = job.run(progress=AtStep(kill))
    assert result.status == "Completed"
    assert result.restarts == 1
    steps = [line["step"] for line in metrics_of(tmp_path / "job")]
    assert steps == list(range(1, result.step + 1))
    calm = kmeans_job(digits, tmp_path, workers=2, name="calm", hyperparameters=hyperparameters).run(progress=False)
    assert Path(str(calm.artifact)).read_bytes() == Path(str(result.artifact)).read_bytes()


def test_stop_ends_a_job_in_order(digits: Path, tmp_path: Path) -> None:
    job = endless(digits, tmp_path, workers=2)
    with pytest.raises(phalanx.Stopped) as caught:
        job.run(progress=AtStep(job.stop))
    assert caught.value.exit_code == 143
    assert caught.value.result.status == "Stopped"
    assert status_of(tmp_path / "job")["status"] == "Stopped"
    assert not (tmp_path / "job" / "failure").exists()


def test_the_time_limit_stops_a_job(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(phalanx.Stopped) as caught:
        endless(digits, tmp_path, max_runtime_s=0.5).run(progress=False)
    assert caught.value.result.secondary_status == "MaxRuntimeExceeded"


def test_a_job_runs_from_a_thread(digits: Path, tmp_path: Path) -> None:
    results: list[phalanx.JobResult] = []
    thread = threading.Thread(target=lambda: results.append(kmeans_job(digits, tmp_path).run(progress=False)))
    thread.start()
    thread.join(60)
    assert [r.status for r in results] == ["Completed"]


def test_two_jobs_at_once(digits: Path, tmp_path: Path) -> None:
    results: list[phalanx.JobResult] = []
    jobs = [kmeans_job(digits, tmp_path, workers=2, name=f"job-{i}") for i in range(2)]
    threads = [threading.Thread(target=lambda job=job: results.append(job.run(progress=False))) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [r.status for r in results] == ["Completed", "Completed"]


def test_the_output_may_be_any_url(digits: Path) -> None:
    fs = fsspec.filesystem("memory")
    result = kmeans_job(digits, "memory://bucket/runs", workers=2).run(progress=False)
    assert result.artifact == "memory://bucket/runs/job/model.tar.gz"
    assert {Path(p).name for p in fs.find("/bucket/runs/job")} >= {
        "job.json",
        "status.json",
        "metrics.jsonl",
        "model.tar.gz",
        "rank-0.log",
    }
    assert json.loads(fs.cat("/bucket/runs/job/status.json"))["status"] == "Completed"
    assert phalanx.load(result.artifact).hyperparameters["k"] == 10
    fs.rm("/bucket", recursive=True)


def test_secrets_reach_no_record(digits: Path, tmp_path: Path) -> None:
    kmeans_job(digits, tmp_path, environment={"MY_API_KEY": "hunter2hunter2", "PLAIN": "shown"}).run(progress=False)
    texts = [p.read_bytes() for p in (tmp_path / "job").rglob("*") if p.is_file()]
    assert not any(b"hunter2hunter2" in text for text in texts)
    assert json.loads((tmp_path / "job" / "job.json").read_text())["environment"] == {"MY_API_KEY": "***", "PLAIN": "shown"}


def test_twenty_jobs_leave_nothing(digits: Path, tmp_path: Path) -> None:
    kmeans_job(digits, tmp_path, workers=2, name="warm-up").run(progress=False)
    me = psutil.Process()
    before = (me.num_fds(), me.num_threads(), len(descendants()))
    for i in range(20):
        kmeans_job(digits, tmp_path, workers=2, name=f"job-{i}").run(progress=False)
    after = (me.num_fds(), me.num_threads(), len(descendants()))
    assert after == before


def test_plain_progress_tells_status_and_metrics(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    kmeans_job(digits, tmp_path).run(progress=PlainProgress(sys.stderr))
    shown = capsys.readouterr().err
    assert "Training" in shown
    assert "train:msd=" in shown
