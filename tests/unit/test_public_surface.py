"""What users see is changed on purpose only: names, options, hyperparameters."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import phalanx
from phalanx import registry

_DOCS = Path(__file__).parents[2] / "docs"


def test_names() -> None:
    assert phalanx.__all__ == [
        "AlgorithmError", "Categorical", "Channel", "Cluster", "Completion", "Continuous", "EarlyStopping", "History", "Integer", "JobResult", "Model",
        "PhalanxError", "PlatformError", "Spot", "Stopped", "Trainer", "TrainingJob", "Tuner", "UserError", "WarmStart", "__version__",
        "load", "session",
    ]  # fmt: skip
    assert all(getattr(phalanx, name) is not None for name in phalanx.__all__)
    with pytest.raises(AttributeError, match="Channel"):
        _ = phalanx.Chanel  # type: ignore[attr-defined]


def test_the_reference_has_every_name() -> None:
    named = re.findall(r"^::: phalanx\.(\S+)\.(\w+)$", (_DOCS / "reference.md").read_text("utf-8"), re.M)
    assert set(phalanx.__all__) - {"__version__"} <= {name for _, name in named}
    for module, name in named:
        assert getattr(importlib.import_module(f"phalanx.{module}"), name).__doc__, name


def test_job_fields() -> None:
    assert [f.name for f in fields(phalanx.TrainingJob)] == [
        "algorithm", "inputs", "hyperparameters", "workers", "output", "name", "seed", "threads_per_worker", "launcher", "max_restarts",
        "max_runtime_s", "environment", "script", "source_dir", "arguments", "strategy", "metric_definitions", "checkpoints",
        "checkpoint_every", "keep", "spot", "resume", "hang_timeout_s", "elastic", "micro_batches", "rules", "sinks", "profile", "cluster",
    ]  # fmt: skip
    assert [f.name for f in fields(phalanx.Channel)] == ["url", "content_type", "spread", "mode", "compression"]


def test_the_page_on_jobs_has_every_field() -> None:
    page = (_DOCS / "jobs.md").read_text("utf-8")
    assert not [f.name for f in fields(phalanx.TrainingJob) if f"`{f.name}`" not in page]


def test_errors_and_their_exit_codes() -> None:
    codes = {cls.kind: cls.exit_code for cls in (phalanx.UserError, phalanx.AlgorithmError, phalanx.PlatformError)}
    assert codes == {"UserError": 2, "AlgorithmError": 1, "PlatformError": 75}
    assert phalanx.Stopped().exit_code == 143


def test_algorithms() -> None:
    assert set(registry.ALGORITHMS) == {
        "blazingtext", "deepar", "factorization_machines", "kmeans", "linear_learner", "random_cut_forest", "xgboost",
    }  # fmt: skip
    assert [f.name for f in fields(registry.hyperparameters_of("kmeans"))] == [
        "k",
        "solver",
        "feature_dim",
        "epochs",
        "extra_center_factor",
        "half_life_time_size",
        "init_method",
        "local_lloyd_init_method",
        "local_lloyd_max_iter",
        "local_lloyd_num_trials",
        "local_lloyd_tol",
        "mini_batch_size",
        "polish_steps",
        "eval_metrics",
    ]


def test_commands_and_options() -> None:
    code = (
        "import json, typer; from phalanx.cli import app; g = typer.main.get_command(app)\n"
        "commands = dict(g.commands)\n"
        "commands |= {'cluster ' + n: c for n, c in commands.pop('cluster').commands.items()}\n"
        "print(json.dumps({n: sorted(o for p in c.params for o in p.opts if o.startswith('--')) for n, c in commands.items()}))"
    )
    shown = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert shown == {
        "train": [
            "--channel", "--checkpoint-every", "--checkpoints", "--content-type", "--debug", "--elastic", "--env", "--hang-timeout", "--json", "--keep",
            "--launcher", "--max-interruptions", "--max-restarts", "--max-runtime", "--max-wait", "--micro-batches", "--name", "--nodes", "--notice", "--output", "--placement", "--profile", "--ray-address", "--resume", "--rule", "--seed",
            "--set", "--ship", "--sink", "--spot", "--spot-prices", "--start-timeout", "--test", "--threads-per-worker", "--train", "--validation", "--worker-cpus",
            "--worker-gpus", "--worker-memory", "--worker-resource", "--workers", "--workers-per-node",
        ],
        "run": [
            "--channel", "--checkpoint-every", "--checkpoints", "--content-type", "--debug", "--elastic", "--env", "--hang-timeout", "--json", "--keep",
            "--launcher", "--max-interruptions", "--max-restarts", "--max-runtime", "--max-wait", "--metric", "--micro-batches", "--name", "--nodes", "--notice", "--output", "--placement", "--profile", "--ray-address", "--resume",
            "--rule", "--schema", "--seed", "--set", "--ship", "--sink", "--source-dir", "--spot", "--spot-prices", "--start-timeout", "--strategy", "--test", "--threads-per-worker", "--train",
            "--validation", "--worker-cpus", "--worker-gpus", "--worker-memory", "--worker-resource", "--workers", "--workers-per-node",
        ],
        "tune": [
            "--channel", "--content-type", "--debug", "--deterministic", "--direction", "--early-stopping", "--gpus-per-job", "--json", "--launcher", "--max-jobs",
            "--max-parallel", "--max-runtime", "--memory-per-job", "--name", "--not-improving", "--objective", "--output", "--range", "--ray-address", "--resume", "--seed", "--set",
            "--storage", "--strategy", "--target", "--test", "--threads-per-worker", "--train", "--validation", "--warm-start",
            "--warm-start-kind", "--worker-cpus", "--worker-gpus", "--worker-memory", "--workers",
        ],
        "jobs": ["--debug", "--json"],
        "logs": ["--debug", "--follow", "--json", "--rank"],
        "stop": ["--debug", "--json"],
        "compare": ["--debug", "--json", "--metric"],
        "report": ["--debug", "--json", "--output"],
        "ui": ["--debug", "--host", "--json", "--port"],
        "checkpoints": ["--debug", "--json"],
        "show": ["--debug", "--json"],
        "predict": ["--accept", "--content-type", "--debug", "--input", "--json", "--output"],
        "algorithms": ["--json"],
        "sample-data": ["--json"],
        "env": ["--json"],
        "cluster up": ["--cpus", "--debug", "--gpus", "--json", "--local"],
        "cluster down": ["--debug", "--json"],
        "cluster status": ["--debug", "--json"],
        "cluster lose": ["--debug"],
    }  # fmt: skip
