"""How training is spread over ranks: collectives, and one file a strategy. Their option objects are loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auto import Auto as Auto
    from .ddp import DDP as DDP
    from .ddp import Single as Single
    from .exact import Exact as Exact
    from .fsdp import FSDP as FSDP
    from .horovod import Horovod as Horovod
    from .pipeline import Pipeline as Pipeline
    from .tensor import Tensor as Tensor
    from .zero import ZeRO as ZeRO

_HOMES = {
    "Auto": "auto",
    "DDP": "ddp",
    "Exact": "exact",
    "FSDP": "fsdp",
    "Horovod": "horovod",
    "Pipeline": "pipeline",
    "Single": "ddp",
    "Tensor": "tensor",
    "ZeRO": "zero",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'phalanx.parallel' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
