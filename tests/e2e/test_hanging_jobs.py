"""Ranks that hang in real jobs: stopped, or waited for; each is named, and the job goes on within its budget."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

import phalanx

LIMIT_S = 2.0  # the job's own limit

SCRIPT = """
import sys, time
import numpy as np, torch
import torch.distributed as dist
import phalanx

session = phalanx.session()

def computes(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        np.dot(np.ones((50, 50)), np.ones((50, 50)))

def dawdles():
    computes(3600)

for step in range(1, 5):
    if step == 2:
        computes(4)  # on all ranks: no hang
    if step == 3 and session.world.rank == 0:
        dawdles()
    if sys.argv[1] == "torch":
        dist.all_reduce(torch.ones(3))
    else:
        session.world.all_reduce(np.ones(3))
    session.report(step, {})
"""


class Stopping:
    """A progress that stops the process of one rank at a step, once."""

    def __init__(self, folder: Path, rank: int, step: int) -> None:
        self._folder, self._rank, self._step = folder, rank, step
        self.pids: list[int] = []
        self.told: list[str] = []

    def started(self, name: str, headline: str) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...
    def status(self, secondary: str, message: str) -> None:
        if secondary == "Restarting":
            self.told.append(message)

    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        if step >= self._step and not self.pids:
            self.pids = [worker["pid"] for worker in json.loads((self._folder / "status.json").read_text())["workers"]]
            os.kill(self.pids[self._rank], signal.SIGSTOP)


def kmeans(digits: Path, output: Path, workers: int, epochs: int = 24, restarts: int = 1) -> phalanx.TrainingJob:
    return phalanx.TrainingJob(
        algorithm="kmeans",
        inputs={"train": phalanx.Channel(url=str(digits / "train.csv"), content_type="text/csv;label_size=1")},
        hyperparameters={"k": 10, "mini_batch_size": 60, "epochs": epochs},
        workers=workers,
        output=str(output),
        name="job",
        seed=3,
        threads_per_worker=1,
        checkpoint_every=5,
        max_restarts=restarts,
        hang_timeout_s=LIMIT_S,
    )


def test_a_stopped_worker_is_named_and_the_job_ends_with_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    progress = Stopping(tmp_path / "hung" / "job", rank=1, step=9)
    result = kmeans(digits, tmp_path / "hung", 2).run(progress=progress)
    assert (result.status, result.restarts) == ("Completed", 1)
    assert len(progress.told) == 1
    assert "worker 1 hangs: its process was stopped by a signal (SIGSTOP) for 2 s" in progress.told[0]
    assert not any(psutil.pid_exists(pid) for pid in progress.pids)
    kmeans(digits, tmp_path / "whole", 2).run(progress=False)
    assert (tmp_path / "hung/job/model.tar.gz").read_bytes() == (tmp_path / "whole/job/model.tar.gz").read_bytes()


def test_a_single_worker_that_is_stopped_fails_the_job_without_a_budget(digits: Path, tmp_path: Path) -> None:
    progress = Stopping(tmp_path / "job", rank=0, step=3)
    with pytest.raises(phalanx.PlatformError, match="worker 0 hangs: its process was stopped by a signal"):
        kmeans(digits, tmp_path, 1, epochs=500, restarts=0).run(progress=progress)
    assert not psutil.pid_exists(progress.pids[0])
    assert "worker 0 hangs" in (tmp_path / "job" / "failure").read_text()


@pytest.mark.parametrize("whose", ["ours", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_worker_that_others_wait_for_is_named_with_its_stack(whose: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    job = phalanx.TrainingJob(
        script=str(tmp_path / "train.py"),
        arguments=[whose],
        workers=2,
        output=str(tmp_path / "runs"),
        name="job",
        checkpoint_every="never",
        hang_timeout_s=LIMIT_S,
    )
    with pytest.raises(phalanx.PlatformError) as caught:
        job.run(progress=False)
    assert "worker 0 hangs: worker 1 has waited for it" in str(caught.value)
    assert "phase Training, after step 2" in str(caught.value)
    assert ("in all_reduce;" in str(caught.value)) == (whose == "ours")
    assert caught.value.result.step == 2, "the long computation of all ranks was no hang"
    stack = (tmp_path / "runs" / "job" / "failure").read_text()
    assert "in dawdles" in stack
    assert "most recent call first" in stack
    for worker in json.loads((tmp_path / "runs" / "job" / "status.json").read_text())["workers"]:
        assert not psutil.pid_exists(worker["pid"])


HELD = """
import ctypes, time
import phalanx

session = phalanx.session()

def sleeps_with_the_lock():
    ctypes.PyDLL(None).sleep(3600)  # a call that does not release the interpreter

for step in range(1, 40):
    time.sleep(0.05)  # the work of a step
    session.report(step, {})
sleeps_with_the_lock()
"""


@pytest.mark.slow
def test_a_single_worker_that_holds_the_interpreter_and_does_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(HELD))
    job = phalanx.TrainingJob(
        script=str(tmp_path / "train.py"),
        output=str(tmp_path / "runs"),
        name="job",
        checkpoint_every="never",
        hang_timeout_s=LIMIT_S,
    )
    with pytest.raises(
        phalanx.PlatformError, match="worker 0 hangs: no sign of life for 5 s, in which its process computed nothing"
    ):
        job.run(progress=False)
    assert "in sleeps_with_the_lock" in (tmp_path / "runs" / "job" / "failure").read_text()
