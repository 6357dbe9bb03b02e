"""Joining a Ray cluster: the one at an address, the one that is up, or a private one; and what a cluster has."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.authentication import authentication_token_setup as tokens
from ray.exceptions import RayError

from .. import environment
from ..errors import PlatformError, UserError
from . import ray_keeper

_AUTH_MODE = "RAY_AUTH_MODE"
_CONNECT_SECONDS = 5.0
_PUBLIC = ("CPU", "GPU", "memory")


@final
@dataclass(slots=True)
class _Joined:
    """What this process has joined."""

    address: str | None = None  # None: somebody else than this module did
    fixed: bool = False  # no node comes by itself


_joined = _Joined()
_lock = threading.Lock()


def say(text: str) -> None:
    """Tell the person who runs the job."""
    sys.stderr.write(f"{text}\n")


def join(address: str | None, cpus: float, tell: Callable[[str], None] = say) -> bool:
    """Join a cluster, unless this process has; return whether its nodes are all that there will be.

    Args:
        address: see `Cluster`.
        cpus: of a private cluster, at least.
        tell: takes a sentence for the user.

    Raises:
        UserError: no cluster is there, or this process has joined another one.
        PlatformError: it cannot be joined.
    """
    with _lock:
        if ray.is_initialized():
            here = _joined.address or ray.get_runtime_context().gcs_address
            if address not in (None, "auto", here) and not str(address).startswith("ray://"):
                raise UserError(f"this process has joined the Ray cluster at {here}: {address} needs a process of its own")
            return _joined.fixed
        wanted = address or environment.get("RAY_ADDRESS")
        there = ray_keeper.kept()
        try:
            if there is not None and wanted in (None, there.address, "auto"):
                _init(there.address, on_loopback=True)
                return _note(there.address, fixed=True)
            if wanted is not None:
                _check(wanted)
                _init(wanted)
                return _note(wanted, fixed=False)
            tell("no Ray address is given and none is up: a private cluster is started on this machine, for this process")
            keeper, private = ray_keeper.private(max(cpus, os.cpu_count() or 1))
            atexit.register(_leave, keeper)
            _init(private, on_loopback=True)
            return _note(private, fixed=True)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
            if isinstance(error, (UserError, PlatformError)):
                raise
            why = str(error).strip().splitlines()
            raise PlatformError(
                f"the Ray cluster {wanted or ''} cannot be joined: {why[0] if why else type(error).__name__}"
            ) from error


def _note(address: str, *, fixed: bool) -> bool:
    _joined.address, _joined.fixed = address, fixed
    return fixed


def _authenticate() -> None:
    """Show the user's token where there is one: of a cluster at a given address Ray itself would not think of it."""
    loader = tokens.AuthenticationTokenLoader.instance()
    loader.reset_cache()  # one may have been made meanwhile
    if environment.get(_AUTH_MODE) is None and loader.has_token(ignore_auth_mode=True):
        environment.set_variable(_AUTH_MODE, "token")
        tokens.Config.initialize("")


def _init(address: str, *, on_loopback: bool = False) -> None:
    _authenticate()
    vars(ray_worker)["print_to_stdstream"] = _unsaid
    constants = vars(ray_constants)
    before = constants["ENABLE_RAY_CLUSTER"]
    if on_loopback:  # else Ray takes 127.0.0.1 for another of this machine's addresses
        constants["ENABLE_RAY_CLUSTER"] = False
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    finally:
        constants["ENABLE_RAY_CLUSTER"] = before


def _unsaid(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Ray would print its raylets' last words to standard output, which is the command's own; the job's log has the loss."""


def _check(address: str) -> None:
    """Ray would try for a minute, and say less."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}; give the address of its head "
            "(`ray status` on one of its machines shows it), or start one here with `phalanx cluster up --local 2`"
        ) from None


def _leave(keeper: Any) -> None:
    with contextlib.suppress(Exception):
        ray.shutdown()
    ray_keeper.end(keeper)


def nodes() -> list[Mapping[str, Any]]:
    """Return the living nodes, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def described() -> str:
    """Return what a cluster has, for error texts: each node's total, and what is free of all."""
    each = [f"{node['NodeName']} ({amounts(node['Resources'])})" for node in nodes()]
    return f"it has {len(each)} nodes: {', '.join(each)}; free in all: {amounts(ray.available_resources())}"


def amounts(resources: Mapping[str, float]) -> str:
    """Return resources as a person reads them: `CPU 2, memory 4.0 GiB`; Ray's internal ones are left out."""
    shown = []
    for name in sorted(resources, key=lambda name: (name not in _PUBLIC, name)):
        if name.startswith(("node:", "bundle_", "object_store", "accelerator_type:")) or "_group_" in name:
            continue
        amount = resources[name]
        shown.append(f"{name} {amount / (1 << 30):.1f} GiB" if name == "memory" else f"{name} {amount:g}")
    return ", ".join(shown) or "nothing"
