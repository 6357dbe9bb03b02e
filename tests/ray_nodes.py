"""Ray nodes that are machines of their own as far as the kernel can: network namespaces on a bridge, hidden folders.

The head is on the host's side of the bridge, where the tests run; the nodes have no way to each other or to the head but the
bridge, and do not see the folders that are hidden from them. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray

from phalanx.launch.ray_joining import _authenticate

_HEALTH = {
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_START_SECONDS = 90.0


@dataclass
class Machine:
    """A node in a namespace."""

    name: str
    ip: str
    namespace: str

    def processes(self) -> list[psutil.Process]:
        """Return all processes in its network namespace."""
        names = _run("ip", "netns", "pids", self.namespace).split()
        return [psutil.Process(int(pid)) for pid in names if psutil.pid_exists(int(pid))]

    def trains(self) -> bool:
        """Return whether a worker of a job, or the server that forks them, lives here."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any("phalanx.launch.forkserver" in part for part in process.cmdline()):
                    return True
        return False

    def kill(self) -> None:
        """Kill all of its processes at once, as a machine that loses power."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def kill_raylet(self) -> None:
        """Kill Ray's own process only: the workers live on."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == "raylet":
                    process.kill()

    def cut(self) -> None:
        """Cut its network; its processes live on."""
        _run("ip", "link", "set", f"{self.namespace}h", "down")

    def mend(self) -> None:
        """Give it its network back."""
        _run("ip", "link", "set", f"{self.namespace}h", "up")


@dataclass
class Machines:
    """The bridge, the head and the nodes."""

    tag: str
    net: str
    hidden: Sequence[Path]
    address: str = ""
    client: str = ""  # the same for Ray Client
    head: subprocess.Popen[bytes] | None = None
    nodes: list[Machine] = field(default_factory=list)

    @property
    def host(self) -> str:
        """The host's address on the bridge."""
        return f"{self.net}.1"

    def add(self, cpus: int = 1) -> Machine:
        """Add a node; it is there when Ray says so."""
        number = len(self.nodes) + 2
        space, ip = f"{self.tag}{number}", f"{self.net}.{number}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", f"{space}h", "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", f"{space}h", "master", self.tag, "up")
        for command in (["addr", "add", f"{ip}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]):
            _run("ip", "-n", space, *command)
        hide = "".join(f"mount -t tmpfs tmpfs '{folder}'; " for folder in (*self.hidden, "/tmp/ray"))
        start = f"exec {_ray()} start --address={self.address} --node-ip-address={ip} --node-name=machine-{number} "
        start += f"--num-cpus={cpus} --object-store-memory={100 << 20} --block"
        # left to itself: it may outlive the test that adds it
        process = _start(["setsid", "--fork", "ip", "netns", "exec", space, "sh", "-c", f"{hide}cd /; {start}"])
        process.wait()
        machine = Machine(f"machine-{number}", ip, space)
        self.nodes.append(machine)
        return machine

    def wait(self, count: int) -> None:
        """Wait until so many nodes live, the head among them."""
        deadline = time.monotonic() + _START_SECONDS
        while sum(node["Alive"] for node in ray.nodes()) != count:
            assert time.monotonic() < deadline, [(n["NodeName"], n["Alive"]) for n in ray.nodes()]
            time.sleep(0.2)

    def end_clients(self) -> None:
        """End what the head runs for each client, which outlives the client by some seconds."""
        if self.head is not None:
            for process in psutil.Process(self.head.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "--mode=specific-server" in process.cmdline():
                        process.kill()
                        process.wait(30)

    def close(self) -> None:
        """End everything."""
        for machine in self.nodes:
            while machine.processes():
                machine.kill()
                time.sleep(0.05)
        if self.head is not None:
            for process in [*psutil.Process(self.head.pid).children(recursive=True), psutil.Process(self.head.pid)]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.head.wait()
        for machine in self.nodes:
            _run("ip", "link", "del", f"{machine.namespace}h")
            _run("ip", "netns", "del", machine.namespace)
        _run("ip", "link", "del", self.tag)


@contextlib.contextmanager
def machines(count: int, *, hidden: Sequence[Path] = ()) -> Iterator[Machines]:
    """A Ray cluster of `count` nodes beside a head without CPUs, joined by this process.

    Args:
        count: nodes.
        hidden: folders that the nodes do not see.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"px{secrets.token_hex(2)}"
    made = Machines(tag, f"10.{77 + secrets.randbelow(100)}.{secrets.randbelow(250)}", hidden)
    _run("ip", "link", "add", tag, "type", "bridge")
    try:
        _run("ip", "addr", "add", f"{made.host}/24", "dev", tag)
        _run("ip", "link", "set", tag, "up")
        port = 20000 + secrets.randbelow(10000)
        made.address = f"{made.host}:{port}"
        made.client = f"ray://{made.host}:{port + 1}"
        head = f"start --head --node-ip-address={made.host} --port={port} --ray-client-server-port={port + 1} --node-name=head"
        head += f" --num-cpus=0 --include-dashboard=false --object-store-memory={100 << 20} --block"
        made.head = _start([_ray(), *head.split()])
        _join(made.address)
        for number in range(count):  # one after another: Ray gives up where a busy machine lets a start take too long
            made.add()
            made.wait(number + 2)
        yield made
    finally:
        ray.shutdown()
        made.close()


def _join(address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    host, _, port = address.rpartition(":")
    import socket

    while True:
        try:
            socket.create_connection((host, int(port)), 1.0).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "no head"
            time.sleep(0.2)
    _authenticate()
    while True:
        try:
            ray.init(address=address, _node_ip_address=host, log_to_driver=False, logging_level="ERROR")
            return
        except (ConnectionError, RuntimeError, ValueError):
            assert time.monotonic() < deadline, "the head cannot be joined"
            time.sleep(0.5)


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray")) if Path(sys.executable).with_name("ray").exists() else "ray"


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    return subprocess.Popen(
        command, env={**variables, **_HEALTH}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
