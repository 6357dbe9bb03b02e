"""How the trials of a sweep share one machine: by cores, memory and GPUs, none of which is given twice."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

from .. import environment
from ..cluster import count_of
from ..errors import UserError
from ..job import TrainingJob
from ..launch.attach import AttachLauncher

_GIB = 1 << 30
DEVICES = "CUDA_VISIBLE_DEVICES"


@final
@dataclass(frozen=True, slots=True)
class Room:
    """What a machine has room for.

    Attributes:
        slots: trials that run at once.
        threads: of each worker.
        why: in words.
        devices: of each slot, the GPUs that its trial sees, as CUDA_VISIBLE_DEVICES has them; empty: as the driver does.
    """

    slots: int
    threads: int
    why: str
    devices: Sequence[str] = ()

    def free(self, taken: Collection[str | None]) -> str | None:
        """Return the GPUs of the first slot that nobody has taken; None where none are given out."""
        return next((devices for devices in self.devices if devices not in taken), None)


def room_for(job: TrainingJob, wanted: int, *, memory_gb: float | None, gpus: int, deterministic: bool) -> Room:
    """Return how many trials of a job run at once.

    Args:
        job: what every trial runs.
        wanted: trials at once.
        memory_gb: GiB that a trial needs; None: not looked at.
        gpus: of this machine that a trial has for itself; 0: not looked at.
        deterministic: results may not depend on how many run at once, so that every worker has one thread.

    Raises:
        UserError: not even one trial fits, or the launcher is none for sweeps.
    """
    if job.launcher == "attach" or isinstance(job.launcher, AttachLauncher):
        raise UserError(
            "a sweep starts the workers of its trials itself: launcher 'attach' is for single jobs; give local or ray"
        )
    if gpus and job.launcher != "local":
        raise UserError(
            f"gpus_per_job={gpus} is for the local launcher; with 'ray' say what each worker gets: cluster={{'gpus': 1}}"
        )
    if not isinstance(job.launcher, str):
        return Room(wanted, job.threads_per_worker or 1, f"{wanted} at once, on workers of the launcher given")
    if job.launcher == "ray":
        return Room(wanted, job.threads_per_worker or 1, f"{wanted} at once, as far as the Ray cluster has room for them")
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    workers = count_of("workers", job.workers).most
    slots, has = max(1, min(wanted, cores // (workers * (job.threads_per_worker or 1)))), [f"{cores} cores"]
    if memory_gb is not None:
        if isinstance(memory_gb, bool) or not isinstance(memory_gb, (int, float)) or not memory_gb > 0:
            raise UserError(f"memory_per_job_gb={memory_gb!r} is not allowed: it must be above 0")
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        if memory_gb > total:
            raise UserError(f"memory_per_job_gb={memory_gb:g}: this machine has {total:.1f} GiB")
        slots = min(slots, int(total // memory_gb))
        has.append(f"{total:.1f} GiB")
    devices: list[str] = []
    if gpus:
        if DEVICES in job.environment:
            raise UserError(f"gpus_per_job={gpus} and {DEVICES} in the job's environment: leave one of them out")
        there = environment.gpus()
        if gpus > len(there):
            raise UserError(f"gpus_per_job={gpus}: this machine has {len(there)} that this process may use")
        slots = min(slots, len(there) // gpus)
        devices = [",".join(there[slot * gpus : (slot + 1) * gpus]) for slot in range(slots)]
        has.append(f"{len(there)} GPUs")
    threads = job.threads_per_worker or (1 if deterministic else max(1, cores // (slots * workers)))
    fewer = "" if slots == wanted else f" (not {wanted})"
    own = f" and {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
    each = f"{workers} x {threads} threads{own} each"
    machine = has[0] if len(has) == 1 else f"{', '.join(has[:-1])} and {has[-1]}"
    return Room(slots, threads, f"{slots} at once{fewer}, {each}: this machine has {machine}", devices)
