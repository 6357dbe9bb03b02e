"""Jobs on groups that others started: ranks as threads, each with the place it would find in its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starting import Step

import phalanx
from phalanx.errors import AlgorithmError, PhalanxError, PlatformError, UserError
from phalanx.launch.attach import AttachLauncher
from phalanx.testing.attaching import Once, rehearsed_groups

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "torchrun" / "train.py"


def job(digits: Path, output: Path, **how: Any) -> phalanx.TrainingJob:
    given: dict[str, Any] = {
        "algorithm": "kmeans",
        "inputs": {"train": phalanx.Channel(url=str(digits / "train.csv"), content_type="text/csv;label_size=1")},
        "hyperparameters": {"k": 10, "mini_batch_size": 60, "epochs": 12},
        "output": str(output),
        "name": "job",
        "seed": 3,
        "threads_per_worker": 1,
    }
    return phalanx.TrainingJob(**{**given, **how})


def run_all(
    jobs: Sequence[phalanx.TrainingJob], progress: Any = False, timeout_s: float = 30.0, **group: Any
) -> list[phalanx.JobResult | PhalanxError]:
    """Run the job of each rank in a thread; return what each returned or raised."""
    ended: dict[int, phalanx.JobResult | PhalanxError] = {}

    def one(rank: int, given: phalanx.TrainingJob, launcher: AttachLauncher) -> None:
        given.launcher = launcher
        try:
            ended[rank] = given.run(progress=progress if rank == 0 else False)
        except PhalanxError as error:
            ended[rank] = error

    launchers = [AttachLauncher(found, timeout_s=timeout_s) for found in rehearsed_groups(len(jobs), **group)]
    threads = [
        threading.Thread(target=one, args=(rank, given, launcher))
        for rank, (given, launcher) in enumerate(zip(jobs, launchers, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ended[rank] for rank in range(len(jobs))]


def bytes_of(result: object) -> bytes:
    assert isinstance(result, phalanx.JobResult), result
    assert result.artifact is not None
    return Path(result.artifact).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes_of(job(digits, tmp_path_factory.mktemp("local"), workers=2).run(progress=False))


def test_all_ranks_return_the_same_and_the_model_is_that_of_a_local_job(
    digits: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    results = run_all([job(digits, tmp_path) for _ in range(2)])
    assert bytes_of(results[0]) == undisturbed
    assert results[0] == results[1]
    told = json.loads((tmp_path / "job" / "job.json").read_text())
    assert (told["launcher"], told["workers"]) == ("attach", 2)


def test_ranks_with_other_options_are_refused_and_nothing_begins(digits: Path, tmp_path: Path) -> None:
    errors = run_all([job(digits, tmp_path), job(digits, tmp_path), job(digits, tmp_path, seed=4, hyperparameters={"k": 3})])
    for error in errors:
        assert isinstance(error, UserError), error
        assert "worker 2" in str(error)
        assert "the same hyperparameters, seed" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [0, 1])
def test_what_one_rank_finds_wrong_is_everybodys_error(wrong: int, digits: Path, tmp_path: Path) -> None:
    jobs = [job(digits, tmp_path), job(digits, tmp_path)]
    jobs[wrong].inputs = {"train": str(tmp_path / "nowhere.csv")}
    for error in run_all(jobs):
        assert isinstance(error, UserError), error
        assert "nowhere.csv" in str(error)
        assert ("worker 1 on" in str(error)) == (wrong == 1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_named_on_all_ranks(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    progress = Once(5, lambda: _kill_worker(tmp_path, 1))
    for error in run_all([job(digits, tmp_path), job(digits, tmp_path)], progress):
        assert isinstance(error, PlatformError), error
        assert "worker 1 was killed by SIGKILL" in str(error)
        assert error.result.status == "Failed"
    told = json.loads((tmp_path / "error.json").read_text())["message"]  # torchrun's own form
    assert told["message"].startswith("PlatformError: worker 1 was killed by SIGKILL")


def test_a_killed_worker_is_started_again_in_its_group(digits: Path, tmp_path: Path, undisturbed: bytes) -> None:
    progress = Once(9, lambda: _kill_worker(tmp_path, 1))
    jobs = [job(digits, tmp_path, max_restarts=1, checkpoint_every=4) for _ in range(2)]
    results = run_all(jobs, progress)
    assert bytes_of(results[0]) == undisturbed
    assert all(isinstance(found, phalanx.JobResult) and found.restarts == 1 for found in results)


def test_a_group_that_is_started_again_goes_on_without_being_asked(digits: Path, tmp_path: Path, undisturbed: bytes) -> None:
    jobs = [job(digits, tmp_path, checkpoint_every=4) for _ in range(2)]
    run_all(jobs, Once(9, lambda: _kill_worker(tmp_path, 0)), run="r")
    results = run_all([job(digits, tmp_path, checkpoint_every=4) for _ in range(2)], run="r", restarts=1)
    assert bytes_of(results[1]) == undisturbed
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["resumed_from_step"] in (4, 8)
    assert run_all([job(digits, tmp_path) for _ in range(2)], run="r", restarts=2)[1] == results[1]  # done is done


def test_an_unfinished_job_of_other_options_is_not_taken_over(digits: Path, tmp_path: Path) -> None:
    jobs = [job(digits, tmp_path, checkpoint_every=4) for _ in range(2)]
    run_all(jobs, Once(9, lambda: _kill_worker(tmp_path, 0)))
    for error in run_all([job(digits, tmp_path, seed=5) for _ in range(2)]):
        assert isinstance(error, UserError)
        assert "has another seed" in str(error)


def test_a_script_runs_on_all_ranks(tmp_path: Path) -> None:
    jobs = [
        phalanx.TrainingJob(script=str(EXAMPLE), arguments=["--steps", "5"], output=str(tmp_path), threads_per_worker=1)
        for _ in range(2)
    ]
    results = run_all(jobs, run="r 1")
    assert results[0] == results[1]
    assert isinstance(results[0], phalanx.JobResult)
    assert (results[0].name, results[0].step) == ("train-rehearsal-r-1", 5)
    assert "loss after 5 steps" in (tmp_path / results[0].name / "logs" / "rank-0.log").read_text()


def test_a_script_that_fails_on_one_rank_is_told_by_all(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import os\nif os.environ['RANK'] == '1':\n    raise ZeroDivisionError('of no use')\n")
    jobs = [phalanx.TrainingJob(script=str(script), output=str(tmp_path / "runs"), name="job") for _ in range(2)]
    for error in run_all(jobs):
        assert isinstance(error, AlgorithmError), error
        assert "of no use" in str(error)
        assert "worker 1" in str(error)


def test_one_rank_alone_is_a_group_too(digits: Path, tmp_path: Path) -> None:
    (result,) = run_all([job(digits, tmp_path)])
    assert bytes_of(result)


def test_nobody_who_does_not_know_the_secret_takes_part(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from phalanx.launch import meeting
    from phalanx.launch.wire import proof

    calls = iter(range(1000))
    monkeypatch.setattr(meeting, "proof", lambda secret, *parts: proof(f"{secret}{next(calls)}", *parts))
    for error in run_all([job(digits, tmp_path), job(digits, tmp_path)], timeout_s=1.0):
        assert isinstance(error, PlatformError), error
    assert "different secrets" in str(error)


def test_outside_of_a_group_there_is_nothing_to_attach_to(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        job(digits, tmp_path, launcher="attach").run(progress=False)


def test_ranks_that_do_not_know_of_each_other_share_the_cores(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    run_all([job(digits, tmp_path, threads_per_worker=None) for _ in range(2)], local_size=None)
    assert json.loads((tmp_path / "job" / "job.json").read_text())["threads_per_worker"] == 4


def test_workers_must_be_those_of_the_group(digits: Path, tmp_path: Path) -> None:
    (error,) = run_all([job(digits, tmp_path, workers=4)])
    assert isinstance(error, UserError)
    assert "has 1: leave workers out" in str(error)


def _kill_worker(output: Path, rank: int) -> None:
    workers = json.loads((output / "job" / "status.json").read_text())["workers"]
    os.kill(workers[rank]["pid"], signal.SIGKILL)


DRIVER = """
import json, os, pathlib, signal, sys
import phalanx
from phalanx.testing.attaching import Once

