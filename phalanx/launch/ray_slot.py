"""The actor of the Ray launcher: the place of one rank on a node, where it runs its worker as `launch.local` would."""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, final

import ray

from .. import environment
from ..contracts import Event, Exit, WorkerSpec
from ..errors import PlatformError, to_record
from . import carrying
from .interfaces import interface_of
from .local import LocalWorkers
from .warm import acquire_server, close_servers

LEASE_SECONDS = 30.0  # a slot that hears nothing of its supervisor for so long ends its worker and itself
ASK_SECONDS = 2.0  # how long a slot may wait for something to tell
_LEASE_CHECK_SECONDS = 1.0
_SLICE_SECONDS = 0.05  # how long a stop may wait for a slot that listens to its worker
_LOG_BYTES = 1 << 22
_CHUNK = 16 << 20
_MIRROR_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where a slot is."""

    node: str  # Ray's id of it
    name: str  # for people
    ip: str
    sees: bool  # the files of the supervisor's machine
    hidden: Sequence[str]  # paths that the worker needs and this node does not see
    python: str  # version


@dataclass(frozen=True, slots=True)
class Start:
    """What a slot is to start.

    Attributes:
        rank: of the worker.
        spec: the group.
        base: the supervisor's environment.
        place: of the worker.
        extra: variables of the group's.
        interface: address whose network interface gloo is to use; None: loopback.
        executable: the supervisor's interpreter.
        own: the node's own variables, interpreter and working directory count, for it is not the supervisor's machine.
    """

    rank: int
    spec: WorkerSpec
    base: Mapping[str, str]
    place: environment.Placement
    extra: Mapping[str, str]
    interface: str | None
    executable: str
    own: bool


@final
class Slot:
    """The place of one rank."""

    def __init__(self) -> None:
        self._workers: LocalWorkers | None = None
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._pending: deque[Event | Exit] = deque()
        self._logs = tempfile.TemporaryDirectory(prefix="phalanx-slot-")
        self._log: BinaryIO | None = None
        self._received: Path | None = None
        self._results: BinaryIO | None = None
        self._mirror: carrying.Mirror | None = None
        self._mirror_at = 0.0
        self._asked_at = time.monotonic()
        self._started = False
        self._own = environment.snapshot()
        threading.Thread(target=self._watch, name="phalanx-lease", daemon=True).start()

    def site(self, marker: str, needed: Sequence[str]) -> Site:
        """Return where this is.

        Args:
            marker: a folder of the supervisor's machine that no other machine has by chance.
            needed: paths that the worker reads.
        """
        context = ray.get_runtime_context()
        node = context.get_node_id()
        found = [about for about in ray.nodes() if about["NodeID"] == node]
        ip = ray.util.get_node_ip_address()
        name = str(found[0]["NodeName"]) if found else ip
        hidden = [path for path in needed if not Path(path).exists()]
        return Site(
            node, socket.gethostname() if name == ip else name, ip, Path(marker).is_dir(), hidden, platform.python_version()
        )

    def receive(self, parcel: bytes, folder: str, mirrored: Sequence[str]) -> None:
        """Unpack the supervisor's folder where it is there, too.

        Args:
            parcel: the folder, packed.
            folder: where.
            mirrored: names below it; what changes in these is told by `poll`.

        Raises:
            PlatformError: it cannot be made here.
        """
        try:
            carrying.unpack(parcel, Path(folder))
        except OSError as error:
            raise PlatformError(
                f"{folder} cannot be made on {socket.gethostname()}: {error.strerror}; set TMPDIR to a folder "
                "that can be made on all nodes"
            ) from None
        self._received = Path(folder)
        self._mirror = carrying.Mirror(self._received, mirrored) if mirrored else None

    def listen(self, address: str, backlog: int) -> int:
        """Listen for the group's store; return the port."""
        self._listener = socket.create_server((address, 0), backlog=backlog)
        return int(self._listener.getsockname()[1])

    def start(self, given: Start) -> dict[str, Any]:
        """Start the worker; return its pid, or a record of what went wrong."""
        spec = self._placed(given)
        try:
            with self._lock:
                preload = () if spec.command is not None else spec.preload
                workers = LocalWorkers(acquire_server(preload, fork=True, apart=True))
                self._workers = workers
                keep = self._listener if spec.target is not None and spec.workers > 1 else None
                if keep is None:
                    self._stop_listening()
                store = None if keep is None else keep.fileno()
                interface = "lo" if given.interface is None else interface_of(given.interface)
                workers.add(given.rank, spec, given.place.master_port, store, place=given.place, interface=interface)
                workers.await_pids()
                self._log = (Path(self._logs.name) / f"rank-{given.rank}.log").open("rb")
                self._asked_at = time.monotonic()
                self._started = True  # from now on it is asked for
                return {"pid": workers.members[0].pid}
        except Exception as error:
            return {"error": to_record(error)}
        finally:
            self._stop_listening()

    def _placed(self, given: Start) -> WorkerSpec:
        """Return the group as its worker here is to see it; set this process's environment, which the worker inherits."""
        mine = {name: value for name, value in self._own.items() if not name.startswith("RAY_")}
        if given.own:
            environment.replace({**given.base, **mine})
        else:
            seen = {name: value for name, value in mine.items() if name == "CUDA_VISIBLE_DEVICES"}
            environment.replace({**given.base, **seen})
        spec = given.spec
        command, folder = spec.command, spec.folder
        if given.own and command is not None and command[0] == given.executable:
            command = [sys.executable, *command[1:]]
        if folder is None or (given.own and not folder.exists()):
            folder = Path.cwd()
        return replace(
            spec,
            command=command,
            forked=None,  # the warm server is as new as the worker: nothing is loaded in it yet
            folder=folder,
            log_folder=Path(self._logs.name),
            environment={**given.extra, **(spec.environment or {})},
        )

    def poll(self, timeout_s: float) -> tuple[list[Event | Exit], bytes, list[tuple[str, bytes]]]:
        """Return what happened, what was logged and which files changed, waiting at most `timeout_s` for the first two."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._asked_at = time.monotonic()
            with self._lock:
                happened = [] if self._workers is None else list(self._workers.poll(_SLICE_SECONDS))
                last = any(isinstance(h, Exit) for h in happened)
                text = b"" if self._log is None else self._log.read() if last else self._log.read(_LOG_BYTES)
            if happened or text or time.monotonic() >= deadline:
                return happened, text, self._changed()
            time.sleep(0)  # a stop may want the lock

    def _changed(self) -> list[tuple[str, bytes]]:
        """Return what changed in the mirrored folders, every few seconds."""
        if self._mirror is None or time.monotonic() < self._mirror_at:
            return []
        self._mirror_at = time.monotonic() + _MIRROR_SECONDS
        return self._mirror.changes()

    def keep(self) -> None:
        """Stay, though the worker has ended: what it left may still be asked for."""
        self._asked_at = time.monotonic()

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

    def results(self, names: Sequence[str]) -> int:
        """Pack what workers here have left below the received folder; return its bytes, to be asked for in pieces."""
        self._asked_at = time.monotonic()
        if self._received is None:
            return 0
        packed = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        self._results = packed
        carrying.pack_results(self._received, names, packed)
        return packed.seek(0, os.SEEK_END)

    def piece(self, offset: int) -> bytes:
        """Return a piece of the results."""
        self._asked_at = time.monotonic()
        if self._results is None:
            return b""
        self._results.seek(offset)
        return self._results.read(_CHUNK)

    def close(self) -> None:
        """End the worker and its server; remove what was received."""
        self._stop_listening()
        with self._lock:
            if self._workers is not None:
                self._workers.close()
                self._workers = None
            for file in (self._log, self._results):
                if file is not None:
                    file.close()
            self._log = self._results = None
            close_servers()
            self._logs.cleanup()
            if self._received is not None:
                carrying.remove(self._received)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _watch(self) -> None:
        """End a worker whose supervisor is gone or cut off: it must not go on beside the one that takes its place."""
        while time.monotonic() - self._asked_at < LEASE_SECONDS or not self._started:
            time.sleep(_LEASE_CHECK_SECONDS)
        self.close()
        os._exit(1)
