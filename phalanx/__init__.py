"""Phalanx: a distributed training engine as a library.

What users import, and nothing else; every name is loaded when it is first used, so that `import phalanx` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster import Cluster as Cluster
    from .data.channel import Channel as Channel
    from .errors import AlgorithmError as AlgorithmError
    from .errors import PhalanxError as PhalanxError
    from .errors import PlatformError as PlatformError
    from .errors import Stopped as Stopped
    from .errors import UserError as UserError
    from .job import TrainingJob as TrainingJob
    from .model import Model as Model
    from .model import load as load
    from .result import JobResult as JobResult
    from .spot import Spot as Spot
    from .trainer.history import EarlyStopping as EarlyStopping
    from .trainer.history import History as History
    from .trainer.script import session as session
    from .trainer.trainer import Trainer as Trainer
    from .tuning.options import Completion as Completion
    from .tuning.options import WarmStart as WarmStart
    from .tuning.ranges import Categorical as Categorical
    from .tuning.ranges import Continuous as Continuous
    from .tuning.ranges import Integer as Integer
    from .tuning.tuner import Tuner as Tuner

_HOMES = {
    "Channel": "data.channel",
    "Cluster": "cluster",
    "AlgorithmError": "errors",
    "PhalanxError": "errors",
    "PlatformError": "errors",
    "Stopped": "errors",
    "UserError": "errors",
    "JobResult": "result",
    "TrainingJob": "job",
    "Model": "model",
    "load": "model",
    "Spot": "spot",
    "EarlyStopping": "trainer.history",
    "History": "trainer.history",
    "Trainer": "trainer.trainer",
    "session": "trainer.script",
    "Categorical": "tuning.ranges",
    "Completion": "tuning.options",
    "Continuous": "tuning.ranges",
    "Integer": "tuning.ranges",
    "Tuner": "tuning.tuner",
    "WarmStart": "tuning.options",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .provenance import phalanx_version

        return phalanx_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'phalanx' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
