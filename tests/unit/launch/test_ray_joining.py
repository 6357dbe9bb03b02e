"""Where there is no Ray cluster, the user is told so at once."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("ray")

from phalanx.errors import UserError
from phalanx.launch.ray_joining import amounts, join

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_at_an_address(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"there is no Ray cluster at {scheme}127.0.0.1:{port}: .*phalanx cluster up"):
        join(f"{scheme}127.0.0.1:{port}", 1.0)


def test_amounts() -> None:
    given = {"node:10.0.0.1": 1.0, "memory": float(3 << 30), "CPU": 2.0, "object_store_memory": 1.0, "tpu": 4.0}
    assert amounts(given) == "CPU 2, memory 3.0 GiB, tpu 4"
    assert amounts({}) == "nothing"
