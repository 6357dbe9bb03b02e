"""Jobs over machines that share nothing but a network and an object store, and lose one of them in every phase.

Machines are network namespaces that do not see the driver's folders (`tests/ray_nodes.py`): root only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray")

from phalanx import Cluster, JobResult, TrainingJob, storage  # noqa: E402
from phalanx.contracts import Event, Exit, Member, WorkerSpec  # noqa: E402
from phalanx.job import _Run  # noqa: E402
from phalanx.launch.ray import RayLauncher, RayWorkers  # noqa: E402
from tests import moto_s3  # noqa: E402
from tests.ray_nodes import Machine, Machines, machines  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]

_STEPS = 1500
_SCRIPT = """
import os
import pathlib
import helper
import phalanx

session = phalanx.session()
here = pathlib.Path(session.checkpoints) / f"rank-{session.world.rank}.txt"
here.write_text(helper.WORD)
rows = sum(len(path.read_text().splitlines()) for path in sorted(pathlib.Path(os.environ["SM_CHANNEL_TRAIN"]).iterdir()))
session.report(1, {"rows": float(rows), "world": float(session.world.size)})
print("hello from", session.world.rank)
if session.world.rank == 0:
    (pathlib.Path(session.model_dir) / "done.txt").write_text(helper.WORD)
