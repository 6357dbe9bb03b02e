"""Solo, Threads and the torch collective pass the conformance suite; what is special to each is checked beside it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from phalanx.contracts import Array, Collective
from phalanx.errors import AlgorithmError, PlatformError
from phalanx.parallel import neighbours
from phalanx.parallel.collective import Solo
from phalanx.parallel.joining import open_world
from phalanx.parallel.neighbours import Neighbours
from phalanx.parallel.threads import run_threads
from phalanx.parallel.torch_collective import TorchCollective
from phalanx.testing.collective_checks import CollectiveChecks

T = TypeVar("T")


def run_opened(
    opened: Callable[..., Collective],
    size: int,
    function: Callable[[Collective], T],
    timeout_s: float = 30,
    silence_s: float = 30,
) -> list[T]:
    """Run ranks as threads, each with connections of its own; the Threads collective only carries their results home."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store_fd = listener.detach()

    def rank_main(outer: Collective) -> T:
        fd = store_fd if outer.rank == 0 else None
        world = opened(outer.rank, size, "127.0.0.1", port, store_fd=fd, timeout_s=silence_s)
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


class MeetingChecks(CollectiveChecks):
    """Checks of collectives whose ranks meet at an address."""

    opened: Callable[..., Collective]
    lost: str  # what is told of a rank that is silent for half a second

    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30, silence_s: float = 30) -> list[T]:
        raise NotImplementedError

    def test_an_open_without_peers_gives_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(PlatformError, match=r"rank 0 of 2 could not meet the other workers at 127.0.0.1:\d+ within 0.3 s"):
            type(self).opened(0, 2, "127.0.0.1", port, timeout_s=0.3)

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

        with pytest.raises(PlatformError, match=self.lost):
            self.run(2, wait_or_sleep, silence_s=0.5)

    def test_ranks_of_a_closed_world_are_told(self) -> None:
        def use_after_close(world: Collective) -> None:
            world.close()
            world.all_reduce(np.ones(3))

        with pytest.raises(PlatformError, match="after its collective was closed"):
            self.run(2, use_after_close)


class TestTorch(MeetingChecks):
    opened = TorchCollective.open
    lost = r"rank 0 lost contact with another worker during all_reduce: .*[Tt]imed out"

    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30, silence_s: float = 30) -> list[T]:
        return run_opened(TorchCollective.open, size, function, timeout_s, silence_s)


def run_neighbours(size: int, function: Callable[[Collective], T], timeout_s: float = 30, silence_s: float = 30) -> list[T]:
    """Run ranks as threads that share memory and nothing else of this process."""

    def checked(world: Collective) -> T:
        assert size == 1 or isinstance(world, Neighbours)
        return function(world)

    def opened(rank: int, size: int, *place: object, **options: object) -> Collective:
        return Solo() if size == 1 else open_world(rank, size, *place, **options)  # type: ignore[arg-type]

    return run_opened(opened, size, checked, timeout_s, silence_s)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks of one machine share memory on Linux only")
class TestNeighbours(MeetingChecks):
    opened = staticmethod(open_world)
    lost = r"rank 0 lost contact with rank 1 during all_reduce: timed out after 0.5 s"

    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30, silence_s: float = 30) -> list[T]:
        return run_neighbours(size, function, timeout_s, silence_s)

    def test_different_calls_are_named(self) -> None:
        def differ(world: Collective) -> None:
            if world.rank == 0:
                world.barrier(20)
            else:
                world.all_reduce(np.ones(1))

        with pytest.raises(AlgorithmError, match=r"calls (barrier|all_reduce) where rank \d calls (barrier|all_reduce)"):
            run_neighbours(2, differ)

    def test_different_sizes_are_named(self) -> None:
        with pytest.raises(AlgorithmError, match="same shape and dtype on all ranks"):
            run_neighbours(2, lambda world: world.all_reduce(np.ones(world.rank + 1)))

    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("length", [neighbours._WHOLE // 8 + 1, neighbours._SLOT // 8, 3 * neighbours._SLOT // 8 + 5])
    def test_what_is_larger_than_a_slot_passes_in_pieces(self, size: int, length: int) -> None:
        arrays = [np.random.default_rng(rank).standard_normal(length) for rank in range(size)]

        def pass_on(world: Collective) -> tuple[Array, list[Array], Array, list[Array]]:
            own = arrays[world.rank]
            gathered = world.all_gather(own[: length - world.rank])
            return world.all_reduce(own), gathered, world.broadcast(own, root=1), world.all_to_all(np.array_split(own, size))

        total = arrays[0] + arrays[1] if size == 2 else arrays[0] + arrays[1] + arrays[2]
        for rank, (reduced, gathered, sent, exchanged) in enumerate(run_neighbours(size, pass_on)):
            np.testing.assert_array_equal(reduced, total)
            np.testing.assert_array_equal(sent, arrays[1])
            for other in range(size):
                np.testing.assert_array_equal(gathered[other], arrays[other][: length - other])
                np.testing.assert_array_equal(exchanged[other], np.array_split(arrays[other], size)[rank])

    def test_a_second_collective_has_calls_of_its_own(self) -> None:
        def cross(world: Collective) -> list[float]:
            assert isinstance(world, Neighbours)
            other = world.another()
            first, second = (world, other) if world.rank else (other, world)
            world.vote(1)
            found = [0.0, 0.0]

            def add(which: Collective, number: int) -> None:
                found[number] = float(which.all_reduce(np.full(1, 1.0 + number))[0])

            thread = threading.Thread(target=add, args=(first, int(first is other)))
            thread.start()
            add(second, int(second is other))
            thread.join(20)
            return found

        assert run_neighbours(2, cross) == [[2.0, 4.0]] * 2

    def test_a_rank_that_cuts_its_connections_is_missed(self) -> None:
        def cut_or_wait(world: Collective) -> str:
            assert isinstance(world, Neighbours)
            other = world.another()
            if world.rank:
                world.cut()
            with pytest.raises(PlatformError, match="lost contact with rank"):
                other.all_reduce(np.ones(1))
            return "missed"

        assert run_neighbours(2, cut_or_wait) == ["missed"] * 2

    def test_a_forked_process_does_not_hide_that_a_rank_is_gone(self) -> None:
        children: list[int] = []

        def fork_and_leave(world: Collective) -> None:
            world.barrier(20)
            if world.rank == 0:
                children.append(os.fork())
                if children[0] == 0:
                    signal.pause()
                    os._exit(0)
                world.close()
                return
            with pytest.raises(PlatformError, match="lost contact with rank 0"):
                world.all_reduce(np.ones(1))

        try:
            run_neighbours(2, fork_and_leave)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    @pytest.mark.parametrize("lacking", ["_listener", "_memory", "_machine"])
    def test_ranks_that_cannot_share_memory_meet_in_a_process_group(
        self, lacking: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def without(*_: object) -> object:
            if lacking == "_memory":
                raise OSError("no memory")
            return "" if lacking == "_machine" else None

        monkeypatch.setattr(neighbours, lacking, without)

        def total(world: Collective) -> float:
            assert isinstance(world, TorchCollective)
            return float(world.all_reduce(np.ones(1))[0])

        assert run_opened(open_world, 2, total) == [2.0, 2.0]
