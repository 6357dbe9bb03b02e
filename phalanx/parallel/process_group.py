"""torch's default process group, which DDP, FSDP2, DTensor and DeepSpeed use, and our collective: either makes the other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .. import environment
from ..contracts import Collective
from ..errors import PlatformError, UserError
from . import connections
from .collective import Solo
from .joining import store_of, world_over
from .torch_collective import lost_words

TIMEOUT_S = 1800.0
_c10d: Any = dist


def default_device() -> torch.device:
    """Return the device this rank computes on: its own GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        place = environment.placement()
        return torch.device("cuda", (place.local_rank if place else 0) % torch.cuda.device_count())
    return torch.device("cpu")


def backend_for(device: torch.device) -> str:
    """Return the backend of a group that carries tensors of `device` and of the CPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"


def world_of_environment(timeout_s: float = TIMEOUT_S) -> Collective:
    """Collective. Return the world that torchrun, Slurm or our launcher put this process in; `Solo` when it stands alone.

    torch's default process group is used where the script has made it, and made otherwise.

    Raises:
        PlatformError: the other ranks did not come in time.
        UserError: the environment names a group but not where it meets.
    """
    place = environment.placement()
    if not dist.is_initialized():
        if place is None or place.size == 1:
            return Solo()
        if not place.master_port:
            raise UserError("RANK and WORLD_SIZE are set, MASTER_ADDR and MASTER_PORT are not: start the script with torchrun")
        device = default_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        environment.describe_group(place)
        try:
            with connections.groups.noted():
                dist.init_process_group(backend_for(device), timeout=timedelta(seconds=timeout_s))
        except RuntimeError as error:
            where = f"{place.master_addr}:{place.master_port}"
            raise PlatformError(
                f"rank {place.rank} of {place.size} could not meet the other workers at {where}: {lost_words(error)}"
            ) from error
    if dist.get_world_size() == 1:
        return Solo()
    address = place.master_addr if place else ""
    store = _c10d.distributed_c10d._get_default_store()
    with connections.groups.noted():
        return world_over(store, dist.get_rank(), dist.get_world_size(), address, timeout_s=timeout_s)


def ensure_default_group(world: Collective, device: torch.device) -> None:
    """Collective. Make torch's default process group of the ranks of `world`, unless there is one.

    Raises:
        UserError: there is one of another size, or `world` is not of processes.
    """
    if dist.is_initialized():
        if dist.get_world_size() != world.size:
            raise UserError(f"torch's process group has {dist.get_world_size()} ranks, the job {world.size}: they must agree")
        return
    met = store_of(world)
    if met is not None:
        store = _c10d.PrefixStore("default", met)
    elif world.size == 1:
        store = _c10d.HashStore()
    else:
        raise UserError(f"a torch strategy needs ranks that are processes, not {type(world).__name__}")
    limit = timedelta(seconds=TIMEOUT_S)
    with connections.groups.noted():
        dist.init_process_group(backend_for(device), store=store, rank=world.rank, world_size=world.size, timeout=limit)


def leave_default_group() -> None:
    """Give torch's default process group back, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
