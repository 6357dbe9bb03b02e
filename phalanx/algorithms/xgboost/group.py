"""The ranks of a world as XGBoost's own communicator: its tracker, joining, leaving, and whose error counts."""

from __future__ import annotations

import ctypes
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from xgboost import collective, config_context
from xgboost.core import _LIB, XGBoostError
from xgboost.tracker import RabitTracker

from ... import environment
from ...contracts import Array, Collective
from ...errors import AlgorithmError, PhalanxError, PlatformError, Stopped, UserError, from_record, to_record
from ...parallel.collective import together
from ...parallel.connections import Connections

T = TypeVar("T")
_JOIN_S = 120  # for all ranks to come and to leave
_AGREE_S = 60  # that a rank which failed waits for the others before it says so alone
_TRACKER_S = 0.002  # that its thread takes to run: asked before, the library waits for 0.1 s
_LEAVE_S = 10  # that ranks which failed wait for each other when they leave
_SILENCE_S = 1800  # longest that a rank may keep the others waiting, e.g. while it reads its rows
_JOINED = re.compile(r"^(\[[\d:]+\] )?Task \d+ got rank \d+$")
_LOST = ("/collective/", "Allreduce failed", "Connection reset", "Broken pipe")
_USERS = (
    "arameter",
    "label",
    "Label",
    "objective",
    "metric",
    "`inf`",
    "constraint",
    "support",
    "base_score",
    "weight",
    "group",
)


def in_group(world: Collective, body: Callable[[], T]) -> T:
    """Collective. Run `body` on every rank inside XGBoost's communicator; an error of one rank reaches all.

    Within `body` ranks must wait for each other in XGBoost's communicator only (and in votes): a rank that fails resets its
    connections, which frees the others from their waiting, and then all compare what happened. Only then do they leave: that
    asks the tracker, which may be gone.
    """
    if world.size == 1:
        try:
            return body()
        except Exception as error:
            _let_go(error)
            if isinstance(error, XGBoostError):
                raise translated(error) from error
            raise
    own: Exception | None = None
    value: T | None = None
    connections = Connections()
    with _tracker(world) as arguments:
        with connections.noted():
            together(world, "joining the workers of xgboost", lambda: _join(world.rank, arguments))
        try:
            value = body()
        except Exception as error:
            _let_go(error)
            own = translated(error)
        is_failure = own is not None and not isinstance(own, Stopped)  # all stop at one step, and some may not be there yet
        stays = is_failure and connections.reset(int(arguments["dmlc_tracker_port"]))
        if not stays:
            _leave()
        try:
            _agree(world, own)  # also keeps the tracker alive until the last rank has left
        except Exception:
            if stays:
                _leave()
            with suppress(PhalanxError):
                world.barrier(_LEAVE_S)
            raise
    return value  # type: ignore[return-value]


def add_up(x: Array) -> Array:
    """Collective. Return the sum of `x` over the ranks of the communicator; on its own a rank gets `x`."""
    x = np.asarray(x, dtype=np.float64)
    if not collective.is_distributed():
        return x
    return np.asarray(collective.allreduce(x, collective.Op.SUM)).reshape(x.shape)


def translated(error: Exception) -> Exception:
    """Return an error of the library as one of ours, told in its first meaningful line; others stay as they are."""
    if not isinstance(error, XGBoostError):
        return error
    text = str(error)
    told = first_line(text)
    kind: type[PhalanxError]
    if any(sign in text for sign in _LOST):
        kind, told = PlatformError, f"lost contact with another worker during training: {told}"
    elif "bad_alloc" in text or "ut of memory" in text:
        kind, told = PlatformError, f"out of memory in xgboost: {told}"
    else:
        kind = UserError if any(sign in told for sign in _USERS) else AlgorithmError
        told = f"xgboost: {told}"
    result = kind(told)
    result.__cause__ = error
    return result


def first_line(text: str) -> str:
    """Return what a message of the library says, without its time, source lines, checks and stack."""
    for line in text.split("\n"):
        line = re.sub(r"\[?[\w.]+:\d+\|\d\d:\d\d:\d\d\]:?", "", re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+:", "", line))
        line = re.sub(r"^\s*(Check failed: .*?: )?[-\s]*", "", line).strip().rstrip(":")
        if line and not line.startswith("Stack trace"):
            return line
    return text.strip() or "unknown error"


@contextmanager
def _tracker(world: Collective) -> Iterator[Mapping[str, Any]]:
    """Collective. Start the library's tracker on rank 0; give every rank what it needs to join."""
    tracker: RabitTracker | None = None

    def start() -> dict[str, Any]:
        nonlocal tracker
        if world.rank != 0:
            return {}
        tracker = RabitTracker(n_workers=world.size, host_ip=_address(), port=0, sortby="task", timeout=_JOIN_S)
        tracker.start()
        time.sleep(_TRACKER_S)
        return dict(tracker.worker_args())

    try:
        yield world.broadcast(together(world, "starting the tracker of xgboost", start))
    finally:
        if tracker is not None:
            with suppress(XGBoostError):
                tracker.free()


def _on_message(message: bytes) -> None:
    """Print what the library says, as its own callback does, but not who joined: that is said whatever its verbosity."""
    text = message.decode("utf-8", "replace")
    if not _JOINED.search(text):
        print(text, flush=True)


_ON_MESSAGE = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_on_message)  # kept, for the library keeps its address


def _join(rank: int, arguments: Mapping[str, Any]) -> None:
    _LIB.XGBRegisterLogCallback(_ON_MESSAGE)  # each thread has its own
    collective.init(**arguments, dmlc_task_id=f"{rank:05d}", dmlc_timeout=_SILENCE_S)


def _leave() -> None:
    with suppress(XGBoostError), config_context(verbosity=0):  # peers may be gone already; that is told elsewhere
        collective.finalize()


def _let_go(error: Exception) -> None:
    """Let the frames of an error drop what they hold, so that matrices go before the folder they keep files in."""
    traceback.clear_frames(error.__traceback__)


def _address() -> str:
    """Return where the other ranks find rank 0."""
    place = environment.placement()
    if place is None:
        return "127.0.0.1"
    try:
        return socket.gethostbyname(place.master_addr)
    except OSError as error:
        raise PlatformError(f"MASTER_ADDR={place.master_addr} cannot be resolved: {error}") from error


def _agree(world: Collective, own: Exception | None) -> None:
    """Collective. Raise where a rank failed: what caused it, not that others lost contact because of it."""
    lost = isinstance(own, PlatformError) and "lost contact" in own.message
    record = None if own is None else {**to_record(own), "lost": lost}
    try:
        world.barrier(_SILENCE_S if own is None else _AGREE_S)
        records = world.all_gather(record)
    except PhalanxError:
        if own is not None:
            raise own from own.__cause__  # the peers are gone as well; what happened here is worth more
        raise
    failed = [(rank, found) for rank, found in enumerate(records) if found is not None]
    if not failed:
        return
    rank, cause = min(failed, key=lambda item: (item[1]["lost"], item[1]["kind"] != UserError.kind, item[0]))
    if own is not None and record is not None and (record["kind"], record["lost"]) == (cause["kind"], cause["lost"]):
        raise own from own.__cause__
    error = from_record(cause)
    if not isinstance(error, UserError):  # which rank met the user's mistake is nothing to the user
        error.message = f"rank {rank}, training: {error.message}"
        error.args = (error.message,)
    raise error
