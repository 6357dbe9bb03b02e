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
from typer.testing import CliRunner  # noqa: E402

from phalanx import Cluster, Integer, PlatformError, TrainingJob, Tuner, UserError  # noqa: E402
from phalanx.cli import app  # noqa: E402
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


def test_an_elastic_job_takes_the_room_there_is(cluster: None, rows: str, tmp_path: Path) -> None:
    given = Cluster(fewer_after_s=1.0)
    result = kmeans(rows, tmp_path, "elastic", workers="2:9", threads_per_worker=1, launcher="ray", cluster=given).run(
        progress=False
    )
    assert result.status == "Completed"
    assert len(json.loads((tmp_path / "elastic" / "status.json").read_text())["workers"]) == 4
    job = json.loads((tmp_path / "elastic" / "job.json").read_text())
    assert (job["workers"], job["cluster"]["fewer_after_s"]) == ("2:9", 1.0)


def test_workers_of_a_node_are_together(cluster: None, rows: str, tmp_path: Path) -> None:
    given = Cluster(nodes=2, workers_per_node=2)
    result = kmeans(rows, tmp_path, "nodes", workers=4, threads_per_worker=1, launcher="ray", cluster=given).run(progress=False)
    assert result.status == "Completed"
    assert len(json.loads((tmp_path / "nodes" / "status.json").read_text())["workers"]) == 4


def test_without_room_it_is_said_what_there_is(cluster: None, rows: str, tmp_path: Path) -> None:
    given = Cluster(start_timeout_s=1.0, resources={"tpu": 1})
    with pytest.raises(PlatformError, match=r"no room for 2 workers with CPU 1, tpu 1 each .* it has 2 nodes: .*CPU 2"):
        kmeans(rows, tmp_path, "room", launcher="ray", threads_per_worker=1, cluster=given).run(progress=False)


_SECRET_SCRIPT = """
import os, pathlib
import phalanx

session = phalanx.session()
lines = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
word = os.environ["MY_TOKEN"].encode()
session.report(1, {"known": float(len(word)), "seen": float(sum(word in line for line in lines))})
"""


def test_secrets_are_in_no_record_no_log_and_no_command_line(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = "tok-5af1c9d2e7", "key-99b8aa7766"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)
    (tmp_path / "code").mkdir()
    script = tmp_path / "code" / "train.py"
    script.write_text(_SECRET_SCRIPT)
    result = TrainingJob(
        script=str(script),
        environment={"MY_TOKEN": token},
        workers=2,
        threads_per_worker=1,
        output=str(tmp_path / "runs"),
        name="secret",
        launcher="ray",
    ).run(progress=False)
    assert result.metrics == {"known": float(len(token)), "seen": 0.0}
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    for path in [*(tmp_path / "runs").rglob("*"), *logs.rglob("*")]:
        if path.is_file():
            data = path.read_bytes()
            assert token.encode() not in data, path
            assert key.encode() not in data, path


_SHIPPED = """
import os
import phalanx
import travelled

session = phalanx.session()
session.report(1, {"answer": float(travelled.ANSWER), "beside": float(os.path.exists(os.environ["BESIDE"]))})
"""


def test_packages_are_shipped_without_what_git_ignores(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "lib" / "travelled"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("ANSWER = 42\n")
    (package / ".gitignore").write_text("*.log\n")
    (package / "huge.log").write_bytes(b"x" * 100_000)
    (tmp_path / "code").mkdir()
    script = tmp_path / "code" / "train.py"
    script.write_text(_SHIPPED)
    result = TrainingJob(
        script=str(script),
        environment={"BESIDE": str(package)},
        threads_per_worker=1,
        output=str(tmp_path / "runs"),
        name="shipped",
        launcher="ray",
        cluster=Cluster(ship=[str(package)]),
    ).run(progress=False)
    assert result.metrics["answer"] == 42.0
    assert "ships travelled: 2 files, 18 bytes" in capfd.readouterr().err


_WORKING = """
import pathlib
import settings_reader
import phalanx

here = pathlib.Path(settings_reader.__file__).parent
names = sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc")
print("working directory:", *names)
phalanx.session().report(1, {"files": float(len(names))})
"""


def test_a_working_directory_is_shipped_without_what_git_ignores(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    (work / "conf").mkdir()
    (work / ".gitignore").write_text("data/\n*.tmp\n")
    (work / "conf" / "settings.json").write_text("{}")
    (work / "conf" / "left.tmp").write_text("x" * 1000)
    (work / "data" / "rows.csv").write_bytes(b"x" * 100_000)
    (tmp_path / "code").mkdir()
    script = tmp_path / "code" / "train.py"
    script.write_text(_WORKING)
    (work / "settings_reader.py").write_text("")
    result = TrainingJob(
        script=str(script),
        threads_per_worker=1,
        workers=2,
        output=str(tmp_path / "runs"),
        name="worked",
        launcher="ray",
        cluster=Cluster(ship=[str(work)]),
    ).run(progress=False)
    assert "ships work: 3 files, 14 bytes" in capfd.readouterr().err
    told = CliRunner().invoke(app, ["logs", str(tmp_path / "runs" / "worked")]).output
    nodes = [member["host"] for member in json.loads((tmp_path / "runs" / "worked" / "status.json").read_text())["workers"]]
    for rank, node in enumerate(nodes):
        assert f"[{node}:{rank}] working directory: .gitignore conf/settings.json settings_reader.py" in told
    assert result.metrics["files"] == 3.0


def test_trials_of_a_sweep_are_placed_by_the_cluster(cluster: None, rows: str, tmp_path: Path) -> None:
    job = kmeans(rows, tmp_path, "unused", hyperparameters={}, workers=1, threads_per_worker=1, launcher="ray")
    job.name = None
    best = Tuner(
        job, ranges={"k": Integer(2, 4)}, objective="train:msd", direction="minimize", strategy="grid", max_parallel_jobs=3,
        early_stopping="off", output=str(tmp_path / "sweeps"), name="sweep",
    ).run(progress=False)  # fmt: skip
    assert best.hyperparameters["k"] == 4
    sweep = json.loads((tmp_path / "sweeps" / "sweep" / "sweep.json").read_text())
    assert [trial["status"] for trial in sweep["trials"]] == ["Completed"] * 3
