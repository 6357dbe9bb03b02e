"""Groups of processes that somebody else started, recognised by the variables of their environment.

torchrun, Horovod, Open MPI, MPICH's hydra (Intel MPI), Slurm's `srun` and SageMaker's containers are known, in that order: a
starter that runs inside another one counts. Sources: the manuals of torchrun ("Environment Variables"), mpirun(1) of Open MPI 4
and 5, srun(1) ("OUTPUT ENVIRONMENT VARIABLES"), and the SageMaker Developer Guide ("How Amazon SageMaker Provides Training
Information").
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError

FIRST_PORT, PORTS = 20000, 10000  # of meetings whose port nobody gave: below those that kernels hand out
_RESOURCES = Path("/opt/ml/input/config/resourceconfig.json")
_LOOPBACK = "127.0.0.1"
_NOTHING = ("", "none")  # what torchrun calls a run that was given no id


@dataclass(frozen=True, slots=True)
class Group:
    """A group, as one of its processes finds it.

    Attributes:
        starter: who started it, for people.
        rank: of this process.
        size: processes in the group.
        local_rank: among those on this machine.
        local_size: processes on this machine; None where that is not said.
        address: of the machine of rank 0, as the others reach it; None where that is not said.
        port: at which the starter lets ranks meet; 0 where it names none.
        run: tells this run from others, and is the same when the starter starts it again; "" where there is nothing such.
        restarts: how often the starter has started the run again.
        threads: of each process, where the starter says so.
    """

    starter: str
    rank: int
    size: int
    local_rank: int
    local_size: int | None
    address: str | None
    port: int
    run: str = ""
    restarts: int = 0
    threads: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether all of it is known to be on one machine."""
        return self.local_size == self.size

    def meeting_port(self, what: str) -> int:
        """Return a port for a meeting of the group: the same on all ranks, and most likely another for other groups."""
        return FIRST_PORT + zlib.crc32(f"{what} {self.starter} {self.run} {self.port}".encode()) % PORTS


def group_of(environment: Mapping[str, str], resources: Path = _RESOURCES) -> Group | None:
    """Return the group that an environment describes, None where it describes none.

    Args:
        environment: variables.
        resources: SageMaker's resourceconfig.json; read where it is there and no variables of another starter are.

    Raises:
        UserError: variables contradict each other, or are no numbers.
    """
    for find in (_torchrun, _horovod, _open_mpi, _hydra, _slurm):
        found = find(environment)
        if found is not None:
            return found
    return _sagemaker(environment, resources)


def _torchrun(env: Mapping[str, str]) -> Group | None:
    run = env.get("TORCHELASTIC_RUN_ID")
    return _group(
        env,
        "the variables RANK and WORLD_SIZE" if run is None else "torchrun",
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        run="" if run is None or run in _NOTHING else run,
        restarts="TORCHELASTIC_RESTART_COUNT",
    )


def _horovod(env: Mapping[str, str]) -> Group | None:
    return _group(env, "horovodrun", ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"))


def _open_mpi(env: Mapping[str, str]) -> Group | None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    run = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid") or ""
    return _group(env, "mpirun", tuple(f"OMPI_COMM_WORLD_{name}" for name in names), run=run, address=_slurm_address(env))


def _hydra(env: Mapping[str, str]) -> Group | None:
    if "MPI_LOCALRANKID" not in env:  # Slurm sets PMI_RANK too
        return None
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    return _group(env, "mpirun", names, run=env.get("PMI_JOBID", ""), address=_slurm_address(env))


def _slurm(env: Mapping[str, str]) -> Group | None:
    """A job step; the batch script itself has SLURM_PROCID too, and is none."""
    if "SLURM_STEP_ID" not in env and "SLURM_STEPID" not in env and "SLURM_JOB_ID" in env:
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", "0"))
    on_each = _slurm_tasks(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "")
    node = env.get("SLURM_NODEID", "")
    return _group(
        env,
        "Slurm",
        ("SLURM_PROCID", size, "SLURM_LOCALID", ""),
        run=f"{env['SLURM_JOB_ID']}.{step}" if "SLURM_JOB_ID" in env else "",
        restarts="SLURM_RESTART_COUNT",
        address=_slurm_address(env),
        local_size=on_each[int(node)] if node.isdigit() and int(node) < len(on_each) else None,
        threads="SLURM_CPUS_PER_TASK",
    )


def _sagemaker(env: Mapping[str, str], resources: Path) -> Group | None:
    """Every host of a SageMaker job runs one process."""
    try:
        if "SM_HOSTS" in env and "SM_CURRENT_HOST" in env:
            hosts, here = json.loads(env["SM_HOSTS"]), env["SM_CURRENT_HOST"]
        elif resources.is_file():
            given: Any = json.loads(resources.read_text(encoding="utf-8"))
            hosts, here = given["hosts"], given["current_host"]
        else:
            return None
        ordered = sorted(map(str, hosts))  # all hosts are to see the same order
        rank = ordered.index(here)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"SM_HOSTS and SM_CURRENT_HOST, or {resources}, do not name this host among all: {error}") from None
    port = _number(env, "MASTER_PORT", 0)
    job = env.get("TRAINING_JOB_NAME", "")
    return Group("a SageMaker container", rank, len(ordered), 0, 1, env.get("MASTER_ADDR", ordered[0]), port, run=job)


def _group(
    env: Mapping[str, str],
    starter: str,
    names: tuple[str, ...],
    *,
    run: str = "",
    restarts: str = "",
    address: str | None = None,
    local_size: int | None = None,
    threads: str = "OMP_NUM_THREADS",
) -> Group | None:
    """Return the group whose rank, size, local rank and local size stand in variables of these names."""
    rank_name, size_name, local_name, local_size_name = names
    if rank_name not in env or size_name not in env:
        return None
    rank, size, local = _number(env, rank_name, 0), _number(env, size_name, 1), _number(env, local_name, 0)
    if not 0 <= rank < size:
        raise UserError(f"{rank_name}={rank} does not fit {size_name}={size}: it must be 0 to {size - 1}")
    if local_size is None and local_size_name in env:
        local_size = _number(env, local_size_name, 1)
    if size == 1 or local_size == size:
        address, local_size = _LOOPBACK, size
    return Group(
        starter,
        rank,
        size,
        local,
        local_size,
        env.get("MASTER_ADDR", address),
        _number(env, "MASTER_PORT", 0),
        run,
        _number(env, restarts, 0),
        _number(env, threads if threads in env else "OMP_NUM_THREADS", 0) or None,
    )


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(env.get(name, default))
    except ValueError:
        raise UserError(f"{name}={env[name]} must be a whole number") from None


def _slurm_address(env: Mapping[str, str]) -> str | None:
    """Return the first machine of the step, or of the job."""
    listed = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST")
    return None if not listed else first_host(listed)


def first_host(listed: str) -> str:
    """Return the first name of a list of hosts as Slurm writes it: `gpu[07-09,12],login` is gpu07 and so on."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", listed)
    return re.sub(r"\[([^\]]*)\]", lambda found: re.split(r"[,-]", found[1])[0], name[0] if name else listed)


def _slurm_tasks(text: str) -> list[int]:
    """Return the tasks of each node from what Slurm writes: `2(x3),1` is 2, 2, 2, 1."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found
