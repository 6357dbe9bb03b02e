"""Channels that are larger than what a job may hold: `ulimit -v` for driver, server and worker, less than the file's size."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from phalanx.data.formats.recordio import write_dense

pytestmark = pytest.mark.slow

LIMIT = 1200 << 20  # bytes of addresses: libraries and their threads' stacks alone take more than half
ROWS, COLUMNS = 20_000, 500  # of a piece that the file repeats
JOBS = {
    "kmeans": ["k=10"],
    "kmeans, lloyd": ["k=10", "solver=lloyd", "local_lloyd_max_iter=2"],
    "linear_learner": ["predictor_type=binary_classifier", "max_passes=5"],
    "linear_learner, adam": ["predictor_type=binary_classifier", "optimizer=adam", "epochs=1"],
    "factorization_machines": ["predictor_type=binary_classifier", "solver=adam", "num_factors=2"],
    "random_cut_forest": ["num_trees=50"],
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    features = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    file = tmp_path_factory.mktemp("large") / "train.pbr"
    with file.open("wb") as stream:
        while stream.tell() < LIMIT * 5 // 4:
            write_dense(stream, features, (features[:, 0] > 0).astype(np.float32))
    yield file
    file.unlink()


def limited(command: list[str], timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))

    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, preexec_fn=limit)


def test_the_limit_is_below_the_file(large: Path) -> None:
    whole = limited([sys.executable, "-c", f"open({str(large)!r}, 'rb').read()"])
    assert whole.returncode != 0
    assert "MemoryError" in whole.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("job", JOBS)
def test_a_stream_needs_no_more_memory_than_a_part(job: str, large: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "phalanx.cli", "train", job.split(",")[0], "--output", str(tmp_path), "--name", "job"]
    command += ["--channel", f"train={large},content_type=application/x-recordio-protobuf,mode=stream"]
    command += ["--threads-per-worker", "1", *(word for setting in JOBS[job] for word in ("--set", setting))]
    trained = limited(command)
    assert trained.returncode == 0, trained.stderr[-2000:]
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["status"] == "Completed"
    assert (tmp_path / "job" / "model.tar.gz").is_file()
    if job.startswith("linear_learner"):
        assert status["metrics"]["train:objective_loss"] < 0.4  # of guessing: 0.69
