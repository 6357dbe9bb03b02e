"""Where a script's imports come from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .. import environment

_STANDINS = ("sagemaker_containers", "sagemaker_inference", "sagemaker_training", "sagemaker_xgboost_container")


def python_path(*first: str | None) -> str:
    """Return PYTHONPATH of a script: these folders, the user's own, and stand-ins for what only SageMaker's containers have."""
    folders = [folder for folder in (*first, environment.get("PYTHONPATH")) if folder]
    there = [name for name in _STANDINS if any((Path(folder) / name).exists() for folder in [*folders, *sys.path] if folder)]
    if not there:
        folders.append(str(Path(__file__).parent / "standins"))
    return os.pathsep.join(folders)
