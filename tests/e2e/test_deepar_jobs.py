"""DeepAR's jobs through worker groups: strategies agree, what is wrong with a series is named, backtests are drawn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phalanx
from phalanx.tracking.figures import figures_of
from phalanx.tracking.reading import load_job

SMALL = {
    "time_freq": "D",
    "prediction_length": 5,
    "context_length": 8,
    "epochs": 2,
    "batches_per_epoch": 4,
    "mini_batch_size": 9,
    "num_cells": 8,
    "num_eval_samples": 20,
}


def written(path: Path, count: int = 12, **changes: Any) -> str:
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record = {"start": "2024-01-01 00:00:00", "target": generator.uniform(1, 9, 40).tolist(), "cat": [number % 3]}
            file.write(json.dumps({**record, **(changes if number == count - 1 else {})}) + "\n")
    return str(path)


def trained(folder: Path, name: str, inputs: dict[str, str], **changes: Any) -> Any:
    hyperparameters = {**SMALL, **changes.pop("hyperparameters", {})}
    job = phalanx.TrainingJob(
        algorithm="deepar", inputs=inputs, hyperparameters=hyperparameters, output=str(folder), name=name, **changes
    )
    return job.run(progress=False)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("horovod", marks=pytest.mark.slow)])
def test_strategies_learn_what_the_sum_of_gradients_does(tmp_path: Path, strategy: str) -> None:
    if strategy == "horovod":
        pytest.importorskip("horovod.torch")
    inputs = {"train": written(tmp_path / "train.jsonl")}
    found = [
        trained(tmp_path, name, inputs, workers=2, threads_per_worker=1, hyperparameters={"strategy": name})
        for name in ("sum", strategy)
    ]
    assert found[1].metrics["train:final_loss"] == pytest.approx(found[0].metrics["train:final_loss"], rel=1e-4)


def test_a_backtest_is_measured_by_window_and_drawn(tmp_path: Path) -> None:
    inputs = {"train": written(tmp_path / "train.jsonl"), "test": written(tmp_path / "test.jsonl")}
    result = trained(tmp_path, "job", inputs, hyperparameters={"test_windows": 2})
    both = [float(result.metrics[f"test:RMSE:window{window}"] or 0) for window in (1, 2)]
    assert result.metrics["test:RMSE"] == pytest.approx(np.sqrt(np.mean(np.square(both))))
    job = load_job(str(tmp_path / "job"))
    records = job.forecasts()
    assert sorted((r["window"], r["begin"]) for r in records) == [(1, 30)] * 12 + [(2, 35)] * 12
    headings = [figure["heading"] for figure in figures_of(job)]
    assert "Forecasts of channel test" in headings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cat": [7]}, "test.jsonl line 12 (series 11): cat 1 is 7; its cardinality of 3 allows 0 to 2"),
        (
            {"start": "2024-01-01 00:00:00+01:00"},
            "test.jsonl line 12 (series 11): start '2024-01-01 00:00:00+01:00' has a time",
        ),
        ({"dynamic_feat": [[1.0]]}, "test.jsonl line 12 (series 11): dynamic_feat 1 has 1 values where 40 are needed"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_series(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    inputs = {"train": written(tmp_path / "train.jsonl"), "test": written(tmp_path / "test.jsonl", **changes)}
    with pytest.raises(phalanx.UserError) as caught:
        trained(tmp_path, "job", inputs)
    assert says in str(caught.value)


@pytest.mark.slow
def test_the_example_of_the_docs_runs_as_it_is_written(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "algorithms" / "deepar.md"
    example = page.read_text(encoding="utf-8").partition("## An example")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(python|bash)\n(.*?)```", example, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "bash"]
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for kind, text in blocks:
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-e", "-c", text]
        ended = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": found}, check=False
        )
        assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert [len(answer["mean"]) for answer in answers] == [24] * 3
    hour, level = np.array(answers[0]["mean"]), np.mean(answers[0]["mean"])
    assert hour.max() > 1.2 * level > 1.5 * hour.min()  # a day's wave of half the level
