"""`--profile`: a trace of every rank and a summary, of an algorithm and of a script, for rules too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import phalanx

SCRIPT = """
import torch, phalanx
net = torch.nn.Linear(512, 512)  # large enough to be among the operators that take longest
trainer = phalanx.Trainer(net, torch.nn.CrossEntropyLoss(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
trainer.fit((torch.randn(256, 512), torch.zeros(256, dtype=torch.long)), epochs=3, batch_size=16)
"""


def _names(path: Path) -> list[str]:
    return [str(event.get("name")) for event in json.loads(path.read_text())["traceEvents"]]


def test_an_algorithm_on_two_workers(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "train.csv", np.random.default_rng(0).normal(size=(4000, 4)), delimiter=",", fmt="%.4f")
    phalanx.TrainingJob(
        algorithm="kmeans",
        inputs={"train": phalanx.Channel(url=str(tmp_path / "train.csv"), content_type="text/csv;label_size=0")},
        hyperparameters={"k": 5, "mini_batch_size": 100, "epochs": 5},
        workers=2,
        output=str(tmp_path),
        name="one",
        profile=True,
    ).run(progress=False)
    folder = tmp_path / "one" / "profile"
    for rank in range(2):
        names = _names(folder / f"rank-{rank}.trace.json")
        assert "compute" in names
        assert "step 100" in names
    found = json.loads((folder / "summary.json").read_text())
    assert [row["rank"] for row in found["ranks"]] == [0, 1]
    assert found["ranks"][0]["steps"] >= 200
    assert "seconds/step" in (folder / "summary.txt").read_text()
    assert not (tmp_path / "one" / "findings.jsonl").exists()


def test_a_script_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command = ["run", "train.py", "--profile", "--rule", "all", "--name", "one", "--json"]
    code = "import sys; from phalanx.cli import main; sys.argv = ['phalanx', *sys.argv[1:]]; main()"
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "one"
    assert "aten::addmm" in _names(folder / "profile" / "rank-0.trace.json")
    assert json.loads((folder / "job.json").read_text())["profile"] is True
    assert "aten::addmm" in (folder / "profile" / "summary.txt").read_text()
