"""Jobs on a Ray cluster of two nodes on this machine: the same model as with the local launcher, restarts, one error."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster as RayCluster  # noqa: E402

from phalanx import Cluster, TrainingJob, UserError  # noqa: E402
from phalanx.contracts import WorkerSpec  # noqa: E402
from phalanx.launch.ray import RayLauncher, RayWorkers  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

_SCRIPT = """
import pathlib
import phalanx

session = phalanx.session()
session.report(1, {"world": float(session.world.size)})
if session.world.rank == 0:
    (pathlib.Path(session.model_dir) / "done.txt").write_text("done")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    nodes = RayCluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=2)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def rows(tmp_path: Path) -> str:
    rng = np.random.default_rng(3)
    path = tmp_path / "rows.csv"
    np.savetxt(path, np.concatenate([rng.normal(c, 1.0, (300, 4)) for c in (0.0, 6.0, 12.0)]), delimiter=",")
    return str(path)


def kmeans(rows: str, output: Path, name: str, **changes: object) -> TrainingJob:
    fields: dict[str, object] = {"algorithm": "kmeans", "inputs": {"train": rows}, "hyperparameters": {"k": 3}, "workers": 2}
    return TrainingJob(output=str(output), name=name, **{**fields, **changes})  # type: ignore[arg-type]


def test_the_model_is_that_of_the_local_launcher(cluster: None, rows: str, tmp_path: Path) -> None:
    kmeans(rows, tmp_path, "local").run(progress=False)
    result = kmeans(rows, tmp_path, "ray", launcher="ray").run(progress=False)
    assert result.status == "Completed"
    assert json.loads((tmp_path / "ray" / "job.json").read_text())["launcher"] == "ray"
    assert (tmp_path / "ray" / "model.tar.gz").read_bytes() == (tmp_path / "local" / "model.tar.gz").read_bytes()


class KillsOnce:
    """A launcher whose first group loses rank 1 as soon as it is there."""

    def __init__(self) -> None:
        self._inner = RayLauncher(Cluster(placement="STRICT_SPREAD"))
        self.nodes: list[int] = []

    def prepare(self, preload: object) -> None: ...

    def start(self, spec: WorkerSpec) -> RayWorkers:
        workers = self._inner.start(spec)
        self.nodes.append(len(workers.members))
        if spec.attempt == 0:
            os.kill(workers.members[1].pid, signal.SIGKILL)
        return workers


def test_a_killed_rank_costs_a_restart_and_no_bit(cluster: None, rows: str, tmp_path: Path) -> None:
    kmeans(rows, tmp_path, "local").run(progress=False)
    launcher = KillsOnce()
    result = kmeans(rows, tmp_path, "killed", launcher=launcher, max_restarts=1).run(progress=False)
    assert (result.status, result.restarts, launcher.nodes) == ("Completed", 1, [2, 2])
    assert (tmp_path / "killed" / "model.tar.gz").read_bytes() == (tmp_path / "local" / "model.tar.gz").read_bytes()


def test_a_users_error_stays_one(cluster: None, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("1,2\n3,oops\n5,6\n7,8\n")
    with pytest.raises(UserError, match="oops"):
        kmeans(str(bad), tmp_path, "bad", launcher="ray").run(progress=False)
    assert not (tmp_path / "bad" / "model.tar.gz").exists()


def test_a_script_runs_on_every_node(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    script = tmp_path / "code" / "train.py"
    script.write_text(_SCRIPT)
    result = TrainingJob(script=str(script), workers=2, output=str(tmp_path), name="script", launcher="ray").run(progress=False)
    assert result.status == "Completed"
    assert result.metrics["world"] == 2.0
    assert result.artifact is not None
