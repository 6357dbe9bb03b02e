"""`Neighbours`: ranks on one machine. Numbers pass through shared memory, a word on a socket says that they are there.

An exchange takes a few tens of microseconds, and no more of the cores, which on CPUs the ranks compute with; through TCP and
the threads of gloo it takes many times that. A rank that dies closes its sockets, whatever killed it: those who wait for it
read the end of a stream at once, as they would over TCP.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, final

import numpy as np

from .. import pulse
from ..contracts import Array
from ..errors import AlgorithmError, PlatformError
from .collective import Op, check_parts, pack, sparse_sum_by_owner, unpack

T = TypeVar("T")
Gather = Callable[[Any], list[Any]]  # collective: a JSON value of every rank, in rank order

MOST = 64  # ranks: each says a word to each
_MEMORY = 1 << 25  # bytes, of all ranks
_SLOT = 1 << 20  # bytes that a rank passes on at once, at most; there are two of them, in turns
_WHOLE = 1 << 15  # bytes up to which every rank adds up all; beyond, each adds up its share
_WORD = struct.Struct("=BBq")  # a call or a vote; which call; its bytes, or the flag
_CALL, _VOTE = 1, 2
_CALLS = ("all_reduce", "all_gather", "all_to_all", "broadcast", "barrier")
_REDUCE: dict[Op, Any] = {"sum": np.add, "min": np.minimum, "max": np.maximum}
_CREDENTIALS = struct.Struct("=iII")  # process, user, group


@final
class Neighbours:
    """`contracts.Collective` of the ranks of one machine (Linux); made by `meet`.

    A rank writes a call's data into its half of the memory that the call's number names, and says so to every other. It may
    write there again two calls later: by then all have said the word of the call between, and so have read.

    Args:
        rank: this rank.
        peers: a connected socket to every other rank.
        memory: of all ranks, the same.
        timeout_s: longest that a call waits for another rank.
        store: the key-value store that the ranks met through, None where there was none.
    """

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    @property
    def store(self) -> Any:
        """The key-value store that the ranks met through."""
        return self._store

    def __init__(
        self, rank: int, peers: dict[int, socket.socket], memory: mmap.mmap, timeout_s: float, store: Any = None
    ) -> None:
        self._rank, self._size = rank, len(peers) + 1
        self._peers = dict(sorted(peers.items()))
        self._store = store
        self._timeout_s = timeout_s
        self._slot = _slot_bytes(self._size)
        whole = np.frombuffer(memory, dtype=np.uint8).reshape(2, self._size, self._slot)
        self._halves = [list(half) for half in whole]
        self._turn = 0
        self._open = True
        self._early: dict[int, deque[int]] = {peer: deque() for peer in peers}  # votes that came while a call was waited for
        self._own_vote: int | None = None
        self._others: list[Neighbours] = []  # made by `another`
        for connection in self._peers.values():
            _limit(connection, timeout_s)
        _all.add(self)

    @classmethod
    def meet(cls, gather: Gather, rank: int, size: int, *, timeout_s: float = 600, store: Any = None) -> Self | None:
        """Collective. Return the collective of these ranks, None where they are not on one machine, on any of them.

        Args:
            gather: how ranks hear of each other until they are connected.
            rank: this rank.
            size: all ranks.
            timeout_s: longest that a later call waits for another rank.
            store: is kept for those who ask for it.

        Raises:
            PlatformError: a rank was lost meanwhile.
        """
        if size > MOST:
            return None
        listener = _listener(size)
        peers: dict[int, socket.socket] = {}
        memory: int | None = None
        try:
            cards = gather([_machine(), "" if listener is None else listener.getsockname().hex()])
            if not all(machine and listens and machine == cards[0][0] for machine, listens in cards):
                return None
            with contextlib.suppress(OSError):
                for other in range(rank):
                    peers[other] = _connected(bytes.fromhex(cards[other][1]), rank)
                memory = _memory(size) if rank == 0 else None
            able = len(peers) == rank and (rank > 0 or memory is not None)
            if not all(gather(able)) or listener is None:
                return None
            try:
                while len(peers) < size - 1:
                    other, peers_socket = _accepted(listener)
                    peers[other] = peers_socket
                mapped = _shared(memory, size, peers, timeout_s)
            except OSError as error:
                raise PlatformError(f"rank {rank} lost contact with another worker while they met: {error}") from error
            world = cls(rank, peers, mapped, timeout_s, store)
            peers = {}
        finally:
            for connection in peers.values():
                connection.close()
            if memory is not None:
                os.close(memory)
            if listener is not None:
                listener.close()
        world.barrier(timeout_s)  # nobody leaves, taking the store along, while another still reads there
        return world

    def another(self) -> Neighbours:
        """Collective. Return one more collective of the same ranks, whose calls may come between those of this one.

        It ends with this one.

        Raises:
            PlatformError: a rank was lost, or has no more memory.
        """
        found = type(self).meet(self.all_gather, self._rank, self._size, timeout_s=self._timeout_s)
        if found is None:
            raise PlatformError(f"rank {self._rank}: ranks of one machine that met before cannot share memory again")
        self._others.append(found)
        return found

    def all_reduce(self, x: Array, op: Op = "sum") -> Array:
        if x.dtype.kind not in ("biufc" if op == "sum" else "biuf"):
            raise TypeError(f"all_reduce({op}) cannot work on arrays of {x.dtype}")
        total = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
        self.reduce(total.reshape(-1), op)
        return total.astype(x.dtype, copy=False)

    def reduce(self, flat: Array, op: Op = "sum", *, factor: float | None = None) -> None:
        """Collective. Put the elementwise `op` over ranks, in their order, in the place of `flat` (n,), which is contiguous.

        Args:
            flat: this rank's numbers, and then the result.
            op: what is done with them.
            factor: that they are multiplied with before.
        """
        apply, rank = _REDUCE[op], self._rank
        step = self._slot // flat.itemsize
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            slots = [slot[: part.nbytes].view(part.dtype) for slot in self._next()]
            if factor is None:
                slots[rank][:] = part
            else:
                np.multiply(part, part.dtype.type(factor), out=slots[rank])
            sizes = self._say(0, flat.nbytes)
            if any(size != flat.nbytes for size in sizes):
                raise AlgorithmError(f"all_reduce needs the same shape and dtype on all ranks: got {sizes} bytes")
            if part.nbytes <= _WHOLE:
                _into(part, slots, apply)
                continue
            cuts = [len(part) * r // self._size for r in range(self._size + 1)]
            own = slice(cuts[rank], cuts[rank + 1])
            _into(part[own], [slot[own] for slot in slots], apply)
            slots[rank][own] = part[own]
            self._say(0, flat.nbytes)
            for r, slot in enumerate(slots):
                if r != rank:
                    part[cuts[r] : cuts[r + 1]] = slot[cuts[r] : cuts[r + 1]]

    def all_gather(self, value: T) -> list[T]:
        found: list[Array] = []
        for start, sizes, slots in self._rounds(1, pack(value)):
            found = found or [np.empty(size, dtype=np.uint8) for size in sizes]
            for got, slot in zip(found, slots, strict=True):
                got[start : start + len(slot)] = slot
        return [unpack(got.data) for got in found]

    def all_to_all(self, parts: Sequence[Array]) -> list[Array]:
        dtype = check_parts(parts, self._size)[0].dtype
        plans: list[Any] = self.all_gather({"dtype": dtype.str, "rows": [len(part) for part in parts]})
        if len({plan["dtype"] for plan in plans}) > 1:
            dtypes = ", ".join(str(plan["dtype"]) for plan in plans)
            raise AlgorithmError(f"all_to_all needs one dtype on all ranks: got {dtypes}")
        found = [np.empty(plan["rows"][self._rank], dtype=dtype) for plan in plans]
        begins = [dtype.itemsize * sum(plan["rows"][: self._rank]) for plan in plans]
        for start, _, slots in self._rounds(2, np.concatenate(parts).tobytes()):
            for got, begin, slot in zip(found, begins, slots, strict=True):
                first, last = max(begin, start), min(begin + got.nbytes, start + len(slot))
                if first < last:
                    got.view(np.uint8)[first - begin : last - begin] = slot[first - start : last - start]
        return found

    def sparse_sum(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return sparse_sum_by_owner(self, keys, values)

    def broadcast(self, value: T, root: int = 0) -> T:
        got: Array | None = None
        for start, sizes, slots in self._rounds(3, pack(value) if self._rank == root else b""):
            got = np.empty(sizes[root], dtype=np.uint8) if got is None else got
            got[start : start + len(slots[root])] = slots[root]
        assert got is not None
        result: T = unpack(got.data)
        return result

    def vote(self, flag: int) -> int:
        previous = 0
        if self._own_vote is not None:
            previous = max(self._own_vote, *(self._vote_of(peer) for peer in self._peers))
        self._own_vote = int(flag)
        word = _WORD.pack(_VOTE, 0, self._own_vote)
        for connection in self._peers.values():
            with contextlib.suppress(OSError):  # who is gone is missed when the vote is counted
                connection.send(word)
        return previous

    def barrier(self, timeout_s: float) -> None:
        if timeout_s == self._timeout_s:
            self._next()
            self._say(4, 0)
            return
        for connection in self._peers.values():
            _limit(connection, timeout_s)
        usual, self._timeout_s = self._timeout_s, timeout_s
        try:
            self.barrier(timeout_s)
        finally:
            self._timeout_s = usual
            for connection in self._peers.values():
                _limit(connection, usual)

    def cut(self) -> None:
        """End the connections, so that nobody waits for this rank, and keep all else: the collective is of no more use."""
        for world in (self, *self._others):
            for connection in world._peers.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave quietly. Peers that still wait for this rank learn at once that it is gone. Safe to call twice."""
        self._open, self._store = False, None
        for other in self._others:
            other.close()
        for connection in self._peers.values():
            connection.close()
        self._halves = []

    def _rounds(self, call: int, data: bytes) -> Iterator[tuple[int, list[int], list[Array]]]:
        """Pass `data` on, a slot at a time; yield where in it all are, the bytes of every rank, and what is in the slots."""
        mine = np.frombuffer(data, dtype=np.uint8)
        start = 0
        while True:
            slots = self._next()
            part = mine[start : start + self._slot]
            slots[self._rank][: len(part)] = part
            sizes = self._say(call, len(data))
            yield start, sizes, [slot[: max(0, size - start)] for slot, size in zip(slots, sizes, strict=True)]
            start += self._slot
            if start >= max(sizes):
                return

    def _next(self) -> list[Array]:
        """Return the slots of all ranks for the call that begins."""
        if not self._open:
            raise PlatformError(f"rank {self._rank} called a collective after its collective was closed")
        self._turn = 1 - self._turn
        return self._halves[self._turn]

    def _say(self, call: int, size: int) -> list[int]:
        """Tell all that this rank's data is there, and wait for theirs; return the bytes of every rank."""
        what = _CALLS[call]
        word = _WORD.pack(_CALL, call, size)
        sizes = [size] * self._size
        pulse.now.wait(what)
        try:
            for peer, connection in self._peers.items():
                try:
                    connection.send(word)
                except OSError as error:
                    raise self._lost(peer, what, "it is gone") from error
            for peer in self._peers:
                kind, theirs, value = self._hear(peer, what)
                while kind == _VOTE:
                    self._early[peer].append(value)
                    kind, theirs, value = self._hear(peer, what)
                if theirs != call:
                    raise AlgorithmError(
                        f"rank {self._rank} calls {what} where rank {peer} calls {_CALLS[theirs]}: calls must be the same"
                    )
                sizes[peer] = value
        finally:
            pulse.now.waited()
        return sizes

    def _vote_of(self, peer: int) -> int:
        if self._early[peer]:
            return self._early[peer].popleft()
        pulse.now.wait("vote")
        try:
            kind, call, value = self._hear(peer, "vote")
        finally:
            pulse.now.waited()
        if kind != _VOTE:
            raise AlgorithmError(f"rank {self._rank} votes where rank {peer} calls {_CALLS[call]}: calls must be the same")
        return value

    def _hear(self, peer: int, what: str) -> tuple[int, int, int]:
        """Return the next word of a peer."""
        connection = self._peers[peer]
        try:
            try:
                word = connection.recv(_WORD.size)
            except ConnectionResetError:  # it left without having heard all; what it said is there still
                word = connection.recv(_WORD.size)
        except BlockingIOError:
            raise self._lost(peer, what, f"timed out after {self._timeout_s:g} s") from None
        except OSError:
            word = b""
        if not word:
            why = "it is gone" if self._open else "this rank has left"
            raise self._lost(peer, what, why)
        return _WORD.unpack(word)

    def _lost(self, peer: int, what: str, why: str) -> PlatformError:
        if not self._open:
            return PlatformError(f"rank {self._rank} called {what} after its collective was closed")
        return PlatformError(f"rank {self._rank} lost contact with rank {peer} during {what}: {why}")


