"""The job as an object: what SM_TRAINING_ENV says."""

import json
import os
from types import SimpleNamespace


def Environment() -> SimpleNamespace:
    """Return hosts, folders, hyperparameters and so on as attributes."""
    return SimpleNamespace(**json.loads(os.environ.get("SM_TRAINING_ENV", "{}")))
