"""The checkpoint store passes its conformance suite in memory, on local files and on S3 as moto's server speaks it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import moto_s3
import numpy as np
import pytest

from phalanx import storage
from phalanx.checkpoint.store import CheckpointStore
from phalanx.contracts import Entry
from phalanx.parallel.collective import Solo
from phalanx.testing.store_checks import Part, StoreChecks, example_state


class TestLocal(StoreChecks):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "checkpoints")

    def test_the_safetensors_library_reads_the_arrays(self, url: str) -> None:
        from safetensors.numpy import load_file
        from safetensors.torch import load_file as load_tensors

        state = example_state(3, 0, 1)
        self.save(url, 1, lambda r, n: state)
        file = next(Path(url).rglob("*.safetensors"))
        tensors = load_tensors(file)
        assert str(tensors.pop("part/half").dtype) == "torch.bfloat16"
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.numpy(), state[name.removeprefix("part/")].value)
        self.save(f"{url}-2", 1, lambda r, n: {"x": Entry(np.arange(3.0))})
        np.testing.assert_array_equal(load_file(next(Path(f"{url}-2").rglob("*.safetensors")))["part/x"], np.arange(3.0))

    def test_nothing_is_left_beside_the_files(self, url: str) -> None:
        self.save(url, 2, lambda r, n: example_state(1, r, n))
        assert sorted(path.name for path in Path(url).rglob("*") if path.is_file()) == [
            "manifest.json",
            "rank-0-0.bin",
            "rank-0.json",
            "rank-0.safetensors",
            "rank-1.json",
            "rank-1.record.json",
            "rank-1.safetensors",
        ]


class TestMemory(StoreChecks):
    @pytest.fixture
    def url(self) -> Iterator[str]:
        import fsspec

        name = uuid.uuid4().hex
        yield f"memory://{name}"
        fs = fsspec.filesystem("memory")
        if fs.exists(f"/{name}"):
            fs.rm(f"/{name}", recursive=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestS3(StoreChecks):
    @pytest.fixture(scope="class")
    def endpoint(self) -> Iterator[str]:
        with moto_s3.serve() as endpoint:
            yield endpoint

    @pytest.fixture
    def url(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
        moto_s3.use(endpoint, "checkpoints", monkeypatch)
        return f"s3://checkpoints/{uuid.uuid4().hex}"

    def test_long_files_go_and_come_in_parts(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = np.random.default_rng(0).integers(0, 256, 11 << 20, dtype=np.uint8)
        monkeypatch.setattr(storage, "_PART", 1 << 20)
        monkeypatch.setattr(storage, "_S3_PART", 5 << 20)  # the least that S3 takes as a part
        storage.put_bytes(f"{url}/long", data.data)
        assert np.array_equal(storage.read_exactly(f"{url}/long", len(data)), data)
        for wrong in (len(data) - 1, len(data) + 1):
            with pytest.raises(Exception, match="long"):
                storage.read_exactly(f"{url}/long", wrong)


def test_a_store_makes_no_calls_before_it_is_used(tmp_path: Path) -> None:
    CheckpointStore(str(tmp_path / "x"), world=Solo(), job_id="j").close()
    assert not (tmp_path / "x").exists()
    assert Part().state == {}
