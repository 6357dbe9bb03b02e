"""Channels as matrices."""

import os
from collections.abc import Iterator
from typing import Any

import xgboost

from phalanx.data.channel import Channel
from phalanx.data.shard import open_shard
from phalanx.scripts.handlers import array_of


def get_dmatrix(data_path: Any, content_type: str, csv_weights: int = 0, is_pipe: bool = False) -> xgboost.DMatrix | None:
    """Return all rows of a folder or file as a DMatrix, None where there are none.

    Args:
        data_path: a path, or a list of them; None for a channel that the job does not have.
        content_type: libsvm, csv, parquet or recordio-protobuf; labels come first.
        csv_weights: 1: a csv's second column is the weight of the row.
        is_pipe: not there: channels are files.
    """
    paths = [path for path in ([data_path] if isinstance(data_path, str) else data_path or []) if get_size(path)]
    if not paths or is_pipe:
        return None
    kind = content_type.lower().split(";")[0]
    suffix = f";label_size=1;weight_size={csv_weights}" if "csv" in kind else ";label_size=1" if "parquet" in kind else ""
    channel = Channel(url=paths, content_type=kind + suffix)
    shard = open_shard(
        "data", channel, rank=0, size=1, seed=0, gather=lambda x: [x], scratch=_scratch(), columns=None, index_base=0, threads=1
    )
    batch = next(iter(shard.batches(shard.rows)))
    return xgboost.DMatrix(array_of(batch.features), batch.label, weight=batch.weight)


def get_size(data_path: str | None, is_pipe: bool = False) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return 0 if data_path is None else sum(_sizes(data_path))


def _sizes(path: str) -> Iterator[int]:
    if os.path.isfile(path):
        yield os.path.getsize(path)
    for root, _, names in os.walk(path):
        yield from (os.path.getsize(os.path.join(root, name)) for name in names)


def _scratch() -> Any:
    from pathlib import Path

    return Path(os.environ.get("SM_OUTPUT_DIR", "."))
