"""Hosts that boost trees together, over xgboost's own collective."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from xgboost import collective
from xgboost.tracker import RabitTracker

_JOIN_SECONDS = 300


def rabit_run(
    exec_fun: Callable[..., Any],
    args: dict[str, Any],
    include_in_training: bool,
    hosts: list[str],
    current_host: str,
    first_port: int | None = None,
    second_port: int | None = None,
    max_connect_attempts: int | None = None,
    connect_retry_timeout: int = 3,
    update_rabit_args: bool = False,
) -> None:
    """Call `exec_fun(**args)` on all hosts that have data, as one group; with `is_master` where that is asked for.

    A host without data leaves the program. Ports and the numbers of attempts are those of the job.
    """
    rank = hosts.index(current_host)
    with _group(hosts, rank, int(os.environ["MASTER_PORT"])):
        has_data = collective.allreduce(np.eye(len(hosts))[rank] * include_in_training, collective.Op.SUM)
        port = _free_port() if rank == 0 else 0
        next_port = int(collective.allreduce(np.array([port], dtype=np.int64), collective.Op.SUM)[0])
    if not include_in_training:
        logging.warning("Host %s has no data and takes no part.", current_host)
        sys.exit(0)
    kept = [host for host, has in zip(hosts, has_data, strict=True) if has]
    if update_rabit_args:
        args.update({"is_master": current_host == kept[0]})
    if len(kept) == 1:
        exec_fun(**args)
        return
    with _group(kept, kept.index(current_host), next_port):
        exec_fun(**args)


@contextmanager
def _group(hosts: list[str], rank: int, port: int) -> Iterator[None]:
    tracker = None
    if rank == 0:
        tracker = RabitTracker(n_workers=len(hosts), host_ip=hosts[0], port=port, sortby="task", timeout=_JOIN_SECONDS)
        tracker.start()
    arguments = {"dmlc_tracker_uri": hosts[0], "dmlc_tracker_port": port, "dmlc_task_id": f"{rank:05d}", "dmlc_retry": 100}
    with collective.CommunicatorContext(**arguments):
        yield
    if tracker is not None:
        tracker.wait_for()


def _free_port() -> int:
    import socket

    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
