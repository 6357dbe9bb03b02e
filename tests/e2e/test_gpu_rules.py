"""The rules on GPUs along the whole road of a job, from readings of torch.cuda to findings; the readings are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx.tracking import load_job

SCRIPT = """
import sys, time
import torch, phalanx

use, growth = int(sys.argv[1]), float(sys.argv[2])
session = phalanx.session()
looks = 0


def mem_get_info():
    global looks
    looks += 1
    return int(1e9 * (1 - min(0.9, 0.2 + growth * looks))), int(1e9)


torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.mem_get_info = mem_get_info
torch.cuda.utilization = lambda: use
for step in range(1, 180):
    time.sleep(0.02)  # the device works
    session.report(step, {"train:loss": 1 / step})
"""
RULES = ["low_gpu_utilization:patience=8,window=8", "gpu_memory_increase:patience=4,window=2", "io_bottleneck:patience=100"]


def _job(folder: Path, use: int, growth: float) -> Any:
    (folder / "train.py").write_text(SCRIPT)
    phalanx.TrainingJob(
        script=str(folder / "train.py"), arguments=[str(use), str(growth)], output=str(folder), name="one",
        checkpoint_every="never", rules=RULES,
    ).run(progress=False)  # fmt: skip
    return load_job(str(folder / "one"))


def test_a_gpu_that_is_used_little_and_whose_memory_grows(tmp_path: Path) -> None:
    job = _job(tmp_path, 20, 0.05)
    found = {finding["rule"]: finding["message"] for finding in job.findings()}
    assert found["low_gpu_utilization"] == "the GPU of rank 0 is used little: 95 % of the time less than 20 %"
    assert found["gpu_memory_increase"].startswith("the GPU memory in use on rank 0 grew from")
    assert found["io_bottleneck"].startswith("devices wait for data")
    assert [line["gpu"] for line in job.resources()][-1] == 20.0


@pytest.mark.slow
def test_a_gpu_that_is_used_well(tmp_path: Path) -> None:
    assert _job(tmp_path, 95, 0.0).findings() == []