"""


@dataclass(frozen=True)
class Place:
    """Machines, and an object store that they reach."""

    machines: Machines
    bucket: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    hidden = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, machines(3, hidden=[hidden]) as made, moto_s3.serve(host=made.host) as url:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("driver")))
        moto_s3.use(url, "machines", patch)
        rng = np.random.default_rng(3)
        for part in range(4):
            rows = np.concatenate([rng.normal(c, 1.0, (60, 4)) for c in (0.0, 6.0, 12.0)])
            text = "\n".join(",".join(f"{value:.6f}" for value in row) for row in rows) + "\n"
            storage.put_bytes(f"s3://machines/train/part-{part}.csv", text.encode())
        yield Place(made, "s3://machines")


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> bytes:
    result = kmeans(place, "undisturbed", launcher="local").run(progress=False)
    return storage.read_bytes(str(result.artifact))


def kmeans(place: Place, name: str, **changes: object) -> TrainingJob:
    fields: dict[str, object] = {
        "algorithm": "kmeans",
        "inputs": {"train": f"{place.bucket}/train/"},
        "hyperparameters": {"k": 3, "epochs": _STEPS, "solver": "stream", "mini_batch_size": 1000},
        "workers": 2,
        "checkpoint_every": 100,
        "output": f"{place.bucket}/runs",
        "threads_per_worker": 1,
    }
    return TrainingJob(name=name, **{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class Breaking:
    """A launcher whose first group meets with a mishap when an event comes."""

    when: Callable[[Event], bool]
    mishap: Callable[[Sequence[Member]], None]

    def __post_init__(self) -> None:
        self.inner = RayLauncher(Cluster(placement="STRICT_SPREAD", start_timeout_s=120.0))
        self.members: list[list[str]] = []
        self.left = 1

    def prepare(self, preload: object) -> None: ...

    def start(self, spec: WorkerSpec) -> BreakingWorkers:
        workers = self.inner.start(spec)
        self.members.append([member.host for member in workers.members])
        return BreakingWorkers(self, workers)


@dataclass
class BreakingWorkers:
    owner: Breaking
    inner: RayWorkers

    @property
    def members(self) -> Sequence[Member]:
        return self.inner.members

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        found = self.inner.poll(timeout_s)
        for happened in found:
            if self.owner.left and isinstance(happened, Event) and self.owner.when(happened):
                self.owner.left -= 1
                self.owner.mishap(self.inner.members)
        return found

    def stop(self, grace_s: float) -> None:
        self.inner.stop(grace_s)

    def dump(self, rank: int) -> None:
        self.inner.dump(rank)

    def close(self) -> None:
        self.inner.close()


def machine_of(place: Place, member: Member) -> Machine:
    return named(place, member.host)


def named(place: Place, name: str) -> Machine:
    return next(machine for machine in place.machines.nodes if machine.name == name)


PHASES: dict[str, Callable[[Event], bool]] = {
    "downloading": lambda event: event.body.get("phase") == "Downloading",
    "training": lambda event: event.body.get("phase") == "Training",
    "first step": lambda event: event.body["kind"] == "step",
    "first checkpoint": lambda event: event.body["kind"] == "saved",
    "last checkpoint": lambda event: event.body["kind"] == "saved" and event.body["step"] >= _STEPS - 200,
}
LOSSES: dict[str, Callable[[Machine], None]] = {"killed": Machine.kill, "raylet": Machine.kill_raylet, "cut": Machine.cut}


@pytest.mark.parametrize(
    ("how", "phase"),
    [
        ("killed", "downloading"),
        ("cut", "training"),
        ("killed", "first step"),
        ("cut", "first checkpoint"),
        ("raylet", "first checkpoint"),
        ("killed", "last checkpoint"),
    ],
)
def test_a_lost_machine_costs_a_restart_and_no_bit(place: Place, undisturbed: bytes, how: str, phase: str) -> None:
    alive = [node["NodeName"] for node in ray.nodes() if node["Alive"]]
    launcher = Breaking(PHASES[phase], lambda members: LOSSES[how](machine_of(place, members[1])))
    name = f"{how}-{phase.replace(' ', '-')}"
    result = kmeans(place, name, launcher=launcher, max_restarts=2).run(progress=False)
    assert result.status == "Completed"
    assert storage.read_bytes(str(result.artifact)) == undisturbed
    assert len(launcher.members) == result.restarts + 1
    if result.restarts:
        lost = launcher.members[0][1]
        assert lost not in launcher.members[1]
        status = json.loads(storage.read_bytes(f"{result.folder}/status.json"))
        assert any("lost" in t["message"] or "did not answer" in t["message"] for t in status["transitions"]), status[
            "transitions"
        ]
    if how != "raylet":
        assert result.restarts == 1
    replace(place, named(place, launcher.members[0][1]), len(alive))


def replace(place: Place, lost: Machine, count: int) -> None:
    """Wait until nothing trains on a lost machine, and put another in its place, so that there are `count` nodes."""
    deadline = time.monotonic() + 90.0
    while lost.trains():  # cut off, it lives on until its lease ends
        assert time.monotonic() < deadline, [process.cmdline() for process in lost.processes()]
        time.sleep(0.5)
    place.machines.add()
    place.machines.wait(count)


# Before the first event and after the last: a method of ours that the loss precedes, whose machine it is, and the restarts.
AROUND: dict[str, tuple[type, str, int, int]] = {
    "starting": (RayWorkers, "_carry", 1, 1),
    "returning": (RayWorkers, "_bring_back", 0, 1),
    "publishing": (_Run, "_publish", 0, 0),
}


@pytest.mark.parametrize("how", ["killed", "cut"])
@pytest.mark.parametrize("phase", list(AROUND))
def test_a_machine_lost_around_the_training_costs_no_bit(
    place: Place, undisturbed: bytes, phase: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = [node["NodeName"] for node in ray.nodes() if node["Alive"]]
    owner, method, rank, restarts = AROUND[phase]
    original = getattr(owner, method)
    groups: list[list[str]] = []
    lost: list[Machine] = []

    def first_lost(self: object, *given: object) -> object:
        if isinstance(self, RayWorkers):
            groups.append([site.name for site in self._sites])
        if not lost:
            lost.append(named(place, groups[0][rank]))
            LOSSES[how](lost[0])
        return original(self, *given)

    if owner is not RayWorkers:  # somebody must note where the group was
        begin = RayWorkers.begin

        def noted(self: RayWorkers, spec: WorkerSpec) -> None:
            begin(self, spec)
            groups.append([member.host for member in self.members])

        monkeypatch.setattr(RayWorkers, "begin", noted)
    monkeypatch.setattr(owner, method, first_lost)
    cluster = Cluster(placement="STRICT_SPREAD", start_timeout_s=120.0)
    name = f"{how}-{phase}"
    result = kmeans(place, name, launcher="ray", cluster=cluster, max_restarts=2).run(progress=False)
    assert (result.status, result.restarts) == ("Completed", restarts)
    assert storage.read_bytes(str(result.artifact)) == undisturbed
    if restarts:
        assert lost[0].name not in groups[-1]
    replace(place, lost[0], len(alive))


def test_a_script_and_its_files_travel_and_come_back(place: Place, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text(_SCRIPT)
    (code / "helper.py").write_text("WORD = 'carried'\n")
    result: JobResult = TrainingJob(
        script=str(code / "train.py"),
        inputs={"train": f"{place.bucket}/train/"},
        workers=2,
        output=f"{place.bucket}/runs",
        name="script",
        launcher="ray",
        cluster=Cluster(nodes=2),
        threads_per_worker=1,
    ).run(progress=False)
    assert (result.status, result.metrics) == ("Completed", {"rows": 720.0, "world": 2.0})
    assert {
        file.url.rsplit("/", 1)[1] for file in storage.list_files(f"{place.bucket}/runs/script/checkpoints/files/script")
    } == {
        "rank-0.txt",
        "rank-1.txt",
    }
    assert b"hello from 1" in storage.read_bytes(f"{place.bucket}/runs/script/logs/rank-1.log")


def test_data_that_the_nodes_do_not_see_is_refused(place: Place, tmp_path: Path) -> None:
    from phalanx import UserError

    rows = tmp_path / "rows.csv"
    rows.write_text("1,2\n3,4\n")
    with pytest.raises(UserError, match=r"does not see .*rows\.csv"):
        kmeans(place, "hidden", inputs={"train": str(rows)}, launcher="ray", cluster=Cluster(nodes=2)).run(progress=False)


def test_a_driver_that_is_no_node_trains_through_ray_client(place: Place, undisturbed: bytes) -> None:
    settings = ["k=3", f"epochs={_STEPS}", "solver=stream", "mini_batch_size=1000"]
    command = [sys.executable, "-m", "phalanx.cli", "train", "kmeans", "--train", f"{place.bucket}/train/"]
    command += ["--output", f"{place.bucket}/runs", "--name", "client", "--workers", "2", "--threads-per-worker", "1"]
    command += ["--launcher", "ray", "--ray-address", place.machines.client, "--placement", "STRICT_SPREAD"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    place.machines.end_clients()
    assert done.returncode == 0, done.stderr[-3000:]
    assert storage.read_bytes(f"{place.bucket}/runs/client/model.tar.gz") == undisturbed
