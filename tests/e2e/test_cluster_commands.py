"""`phalanx cluster` as a user types it: three nodes on loopback, a job that loses one and goes on with fewer, all goes down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from phalanx import storage

pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def phalanx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments: str, code: int = 0) -> str:
        ended = subprocess.run([sys.executable, "-m", "phalanx.cli", *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended.stderr
        return ended.stdout if code == 0 else ended.stderr

    yield call
    call("cluster", "down")


def test_a_rehearsal(phalanx: Any, tmp_path: Path) -> None:
    assert "no cluster is up" in phalanx("cluster", "status", code=2)
    there = json.loads(phalanx("cluster", "up", "--local", "3", "--json"))
    keeper = psutil.Process(there["pid"])
    family = [keeper, *keeper.children(recursive=True)]
    listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert keeper.environ()["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    raylet = psutil.Process(there["nodes"][1]["pid"])
    assert raylet.environ()["RAY_AUTH_MODE"] == "token"
    assert "a cluster of 3 nodes is up" in phalanx("cluster", "up", code=2)

    phalanx("sample-data", "digits", str(tmp_path / "digits"))
    job = ["train", "kmeans", "--train", str(tmp_path / "digits" / "train.csv"), "--set", "k=10", "--set", "epochs=1500"]
    job += ["--workers", "2:3", "--placement", "STRICT_SPREAD", "--threads-per-worker", "1", "--launcher", "ray"]
    job += ["--max-restarts", "2", "--checkpoint-every", "50", "--output", str(tmp_path / "runs"), "--name", "lost"]
    running = subprocess.Popen([sys.executable, "-m", "phalanx.cli", *job], stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "runs" / "lost" / "checkpoints").glob("[0-9]*/manifest.json")):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.1)
    workers = json.loads((tmp_path / "runs" / "lost" / "status.json").read_text())["workers"]
    assert {worker["host"] for worker in workers} == {"node-1", "node-2", "node-3"}
    assert "node-2 is lost" in phalanx("cluster", "lose", "node-2")
    told = running.communicate()[1]
    assert running.returncode == 0, told
    status = json.loads((tmp_path / "runs" / "lost" / "status.json").read_text())
    assert (status["status"], status["restarts"]) == ("Completed", 1)
    assert {worker["host"] for worker in status["workers"]} == {"node-1", "node-3"}
    assert "the job goes on with 2" in told
    assert storage.read_json(str(tmp_path / "runs" / "lost" / "job.json"))["workers"] == "2:3"

    assert "is lost already" in phalanx("cluster", "lose", "node-2", code=2)
    assert "without which there is no cluster" in phalanx("cluster", "lose", "node-1", code=2)
    assert "is down" in phalanx("cluster", "down")
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
