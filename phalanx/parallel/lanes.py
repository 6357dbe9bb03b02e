"""All-reduces of a strategy's tensors: through shared memory where the ranks have it, else through torch's default group."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from ..contracts import Collective
from .collective import Op
from .neighbours import Neighbours

_TORCH = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
_KNOWN = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)


@final
class Lane:
    """Collective. What a replica exchanges its tensors through, whatever else its world carries meanwhile.

    Args:
        world: of the replica.
        device: that the tensors are on.
    """

    def __init__(self, world: Collective, device: torch.device) -> None:
        self._size = world.size
        self._inner = world.another() if isinstance(world, Neighbours) and device.type == "cpu" else None

    def reduce(self, tensor: torch.Tensor, op: Op = "sum") -> None:
        """Collective. Put the elementwise `op` over ranks in the place of `tensor`.

        Raises:
            PlatformError: a rank was lost.
        """
        if self._size == 1:
            return
        flat = self._seen(tensor)
        if self._inner is None or flat is None:
            dist.all_reduce(tensor, op=_TORCH[op])
        else:
            self._inner.reduce(flat, op)

    def carry(self, wrapped: DistributedDataParallel) -> None:
        """Let the buckets of a wrapper go this way."""
        if self._inner is not None:
            wrapped.register_comm_hook(None, lambda _, bucket: self._average(bucket))

    def close(self) -> None:
        """Leave. Safe to call twice."""
        if self._inner is not None:
            self._inner.close()

    def _average(self, bucket: Any) -> Any:
        buffer = bucket.buffer()
        flat = self._seen(buffer)
        if self._inner is None or flat is None:
            return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]
        self._inner.reduce(flat, factor=1 / self._size)
        done: Any = torch.futures.Future()
        done.set_result(buffer)
        return done

    @staticmethod
    def _seen(tensor: torch.Tensor) -> Any:
        """Return the numbers of a tensor (n,) where they lie; None where numpy cannot see them as one row."""
        plain = tensor.layout is torch.strided and tensor.is_contiguous() and tensor.dtype in _KNOWN
        return np.asarray(tensor.detach().numpy()).reshape(-1) if plain else None
