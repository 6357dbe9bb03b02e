"""What is drawn of a job: every rank's time, what it used, and which bytes it learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from phalanx import storage
from phalanx.tracking import load_job
from phalanx.tracking.figures import figures_of
from phalanx.tracking.lineage import DataHashes
from phalanx.tracking.page import page
from phalanx.tracking.record import JobRecord


def _job(folder: Path) -> JobRecord:
    folder.mkdir(parents=True)
    record = JobRecord(str(folder), name="one", algorithm="kmeans")
    record.write_job({"name": "one", "algorithm": "kmeans"})
    record.enter("Training")
    return record


def _drawn(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {figure["heading"]: figure["data"] for figure in figures_of(load_job(str(folder)))}


def test_curves_of_one_scale_are_shown_at_first(tmp_path: Path) -> None:
    record = _job(tmp_path / "one")
    for step in range(1, 4):
        record.step(step, 100.0 + step, {"train:loss": 2.0 / step, "train:rate": 1e-4, "validation:loss": 3.0 / step})
    record.step(4, 104.0, {"train:loss": None, "train:rows": 1.0})
    record.end("Completed", "Completed")
    shown = {line["name"]: line.get("visible", True) for line in _drawn(tmp_path / "one")["Curves"]}
    wanted = {"train:loss": True, "train:rate": "legendonly", "validation:loss": True, "train:rows": "legendonly"}
    assert shown == wanted


def test_every_rank_has_a_row(tmp_path: Path) -> None:
    record = _job(tmp_path / "one")
    begun = record.status["transitions"][0]["start"]
    record.end("Completed", "Completed")
    (tmp_path / "one" / "profile").mkdir()
    lines = []
    for slot in range(4):
        for rank in range(2):
            phases = {
                "compute": 0.75,
                "data": 0.25 * (rank == 1),
                "loading": 0.0,
                "communication": 0.25 * (rank == 0),
                "stall": 0.0,
            }
            lines.append({"time": begun + 1 + 0.25 * slot, "rank": rank, "slot": 100 + slot, **phases})
    lines.append({"time": begun, "rank": 0})  # not whole
    (tmp_path / "one" / "profile" / "windows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bars = {bar["name"]: bar for bar in _drawn(tmp_path / "one")["What every rank did"]}
    assert bars["computes"]["y"] == ["rank 0"] * 4 + ["rank 1"] * 4
    assert bars["computes"]["x"] == pytest.approx([0.1875] * 8)
    assert bars["computes"]["base"] == pytest.approx([0.75, 1.0, 1.25, 1.5] * 2, abs=1e-5)
    assert bars["waits for other ranks"]["x"] == pytest.approx([0.0625] * 4 + [0.0] * 4)
    assert bars["waits for data"]["base"] == pytest.approx([0.9375, 1.1875, 1.4375, 1.6875] * 2, abs=1e-5)


def test_long_profiles_are_drawn_in_few_stretches(tmp_path: Path) -> None:
    record = _job(tmp_path / "one")
    record.end("Completed", "Completed")
    (tmp_path / "one" / "profile").mkdir()
    phases = {"compute": 1.0, "data": 0.0, "loading": 0.0, "communication": 0.0, "stall": 0.0}
    lines = (json.dumps({"time": 0.25 * slot, "rank": 0, "slot": slot, **phases}) + "\n" for slot in range(10_001))
    (tmp_path / "one" / "profile" / "windows.jsonl").write_text("".join(lines))
    bars = {bar["name"]: bar for bar in _drawn(tmp_path / "one")["What every rank did"]}
    assert len(bars["computes"]["x"]) <= 400
    assert bars["computes"]["x"][0] == pytest.approx(26 * 0.25)


def test_without_a_profile_heartbeats_tell_what_ranks_did(tmp_path: Path) -> None:
    record = _job(tmp_path / "one")
    begun = record.status["transitions"][0]["start"]
    did = {"compute": 0.5, "data": 0.25, "loading": 0.0, "communication": 0.25, "stall": 0.0}
    for rank in range(2):
        record.used(rank, begun + 2, {"seconds": 2.0, **did, "cores": 1.0})
    record.used(0, begun + 4, {"cores": 1.0})  # of an older version
    record.end("Completed", "Completed")
    bars = {bar["name"]: bar for bar in _drawn(tmp_path / "one")["What every rank did"]}
    assert (bars["computes"]["y"], bars["computes"]["x"]) == (["rank 0", "rank 1"], [1.0, 1.0])
    assert bars["waits for other ranks"]["base"] == pytest.approx([1.5, 1.5], abs=1e-3)


def test_what_ranks_used(tmp_path: Path) -> None:
    record = _job(tmp_path / "one")
    begun = record.status["transitions"][0]["start"]
    for rank in range(2):
        record.used(rank, begun + 3, {"cores": 1.5, "memory": 2.0**20 * (1 + rank), "read": 0, "written": 0, "gpu": None})
    record.used(0, begun + 6, {})  # an older worker tells nothing
    record.end("Completed", "Completed")
    drawn = _drawn(tmp_path / "one")
    assert [(line["name"], line["y"]) for line in drawn["Resources: memory, MiB"]] == [("rank 0", [1.0]), ("rank 1", [2.0])]
    assert drawn["Resources: cores in use"][0]["x"] == pytest.approx([3.0], abs=1e-5)
    assert "Resources: GPU in use, %" not in drawn
    assert "Resources: read, MiB/s" not in drawn


def test_hashes_of_data(tmp_path: Path) -> None:
    record = _job(tmp_path / "one")
    content = b"1,2,3\n" * 400_000
    (tmp_path / "train.csv").write_bytes(content)
    files = [storage.File(str(tmp_path / "train.csv"), len(content)), storage.File("s3://bucket/part.csv", 7)]
    with DataHashes({"train": files}, record.folder) as hashes:
        hashes._thread.join()
    record.end("Completed", "Completed")
    found = load_job(str(tmp_path / "one")).data()
    assert [(f["channel"], f["bytes"], f["xxh3_128"]) for f in found] == [
        ("train", len(content), xxhash.xxh3_128(content).hexdigest()),
        ("train", 7, None),
    ]
    text = page(load_job(str(tmp_path / "one")))
    assert xxhash.xxh3_128(content).hexdigest() in text
    assert "s3://bucket/part.csv" in text
