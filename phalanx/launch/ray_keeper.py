"""A Ray cluster on this machine, held by a process of its own: `phalanx cluster up --local N`, and the private one of a job.

    python -m phalanx.launch.ray_keeper '{"nodes": 3, "cpus": 1, …}'

It says where the cluster is in a line of JSON on standard output. All of it listens on loopback only. A private cluster ends
when its keeper's standard input does, that is with the process which asked for it, however that ends; one that was put `up` at
SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from .. import environment
from ..errors import PlatformError, UserError, nearest

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": Ray takes 127.0.0.1 for its address, and listens there alone
_HEALTH = {  # the head notices a node that was killed within seconds; one that is only busy has 15 of them
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
_OBJECT_STORE_BYTES = 100 << 20
_START_SECONDS = 120.0
_END_SECONDS = 30.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Kept:
    """A cluster that a keeper holds."""

    address: str
    pid: int  # of the keeper
    begun: float  # when that process was made, seconds since 1970
    nodes: list[dict[str, Any]]  # name, cpus, gpus, pid of its raylet

    def alive(self) -> bool:
        """Return whether its keeper still runs."""
        import psutil

        try:
            return abs(psutil.Process(self.pid).create_time() - self.begun) < 1.0
        except psutil.Error:
            return False


def state_file() -> Path:
    """Return where the cluster that `phalanx cluster up` started is written down."""
    home = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "phalanx" / "cluster.json"


def kept() -> Kept | None:
    """Return the cluster that `phalanx cluster up` started, None where it does not run."""
    try:
        found = Kept(**json.loads(state_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.alive() else None


def up(nodes: int, cpus: float, gpus: float) -> Kept:
    """Start a cluster that stays; return it when all its nodes are there.

    Args:
        nodes: how many.
        cpus: of each, as Ray counts them.
        gpus: of each.

    Raises:
        UserError: there is one already.
        PlatformError: it cannot be started.
    """
    there = kept()
    if there is not None:
        raise UserError(f"a cluster of {len(there.nodes)} nodes is up at {there.address}: take it down first, or use it")
    process, found = _start({"nodes": nodes, "cpus": cpus, "gpus": gpus, "stays": True})
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"address": found.address, "pid": found.pid, "begun": found.begun, "nodes": found.nodes}))
    process.returncode = 0  # it is left to itself
    return found


def down() -> Kept | None:
    """End the cluster that `up` started; return it, None where there is none."""
    import psutil

    there = kept()
    if there is not None:
        keeper = psutil.Process(there.pid)
        family = [keeper, *keeper.children(recursive=True)]
        keeper.terminate()
        _, left = psutil.wait_procs([keeper], timeout=_END_SECONDS)
        for process in family if left else []:
            with contextlib.suppress(psutil.Error):
                process.kill()
    state_file().unlink(missing_ok=True)
    return there


def lose(name: str) -> int:
    """Kill a node of the cluster that is up, with all that runs on it; return how many processes.

    Raises:
        UserError: no cluster is up, or it has no such node, or this is the one that holds the cluster together.
    """
    import psutil

    there = kept()
    if there is None:
        raise UserError("no cluster is up on this machine: `phalanx cluster up --local 2` starts one")
    pids = {str(node["name"]): int(node["pid"]) for node in there.nodes}
    if name not in pids:
        raise UserError(f"the cluster has no node '{name}'; {nearest(name, pids)}")
    if name == str(there.nodes[0]["name"]):
        raise UserError(f"{name} is the head, without which there is no cluster; lose another one, or take the cluster down")
    if not lives(pids[name]):
        raise UserError(f"{name} is lost already")
    raylet = psutil.Process(pids[name])
    ending = [raylet, *raylet.children(recursive=True)]
    for process in ending:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(ending)


def lives(pid: int) -> bool:
    """Return whether a process runs."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def private(cpus: float) -> tuple[subprocess.Popen[bytes], str]:
    """Start a cluster of one node that ends with this process; return its keeper and its address.

    Raises:
        PlatformError: it cannot be started.
    """
    process, found = _start({"nodes": 1, "cpus": cpus, "gpus": 0, "stays": False})
    return process, found.address


def end(process: subprocess.Popen[bytes]) -> None:
    """End a private cluster."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start(given: Mapping[str, Any]) -> tuple[subprocess.Popen[bytes], Kept]:
    import psutil

    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(given)],
            stdin=subprocess.DEVNULL if given["stays"] else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env={
                **_HEALTH,
                **environment.snapshot(),
                LOOPBACK_ONLY: "0",
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            },
            start_new_session=True,
        )
        line = cast(BinaryIO, process.stdout).readline()
        cast(BinaryIO, process.stdout).close()
        try:
            told = json.loads(line)
        except ValueError:
            process.kill()
            process.wait()
            words.seek(0)
            last = words.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise PlatformError(
                f"a Ray cluster cannot be started on this machine: {''.join(last) or 'it said nothing'}"
            ) from None
    begun = psutil.Process(process.pid).create_time()
    return process, Kept(told["address"], process.pid, begun, told["nodes"])


def main(arguments: list[str]) -> None:
    """Start the cluster, tell of it, hold it, end it."""
    given = json.loads(arguments[0])
    told, sys.stdout = sys.stdout, sys.stderr  # what Ray prints is no answer
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ending.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.cluster_utils import Cluster

    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    each = {"num_cpus": given["cpus"], "num_gpus": given["gpus"], "object_store_memory": _OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**each, "node_name": "node-1", "include_dashboard": False})
    try:
        made = [cluster.head_node]
        made += [cluster.add_node(wait=False, node_name=f"node-{n}", **each) for n in range(2, given["nodes"] + 1)]
        cluster.wait_for_nodes(_START_SECONDS)
        nodes = [
            {"name": f"node-{number}", "cpus": given["cpus"], "gpus": given["gpus"], "pid": _raylet(node)}
            for number, node in enumerate(made, 1)
        ]
        told.write(json.dumps({"address": cluster.address, "nodes": nodes}) + "\n")
        told.close()
        os.close(1)
        while not ending and (given["stays"] or not select.select([0], [], [], _POLL_SECONDS)[0]):
            time.sleep(_POLL_SECONDS)
    finally:
        cluster.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


if __name__ == "__main__":
    main(sys.argv[1:])
