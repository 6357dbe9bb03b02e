"""Solo, Threads and the torch collective pass the conformance suite; what is special to each is checked beside it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from phalanx.contracts import Collective
from phalanx.errors import AlgorithmError, PlatformError
from phalanx.parallel.collective import Solo
from phalanx.parallel.threads import run_threads
from phalanx.parallel.torch_collective import TorchCollective
from phalanx.testing.collective_checks import CollectiveChecks

T = TypeVar("T")


def run_torch(size: int, function: Callable[[Collective], T], timeout_s: float = 30, silence_s: float = 30) -> list[T]:
    """Run ranks as threads, each with its own gloo groups; the Threads collective only carries their results home."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store_fd = listener.detach()

    def rank_main(outer: Collective) -> T:
        fd = store_fd if outer.rank == 0 else None
        world = TorchCollective.open(outer.rank, size, "127.0.0.1", port, store_fd=fd, timeout_s=silence_s)
        try:
            return function(world)
        finally:
            world.close()

    return run_threads(size, rank_main, timeout_s=timeout_s)


class TestSolo(CollectiveChecks):
    sizes = (1,)

    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30) -> list[T]:
        assert size == 1
        return [function(Solo())]


class TestThreads(CollectiveChecks):
    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30) -> list[T]:
        return run_threads(size, function, timeout_s=timeout_s)

    def test_different_calls_are_named(self) -> None:
        def differ(world: Collective) -> None:
            if world.rank == 0:
                world.barrier(20)
            else:
                world.all_reduce(np.ones(1))

        with pytest.raises(AlgorithmError, match=r"calls (barrier|all_reduce\(sum\)) where another rank calls"):
            run_threads(2, differ)

    def test_different_shapes_are_named(self) -> None:
        with pytest.raises(AlgorithmError, match=r"same shape and dtype on all ranks: got \(1,\) float64, \(2,\) float64"):
            run_threads(2, lambda world: world.all_reduce(np.ones(world.rank + 1)))

    def test_the_first_failure_is_raised(self) -> None:
        def fail(world: Collective) -> None:
            if world.rank == 1:
                raise KeyError("the cause")
            world.barrier(20)

        with pytest.raises(KeyError, match="the cause"):
            run_threads(3, fail)

    def test_ranks_that_never_end_are_given_up(self) -> None:
        over = threading.Event()
        with pytest.raises(PlatformError, match=r"rank-0, rank-1 did not finish within 0\.2 s"):
            run_threads(2, lambda world: over.wait(20), timeout_s=0.2)
        over.set()


class TestTorch(CollectiveChecks):
    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30) -> list[T]:
        return run_torch(size, function, timeout_s)

    def test_an_open_without_peers_gives_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(PlatformError, match=r"rank 0 of 2 could not meet the other workers at 127.0.0.1:\d+ within 0.3 s"):
            TorchCollective.open(0, 2, "127.0.0.1", port, timeout_s=0.3)

    def test_a_silent_peer_is_noticed_at_the_time_limit(self) -> None:
        noticed = threading.Event()

        def wait_or_sleep(world: Collective) -> None:
            if world.rank == 1:
                assert noticed.wait(20)
                return
            try:
                world.all_reduce(np.ones(3))
            finally:
                noticed.set()

        with pytest.raises(PlatformError, match=r"rank 0 lost contact with another worker during all_reduce: .*[Tt]imed out"):
            run_torch(2, wait_or_sleep, silence_s=0.5)

    def test_ranks_of_a_closed_world_are_told(self) -> None:
        def use_after_close(world: Collective) -> None:
            world.close()
            world.all_reduce(np.ones(3))

        with pytest.raises(PlatformError, match="after its collective was closed"):
            run_torch(2, use_after_close)
