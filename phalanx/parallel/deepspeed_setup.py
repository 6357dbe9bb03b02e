"""DeepSpeed as we want it: nothing is compiled unasked, torch's process group is used as it is, no logs, no hidden defaults.

Written against 0.19; the private names used here are why the extra is pinned to it.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import environment
from ..contracts import Collective, Recipe
from ..errors import UserError
from . import connections
from .process_group import ensure_default_group

_last_group: list[Any] = []  # the default group that DeepSpeed's own registers were made over


def load() -> Any:
    """Import DeepSpeed and return it.

    Raises:
        UserError: it is not installed.
    """
    if not torch.cuda.is_available():
        environment.set_variable("DS_ACCELERATOR", environment.get("DS_ACCELERATOR") or "cpu")
    environment.set_variable("DEEPSPEED_LOG_LEVEL", environment.get("DEEPSPEED_LOG_LEVEL") or "error")
    if environment.get("TORCH_EXTENSIONS_DIR") is None:
        environment.set_variable("TORCH_EXTENSIONS_DIR", str(_extensions_folder()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            deepspeed = importlib.import_module("deepspeed")
        except ImportError as error:
            raise UserError(f"DeepSpeed cannot be loaded ({error}): pip install 'phalanx-train[deepspeed]'") from None
        ops = importlib.import_module("deepspeed.ops")
        if not torch.cuda.is_available():  # compiled when first asked for, minutes long; gloo does as well
            ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def initialize(recipe: Recipe, world: Collective, module: Any, optimizer: torch.optim.Optimizer, zero: dict[str, Any]) -> Any:
    """Collective. Return an engine over `module` with torch's optimizer.

    Args:
        recipe: precision is the caller's affair: weights stay fp32 here, and forward passes run under autocast.
        world: the ranks; torch's default group must be theirs, see `join`.
        module: to train; a PipelineModule makes a pipeline's engine.
        optimizer: the user's.
        zero: DeepSpeed's `zero_optimization`, with "micro_batches" beside it for a pipeline.
    """
    deepspeed = load()
    accumulate = int(zero.pop("micro_batches", 1))
    clip = recipe.clip_norm
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": 0.0 if clip is None or clip == float("inf") else clip,  # left out, DeepSpeed clips to 1
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own Adam for the CPU would be compiled
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    with warnings.catch_warnings(), connections.groups.noted():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def join(world: Collective, device: torch.device) -> None:
    """Collective. Let DeepSpeed use torch's default process group, which is made where there is none."""
    deepspeed = load()
    ensure_default_group(world, device)
    group = dist.group.WORLD
    if not _last_group or _last_group[0] is not group:
        _forget_groups()
        _last_group[:] = [group]
    if environment.get("LOCAL_RANK") is None:  # it insists on the variable
        environment.set_variable("LOCAL_RANK", "0")
    with warnings.catch_warnings(), connections.groups.noted():
        warnings.simplefilter("ignore")
        deepspeed.comm.comm.init_distributed(verbose=False, auto_mpi_discovery=False)


def _forget_groups() -> None:
    """Drop what DeepSpeed kept of a default group that is gone."""
    comm: Any = importlib.import_module("deepspeed.comm.comm")
    groups: Any = importlib.import_module("deepspeed.utils.groups")
    comm.cdb = None
    for name, value in list(vars(groups).items()):
        if name.startswith("_") and not name.startswith("__") and isinstance(value, dist.ProcessGroup):
            setattr(groups, name, None)
    for name in ("_WORLD_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP", "mpu"):
        setattr(groups, name, None)


def _extensions_folder() -> Path:
    """Return a folder of this user for compiled extensions, without the locks of compilers that were killed."""
    folder = Path(tempfile.gettempdir()) / f"phalanx-extensions-{Path.home().name}" / f"torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.glob("*/lock"):
        lock.unlink(missing_ok=True)  # whoever finds one waits for ever; nothing of ours compiles
    return folder
