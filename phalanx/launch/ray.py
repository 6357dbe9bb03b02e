"""The Ray launcher: a placement group with one actor a rank, each of which runs its worker as `launch.local` would.

Supervisor  --Launcher.start-->  placement group  --one bundle a rank-->  Slot  -->  warm server  -->  worker

A slot streams events, log and exit of its worker to the supervisor, which waits, judges and restarts as for a local group.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, final

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .. import environment
from ..contracts import Event, Exit, Member, WorkerSpec
from ..errors import AlgorithmError, PlatformError, UserError, from_record, to_record
from .local import LOOPBACK, LocalWorkers
from .warm import acquire_server, close_servers

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
_STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_LEASE_SECONDS = 30.0  # a slot that its supervisor does not ask for so long ends its worker and itself
_LEASE_CHECK_SECONDS = 1.0
_ASK_SECONDS = 2.0  # how long a slot may wait for something to tell
_SLICE_SECONDS = 0.05  # how long a stop may wait for a slot that listens to its worker
_LOG_BYTES = 1 << 22
_CALL_SECONDS = 60.0
_CLOSE_SECONDS = 15.0
_OBJECT_STORE_BYTES = 100 << 20


@final
class RayLauncher:
    """`contracts.Launcher` for a Ray cluster.

    Without an address, a cluster that this process has joined or that RAY_ADDRESS names is used; where there is none, a
    private one is started on this machine, and stderr says so.

    Args:
        address: "auto", "host:port" or None.
        strategy: how ranks are spread over nodes, as Ray names it.
        cpus: of each worker; default: its threads.
        gpus: of each worker.
        memory: of each worker, bytes; None: not asked for.
        resources: custom ones of each worker.
        start_timeout_s: how long to wait for nodes that have room.

    Raises:
        UserError: a strategy that Ray does not have.
    """

    def __init__(
        self,
        address: str | None = None,
        strategy: Strategy = "PACK",
        cpus: float | None = None,
        gpus: float = 0.0,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        start_timeout_s: float = 300.0,
    ) -> None:
        if strategy not in _STRATEGIES:
            raise UserError(f"there is no placement strategy '{strategy}'; allowed: {', '.join(_STRATEGIES)}")
        self._address = address
        self._strategy = strategy
        self._cpus = cpus
        self._gpus = gpus
        self._memory = memory
        self._resources = dict(resources or {})
        self._start_timeout_s = start_timeout_s
        self._joining = threading.Lock()

    def prepare(self, preload: Sequence[str]) -> None:
        """Nothing: the nodes are not known before the group is placed."""

    def start(self, spec: WorkerSpec) -> RayWorkers:
        """Place a group and start its workers.

        Raises:
            AlgorithmError: the payload is no JSON.
            UserError: not exactly one of target and command.
            PlatformError: the cluster cannot be reached, has no room in time, or a worker cannot be started.
        """
        if (spec.target is None) == (spec.command is None):
            raise UserError("a worker group needs a target or a command, and not both")
        try:
            json.dumps(spec.payload)
        except (TypeError, ValueError) as error:
            raise AlgorithmError(f"the workers' payload must be JSON values: {error}") from None
        with contextlib.ExitStack() as undo:
            try:
                spec.log_folder.mkdir(parents=True, exist_ok=True)
                logs = [undo.enter_context((spec.log_folder / f"rank-{r}.log").open("ab", 0)) for r in range(spec.workers)]
            except OSError as error:
                raise PlatformError(f"the worker group cannot be started: {error}") from error
            self._join(spec)
            try:
                workers = RayWorkers(self._place(spec), logs)
                undo.callback(workers.close)
                workers.begin(spec)
            except (RayError, TimeoutError) as error:
                raise PlatformError(f"the worker group cannot be started on Ray: {error}") from error
            undo.pop_all()
            return workers

    def _join(self, spec: WorkerSpec) -> None:
        with self._joining:
            if ray.is_initialized():
                return
            address = self._address or environment.get("RAY_ADDRESS")
            try:
                if address is not None:
                    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
                    return
                cpus = max(os.cpu_count() or 1, int(spec.workers * self._bundle(spec).get("CPU", 0)))
                sys.stderr.write("no Ray address is given: a private cluster is started on this machine\n")
                _start_private(cpus)
            except (ConnectionError, RuntimeError, ValueError, RayError) as error:
                raise PlatformError(f"the Ray cluster {address or ''} cannot be joined: {error}") from error

    def _bundle(self, spec: WorkerSpec) -> dict[str, float]:
        wanted = {"CPU": float(spec.threads if self._cpus is None else self._cpus), "GPU": self._gpus, **self._resources}
        if self._memory is not None:
            wanted["memory"] = float(self._memory)
        return {name: amount for name, amount in wanted.items() if amount}

    def _place(self, spec: WorkerSpec) -> _Placed:
        bundle = self._bundle(spec)
        group = placement_group([bundle] * spec.workers, strategy=self._strategy)
        try:
            if not group.wait(self._start_timeout_s):
                raise PlatformError(
                    f"the Ray cluster has no room for {spec.workers} workers of {bundle} ({self._strategy}) "
                    f"after {self._start_timeout_s:.0f} s; add nodes, or ask for fewer workers"
                )
            actor = ray.remote(Slot)
            slots = [
                actor.options(
                    num_cpus=bundle.get("CPU", 0),
                    num_gpus=bundle.get("GPU", 0),
                    max_concurrency=4,
                    max_restarts=0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                ).remote()
                for rank in range(spec.workers)
            ]
        except BaseException:
            remove_placement_group(group)
            raise
        return _Placed(group, slots)


def _start_private(cpus: int) -> None:
    """Start a cluster on this machine, for as long as this process lives.

    The kernel ends Ray's processes with the thread that started them: one does so that never ends.
    """
    done = threading.Event()
    error: list[BaseException] = []

    def start() -> None:
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except BaseException as found:
            error.append(found)
            return
        finally:
            done.set()
        threading.Event().wait()

    threading.Thread(target=start, name="phalanx-ray", daemon=True).start()
    done.wait()
    if error:
        raise error[0]
    _guard_agents()


_GUARD = """
import json, sys, psutil
sys.stdin.read()
for pid, begun in json.loads(sys.argv[1]):
    try:
        process = psutil.Process(pid)
        if process.create_time() == begun:
            process.kill()
    except psutil.Error:
        pass
