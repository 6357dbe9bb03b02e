"""`hvd.init()` without `horovodrun`: the ranks of a world meet through a small key-value server that rank 0 runs.

Horovod's Gloo ranks exchange their addresses over HTTP: PUT and GET of /scope/key, 404 as long as nobody has put it. The server
lives in rank 0's process, listens where the other ranks can reach it, and takes no more than the group needs.
"""

from __future__ import annotations

import atexit
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final

import horovod.torch as hvd

from .. import environment
from ..contracts import Collective
from ..errors import PlatformError
from . import connections

_LARGEST = 1 << 20  # bytes of a value; addresses are some hundred
_LOOPBACK = "127.0.0.1"


@final
class _Store(ThreadingHTTPServer):
    """Keeps what ranks put."""

    daemon_threads = True

    def __init__(self, host: str) -> None:
        self.values: dict[str, bytes] = {}
        self.guard = threading.Lock()
        super().__init__((host, 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="phalanx-horovod-store", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop serving and give the port back."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request of a rank."""

    server: Any  # a _Store

    def do_PUT(self) -> None:
        """Keep a value."""
        length = int(self.headers.get("Content-Length", 0))
        if not 0 <= length <= _LARGEST:
            self._answer(413)
            return
        value = self.rfile.read(length)
        with self.server.guard:
            self.server.values[self.path] = value
        self._answer(200)

    def do_GET(self) -> None:
        """Return a value; 404 where nobody has put it yet."""
        with self.server.guard:
            value = self.server.values.get(self.path)
        self._answer(404 if value is None else 200, value or b"")

    def do_DELETE(self) -> None:
        """Note that a rank has finished with a scope."""
        self._answer(200)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_store: list[_Store] = []


def start(world: Collective, *, fusion_mb: float | None = None) -> None:
    """Collective. Initialise Horovod for the ranks of `world`, unless somebody has (horovodrun, the script).

    Args:
        world: the ranks.
        fusion_mb: gradients are exchanged in buffers of so many MiB; None: Horovod's default.

    Raises:
        PlatformError: the ranks could not meet.
    """
    if hvd.is_initialized():
        return
    if fusion_mb is not None:
        environment.set_variable("HOROVOD_FUSION_THRESHOLD", str(int(fusion_mb * 2**20)))
    if environment.get("HOROVOD_GLOO_RENDEZVOUS_ADDR") is None:
        for name, value in _variables(world).items():
            environment.set_variable(name, value)
    try:
        with connections.groups.noted():
            hvd.init()
    except Exception as error:
        raise PlatformError(f"rank {world.rank} of {world.size} could not start Horovod: {error}") from error
    atexit.register(stop)  # before Horovod's own, which would leave the server


def stop() -> None:
    """Leave Horovod and end the server. Safe to call twice."""
    if hvd.is_initialized():
        hvd.shutdown()
    while _store:
        _store.pop().end()
    for name in [n for n in environment.snapshot() if n.startswith("HOROVOD_GLOO_RENDEZVOUS")]:
        environment.unset_variable(name)


def _variables(world: Collective) -> dict[str, str]:
    """Collective. Return what Horovod reads: this rank's places, and where the server is."""
    machine = f"{socket.gethostname()}-{_boot()}"
    machines = world.all_gather(machine)
    distinct = list(dict.fromkeys(machines))
    alone = len(distinct) == 1
    place: dict[str, Any] = {}
    if world.rank == 0:
        host = _LOOPBACK if alone else _own_address()
        _store.append(_Store(host))
        place = {"host": host, "port": _store[-1].server_address[1]}
    place = world.broadcast(place)
    local = [rank for rank, other in enumerate(machines) if other == machine]
    found = {
        "HOROVOD_RANK": world.rank,
        "HOROVOD_SIZE": world.size,
        "HOROVOD_LOCAL_RANK": local.index(world.rank),
        "HOROVOD_LOCAL_SIZE": len(local),
        "HOROVOD_CROSS_RANK": distinct.index(machine),
        "HOROVOD_CROSS_SIZE": len(distinct),
        "HOROVOD_HOSTNAME": machine,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": place["host"],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": place["port"],
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if alone:
        found["HOROVOD_GLOO_IFACE"] = "lo"
    return {name: str(value) for name, value in found.items()}


def _boot() -> str:
    """Return what tells machines of one name apart."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()[:8]
    except OSError:
        return secrets.token_hex(4)


def _own_address() -> str:
    """Return the address by which other machines reach this one: that of the way to the group's meeting place."""
    place = environment.placement()
    target = place.master_addr if place else socket.gethostname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((socket.gethostbyname(target), 9))
        return str(probe.getsockname()[0])
