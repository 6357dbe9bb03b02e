"""A job as a row: its best metric, how far it is while it runs, and folders that are damaged."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from phalanx.contracts import Member
from phalanx.tracking import dataframe, load_job
from phalanx.tracking.best import Best
from phalanx.tracking.comparing import compared
from phalanx.tracking.figures import figures_of
from phalanx.tracking.listing import cells, duration, row_of
from phalanx.tracking.outside import Outside
from phalanx.tracking.page import page
from phalanx.tracking.record import JobRecord
from phalanx.tracking.summary import rows_of

DAMAGED: list[tuple[str, bytes]] = [
    ("status.json", b'{"name": "ha'),
    ("status.json", b"[1, 2]"),
    ("status.json", b'{"status": 3, "metrics": [1], "transitions": "x", "created": "soon", "step": null, "best": {"a": 1}}'),
    ("status.json", b'{"transitions": [{"status": 1}, 7, null], "goodput": {"wall_s": null}, "cost": [], "checkpoint": 5}'),
    ("job.json", b'{"name": "one", "hyperparameters": [], "provenance": {"data": 3}, "inputs": null}'),
    ("metrics.jsonl", b'\x00\xff\n[1]\n{"step": 1e400, "time": 1}\n{"step": "a", "time": null}\n{"step": 9, "time": 9, "a": 1'),
    ("resources.jsonl", b'{"time": "x", "rank": null}\n{"cores": 1.0, "time": 3}\n{"time": 3, "rank": 0, "cores": "many"}\n'),
    ("findings.jsonl", b'{"rule": 3, "message": null}\nnull\n{"step": "x"}\n'),
    ("data.jsonl", b'{"file": 3}\n[]\n'),
]


def _record(folder: Path, **goals: str) -> JobRecord:
    folder.mkdir()
    record = JobRecord(str(folder), name="one", algorithm="kmeans", goals=goals)
    record.write_job({"name": "one", "algorithm": "kmeans", "hyperparameters": {"k": 3}})
    record.enter("Training")
    return record


def test_the_best_is_the_one_that_is_declared_first_and_of_validation() -> None:
    best = Best({"auc": "maximize", "logloss": "minimize"}, {})
    for step, (loss, auc) in enumerate([(0.5, 0.7), (0.3, 0.9), (0.4, 0.8)], 1):
        best.add(step, {"train:logloss": loss, "train:auc": auc, "validation:logloss": loss, "validation:auc": auc})
    best.add(4, {"validation:auc": None, "train:seconds_step": 0.001, "rows": 3.0})
    found = best.read()
    assert list(found) == ["validation:auc", "validation:logloss", "train:auc", "train:logloss"]
    assert found["validation:auc"] == {"value": 0.9, "step": 2}
    assert found["train:logloss"] == {"value": 0.3, "step": 2}


@pytest.mark.parametrize(
    ("name", "best"), [("loss", 1.0), ("val_acc", 3.0), ("eval/accuracy", 3.0), ("f1", 3.0), ("rate", None)]
)
def test_metrics_of_scripts_are_known_by_their_names(name: str, best: float | None) -> None:
    found = Best({}, {})
    for step, value in enumerate([2.0, 1.0, 3.0], 1):
        found.add(step, {name: value})
    assert found.read().get(name, {}).get("value") == best


def test_the_best_is_kept_over_a_resume() -> None:
    earlier = Best({"msd": "minimize"}, {})
    earlier.add(3, {"train:msd": 1.0})
    later = Best({"msd": "minimize"}, earlier.read())
    later.add(4, {"train:msd": 2.0})
    assert later.read() == {"train:msd": {"value": 1.0, "step": 3}}


def test_a_running_job_says_how_far_it_is(tmp_path: Path) -> None:
    record = _record(tmp_path / "one", msd="minimize")
    record.step(1, 100.0, {"train:msd": 3.0})
    record.step(2, 101.0, {"train:msd": 2.0})
    record.refresh()
    row = row_of(load_job(str(tmp_path / "one")))
    assert [row[name] for name in ("status", "step", "metric", "best", "silent_s")] == ["InProgress", 2, "train:msd", 2.0, None]
    record.end("Completed", "Completed")
    record.refresh()  # too late: nothing changes
    assert load_job(str(tmp_path / "one")).state == "Completed"
    record.close()


def test_a_job_whose_process_is_gone_is_silent(tmp_path: Path) -> None:
    record = _record(tmp_path / "one")
    record.refresh()
    record.close()
    path = tmp_path / "one" / "status.json"
    status = json.loads(path.read_text())
    status["updated"] -= 7200
    path.write_text(json.dumps(status))
    row = row_of(load_job(str(tmp_path / "one")))
    assert row["silent_s"] >= 7200
    assert cells([row])[0][2] == "InProgress, silent for 2 h"
    assert ["silent", "for 2 h: the process that ran it seems to be gone; --resume goes on with it"] in rows_of(
        load_job(str(tmp_path / "one"))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_what_a_worker_uses_that_tells_nothing(tmp_path: Path) -> None:
    record = _record(tmp_path / "one")
    here = socket.gethostname()
    record.group([Member(0, os.getpid(), here), Member(1, 1, "elsewhere"), Member(2, 2**22 + 1, here)], 0)
    outside = Outside(record)
    outside.look()
    outside.look()
    record.used(0, 5.0, {"cores": 0.5})  # now it tells itself
    outside.look()
    record.close()
    found = load_job(str(tmp_path / "one")).resources()
    assert [line["rank"] for line in found] == [0, 0]
    assert found[0]["memory"] > 1e6
    assert found[1]["cores"] == 0.5


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_damaged_files_are_read_as_far_as_they_are_whole(tmp_path: Path, name: str, content: bytes) -> None:
    record = _record(tmp_path / "one", msd="minimize")
    record.step(1, 100.0, {"train:msd": 3.0})
    record.end("Completed", "Completed")
    record.close()
    path = tmp_path / "one" / name
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(content if name.endswith(".json") else before + content)
    job: Any = load_job(str(tmp_path / "one"))
    assert row_of(job)["url"] == str(tmp_path / "one")
    assert cells([row_of(job)])
    assert rows_of(job)
    assert compared([job, job])["jobs"] == [job.name] * 2
    assert list(job.events(follow=False))
    if name == "metrics.jsonl":
        assert job.curves()["train:msd"].values.tolist() == [3.0]
    assert isinstance(figures_of(job), list)
    assert "<h1>" in page(job)
    assert len(dataframe(str(tmp_path))) == 1


def test_other_things_in_the_folder_do_not_end_the_list(tmp_path: Path) -> None:
    _record(tmp_path / "one").close()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert len(dataframe(str(tmp_path))) == 1