_all: weakref.WeakSet[Neighbours] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked process is no rank: would it hold the sockets, nobody learnt that the rank died."""
    for world in list(_all):
        for connection in world._peers.values():
            connection.close()


os.register_at_fork(after_in_child=_forget_in_child)


def _into(out: Array, parts: Sequence[Array], apply: Any) -> None:
    """Put `parts` together in their order."""
    apply(parts[0], parts[1], out=out)
    for part in parts[2:]:
        apply(out, part, out=out)


def _slot_bytes(size: int) -> int:
    return min(_SLOT, _MEMORY // (2 * size) // 4096 * 4096)


def _machine() -> str:
    """Return what processes have in common that can reach each other here and should; "" where they cannot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/net')} {os.getuid()}"
    except (OSError, AttributeError):
        return ""


def _listener(size: int) -> socket.socket | None:
    """Return a socket with a name that is in no file system and cannot be guessed, None where there are none such."""
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (AttributeError, OSError):
        return None
    try:
        listener.bind(b"\0phalanx-" + os.urandom(16))
        listener.listen(size)
    except OSError:
        listener.close()
        return None
    return listener


def _connected(address: bytes, rank: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(address)
        if not _is_own(connection):
            raise OSError("another user listens there")
        connection.send(_WORD.pack(_CALL, 0, rank))
    except OSError:
        connection.close()
        raise
    return connection


def _accepted(listener: socket.socket) -> tuple[int, socket.socket]:
    while True:
        connection, _ = listener.accept()
        hello = connection.recv(_WORD.size) if _is_own(connection) else b""
        if hello:
            return int(_WORD.unpack(hello)[2]), connection
        connection.close()


def _is_own(connection: socket.socket) -> bool:
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1]) == os.getuid()


def _memory(size: int) -> int:
    """Return a descriptor of memory for `size` ranks, all of it there: what is not would end who writes to it."""
    descriptor = os.memfd_create("phalanx")
    try:
        os.posix_fallocate(descriptor, 0, 2 * size * _slot_bytes(size))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _shared(memory: int | None, size: int, peers: dict[int, socket.socket], timeout_s: float) -> mmap.mmap:
    """Collective. Return the memory that rank 0 made, as all see it."""
    if memory is not None:
        for connection in peers.values():
            socket.send_fds(connection, [b"m"], [memory])
        return mmap.mmap(memory, 2 * size * _slot_bytes(size))
    _limit(peers[0], timeout_s)
    descriptors = socket.recv_fds(peers[0], 1, 1)[1]
    if not descriptors:
        raise OSError("rank 0 is gone")
    try:
        return mmap.mmap(descriptors[0], 2 * size * _slot_bytes(size))
    finally:
        os.close(descriptors[0])


def _limit(connection: socket.socket, timeout_s: float) -> None:
    seconds = max(timeout_s, 1e-6)  # zero would be no limit
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))
