"""Artifacts that were damaged on their way: a UserError, never a crash, for both algorithms."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import phalanx
from phalanx import archive
from phalanx.worker import MODEL_CARD


@pytest.fixture(scope="module", params=["kmeans", "xgboost"])
def model_folder(request: pytest.FixtureRequest, cancer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = str(request.param)
    settings = {"kmeans": {"k": 3}, "xgboost": {"num_round": 3}}[name]
    output = tmp_path_factory.mktemp(name)
    inputs = {"train": phalanx.Channel(url=str(cancer / "train.csv"), content_type="text/csv")}
    job = phalanx.TrainingJob(algorithm=name, inputs=inputs, hyperparameters=settings, output=str(output), name="job")
    archive.unpack(str(job.run(progress=False).artifact), output / "model")
    return output / "model"


def repacked(folder: Path, target: Path, name: str, data: bytes) -> str:
    """Pack `folder` with one file's content replaced."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        copy = target / "model" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data if path.name == name else path.read_bytes())
    archive.pack(target / "model", target / "model.tar.gz")
    return str(target / "model.tar.gz")


def test_a_flipped_bit_or_a_cut_is_noticed(model_folder: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    for path in sorted(p for p in model_folder.rglob("*") if p.is_file()):
        for attempt in range(10):
            data = bytearray(path.read_bytes())
            if attempt % 3 == 0:
                data = data[: chance.randrange(len(data))]
            else:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            url = repacked(model_folder, tmp_path / f"{path.name}-{attempt}", path.name, bytes(data))
            if path.name == MODEL_CARD:
                try:
                    phalanx.load(url)
                except phalanx.UserError:
                    continue
            else:
                with pytest.raises(phalanx.UserError, match="damaged"):
                    phalanx.load(url)


def test_no_file_is_a_pickle(model_folder: Path) -> None:
    for path in (p for p in model_folder.rglob("*") if p.is_file()):
        assert path.read_bytes()[:1] != b"\x80"
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".joblib")


def test_a_newer_format_and_a_foreign_archive_are_refused(model_folder: Path, tmp_path: Path) -> None:
    card = json.loads((model_folder / MODEL_CARD).read_text())
    url = repacked(model_folder, tmp_path / "newer", MODEL_CARD, json.dumps({**card, "format": 99}).encode())
    with pytest.raises(phalanx.UserError, match="newer Phalanx"):
        phalanx.load(url)
    url = repacked(model_folder, tmp_path / "other", MODEL_CARD, json.dumps({**card, "algorithm": "os:system"}).encode())
    with pytest.raises(phalanx.UserError, match="no algorithm"):
        phalanx.load(url)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").write_text("hello")
    archive.pack(tmp_path / "foreign", tmp_path / "foreign.tar.gz")
    with pytest.raises(phalanx.UserError, match="no artifact of Phalanx"):
        phalanx.load(tmp_path / "foreign.tar.gz")