"""


def _guard_agents() -> None:
    """Have the private cluster's processes killed that live on when this one is: the kernel ends their parents only."""
    import psutil

    ours = [p for p in psutil.Process().children(recursive=True) if "ray" in " ".join(p.cmdline())]
    guard = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}\n{_GUARD}",
            json.dumps([(p.pid, p.create_time()) for p in ours]),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_end_guard, guard)


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    ray.shutdown()
    if guard.stdin is not None:
        guard.stdin.close()
    guard.wait()


@dataclass(frozen=True, slots=True)
class _Placed:
    """A placement group and its slots by rank."""

    group: Any
    slots: list[Any]


@final
class RayWorkers:
    """`contracts.Workers` on a Ray cluster."""

    def __init__(self, placed: _Placed, logs: Sequence[BinaryIO]) -> None:
        self._placed = placed
        self._logs = logs
        self._members: list[Member] = []
        self._asked: dict[Any, int] = {}  # the slot's answer that is awaited -> its rank
        self._closed = False

    @property
    def members(self) -> Sequence[Member]:
        """The workers by rank."""
        return self._members

    def begin(self, spec: WorkerSpec) -> None:
        """Start a worker in every slot.

        Raises:
            PhalanxError: what a slot raised.
            RayError: a slot was lost.
        """
        slots = self._placed.slots
        hosts = ray.get([slot.host.remote() for slot in slots], timeout=_CALL_SECONDS)
        near = ray.get([slot.sees.remote(str(spec.log_folder.absolute())) for slot in slots], timeout=_CALL_SECONDS)
        if not all(near):
            far = hosts[near.index(False)]
            raise PlatformError(
                f"Ray placed a worker on {far[1]} ({far[0]}), which does not share this machine's files; a job's folders are "
                "not carried to other machines yet: use a cluster on this machine, or let both mount the same output and TMPDIR"
            )
        one = len({ip for ip, _ in hosts}) == 1  # a job on one machine listens on loopback only
        address = LOOPBACK if one else hosts[0][0]
        port = ray.get(slots[0].listen.remote(address, spec.workers + 8), timeout=_CALL_SECONDS)
        folder = spec.folder or _here()
        given = replace(spec, folder=folder)
        base = {k: v for k, v in environment.snapshot().items() if not k.startswith("RAY_")}
        locals_: dict[str, int] = {}
        calls = []
        for rank, (ip, _) in enumerate(hosts):
            extra: dict[str, str] = {"MASTER_ADDR": address}
            if not one:
                extra["LOCAL_RANK"] = str(locals_.setdefault(ip, 0))
                locals_[ip] += 1
            mine = replace(given, environment={**extra, **(spec.environment or {})})
            calls.append(slots[rank].start.remote(rank, mine, base, port, one))
        for rank, answer in enumerate(ray.get(calls, timeout=_CALL_SECONDS)):
            if "error" in answer:
                raise from_record(answer["error"])
            self._members.append(Member(rank, answer["pid"], hosts[rank][1]))
        for rank in range(len(slots)):
            self._ask(rank)

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """Return what happened, waiting at most `timeout_s` for something."""
        deadline = time.monotonic() + timeout_s
        found: list[Event | Exit] = []
        while self._asked:
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=left)
            for answer in ready:
                found += self._take(answer)
            if found or time.monotonic() >= deadline:
                break
        return found

    def stop(self, grace_s: float) -> None:
        """Ask all living workers to end; their slots kill those that live on after `grace_s`. 0 kills at once."""
        for rank in set(self._asked.values()):
            self._placed.slots[rank].stop.remote(grace_s)

    def dump(self, rank: int) -> None:
        """Ask one worker for its stacks."""
        if rank in self._asked.values():
            self._placed.slots[rank].dump.remote()

    def close(self) -> None:
        """Kill what still lives; give back slots, placement group and logs. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RayError):
            calls = [slot.close.remote() for slot in self._placed.slots]
            ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_SECONDS)
        for slot in self._placed.slots:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(slot)
        with contextlib.suppress(RayError):
            remove_placement_group(self._placed.group)
        self._asked.clear()
        for log in self._logs:
            log.close()

    def _ask(self, rank: int) -> None:
        self._asked[self._placed.slots[rank].poll.remote(_ASK_SECONDS)] = rank

    def _take(self, answer: Any) -> list[Event | Exit]:
        rank = self._asked.pop(answer)
        try:
            happened, text = ray.get(answer)
        except RayError:  # the actor's process, its raylet or its node is gone
            self._logs[rank].write(b"the worker's node or its Ray actor was lost\n")
            return [Exit(rank, -9, time.time())]
        self._logs[rank].write(text)
        if not any(isinstance(h, Exit) for h in happened):
            self._ask(rank)
        return list(happened)


@final
class Slot:
    """An actor: the place of one rank on a node."""

    def __init__(self) -> None:
        self._workers: LocalWorkers | None = None
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._pending: deque[Event | Exit] = deque()
        self._logs = tempfile.TemporaryDirectory(prefix="phalanx-slot-")
        self._log: BinaryIO | None = None
        self._asked_at = time.monotonic()
        threading.Thread(target=self._watch, name="phalanx-lease", daemon=True).start()

    def host(self) -> tuple[str, str]:
        """Return the node's address and name."""
        return ray.util.get_node_ip_address(), socket.gethostname()

    def sees(self, folder: str) -> bool:
        """Return whether a folder of the supervisor's is there on this node too."""
        return Path(folder).is_dir()

    def listen(self, address: str, backlog: int) -> int:
        """Listen for the group's store; return the port."""
        self._listener = socket.create_server((address, 0), backlog=backlog)
        return int(self._listener.getsockname()[1])

    def start(self, rank: int, spec: WorkerSpec, base: Mapping[str, str], port: int, one: bool) -> dict[str, Any]:
        """Start the worker; return its pid, or a record of what went wrong."""
        environment.replace(base)
        if not one:  # gloo is to use the interface of the node's address, which it finds by the host's name
            for_all = {**(spec.environment or {}), "GLOO_SOCKET_IFNAME": _interface(self.host()[0])}
            spec = replace(spec, environment=for_all)
        spec = replace(spec, log_folder=Path(self._logs.name))
        try:
            with self._lock:
                preload = () if spec.command is not None else spec.preload
                workers = LocalWorkers(acquire_server(preload, fork=True, apart=True))
                self._workers = workers
                keep = self._listener if spec.target is not None and spec.workers > 1 else None
                if keep is None:
                    self._stop_listening()
                workers.add(rank, spec, port, None if keep is None else keep.fileno())
                workers.await_pids()
                self._log = (Path(self._logs.name) / f"rank-{rank}.log").open("rb")
                return {"pid": workers.members[0].pid}
        except Exception as error:
            return {"error": to_record(error)}
        finally:
            self._stop_listening()

    def poll(self, timeout_s: float) -> tuple[list[Event | Exit], bytes]:
        """Return what happened and what was logged, waiting at most `timeout_s` for either."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._asked_at = time.monotonic()
            with self._lock:
                happened = [] if self._workers is None else list(self._workers.poll(_SLICE_SECONDS))
                last = any(isinstance(h, Exit) for h in happened)
                text = b"" if self._log is None else self._log.read() if last else self._log.read(_LOG_BYTES)
            if happened or text or time.monotonic() >= deadline:
                return happened, text
            time.sleep(0)  # a stop may want the lock

    def stop(self, grace_s: float) -> None:
        """Pass a stop on."""
        with self._lock:
            if self._workers is not None:
                self._workers.stop(grace_s)

    def dump(self) -> None:
        """Pass on that the worker is to write its stacks."""
        with self._lock:
            if self._workers is not None:
                self._workers.dump(0)

    def close(self) -> None:
        """End the worker and its server."""
        self._stop_listening()
        with self._lock:
            if self._workers is not None:
                self._workers.close()
                self._workers = None
            if self._log is not None:
                self._log.close()
                self._log = None
            close_servers()
            self._logs.cleanup()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _watch(self) -> None:
        """End a worker whose supervisor is gone or cut off: it must not go on beside the one that takes its place."""
        while time.monotonic() - self._asked_at < _LEASE_SECONDS or self._workers is None:
            time.sleep(_LEASE_CHECK_SECONDS)
        self.close()
        os._exit(1)


def _interface(address: str) -> str:
    """Return the name of the network interface that has an address."""
    import psutil

    for name, found in psutil.net_if_addrs().items():
        if any(a.address == address for a in found):
            return str(name)
    raise PlatformError(f"no network interface of this node has the address {address} that Ray knows it by")


def _here() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None
