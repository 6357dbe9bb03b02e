"""Series in parquet files: read as the same records in JSON Lines, by any rank, with the place of what is wrong."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phalanx.contracts import Array, Records
from phalanx.data.channel import Channel
from phalanx.data.shard import FileShard, open_shard
from phalanx.errors import UserError

ROWS: list[dict[str, Any]] = [
    {
        "start": "2024-01-01 00:00:00",
        "target": [1.0, None, float(number)],
        "cat": [number % 2],
        "dynamic_feat": [[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]],
    }
    for number in range(11)
]


def alone(value: Any) -> list[Any]:
    return [value]


def opened(path: Path, scratch: Path) -> FileShard:
    channel = Channel(str(path))
    return open_shard(
        "train", channel, rank=0, size=1, seed=0, gather=alone, scratch=scratch, columns=None, index_base=1, threads=1
    )


def records(path: Path, scratch: Path) -> list[Any]:
    shard = opened(path, scratch)
    try:
        found: list[Any] = []
        for batch in shard.batches(4):
            assert isinstance(batch.features, Records)
            found += batch.features.items
        return found
    finally:
        shard.close()


def test_rows_are_those_of_the_table(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "series.parquet", row_group_size=3)
    assert records(tmp_path / "series.parquet", tmp_path / "scratch") == ROWS


def test_timestamps_are_starts_and_columns_without_a_value_are_left_out(tmp_path: Path) -> None:
    start = datetime(2024, 2, 29, 23)
    table = pa.table(
        {"start": pa.array([start], pa.timestamp("us")), "target": [[1.0]], "cat": pa.array([None], pa.list_(pa.int64()))}
    )
    pq.write_table(table, tmp_path / "series.parquet")
    assert records(tmp_path / "series.parquet", tmp_path / "scratch") == [{"start": "2024-02-29 23:00:00", "target": [1.0]}]


def test_numbers_called_start_and_target_stay_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"start": [1.0, 2.0], "target": [3.0, 4.0]}), tmp_path / "numbers.parquet")
    shard = opened(tmp_path / "numbers.parquet", tmp_path / "scratch")
    try:
        (batch,) = shard.batches(8)
        features: Array = batch.features  # type: ignore[assignment]
        assert features.shape[0] == 2
    finally:
        shard.close()


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "series.parquet")
    data = (tmp_path / "series.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.parquet is damaged"):
        records(tmp_path / "cut.parquet", tmp_path / "scratch")
