"""What is read of jobs' folders: whole, half written, broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from phalanx.errors import UserError
from phalanx.tracking import dataframe, jobs, load_job
from phalanx.tracking.comparing import compared
from phalanx.tracking.curves import Curve, curves_of
from phalanx.tracking.page import page
from phalanx.tracking.record import JobRecord


def _job(folder: Path, name: str, losses: Sequence[float | None], **hyperparameters: float) -> Path:
    folder.mkdir(parents=True)
    record = JobRecord(str(folder), name=name, algorithm="kmeans")
    record.write_job({"name": name, "algorithm": "kmeans", "workers": 1, "hyperparameters": hyperparameters})
    record.enter("Training")
    for step, loss in enumerate(losses, 1):
        record.step(step, 100.0 + step, {"train:loss": loss})
    record.end("Completed", "Completed")
    record.close()
    return folder


def test_jobs_the_newest_first_and_broken_folders_beside_them(tmp_path: Path) -> None:
    _job(tmp_path / "a", "a", [1.0])
    _job(tmp_path / "b", "b", [2.0])
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "status.json").write_text('{"name": "ha')
    (tmp_path / "empty").mkdir()
    found = jobs(str(tmp_path))
    assert [job.name for job in found] == ["b", "a", "half"]
    assert [job.state for job in found] == ["Completed", "Completed", "Unknown"]
    with pytest.raises(UserError, match="no job"):
        load_job(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no folder"):
        jobs(str(tmp_path / "nowhere"))


def test_jobs_of_a_remote_folder() -> None:
    from phalanx import storage

    storage.put_bytes("memory://tracked/one/status.json", json.dumps({"name": "one", "status": "InProgress"}).encode())
    storage.put_bytes("memory://tracked/one/checkpoints/x/status.json", b"{}")
    try:
        assert [(job.name, job.state) for job in jobs("memory://tracked")] == [("one", "InProgress")]
    finally:
        storage.remove("memory://tracked/one/status.json")
        storage.remove("memory://tracked/one/checkpoints/x/status.json")


def test_every_point_of_every_metric(tmp_path: Path) -> None:
    job = load_job(str(_job(tmp_path / "a", "a", [3.0, None, 1.0])))
    curve = job.curves()["train:loss"]
    assert curve.steps.tolist() in ([1, 3], [1, 2, 3])
    assert curve.values[0] == 3.0
    assert curve.values[-1] == 1.0


def test_lines_that_are_broken_or_half_written_count_for_nothing() -> None:
    data = b'{"step": 1, "time": 1.0, "x": 2.5}\nnot json\n{"step": 2, "time": 2.0, "x": 3.5, "y": 1}\n{"step": 3, "ti'
    found = curves_of(data)
    assert found["x"].values.tolist() == [2.5, 3.5]
    assert found["y"].steps.tolist() == [2]
    assert curves_of(data.replace(b"not json\n", b""))["x"].values.tolist() == [2.5, 3.5]
    assert curves_of(b"") == {}
    assert curves_of(b"{") == {}


def test_a_metric_that_begins_after_the_first_block() -> None:
    lines = [f'{{"step": {i}, "time": {i}.0, "x": {i}.5}}' for i in range(200_000)]
    data = ("\n".join(lines) + '\n{"step": 200000, "time": 1.0, "late": 7.0}\n').encode()
    found = curves_of(data)
    assert found["late"].values.tolist() == [7.0]
    assert len(found["x"].values) == 200_000


def test_thinning_keeps_peaks_and_order() -> None:
    values = np.zeros(100_001)
    values[54_321], values[77_777], values[5] = 9.0, -9.0, np.nan
    thin = Curve(np.arange(100_001), np.arange(100_001.0), values).thinned(200)
    assert len(thin.steps) <= 200
    assert (np.diff(thin.steps) > 0).all()
    assert 54_321 in thin.steps
    assert 77_777 in thin.steps


def test_events_end_with_the_job(tmp_path: Path) -> None:
    events = list(load_job(str(_job(tmp_path / "a", "a", [3.0, 2.0]))).events())
    assert [event.kind for event in events] == ["status", "status", "status", "step", "step", "end"]
    assert events[-2].metrics == {"train:loss": 2.0}
    assert events[-1].step == 2


def test_dataframe(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    _job(tmp_path / "a", "a", [3.0, 2.0], k=3)
    frame = dataframe(str(tmp_path))
    assert frame.loc[0, "metric.train:loss"] == 2.0
    assert frame.loc[0, "hyperparameter.k"] == 3


def test_comparing(tmp_path: Path) -> None:
    two = [load_job(str(_job(tmp_path / n, n, losses, k=k, d=1))) for n, losses, k in (("a", [3.0, 2.0], 3), ("b", [4.0], 5))]
    told = compared(two, "train:loss")
    assert told["differing"] == {"k": [3, 5]}
    assert [found["last"] for found in told["metrics"]["train:loss"]] == [2.0, 4.0]
    assert told["curves"] == [[[1, 3.0], [2, 2.0]], [[1, 4.0]]]
    with pytest.raises(UserError, match="train:loss"):
        compared(two, "train:los")
    with pytest.raises(UserError, match="at least two"):
        compared(two[:1])


def test_the_report_needs_nothing_else_and_escapes(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    folder = _job(tmp_path / "a", "a", [3.0, 2.0])
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "name": "<script>x"}))
    text = page(load_job(str(folder)))
    assert "<script>x" not in text
    assert "&lt;script&gt;x" in text
    assert 'src="http' not in text
    assert "train:loss" in text
    assert "Goodput" in text
