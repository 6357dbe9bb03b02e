"""`Threads`: ranks as threads of one process, for tests: no ports, no processes, ready at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

import numpy as np

from ..contracts import Array
from ..errors import AlgorithmError, PlatformError
from .collective import Op, check_parts, pack, sparse_sum_by_owner, unpack

T = TypeVar("T")
_REDUCE: dict[Op, Any] = {"sum": np.add, "min": np.minimum, "max": np.maximum}


@dataclass(slots=True)
class _Call:
    """One collective call: its name and what each rank brought."""

    name: str
    brought: dict[int, bytes] = field(default_factory=dict)
    taken: int = 0


class _Hub:
    """The place where threads meet; every call has a key that is the same on all ranks."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self._changed = threading.Condition()
        self._calls: dict[tuple[str, int], _Call] = {}
        self._gone: dict[int, str] = {}

    def bring(self, rank: int, key: tuple[str, int], name: str, data: bytes) -> None:
        """Put `data` down for the others; never waits."""
        with self._changed:
            call = self._calls.setdefault(key, _Call(name))
            if call.name != name:
                raise AlgorithmError(f"rank {rank} calls {name} where another rank calls {call.name}: calls must be the same")
            call.brought[rank] = data
            self._changed.notify_all()

    def take(self, rank: int, key: tuple[str, int], timeout_s: float | None = None) -> list[bytes]:
        """Wait for what all ranks bring and return it in rank order."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        with self._changed:
            call = self._calls[key]
            self._changed.wait_for(lambda: self._settled(call), timeout=limit)
            missing = [r for r in range(self.size) if r not in call.brought]
            if missing:
                why = next((self._gone[r] for r in missing if r in self._gone), f"it was silent for {limit:g} s")
                raise PlatformError(f"rank {rank} lost contact with rank {missing[0]} during {call.name}: {why}")
            call.taken += 1
            if call.taken == self.size:
                del self._calls[key]
            return [call.brought[r] for r in range(self.size)]

    def leave(self, rank: int, why: str) -> None:
        """Rank `rank` will make no more calls; whoever waits for it learns so."""
        with self._changed:
            self._gone.setdefault(rank, why)
            self._changed.notify_all()

    def _settled(self, call: _Call) -> bool:
        return len(call.brought) == self.size or any(r not in call.brought for r in self._gone)


@final
class Threads:
    """`contracts.Collective` of one thread; `run_threads` makes them."""

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._hub.size

    def __init__(self, hub: _Hub, rank: int) -> None:
        self._hub = hub
        self._rank = rank
        self._calls = 0
        self._votes = 0

    def all_reduce(self, x: Array, op: Op = "sum") -> Array:
        brought = [unpack(data) for data in self._exchange(f"all_reduce({op})", pack(x))]
        if len({(other.shape, other.dtype) for other in brought}) > 1:
            shapes = ", ".join(f"{other.shape} {other.dtype}" for other in brought)
            raise AlgorithmError(f"all_reduce needs the same shape and dtype on all ranks: got {shapes}")
        total = brought[0]
        for other in brought[1:]:
            total = np.asarray(_REDUCE[op](total, other), dtype=x.dtype)
        return np.asarray(total)

    def all_gather(self, value: T) -> list[T]:
        return [unpack(data) for data in self._exchange("all_gather", pack(value))]

    def all_to_all(self, parts: Sequence[Array]) -> list[Array]:
        check_parts(parts, self.size)
        flat = np.concatenate(parts)
        lengths = [unpack(data) for data in self._exchange("all_to_all", pack([len(part) for part in parts]))]
        sent = [unpack(data) for data in self._exchange("all_to_all", pack(flat))]
        starts = [sum(counts[: self.rank]) for counts in lengths]
        pairs = zip(sent, starts, lengths, strict=True)
        return [data[start : start + counts[self.rank]] for data, start, counts in pairs]

    def sparse_sum(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return sparse_sum_by_owner(self, keys, values)

    def broadcast(self, value: T, root: int = 0) -> T:
        mine = pack(value if self.rank == root else None)
        result: T = unpack(self._exchange(f"broadcast from {root}", mine)[root])
        return result

    def vote(self, flag: int) -> int:
        self._hub.bring(self.rank, ("vote", self._votes), "vote", pack(int(flag)))
        self._votes += 1
        if self._votes == 1:
            return 0
        return max(int(unpack(data)) for data in self._hub.take(self.rank, ("vote", self._votes - 2)))

    def barrier(self, timeout_s: float) -> None:
        self._exchange("barrier", b"", timeout_s)

    def close(self) -> None:
        self._hub.leave(self.rank, "it has left")

    def _exchange(self, name: str, data: bytes, timeout_s: float | None = None) -> list[bytes]:
        key = ("call", self._calls)
        self._calls += 1
        self._hub.bring(self.rank, key, name, data)
        return self._hub.take(self.rank, key, timeout_s)


def run_threads(size: int, function: Callable[[Threads], T], timeout_s: float = 60) -> list[T]:
    """Run `function(world)` on `size` ranks, each in a thread; return what they returned, in rank order.

    Args:
        size: ranks.
        function: what a rank does.
        timeout_s: longest that all of it may take, and longest that a rank waits for another.

    Raises:
        BaseException: what the first failing rank raised; the others were told that it is gone.
    """
    hub = _Hub(size, timeout_s)
    results: dict[int, T] = {}
    failures: list[BaseException] = []

    def rank_main(rank: int) -> None:
        try:
            results[rank] = function(Threads(hub, rank))
            hub.leave(rank, "it has finished")
        except BaseException as error:
            failures.append(error)  # before the others hear of it, so that the cause comes first
            hub.leave(rank, f"it failed: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=rank_main, args=(r,), name=f"rank-{r}", daemon=True) for r in range(size)]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    if failures:
        raise failures[0]
    stuck = [thread.name for thread in threads if thread.is_alive()]
    if stuck:
        raise PlatformError(f"{', '.join(stuck)} did not finish within {timeout_s:g} s")
    return [results[rank] for rank in range(size)]
