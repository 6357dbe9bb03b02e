"""What every collective shares: `Solo`, `together`, how a value becomes bytes without pickle, the sparse sum."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, final

import numpy as np

from ..contracts import Array, Collective
from ..errors import PhalanxError, UserError, error_of_kind, to_record

T = TypeVar("T")
Op = Literal["sum", "min", "max"]
_LONGEST_HEAD = 2048  # bytes; numpy allows 64 axes


@final
class Solo:
    """`contracts.Collective` of one rank: every call is the identity."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    def __init__(self) -> None:
        self._vote = 0

    def all_reduce(self, x: Array, op: Op = "sum") -> Array:
        return np.array(x)

    def all_gather(self, value: T) -> list[T]:
        return [value]

    def all_to_all(self, parts: Sequence[Array]) -> list[Array]:
        return list(check_parts(parts, 1))

    def sparse_sum(self, keys: Array, values: Array) -> tuple[Array, Array]:
        return merge(keys, values)

    def broadcast(self, value: T, root: int = 0) -> T:
        return value

    def vote(self, flag: int) -> int:
        previous, self._vote = self._vote, int(flag)
        return previous

    def barrier(self, timeout_s: float) -> None:
        """Return at once: everybody is here."""

    def close(self) -> None:
        """Do nothing: there is nobody to leave."""


def together(world: Collective, what: str, action: Callable[[], T]) -> T:
    """Collective. Run `action` on every rank and return its value; when it fails on any rank, every rank raises.

    A rank that failed raises its own error; the others raise one of the same kind that names the lowest failing rank. A
    user error of any rank beats other kinds, so that the user's mistake is what the job reports.

    Args:
        world: the ranks.
        what: what is being done, for the error text ("opening channel 'train'").
        action: must make no collective calls itself: a rank that fails before such a call would leave its peers waiting.
    """
    own: Exception | None = None
    value: T | None = None
    try:
        value = action()
    except Exception as error:
        own = error
    if world.size == 1:
        if own is not None:
            raise own
        return value  # type: ignore[return-value]
    record = None if own is None else to_record(own)
    try:
        records = world.all_gather(record)
    except PhalanxError:
        if own is not None:
            raise own from None  # the peers are gone as well; what happened here is worth more
        raise
    failed = [(rank, found) for rank, found in enumerate(records) if found is not None]
    if not failed:
        return value  # type: ignore[return-value]
    rank, cause = min(failed, key=lambda item: (item[1]["kind"] != UserError.kind, item[0]))
    if own is not None and record is not None and record["kind"] == cause["kind"]:
        raise own
    error_of_rank = error_of_kind(cause["kind"], f"rank {rank}, {what}: {cause['message']}")
    error_of_rank.details = cause["details"]
    raise error_of_rank from own


def merge(keys: Array, values: Array) -> tuple[Array, Array]:
    """Return the distinct `keys` (n,) ascending and, for each, the sum of its rows of `values` (n, …) in their order."""
    keys = np.asarray(keys, dtype=np.int64)
    if keys.ndim != 1 or len(keys) != len(values):
        raise ValueError(f"sparse_sum needs as many keys as rows of values: got keys {keys.shape}, values {values.shape}")
    if len(keys) == 0:
        return keys.copy(), values.copy()
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(values[order], starts, axis=0, dtype=values.dtype)


def sparse_sum_by_owner(world: Collective, keys: Array, values: Array) -> tuple[Array, Array]:
    """Collective. `sparse_sum` made of `all_to_all` and `all_gather`: rank `key % size` adds up the rows of its keys.

    Every key is added up in one place, in rank order, so all ranks get the same bits.
    """
    keys, values = merge(keys, values)
    owner = keys % world.size
    mine = [np.flatnonzero(owner == rank) for rank in range(world.size)]
    got_keys = world.all_to_all([keys[rows] for rows in mine])
    got_values = world.all_to_all([values[rows].ravel() for rows in mine])
    own_keys, own_values = merge(np.concatenate(got_keys), np.concatenate(got_values).reshape(-1, *values.shape[1:]))
    all_keys = np.concatenate(world.all_gather(own_keys))
    all_values = np.concatenate(world.all_gather(own_values))
    order = np.argsort(all_keys, kind="stable")
    return all_keys[order], all_values[order]


def check_parts(parts: Sequence[Array], size: int) -> Sequence[Array]:
    """Return `parts` if `all_to_all` can send them: one 1-d array a rank, of one dtype."""
    shapes, dtypes = {part.ndim for part in parts}, {part.dtype for part in parts}
    if len(parts) != size or shapes != {1} or len(dtypes) != 1:
        raise ValueError(f"all_to_all needs {size} 1-d arrays of one dtype: got {[(p.shape, str(p.dtype)) for p in parts]}")
    return parts


def pack(value: Any) -> bytes:
    """Return an array or a JSON value as bytes: a line of JSON that says what follows, then the data."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"collectives carry arrays of numbers and JSON values, not arrays of {value.dtype}")
        head = json.dumps({"dtype": value.dtype.str, "shape": value.shape})
        return head.encode() + b"\n" + value.tobytes()
    try:
        return b"{}\n" + json.dumps(value, separators=(",", ":")).encode()
    except TypeError as error:
        raise TypeError(f"collectives carry arrays and JSON values, not this {type(value).__name__}: {error}") from None


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """Return the value that `pack` made bytes of; an array owns its memory."""
    end = bytes(data[:_LONGEST_HEAD]).index(b"\n")
    head = json.loads(bytes(data[:end]))
    if "dtype" not in head:
        return json.loads(bytes(data[end + 1 :]))
    return np.frombuffer(data, dtype=np.dtype(head["dtype"]), offset=end + 1).reshape(head["shape"]).copy()
