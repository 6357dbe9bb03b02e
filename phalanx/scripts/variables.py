"""Hyperparameters as arguments, and the `SM_*` variables: what a SageMaker script-mode script expects to find.

A worker is what SageMaker calls a host. Hosts have addresses as names, so that a script which makes the first of them its
MASTER_ADDR finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from .. import environment
from ..contracts import Json
from .plan import Folders, Plan

_INTERFACE = "lo"
_GROUP = "homogeneousCluster"
_INSTANCE = "local"
_LOG_LEVEL = 20  # logging.INFO
_NOT_A_NAME = re.compile(r"[^A-Z0-9_]")


def decoded(value: Json) -> Json:
    """Return what a hyperparameter means: text that is JSON is decoded, other text is itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def to_arguments(hyperparameters: Mapping[str, Json]) -> list[str]:
    """Return hyperparameters as a command line: sorted, `--name value`, `-n value`; a mapping as `k=v,k=v`.

    Values are those that were given: the text of a number stays as it is (`1.10` is not 1.1).
    """
    result: list[str] = []
    for name, value in sorted(hyperparameters.items()):
        result += [f"--{name}" if len(name) > 1 else f"-{name}", _argument(value)]
    return result


def variables(plan: Plan, folders: Folders, rank: int, given: Mapping[str, Json], gpus: int) -> dict[str, str]:
    """Return the `SM_*` variables of one rank.

    Args:
        plan: the job.
        folders: where its files are.
        rank: this rank.
        given: hyperparameters, decoded.
        gpus: that this rank may use.
    """
    hosts = host_names(plan.workers)
    channels = {
        name: str(folders.shard(name, rank) if channel.spread == "shard" else folders.channel(name))
        for name, channel in plan.channels.items()
        if channel.mode == "file"
    }
    values: dict[str, Any] = {
        "hosts": hosts,
        "current_host": hosts[rank],
        "current_host_rank": rank,
        "host_count": len(hosts),
        "master_addr": hosts[0],
        "network_interface_name": environment.get("GLOO_SOCKET_IFNAME", _INTERFACE),
        "current_instance_type": _INSTANCE,
        "current_instance_group": _GROUP,
        "current_instance_group_hosts": hosts,
        "instance_groups": [_GROUP],
        "instance_groups_dict": {_GROUP: resource_config(hosts, rank)["instance_groups"][0]},
        "distribution_instance_groups": [_GROUP],
        "is_hetero": False,
        "num_cpus": plan.threads,
        "num_gpus": gpus,
        "num_neurons": 0,
        "hps": given,
        "user_args": [*to_arguments(plan.hyperparameters), *plan.arguments],
        "framework_params": {},
        "framework_module": None,
        "log_level": _LOG_LEVEL,
        "resource_config": resource_config(hosts, rank),
        "input_data_config": input_data_config(plan),
        "channels": sorted(channels),
        "input_dir": str(folders.input),
        "input_data_dir": str(folders.input / "data"),
        "input_config_dir": str(folders.config),
        "model_dir": str(folders.model),
        "output_dir": str(folders.output),
        "output_data_dir": str(folders.output_data),
        "output_intermediate_dir": str(folders.intermediate),
        "output_failure": str(folders.output / "failure"),
        "module_dir": str(folders.code),
        "source_dir": str(folders.code),
        "module_name": PurePosixPath(plan.script).stem,
        "user_entry_point": plan.script,
        "entry_script": plan.script,
    }
    training = {
        **values,
        "channel_input_dirs": channels,
        "hyperparameters": given,
        "additional_framework_parameters": {},
        "distribution_hosts": hosts,
        "is_master": rank == 0,
        "master_hostname": hosts[0],
        "job_name": plan.job,
    }
    found = {f"SM_{name.upper()}": _text(value) for name, value in values.items()}
    found["SM_TRAINING_ENV"] = _text(training)
    for name, folder in channels.items():
        found |= dict.fromkeys(_names("SM_CHANNEL_", name), folder)
    for name, value in given.items():
        found |= dict.fromkeys(_names("SM_HP_", name), _text(value))
    return {**found, "TRAINING_JOB_NAME": plan.job, "CURRENT_HOST": hosts[rank]}


def host_names(workers: int) -> list[str]:
    """Return a host name for every rank: its machine's address where each has one, else loopback ones, which differ too."""
    given = environment.hosts()
    if given is not None and len(given) == workers:
        return given
    return [f"127.0.{(rank + 1) // 250}.{(rank + 1) % 250}" if rank else "127.0.0.1" for rank in range(workers)]


def resource_config(hosts: list[str], rank: int) -> dict[str, Json]:
    """Return what resourceconfig.json holds."""
    return {
        "current_host": hosts[rank],
        "hosts": hosts,
        "current_group_name": _GROUP,
        "current_instance_type": _INSTANCE,
        "instance_groups": [{"instance_group_name": _GROUP, "instance_type": _INSTANCE, "hosts": hosts}],
        "network_interface_name": _INTERFACE,
    }


def input_data_config(plan: Plan) -> dict[str, Json]:
    """Return what inputdataconfig.json holds."""
    return {
        name: {
            "TrainingInputMode": "File" if channel.mode == "file" else "FastFile",
            "S3DistributionType": "ShardedByS3Key" if channel.spread == "shard" else "FullyReplicated",
            "RecordWrapperType": "None",
            **({} if channel.content_type is None else {"ContentType": channel.content_type}),
        }
        for name, channel in plan.channels.items()
        if channel.mode == "file"
    }


def write_config(plan: Plan, folders: Folders, given: Mapping[str, Json]) -> None:
    """Write input/config as a container has it, and channels.json for `phalanx.session()`."""
    local = {
        name: replace(channel, url=str(folders.channel(name))) if channel.mode == "file" else channel
        for name, channel in plan.channels.items()
    }
    contents: dict[str, Json] = {
        "hyperparameters.json": {name: json.dumps(value) for name, value in given.items()},
        "inputdataconfig.json": input_data_config(plan),
        "resourceconfig.json": resource_config(host_names(plan.workers), 0),
        "channels.json": {name: channel.to_json() for name, channel in local.items()},
    }
    for name, value in contents.items():
        (folders.config / name).write_text(json.dumps(value), encoding="utf-8")


def _argument(value: Json) -> str:
    if isinstance(value, str):
        meant = decoded(value)
        return value if isinstance(meant, (int, float)) and not isinstance(meant, bool) else _argument_of(meant)
    return _argument_of(value)


def _argument_of(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in sorted(value.items()))
    return str(value)


def _names(prefix: str, name: str) -> list[str]:
    """Return both spellings of a variable: the name in capitals, and one that a shell can take."""
    upper = name.upper()
    return [prefix + upper, prefix + _NOT_A_NAME.sub("_", upper)]


def _text(value: Json) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
