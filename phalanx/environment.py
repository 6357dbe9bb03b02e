"""The only reader and writer of `os.environ`: who am I in which group, and what a worker is told.

Groups that others started are recognised by `groups`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .groups import Group, group_of

EVENTS_FD = "PHALANX_EVENTS_FD"  # where a command's session writes its events, one JSON object a line
STRATEGY = "PHALANX_STRATEGY"  # of `phalanx run --strategy`, for the Trainer in a script
SEED = "PHALANX_SEED"
SAVING = "PHALANX_CHECKPOINTING"  # JSON: where, when and what a script's session saves
OBSERVE = "PHALANX_OBSERVE"  # JSON: what a worker measures of itself for rules and profiles
HEARTBEAT = "PHALANX_HEARTBEAT_S"  # how often a worker gives a sign of life; unset: never
HOSTS = "PHALANX_HOSTS"  # JSON: the addresses of all ranks, where a job spans machines
CHECKPOINTS = "PHALANX_CHECKPOINTS"  # a folder that stays over a script's restarts
_OF_THE_JOB = {"MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", SEED, SAVING, OBSERVE, HEARTBEAT, CHECKPOINTS}
_sending = threading.RLock()  # a signal handler that raises can leave a plain one held by its own thread
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY")
_SECRET = re.compile("|".join(_SECRET_WORDS), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Placement:
    """A worker's place in its group."""

    rank: int
    size: int
    local_rank: int
    master_addr: str
    master_port: int
    local_size: int | None = None  # ranks on its machine; None: all, or not known


def group(environment: Mapping[str, str] | None = None) -> Group | None:
    """Return the group that somebody started with this process in it, None when it stands alone.

    Raises:
        UserError: its variables contradict each other.
    """
    return group_of(os.environ if environment is None else environment)


def placement(environment: Mapping[str, str] | None = None) -> Placement | None:
    """Return this process's place in a group that somebody started, or None when it stands alone.

    Where the starter says on which machine rank 0 is, but names no port to meet at, one is derived from the run.

    Raises:
        UserError: its variables contradict each other.
    """
    found = group(environment)
    if found is None:
        return None
    port = found.port if found.port or found.address is None or not found.run else found.meeting_port("session")
    return Placement(found.rank, found.size, found.local_rank, found.address or "127.0.0.1", port, found.local_size)


def worker_variables(place: Placement, *, threads: int, attempt: int, interface: str = "lo") -> dict[str, str]:
    """Return what a worker finds in its environment, as torchrun sets it.

    Args:
        place: of the worker.
        threads: that it may use.
        attempt: counts restarts.
        interface: the network interface at which it meets the others.
    """
    return {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size or place.size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_RANK": str(place.rank),
        "ROLE_WORLD_SIZE": str(place.size),
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": str(place.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # torchrun's own store is not at this address
        "GLOO_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        **idle_threads(),
        "PYTHONUNBUFFERED": "1",
    }


