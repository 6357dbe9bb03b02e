"""`TorchCollective`: ranks as processes that talk through a `torch.distributed` process group (gloo or NCCL).

The groups are objects of their own, not torch's global default group, so that nothing is read from the environment, several
may live in one process, and tests can run ranks as threads. Nothing is pickled.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar, final

import numpy as np
import torch
import torch.distributed as dist

from .. import pulse
from ..contracts import Array
from ..errors import AlgorithmError, PlatformError, UserError
from .collective import Op, check_parts, pack, sparse_sum_by_owner, unpack

T = TypeVar("T")
_FRAME = 1024  # bytes that the first exchange of a value carries: small values take one round trip
_c10d: Any = dist  # torch's stubs know neither its stores nor the options used here
_OPS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
_SIGN = np.uint64(1 << 63)


@final
class TorchCollective:
    """`contracts.Collective` over a process group; made by `open`.

    Args:
        store: the key-value store the groups met through; kept alive as long as they are.
        group: carries everything but votes.
        votes: a gloo group of its own, so that a vote may be under way while other calls run.
        device: where the tensors of `group` must live.
        timeout_s: longest that a call waits for the other ranks.
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

    def __init__(self, store: Any, group: Any, votes: Any, device: torch.device, timeout_s: float) -> None:
        self._store = store
        self._group = group
        self._votes = votes
        self._device = device
        self._timeout_s = timeout_s
        self._rank = int(group.rank())
        self._size = int(group.size())
        self._ballot: tuple[Any, torch.Tensor] | None = None  # the vote under way

    @classmethod
    def open(
        cls,
        rank: int,
        size: int,
        addr: str,
        port: int,
        *,
        store_fd: int | None = None,
        backend: Literal["gloo", "nccl"] = "gloo",
        timeout_s: float = 600,
    ) -> TorchCollective:
        """Collective. Meet the other ranks at `addr:port` and return the collective of all.

        Args:
            rank: this rank.
            size: all ranks.
            addr: where rank 0 listens. On a loopback address all traffic stays on it.
            port: where rank 0 listens.
            store_fd: on rank 0, a socket already listening at `addr:port`; it is taken over. Without one, rank 0 binds
                the port itself.
            backend: nccl moves arrays through the current CUDA device of each rank; votes stay on gloo.
            timeout_s: longest wait for the other ranks, here and in every later call.

        Raises:
            PlatformError: the others did not come in time.
            UserError: nccl was asked of a torch without it.
        """
        store = open_store(rank, size, addr, port, store_fd=store_fd, timeout_s=timeout_s)
        return cls.over(store, rank, size, addr, place=f"{addr}:{port}", backend=backend, timeout_s=timeout_s)

    @classmethod
    def over(
        cls,
        store: Any,
        rank: int,
        size: int,
        addr: str,
        *,
        place: str | None = None,
        backend: Literal["gloo", "nccl"] = "gloo",
        timeout_s: float = 600,
    ) -> TorchCollective:
        """Collective. Meet the other ranks through a store that all of them have; see `open`. `place` is for error texts."""
        if backend == "nccl" and not (dist.is_nccl_available() and torch.cuda.is_available()):
            raise UserError("backend=nccl needs GPUs and a torch built for them; use backend=gloo on CPUs")
        limit = timedelta(seconds=timeout_s)
        try:
            votes = _gloo(_c10d.PrefixStore("votes", store), rank, size, addr, limit)
            device = torch.device("cpu")
            if backend == "nccl":
                device = torch.device("cuda", torch.cuda.current_device())
                group = _c10d.ProcessGroupNCCL(_c10d.PrefixStore("calls", store), rank, size, limit)
            else:
                group = _gloo(_c10d.PrefixStore("calls", store), rank, size, addr, limit)
        except RuntimeError as error:
            raise not_met(rank, size, f"{place or addr} within {timeout_s:g} s", error) from error
        world = cls(store, group, votes, device, timeout_s)
        world.barrier(timeout_s)  # nobody leaves, not even with an error, while another still connects
        return world

    def all_reduce(self, x: Array, op: Op = "sum") -> Array:
        if x.size == 0 or self.size == 1:
            return np.array(x)
        carried = _to_carried(x, op)
        tensor = torch.from_numpy(carried).to(self._device)
        options = _c10d.AllreduceOptions()
        options.reduceOp = _OPS[op]
        self._finish(self._call("all_reduce", "allreduce", [tensor], options), "all_reduce")
        return _from_carried(tensor.cpu().numpy(), x, op)

    def all_gather(self, value: T) -> list[T]:
        data = pack(value)
        frames = self._gather_bytes(_frame(data), "all_gather")
        lengths = [_length(frame) for frame in frames]
        longest = max(lengths)
        if longest <= _FRAME - 8:
            return [unpack(frame[8 : 8 + length].data) for frame, length in zip(frames, lengths, strict=True)]
        if longest * self.size <= 2 * sum(lengths):
            padded = np.zeros(longest, dtype=np.uint8)
            padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
            gathered = self._gather_bytes(padded, "all_gather")
        else:  # few ranks hold nearly all: one after the other costs less than padding every rank to the longest
            gathered = [self._broadcast_bytes(data, length, root, "all_gather") for root, length in enumerate(lengths)]
        return [unpack(got[:length].data) for got, length in zip(gathered, lengths, strict=True)]

    def all_to_all(self, parts: Sequence[Array]) -> list[Array]:
        dtype = check_parts(parts, self.size)[0].dtype
        plans = self.all_gather({"dtype": dtype.str, "rows": [len(part) for part in parts]})
        dtypes = [str(plan["dtype"]) for plan in plans]
        rows = np.array([plan["rows"] for plan in plans], dtype=np.int64)  # (R, R): from rank, to rank
        if len(set(dtypes)) > 1:
            raise AlgorithmError(f"all_to_all needs one dtype on all ranks: got {', '.join(dtypes)}")
        if not rows.any():
            return [np.empty(0, dtype=dtype) for _ in plans]
        receive = rows[:, self.rank].tolist()
        width = dtype.itemsize
        sent = torch.from_numpy(np.concatenate(parts).view(np.uint8)).to(self._device)
        got = torch.empty(sum(receive) * width, dtype=torch.uint8, device=self._device)
        out_bytes, in_bytes = [n * width for n in receive], [len(part) * width for part in parts]
        self._finish(self._call("all_to_all", "alltoall_base", got, sent, out_bytes, in_bytes), "all_to_all")
        return np.split(got.cpu().numpy().view(dtype), np.cumsum(receive)[:-1])

    def sparse_sum(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return sparse_sum_by_owner(self, keys, values)

    def broadcast(self, value: T, root: int = 0) -> T:
        data = pack(value) if self.rank == root else b""
        frame = self._broadcast_bytes(bytes(_frame(data)), _FRAME, root, "broadcast")
        length = _length(frame)
        fits = length <= _FRAME - 8
        got = frame[8 : 8 + length] if fits else self._broadcast_bytes(data, length, root, "broadcast")
        result: T = unpack(got.data)
        return result

    def vote(self, flag: int) -> int:
        previous = self._count_ballot()
        tensor = torch.tensor([flag], dtype=torch.int64)
        options = _c10d.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        try:
            self._ballot = (self._votes.allreduce([tensor], options), tensor)
        except RuntimeError as error:
            raise self._lost("vote", error) from error
        return previous

    def barrier(self, timeout_s: float) -> None:
        options = _c10d.AllreduceOptions()
        options.timeout = timedelta(seconds=timeout_s)
        tensor = torch.zeros(1, device=self._device)
        work = self._call("barrier", "allreduce", [tensor], options)
        self._finish(work, f"barrier (limit {timeout_s:g} s)", timeout_s)

    def close(self) -> None:
        """Leave quietly. Peers that still wait for this rank learn at once that it is gone. Safe to call twice."""
        self._group = None
        votes, ballot, store = self._votes, self._ballot, self._store
        self._votes = self._ballot = self._store = None
        if ballot is None or ballot[0].is_completed():
            return
        # Dropping a group waits for what is under way in it, here a vote that a peer may cast late or never.
        holder: list[Any] = [votes, ballot, store]
        del votes, ballot, store
        threading.Thread(target=holder.clear, name="phalanx-last-vote", daemon=True).start()

    def _count_ballot(self) -> int:
        if self._ballot is None:
            return 0
        work, tensor = self._ballot
        self._ballot = None
        self._finish(work, "vote")
        return int(tensor.item())

    def _gather_bytes(self, data: Array, what: str) -> list[Array]:
        """Return the (n,) uint8 array of every rank; n is the same on all."""
        mine = torch.from_numpy(data).to(self._device)
        got = [torch.empty_like(mine) for _ in range(self.size)]
        self._finish(self._call(what, "allgather", [got], [mine]), what)
        return [tensor.cpu().numpy() for tensor in got]

    def _broadcast_bytes(self, data: bytes, length: int, root: int, what: str) -> Array:
        """Return the `length` bytes that rank `root` holds in `data`."""
        buffer = np.zeros(length, dtype=np.uint8)
        if self.rank == root:
            buffer[:] = np.frombuffer(data, dtype=np.uint8)
        tensor = torch.from_numpy(buffer).to(self._device)
        options = _c10d.BroadcastOptions()
        options.rootRank = root
        self._finish(self._call(what, "broadcast", [tensor], options), what)
        return tensor.cpu().numpy()

    def _call(self, what: str, method: str, *arguments: Any) -> Any:
        if self._group is None:
            raise PlatformError(f"rank {self.rank} called {what} after its collective was closed")
        try:
            return getattr(self._group, method)(*arguments)
        except RuntimeError as error:
            raise self._lost(what, error) from error

    def _finish(self, work: Any, what: str, timeout_s: float | None = None) -> None:
        pulse.now.wait(what)
        try:
            work.wait(timedelta(seconds=self._timeout_s if timeout_s is None else timeout_s))
            if self._device.type == "cuda":
                torch.cuda.current_stream().synchronize()  # a wait on NCCL work only orders streams
        except RuntimeError as error:
            raise self._lost(what, error) from error
        finally:
            pulse.now.waited()

    def _lost(self, what: str, error: RuntimeError) -> PlatformError:
        return PlatformError(f"rank {self.rank} lost contact with another worker during {what}: {lost_words(error)}")


def open_store(rank: int, size: int, addr: str, port: int, *, store_fd: int | None = None, timeout_s: float = 600) -> Any:
    """Return the key-value store at `addr:port`, which rank 0 keeps; see `TorchCollective.open`.

    Raises:
        PlatformError: rank 0 did not come in time.
    """
    try:
        return _c10d.TCPStore(
            addr,
            port,
            size,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=store_fd if rank == 0 else None,
        )
    except RuntimeError as error:
        raise not_met(rank, size, f"{addr}:{port} within {timeout_s:g} s", error) from error


def not_met(rank: int, size: int, place: str, error: RuntimeError) -> PlatformError:
    """Return the error of ranks that did not come."""
    return PlatformError(f"rank {rank} of {size} could not meet the other workers at {place}: {lost_words(error)}")


def _gloo(store: Any, rank: int, size: int, addr: str, limit: timedelta) -> Any:
    if not _is_loopback(addr):
        return _c10d.ProcessGroupGloo(store, rank, size, limit)  # picks the interface: GLOO_SOCKET_IFNAME, else the host name's
    group = _c10d.ProcessGroupGloo
    options = group._Options()
    options._devices = [group.create_device(hostname="127.0.0.1")]
    options._timeout = limit
    return group(store, rank, size, options)


def _is_loopback(addr: str) -> bool:
    try:
        return socket.gethostbyname(addr).startswith("127.")
    except OSError:
        return False


def _frame(data: bytes) -> Array:
    """Return `_FRAME` bytes: the length of `data`, and `data` itself when it fits."""
    frame = np.zeros(_FRAME, dtype=np.uint8)
    frame[:8] = np.frombuffer(np.int64(len(data)).tobytes(), dtype=np.uint8)
    if len(data) <= _FRAME - 8:
        frame[8 : 8 + len(data)] = np.frombuffer(data, dtype=np.uint8)
    return frame


def _length(frame: Array) -> int:
    return int(frame[:8].view(np.int64)[0])


def _to_carried(x: Array, op: Op) -> Array:
    """Return a copy of `x` in a dtype that gloo reduces, such that `_from_carried` gets numpy's result back."""
    native = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
    kind, width = native.dtype.kind, native.dtype.itemsize
    if kind == "b":
        return native.astype(np.int32)
    if kind in "iu" and width in (2, 4) and native.dtype != np.int32:
        return native.astype(np.int64)
    if native.dtype == np.uint64:  # the same bits add up alike; comparing needs the sign bit flipped
        return (native if op == "sum" else native ^ _SIGN).view(np.int64)
    if kind == "c" and op == "sum":
        return native.view(native.real.dtype)
    if kind in "iu" or native.dtype in (np.float16, np.float32, np.float64):
        return native
    raise TypeError(f"all_reduce({op}) cannot work on arrays of {x.dtype}")


def _from_carried(carried: Array, x: Array, op: Op) -> Array:
    if carried.dtype == x.dtype:
        return carried.reshape(x.shape)
    if x.dtype.kind == "c":
        return carried.view(x.dtype.newbyteorder("=")).reshape(x.shape).astype(x.dtype)
    if x.dtype.kind == "u" and x.dtype.itemsize == 8:
        bits = carried.view(np.uint64)
        return np.asarray(bits if op == "sum" else bits ^ _SIGN, dtype=x.dtype).reshape(x.shape)
    return carried.astype(x.dtype).reshape(x.shape)


def lost_words(error: RuntimeError) -> str:
    """Return the telling part of a torch error: without source lines, stack frames and advice."""
    first = str(error).split("This is typically")[0].split("Exception raised from")[0].strip().split("\n")[0]
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", first).rstrip(". ") or type(error).__name__
