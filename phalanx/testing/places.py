"""Places for checkpoints that tests can break: in memory, and one that fails or dies at a chosen call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar, final

import numpy as np

from ..checkpoint.place import Place
from ..contracts import Array
from ..errors import PlatformError, UserError

T = TypeVar("T")
Fault = Literal["refuse", "tear", "lose the answer", "die before", "die within", "die after"]
FAULTS: tuple[Fault, ...] = ("refuse", "tear", "lose the answer", "die before", "die within", "die after")
DEATHS: tuple[Fault, ...] = ("die before", "die within", "die after")


class DiedError(BaseException):
    """The process is dead: nothing catches it, nothing is cleaned up, every later call raises it too."""


@final
class MemoryPlace:
    """`Place` in this process's memory; `files` may be changed by tests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "in memory"

    def put(self, name: str, data: bytes | memoryview) -> None:
        with self._lock:
            self.files[name] = bytes(data)

    def put_new(self, name: str, data: bytes) -> bool:
        with self._lock:
            is_new = name not in self.files
            if is_new:
                self.files[name] = data
            return is_new

    def sizes(self, folder: str = "") -> dict[str, int]:
        with self._lock:
            below = f"{folder}/" if folder else ""
            return {name: len(data) for name, data in self.files.items() if name.startswith(below)}

    def read(self, name: str, size: int) -> Array:
        with self._lock:
            data = self.files.get(name)
        if data is None:
            raise UserError(f"there is no file {name}")
        if len(data) != size:
            raise UserError(f"{name} has {len(data)} bytes where {size} were expected")
        return np.frombuffer(bytearray(data), dtype=np.uint8)

    def remove(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self.files.pop(name, None)


@final
class FaultyPlace:
    """A place of which one call goes wrong.

    Args:
        inner: where the files are.
        at: the number of the call, from 1; calls are counted over all threads.
        fault: what happens: "refuse": nothing is done, an error is raised; "tear": half of it is done, then an error;
            "lose the answer": all is done, then an error; "die …": as these, and the process is dead.
        meanwhile: called before that call instead of a fault: what somebody else does in this moment.
        lasting: calls from that one on go wrong too, in the same way.

    Attributes:
        calls: made so far.
        fired: whether the call came.
    """

    def __init__(
        self,
        inner: Place,
        at: int,
        fault: Fault | None = None,
        *,
        meanwhile: Callable[[], None] | None = None,
        lasting: bool = False,
    ) -> None:
        self.calls = 0
        self.fired = False
        self._inner = inner
        self._at = at
        self._fault = fault
        self._meanwhile = meanwhile
        self._lasting = lasting
        self._dead = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._inner.url

    def put(self, name: str, data: bytes | memoryview) -> None:
        half = bytes(data[: len(data) // 2])
        self._do(lambda: self._inner.put(name, data), lambda: self._inner.put(name, half))

    def put_new(self, name: str, data: bytes) -> bool:
        return self._do(lambda: self._inner.put_new(name, data), lambda: None)

    def sizes(self, folder: str = "") -> dict[str, int]:
        return self._do(lambda: self._inner.sizes(folder), lambda: None)

    def read(self, name: str, size: int) -> Array:
        return self._do(lambda: self._inner.read(name, size), lambda: None)

    def remove(self, names: Iterable[str]) -> None:
        doomed = list(names)
        self._do(lambda: self._inner.remove(doomed), lambda: self._inner.remove(doomed[: len(doomed) // 2]))

    def _do(self, whole: Callable[[], T], half: Callable[[], None]) -> T:
        with self._lock:
            if self._dead:
                raise DiedError
            self.calls += 1
            is_it = self.calls == self._at or (self._lasting and self.calls > self._at)
            self.fired = self.fired or is_it
            self._dead = is_it and self._fault in DEATHS
        if not is_it:
            return whole()
        if self._meanwhile is not None:
            self._meanwhile()
        if self._fault is None:
            return whole()
        if self._fault in ("tear", "die within"):
            half()
        elif self._fault in ("lose the answer", "die after"):
            whole()
        if self._fault in DEATHS:
            raise DiedError
        raise PlatformError(f"call {self.calls} of {self.url} went wrong: {self._fault}")
