"""What is given to Slurm and Kubernetes as an example: scripts that a shell can read, manifests whose fields there are.

The fields are those of the published definitions: trainer.kubeflow.org/v1alpha1 TrainJob (kubeflow/trainer, its CRDs of
August 2026), kubeflow.org/v1 PyTorchJob (kubeflow/training-operator), and Kubernetes' batch/v1 Job and v1 Service.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from phalanx.cli import app

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("slurm/*.sbatch"), *EXAMPLES.glob("torchrun/*.sh")])
META = {"name": str}
ENV = [{"name": str, "value": str, "valueFrom": dict}]
RESOURCES = {"requests": {"cpu": str, "memory": str}, "limits": {"cpu": str, "memory": str}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": ENV,
    "envFrom": [{"secretRef": {"name": str}}],
    "resources": RESOURCES,
}
POD = {"containers": [CONTAINER], "restartPolicy": str, "subdomain": str, "terminationGracePeriodSeconds": int}
REPLICA = {"replicas": int, "restartPolicy": str, "template": {"spec": POD}}
KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "runtimeRef": {"apiGroup": str, "kind": str, "name": str},
        "trainer": {
            "image": str,
            "command": [str],
            "args": [str],
            "env": ENV,
            "numNodes": int,
            "numProcPerNode": int,
            "resourcesPerNode": RESOURCES,
        },
    },
    ("kubeflow.org/v1", "PyTorchJob"): {"pytorchReplicaSpecs": {"Master": REPLICA, "Worker": REPLICA}},
    ("batch/v1", "Job"): {
        "completionMode": str,
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "template": {"spec": POD},
    },
    ("v1", "Service"): {"clusterIP": str, "publishNotReadyAddresses": bool, "selector": dict},
}
MANIFESTS = [
    pytest.param(manifest, id=f"{path.stem}-{manifest['kind']}")
    for path in sorted(EXAMPLES.glob("kubernetes/*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]


def fits(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        assert set(value) <= set(shape), f"{where} has no {set(value) - set(shape)}"
        for key, part in value.items():
            fits(part, shape[key], f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for part in value:
            fits(part, shape[0], where)
    else:
        assert isinstance(value, shape), f"{where} is {value!r}"


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_has_fields_that_there_are(manifest: dict[str, Any]) -> None:
    shape = KINDS[manifest["apiVersion"], manifest["kind"]]
    fits(manifest, {"apiVersion": str, "kind": str, "metadata": META, "spec": shape}, manifest["kind"])


def commands(manifest: dict[str, Any]) -> list[list[str]]:
    """Return every command of ours in a manifest."""
    found = []
    if isinstance(manifest, dict):
        if "command" in manifest:
            found.append([*manifest["command"], *manifest.get("args", [])])
        found += [command for part in manifest.values() for command in commands(part)]
    elif isinstance(manifest, list):
        found += [command for part in manifest for command in commands(part)]
    return found


def test_the_commands_of_manifests_and_scripts_have_options_that_there_are() -> None:
    lines = [command for parameter in MANIFESTS for command in commands(parameter.values[0])]
    for path in SCRIPTS:
        text = path.read_text().replace("\\\n", " ")
        lines += [shlex.split(line) for line in text.splitlines() if re.match(r"\s*(srun|phalanx|exec)", line)]
    ours = [line[line.index("phalanx") + 1 :] for line in lines]
    assert len(ours) == 8
    for line in ours:
        assert any(a in ("--launcher=attach", "attach") for a in line)
        help_ = CliRunner().invoke(app, [line[0], "--help"], terminal_width=400, env={"COLUMNS": "400"}).output
        for option in (part.split("=")[0] for part in line if part.startswith("--")):
            assert option in help_, f"phalanx {line[0]} has no {option}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_can_read_the_scripts(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, capture_output=True)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.suffix == ".sbatch"], ids=lambda path: path.name)
def test_what_slurm_is_asked_for_are_options_of_sbatch(script: Path) -> None:
    asked = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(), re.M)
    known = "job-name nodes ntasks-per-node cpus-per-task time output requeue signal open-mode"
    assert set(asked) <= set(known.split())
    assert {"nodes", "ntasks-per-node", "time"} <= set(asked)