folder, data, number, at = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
(folder / f"{os.environ['SLURM_PROCID']}.pid").write_text(str(os.getpid()))
ranks = "1" if number == signal.SIGKILL else "01"  # a scheduler tells all of them
progress = Once(at, lambda: [os.kill(int((folder / f"{r}.pid").read_text()), number) for r in ranks]) if number else False
channel = phalanx.Channel(url=data, content_type="text/csv;label_size=1")
hyperparameters = {"k": 10, "mini_batch_size": 60, "epochs": 100}
job = phalanx.TrainingJob(
    algorithm="kmeans", inputs={"train": channel}, hyperparameters=hyperparameters, seed=3, checkpoint_every=20,
    output=str(folder / "runs"), launcher="attach",
)
try:
    print(json.dumps(job.run(progress=progress).artifact))
except phalanx.PhalanxError as error:
    print(json.dumps(str(error)))
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "codes", "words"),
    [(signal.SIGKILL, [75, -9], "worker 1 on"), (signal.SIGTERM, [143, 143], "stopped by SIGTERM")],
)
def test_a_rank_that_is_taken_away_ends_all_and_the_next_start_goes_on(
    number: signal.Signals, codes: list[int], words: str, digits: Path, tmp_path: Path
) -> None:
    """Processes, as srun starts them: one is killed or told to stop; the job is requeued."""

    def start(restarts: int, number: int) -> list[tuple[int, str, str]]:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), str(digits / "train.csv"), str(int(number)), "200"]
        with Step(command, 2, job="7", restarts=restarts, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as step:
            return step.ended()

    first = start(0, number)
    assert [code for code, _, _ in first] == codes, first
    assert words in json.loads(first[0][1])
    second = start(1, 0)
    assert [code for code, _, _ in second] == [0, 0], second
    assert second[0][1] == second[1][1]
    status = json.loads((tmp_path / "runs" / "kmeans-slurm-7-0" / "status.json").read_text())
    assert status["resumed_from_step"] >= (200 if number == signal.SIGTERM else 20)
    hyperparameters = {"k": 10, "mini_batch_size": 60, "epochs": 100}
    alone = job(digits, tmp_path / "local", hyperparameters=hyperparameters).run(progress=False)
    assert Path(json.loads(second[0][1])).read_bytes() == bytes_of(alone)
