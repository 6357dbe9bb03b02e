"""What is installed here: versions, devices, extras, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
from typing import Any

from .provenance import code_and_versions, version_of

_EXTRAS = {  # extra -> the module whose presence means it is there
    "xgboost": "xgboost",
    "ray": "ray",
    "deepspeed": "deepspeed",
    "horovod": "horovod",
    "tune": "optuna",
    "s3": "s3fs",
    "sklearn": "sklearn",
    "tracking": "mlflow",
}


def report() -> dict[str, Any]:
    """Return versions, machine, devices and extras as JSON values."""
    provenance = code_and_versions()
    extras = [
        {
            "name": name,
            "installed": importlib.util.find_spec(module) is not None,
            "get": f"pip install 'phalanx-train[{name}]'",
        }
        for name, module in _EXTRAS.items()
    ]
    return {
        "machine": {**provenance["machine"], "memory": _memory(), "host": platform.node(), "devices": ", ".join(_devices())},
        "versions": provenance["versions"],
        "extras": extras,
        "warnings": _warnings(),
    }


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def _devices() -> list[str]:
    import torch

    return ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]


def _warnings() -> list[str]:
    if version_of("xgboost") and version_of("xgboost-cpu"):
        return ["xgboost and xgboost-cpu are both installed and overwrite each other: pip uninstall both, then install one"]
    return []
