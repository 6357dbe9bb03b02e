"""Jobs and scripts under the starters themselves: torchrun, Slurm's example scripts, mpirun, Ray Train."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import starting

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{sysconfig.get_path('scripts')}"  # torchrun, phalanx


def run(command: list[str], folder: Path, path: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
    search = os.pathsep.join(part for part in (path, TOOLS, kept["PATH"]) if part)
    return subprocess.run(
        command, cwd=folder, env={**kept, **variables, "PATH": search}, capture_output=True, text=True, timeout=280, check=False
    )


def status(runs: Path) -> dict[str, object]:
    (found,) = runs.glob("*/status.json")
    return dict(json.loads(found.read_text()))


def test_a_job_under_torchrun_goes_on_after_a_loss(tmp_path: Path) -> None:
    script = EXAMPLES / "torchrun" / "digits.py"
    job = ["--no-python", "phalanx", "run", str(script), "--launcher", "attach", "--checkpoint-every", "10"]
    done = run(["torchrun", "--nproc-per-node", "2", "--max-restarts", "1", *job, "--", "--fall-at", "40"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "worker 1 was killed by SIGKILL" in done.stderr
    found = status(tmp_path / "runs")
    assert found["status"] == "Completed"
    assert int(str(found["resumed_from_step"])) >= 10


def test_a_script_with_a_trainer_needs_no_job_under_torchrun(tmp_path: Path) -> None:
    done = run(["torchrun", "--nproc-per-node", "2", str(EXAMPLES / "torchrun" / "digits.py")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy 0.9" in done.stdout


@pytest.mark.parametrize("script", ["train.sbatch", "script.sbatch"])
def test_the_scripts_for_slurm_do_what_they_say(script: str, digits: Path, tmp_path: Path) -> None:
    tools = starting.install(tmp_path / "tools")
    given = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "31", "SLURM_SUBMIT_DIR": str(EXAMPLES / "slurm")}
    given |= {"DATA": str(digits / "train.csv"), "RUNS": str(tmp_path / "runs")}
    done = run(["bash", str(EXAMPLES / "slurm" / script)], tmp_path, str(tools), **given)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "runs")["status"] == "Completed"
    (name,) = (path.name for path in (tmp_path / "runs").iterdir())
    assert name.endswith("-slurm-31-0")


def test_a_preempted_job_of_slurm_is_queued_again_and_goes_on(digits: Path, tmp_path: Path) -> None:
    tools = starting.install(tmp_path / "tools")
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/scontrol"\n')
    (tools / "scontrol").chmod(0o755)
    given = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "32", "SLURM_SUBMIT_DIR": str(tmp_path), "EPOCHS": "400"}
    given |= {"DATA": str(digits / "train.csv"), "RUNS": str(tmp_path / "runs")}
    command = ["bash", str(EXAMPLES / "slurm" / "requeue.sbatch")]
    env = {**os.environ, **given, "PATH": os.pathsep.join([str(tools), TOOLS, os.environ["PATH"]])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if line.startswith("step "):
                break
        srun = int(subprocess.check_output(["pgrep", "-P", str(first.pid), "-f", "starting.py"], text=True))
        os.kill(srun, signal.SIGTERM)  # as `--signal=TERM@120` and preemption do it to the tasks
        _, told = first.communicate(timeout=100)
    assert first.returncode == 143, told
    assert (tmp_path / "scontrol").read_text() == "requeue 32\n"
    assert status(tmp_path / "runs")["status"] == "Stopped"
    second = run(command, tmp_path, str(tools), **given, SLURM_RESTART_COUNT="1")
    assert second.returncode == 0, second.stderr
    found = status(tmp_path / "runs")
    assert found["status"] == "Completed"
    assert int(str(found["resumed_from_step"])) > 0


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (Debian: openmpi-bin)")
def test_a_job_under_mpirun(digits: Path, tmp_path: Path) -> None:
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    train = ["phalanx", "train", "kmeans", "--train", str(digits / "train.csv"), "--set", "k=10", "--launcher", "attach"]
    done = run([*mpirun, *train], tmp_path)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "runs")["status"] == "Completed"


RAY_TRAIN = """
import json, sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def loop(config):
    import torch, phalanx, ray.train
    session = phalanx.session()
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    trainer = phalanx.Trainer(torch.nn.Linear(4, 1), torch.nn.functional.mse_loss, optimizer=sgd)
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    history = trainer.fit((x, x.sum(1, keepdim=True)), epochs=4, batch_size=16)
    ranks = session.world.all_gather(session.world.rank)
    ray.train.report({"loss": history.losses[-1]})
    if session.world.rank == 0:
        with open(config["told"], "w") as file:
            json.dump({"ranks": ranks, "losses": history.losses}, file)

ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=100 << 20, logging_level="ERROR")
storage = RunConfig(storage_path=sys.argv[1])
workers = ScalingConfig(num_workers=2)
TorchTrainer(loop, train_loop_config={"told": sys.argv[2]}, scaling_config=workers, run_config=storage).fit()
"""


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_trainer_inside_ray_train(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(RAY_TRAIN)
    told = tmp_path / "told.json"
    done = run([sys.executable, "loop.py", str(tmp_path / "storage"), str(told)], tmp_path, RAY_TRAIN_V2_ENABLED="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(told.read_text())
    assert found["ranks"] == [0, 1]
    assert len(found["losses"]) == 16
    assert found["losses"][-1] < found["losses"][0]
