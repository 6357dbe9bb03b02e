"""What every worker of a script's job must know, as one JSON file, and the folders in which its script lives.

The folders are those that a SageMaker container has under /opt/ml, below the job's scratch folder:

    code/                      the script and what lies beside it; the working directory
    input/data/CHANNEL/        the files of a channel
    input/shard-N/CHANNEL/     rank N's part of a channel with spread=shard
    input/config/*.json        hyperparameters, channels, hosts
    checkpoints/               kept over restarts; where the job's checkpoints are on this machine, it lies there instead
    attempt-N/model/           becomes the artifact
    attempt-N/output/data/     published beside it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..contracts import Json
from ..data.channel import Channel


@dataclass(frozen=True, slots=True)
class Plan:
    """A script's job, resolved."""

    job: str  # its name
    script: str  # relative to the code folder
    arguments: Sequence[str]
    hyperparameters: Mapping[str, Json]  # values, decoded
    channels: Mapping[str, Channel]
    workers: int
    threads: int  # of each worker
    seed: int
    strategy: str | None
    variables: Sequence[str]  # names that the user set with --env: these win over all others
    requirements: str | None  # relative to the code folder
    checkpoints: str  # folder of the script's own files that are kept

    def write(self, path: Path) -> None:
        """Write the plan, readable for this user only: a channel's URL may hold credentials."""
        values = {**asdict(self), "channels": {name: channel.to_json() for name, channel in self.channels.items()}}
        path.touch(mode=0o600)
        path.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Return the plan that `write` wrote."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "channels": {name: Channel(**given) for name, given in values["channels"].items()}})


@dataclass(frozen=True, slots=True)
class Folders:
    """Where everything of a script's job lies on this machine."""

    root: Path
    attempt: int

    @property
    def plan(self) -> Path:
        """The plan's file."""
        return self.root / "plan.json"

    @property
    def import_path(self) -> Path:
        """A file: where a fresh interpreter looks for modules besides PYTHONPATH, as JSON."""
        return self.root / "import-path.json"

    @property
    def code(self) -> Path:
        """The script's own folder."""
        return self.root / "code"

    @property
    def input(self) -> Path:
        """SM_INPUT_DIR."""
        return self.root / "input"

    @property
    def config(self) -> Path:
        """SM_INPUT_CONFIG_DIR."""
        return self.input / "config"

    @property
    def checkpoints(self) -> Path:
        """What stays over restarts, unless that lies among the job's checkpoints."""
        return self.root / "checkpoints"

    @property
    def own(self) -> Path:
        """What belongs to this attempt."""
        return self.root / f"attempt-{self.attempt}"

    @property
    def model(self) -> Path:
        """SM_MODEL_DIR."""
        return self.own / "model"

    @property
    def output(self) -> Path:
        """SM_OUTPUT_DIR."""
        return self.own / "output"

    @property
    def output_data(self) -> Path:
        """SM_OUTPUT_DATA_DIR."""
        return self.output / "data"

    @property
    def intermediate(self) -> Path:
        """SM_OUTPUT_INTERMEDIATE_DIR."""
        return self.output / "intermediate"

    def channel(self, name: str) -> Path:
        """Return the folder with all files of a channel."""
        return self.input / "data" / name

    def shard(self, name: str, rank: int) -> Path:
        """Return the folder with one rank's files of a channel that is sharded."""
        return self.input / f"shard-{rank}" / name

    def make(self) -> None:
        """Make those that a script may expect to be there."""
        for folder in (self.config, self.model, self.output_data, self.intermediate):
            folder.mkdir(parents=True, exist_ok=True)