def beside_the_job(variables: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's variables but for those that differ from job to job and are read anew by each."""
    return {name: value for name, value in variables.items() if name not in _OF_THE_JOB}


def host_variables(addresses: Sequence[str]) -> dict[str, str]:
    """Return what tells a script's worker the addresses of all ranks, where these are on machines of their own."""
    return {HOSTS: json.dumps(list(addresses))} if 1 < len(addresses) == len(set(addresses)) else {}


def hosts() -> list[str] | None:
    """Return the addresses of all ranks, None for a group on one machine."""
    given = os.environ.get(HOSTS)
    return None if given is None else [str(address) for address in json.loads(given)]


def script_variables(*, seed: int, strategy: str | None, checkpoints: str) -> dict[str, str]:
    """Return what `phalanx.session()` in a job's script finds in its environment beside the `SM_*` variables."""
    found = {SEED: str(seed), CHECKPOINTS: checkpoints}
    return found if strategy is None else {**found, STRATEGY: strategy}


def send_event(event: Mapping[str, Any]) -> None:
    """Tell the supervisor something from a worker's command; nothing happens where there is none, or it is gone."""
    fd = os.environ.get(EVENTS_FD, "")
    if fd.isdigit():
        line = memoryview(json.dumps(event).encode() + b"\n")
        with _sending, contextlib.suppress(OSError):
            if not stat.S_ISFIFO(os.fstat(int(fd)).st_mode):
                return  # the number of another file: the variable was passed on to a process that the pipe was not
            while line:
                line = line[os.write(int(fd), line) :]


def heartbeat_seconds() -> float | None:
    """Return how often this worker is to give a sign of life, None where nobody listens."""
    try:
        return float(os.environ[HEARTBEAT])
    except (KeyError, ValueError):
        return None


def describe_group(place: Placement) -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torch reads, as another starter's variables have them."""
    os.environ.setdefault("RANK", str(place.rank))
    os.environ.setdefault("WORLD_SIZE", str(place.size))
    os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
    os.environ.setdefault("MASTER_ADDR", place.master_addr)
    os.environ.setdefault("MASTER_PORT", str(place.master_port))


def checkpoint_variables(given: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what tells a script's session of the job's checkpoints."""
    return {} if given is None else {SAVING: json.dumps(given)}


def checkpointing(attempt_variable: str = "TORCHELASTIC_RESTART_COUNT") -> tuple[Mapping[str, Any] | None, int]:
    """Return what the job says of its checkpoints, None without a job, and which attempt this is."""
    given = os.environ.get(SAVING)
    return (None if given is None else json.loads(given)), int(os.environ.get(attempt_variable) or 0)


def observe_variables(given: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells workers what to measure of themselves."""
    return {OBSERVE: json.dumps(given)} if given else {}


def observe() -> Mapping[str, Any]:
    """Return what this worker is to measure of itself; {} for nothing."""
    found = json.loads(os.environ.get(OBSERVE) or "{}")
    return found if isinstance(found, dict) else {}


def idle_threads() -> dict[str, str]:
    """Return what keeps idle threads of libraries from spinning for long, unless the user chose: they take the cores of others.

    OpenMP's sleep at once. OpenBLAS's, which every forked worker starts anew, spin for 2^20 ticks (a third of a millisecond) in
    place of 2^26. The libraries read it once, when they are loaded: the warm server needs it too.
    """
    chosen = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "20"}
    return {name: os.environ.get(name, value) for name, value in chosen.items()}


def gpus(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them; no library is loaded for that."""
    shown = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return [str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]
    found = []
    for part in shown.split(","):
        name = part.strip()
        if name in ("", "-1"):  # what follows is not seen either
            break
        found.append(name)
    return found


def snapshot() -> dict[str, str]:
    """Return a copy of this process's environment."""
    return dict(os.environ)


def replace(environment: Mapping[str, str]) -> None:
    """Make `environment` this process's whole environment (a forked worker, before it does anything else)."""
    os.environ.clear()
    os.environ.update(environment)


def set_variable(name: str, value: str) -> None:
    """Set one variable of this process."""
    os.environ[name] = value


def unset_variable(name: str) -> None:
    """Remove one variable of this process, where it is set."""
    os.environ.pop(name, None)


def get(name: str, default: str | None = None) -> str | None:
    """Return one variable."""
    return os.environ.get(name, default)


@functools.cache
def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None


def secrets(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the values of variables that look like credentials by their name, longest first, for redaction."""
    env = os.environ if environment is None else environment
    found = {env.get(name, "") for name in env if _is_secret(name)}
    return sorted((value for value in found if len(value) >= 6), key=len, reverse=True)


def masked(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` as it may stand in job.json: values of credential-like names replaced by `***`."""
    return {name: "***" if _is_secret(name) else value for name, value in environment.items()}


def masked_hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a script's hyperparameters as they may stand in job.json: `***` where a name ends as a credential's does."""

    def is_secret(name: str, value: Any) -> bool:
        return isinstance(value, str) and len(value) >= 6 and name.upper().replace("-", "_").endswith(_SECRET_WORDS)

    return {name: "***" if is_secret(name, value) else value for name, value in given.items()}
