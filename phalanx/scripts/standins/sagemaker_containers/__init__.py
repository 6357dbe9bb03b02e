"""Stands in for the package of SageMaker's containers, as far as scripts use it."""

import json
import os
from types import SimpleNamespace


def training_env() -> SimpleNamespace:
    """Return the job's hosts, folders, hyperparameters and so on as attributes."""
    return SimpleNamespace(**json.loads(os.environ.get("SM_TRAINING_ENV", "{}")))
