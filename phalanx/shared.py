"""What the workers of a sweep share: channels that were opened and decoded once, in the process they are forked from.

`prepare` runs in the template process of `launch.prepared`. A worker forked from it finds the channels here and takes them, if
it asks for the very same ones and their files have not changed since; in any other process there is nothing here, and a worker
opens its channels itself. Rows are the same either way.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from . import hyperparameters, registry, storage
from .contracts import Json
from .data.channel import Channel, guess_content_type, parse_content_type
from .data.shard import FileShard, open_shard
from .errors import UserError
from .scratch import Scratch

_FORMATS = ("csv", "libsvm", "recordio", "jsonlines")  # whose readers start no threads that stay
_PART_OF_MEMORY = 8  # of the machine's, all channels together may take one part


@final
@dataclass(slots=True)
class _Kept:
    key: str = ""
    channels: dict[str, FileShard] = field(default_factory=dict)


_kept = _Kept()


def may_share(inputs: Mapping[str, Channel]) -> bool:
    """Return whether channels can be decoded once for all: local files, read whole, that fit in memory several times."""
    total = 0
    for channel in inputs.values():
        if channel.mode != "file" or not all(storage.is_local(url) for url in channel.urls):
            return False
        files = [file for url in channel.urls for file in storage.list_files(url)]
        said = parse_content_type(channel.content_type) if channel.content_type else guess_content_type(files[0].url)
        if said.format not in _FORMATS:
            return False
        total += sum(file.size for file in files)
    return bool(inputs) and total * _PART_OF_MEMORY < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def prepare(payload: Json) -> None:
    """Open and decode a job's channels; then let the algorithm make of them what its workers can share.

    Args:
        payload: algorithm, hyperparameters of one job, inputs, seed.

    Raises:
        UserError: whatever is wrong with them; the workers will say so again.
    """
    algorithm, inputs = payload["algorithm"], {name: Channel(**given) for name, given in payload["inputs"].items()}
    settings = hyperparameters.parse(registry.load(algorithm).Hyperparameters, payload["hyperparameters"], owner=algorithm)
    columns = getattr(settings, "feature_dim", None)
    key = _key(inputs, algorithm=algorithm, seed=payload["seed"], columns=columns)
    channels: dict[str, FileShard] = {}
    width = columns if isinstance(columns, int) else None
    with Scratch("shared") as scratch:
        for name in sorted(inputs, key=lambda name: (name != "train", name)):
            channels[name] = shard = _opened(name, inputs[name], algorithm, payload["seed"], width, scratch)
            width = shard.columns if width is None else width
    _kept.key, _kept.channels = key, channels
    home = registry.entry(algorithm).prepares
    if home is not None:
        module, _, name = home.partition(":")
        getattr(importlib.import_module(module), name)(channels, settings)


def channels_of(
    inputs: Mapping[str, Channel], *, algorithm: str, seed: int, columns: int | str | None
) -> dict[str, FileShard] | None:
    """Return the channels that were opened for workers like this one, None where there are none.

    Args:
        inputs: the channels it asks for.
        algorithm: its name.
        seed: of the job.
        columns: width that the job gives, if it does.
    """
    if not _kept.channels or _key(inputs, algorithm=algorithm, seed=seed, columns=columns) != _kept.key:
        return None
    return dict(_kept.channels)


def _opened(name: str, channel: Channel, algorithm: str, seed: int, width: int | None, scratch: Path) -> FileShard:
    shard = open_shard(
        name,
        channel,
        rank=0,
        size=1,
        seed=seed,
        gather=lambda value: [value],
        scratch=scratch,
        columns=width,
        index_base=registry.entry(algorithm).index_base,
        threads=1,
    )
    shard.hold()
    shard.close()  # an open file would have one position for all workers
    return shard


def _key(inputs: Mapping[str, Channel], *, algorithm: str, seed: int, columns: int | str | None) -> str:
    """Return what must be equal for channels to be the same: what was asked for, and names, sizes and times of the files."""
    files = {}
    for name, channel in sorted(inputs.items()):
        if not all(storage.is_local(url) for url in channel.urls):
            raise UserError(f"channel '{name}' is not on this machine")
        found = [storage.local_path(file.url) for url in channel.urls for file in storage.list_files(url)]
        files[name] = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    asked: dict[str, Any] = {name: channel.to_json() for name, channel in sorted(inputs.items())}
    return json.dumps([algorithm, seed, columns, asked, files])
