"""Workers that start with their data in memory: forked from a process that is itself forked from the warm server.

The template process runs a preparation once (`module:function`, given a payload) and then forks workers as the warm server
does. What the preparation leaves in its modules every worker finds there, on pages that all share until one writes to them. It
may start no threads: a forked copy would wait for them for ever. Where the template cannot be had, or has ended, workers come
from the warm server, and prepare for themselves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import selectors
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from .. import environment
from ..contracts import Json, WorkerContext, Workers, WorkerSpec
from ..errors import PlatformError
from .asking import SpawnFds, send_request
from .forkserver import ForkServer, shield
from .local import LOOPBACK, LocalLauncher
from .warm import WarmServer, acquire_server

_TASKS = Path("/proc/self/task")
_END_SECONDS = 5.0
_DYING_SECONDS = 1.0  # in which a process that lost its workers is seen to end


@final
class PreparedLauncher:
    """`contracts.Launcher` for this machine; groups of one worker start prepared.

    Args:
        prepare: "module:function" that is called once with the payload; what it raises is passed over.
        payload: JSON value.
        preload: modules that the preparation and the workers need.
    """

    def __init__(self, prepare: str, payload: Json, preload: Sequence[str]) -> None:
        self._prepare = prepare
        self._payload = payload
        self._preload = tuple(preload)
        self._inner = LocalLauncher()
        self._template: Template | None = None
        self._lock = threading.Lock()

    def prepare(self, preload: Sequence[str]) -> None:
        """See `LocalLauncher.prepare`."""
        self._inner.prepare(preload)

    def begin(self) -> None:
        """Start the template process, which prepares itself; returns at once."""
        self._living()

    def start(self, spec: WorkerSpec) -> Workers:
        """See `LocalLauncher.start`."""
        template = self._living() if spec.workers == 1 and spec.command is None else None
        if template is None or not set(self._preload).issuperset(spec.preload):
            return self._inner.start(spec)
        try:
            return self._inner.start(spec, template)
        except PlatformError:
            if not template.ended(_DYING_SECONDS):
                raise
        return self._inner.start(spec)

    def dismiss(self) -> None:
        """Let the template process end, with every worker it has; `close` waits for it."""
        with self._lock:
            if self._template is not None:
                self._template.dismiss()

    def close(self) -> None:
        """End the template process and every worker it has."""
        with self._lock:
            if self._template is not None:
                self._template.close()

    def _living(self) -> Template | None:
        if sys.platform != "linux":  # elsewhere workers are not forked, or would outlive the template
            return None
        with self._lock:
            if self._template is None:
                self._template = Template(self._prepare, self._payload, self._preload)
            return self._template if self._template.alive() else None


@final
class Template:
    """The template process, seen from the launcher; stands in for the warm server."""

    def __init__(self, prepare: str, payload: Json, preload: Sequence[str]) -> None:
        self._server: WarmServer = acquire_server(preload, fork=True)
        self._lock = threading.Lock()
        self._closed = False
        self._socket, theirs = socket.socketpair()
        self._status, status = os.pipe()
        nobody, events = os.pipe()
        os.close(nobody)
        log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        place = environment.Placement(0, 1, 0, LOOPBACK, 0)
        variables = environment.worker_variables(place, threads=1, attempt=0)
        request = {
            "rank": 0,
            "size": 1,
            "local_rank": 0,
            "attempt": 0,
            "threads": 0,  # no library is told how many: that would start some of them
            "environment": {**environment.snapshot(), **variables},
            "target": "phalanx.launch.prepared:serve",
            "command": None,
            "payload": {"prepare": prepare, "payload": payload},
            "folder": None,
        }
        try:
            with theirs:
                self._server.spawn(request, SpawnFds(log, events, status, theirs.fileno()))
        except PlatformError:
            self._closed = True  # workers come from the next warm server
        finally:
            for fd in (events, status, log):
                os.close(fd)
        os.set_blocking(self._status, False)

    def alive(self) -> bool:
        """Return whether the process still runs."""
        return not self.ended(0.0)

    def ended(self, timeout_s: float) -> bool:
        """Return whether the process has ended, waiting at most so long for its end."""
        if self._closed:
            return True
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)  # it never writes there
        return bool(waiting.poll(timeout_s * 1e3))

    def spawn(self, request: dict[str, Any], fds: SpawnFds) -> None:
        """See `WarmServer.spawn`."""
        with self._lock:
            try:
                send_request(self._socket, request, fds)
            except OSError as error:
                raise self.lost(str(error)) from error

    def lost(self, seen: str) -> PlatformError:
        """See `WarmServer.lost`."""
        return PlatformError(f"the process that the sweep's workers are forked from has ended: {seen}")

    def release(self) -> None:
        """See `WarmServer.release`: it ends with `close`."""

    def dismiss(self) -> None:
        """Let the process end."""
        self._closed = True
        self._socket.close()

    def close(self) -> None:
        """End the process, and wait for it."""
        self.dismiss()
        self._await_exit()
        with contextlib.suppress(OSError):
            os.close(self._status)
        self._server.release()

    def _await_exit(self) -> None:
        """Wait until the status pipe has told of the end, but not for ever."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            while selector.select(_END_SECONDS):
                data = os.read(self._status, 4096)
                if not data or b'"code"' in data or b'"error"' in data:
                    return


def serve(context: WorkerContext) -> None:
    """Be the template process: prepare, then fork workers until the launcher's end of the socket is gone."""
    if context.store_fd is None:
        raise PlatformError("the template process was given no socket")
    shield()
    sock = socket.socket(fileno=context.store_fd)
    module, _, name = str(context.payload["prepare"]).partition(":")
    with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
        getattr(importlib.import_module(module), name)(context.payload["payload"])
    if len(list(_TASKS.iterdir())) > 1:
        return  # not safe to fork
    gc.collect()
    gc.freeze()
    ForkServer(sock, fork=True, parent_fd=None).serve()
