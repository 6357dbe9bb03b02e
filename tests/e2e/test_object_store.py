"""Data, record and artifact in an object store: S3 as moto's server speaks it, on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import moto_s3
import pytest

import phalanx

boto3 = pytest.importorskip("boto3")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_s3.serve() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    moto_s3.use(endpoint, "phalanx-test", monkeypatch)
    return "s3://phalanx-test"


@pytest.mark.parametrize("mode", ["file", "stream"])
def test_a_job_reads_from_and_writes_to_an_object_store(digits: Path, bucket: str, mode: str) -> None:
    client = boto3.client("s3")
    lines = (digits / "train.csv").read_text().splitlines(keepends=True)
    for part in range(3):
        client.put_object(Bucket="phalanx-test", Key=f"data/{mode}/part-{part}.csv", Body="".join(lines[part::3]).encode())
    channel = phalanx.Channel(url=f"{bucket}/data/{mode}/", content_type="text/csv", mode=mode)
    job = phalanx.TrainingJob(
        algorithm="kmeans", inputs={"train": channel}, hyperparameters={"k": 5}, workers=2, output=f"{bucket}/runs", name=mode
    )
    result = job.run(progress=False)
    assert result.artifact == f"{bucket}/runs/{mode}/model.tar.gz"
    status = json.loads(client.get_object(Bucket="phalanx-test", Key=f"runs/{mode}/status.json")["Body"].read())
    assert status["status"] == "Completed"
    assert phalanx.load(result.artifact).hyperparameters["k"] == 5
    with pytest.raises(phalanx.UserError, match="exists already"):
        job.run(progress=False)


def test_what_is_not_there_is_the_users_error(bucket: str, tmp_path: Path) -> None:
    job = phalanx.TrainingJob(
        algorithm="kmeans", inputs={"train": f"{bucket}/nothing.csv"}, hyperparameters={"k": 5}, output=str(tmp_path)
    )
    with pytest.raises(phalanx.UserError, match=r"no file at s3://phalanx-test/nothing\.csv"):
        job.run(progress=False)


def test_credentials_in_a_url_are_never_repeated(bucket: str, tmp_path: Path) -> None:
    job = phalanx.TrainingJob(
        algorithm="kmeans", inputs={"train": "s3://name:hidden@bucket/x.csv"}, hyperparameters={"k": 5}, output=str(tmp_path)
    )
    with pytest.raises(phalanx.UserError, match=r"s3://\*\*\*@bucket/x\.csv") as caught:
        job.run(progress=False)
    assert "hidden" not in str(caught.value)
