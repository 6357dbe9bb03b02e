"""One rank's side of an attached group: it runs its worker as rank 0 says, and tells rank 0 what happens to it.

The worker is a process of its own, forked from this process's warm server, so that whatever ends it (a crash, a kill, a stop)
is seen and told by this one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, final

from .. import environment
from ..contracts import Event, Exit, Json, WorkerSpec
from ..errors import PlatformError, to_record
from ..scratch import Scratch
from .interfaces import interface_of
from .local import LOOPBACK, LocalWorkers
from .stopping import StopRequest
from .warm import acquire_server
from .wire import Connection, Log, Lost, Message

_POLL_SECONDS = 0.1
_LOG_BYTES = 1 << 20
_PASSED_ON = (environment.OBSERVE, environment.HEARTBEAT)  # variables that rank 0 decides; no others are taken from it


@final
class Follower:
    """Serves rank 0 until it says that the job has ended.

    Args:
        connection: to rank 0.
        rank: of this process.
        size: of the group.
        stop: what asks this rank to stop, which it passes on; None on rank 0, who knows.
        store: returns the socket for the group's store, taken over; only rank 0 has one.
    """

    def __init__(
        self,
        connection: Connection,
        rank: int,
        size: int,
        stop: StopRequest | None = None,
        store: Callable[[], socket.socket | None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._rank = rank
        self._size = size
        self._stop = stop
        self._store = store
        self._passed_on = 0  # requests to stop
        self._workers: LocalWorkers | None = None
        self._attempt = 0
        self._log: BinaryIO | None = None

    def serve(self, prepare: Callable[[], str], spec_of: Callable[[Message], WorkerSpec]) -> Message:
        """Run workers until the end; return what rank 0 says of it.

        Args:
            prepare: makes this machine's scratch folder of the job ready; asked of one rank a machine. Returns its path.
            spec_of: returns the group to take part in, given rank 0's word to start.

        Raises:
            PlatformError: rank 0 is gone.
        """
        with Scratch("rank") as logs:
            try:
                while True:
                    for message in self._heard():
                        if message["do"] == "end":
                            return message
                        self._obey(message, logs, prepare, spec_of)
                    self._tell()
                    self._pass_on()
            except Lost as error:
                raise PlatformError(f"worker {self._rank} lost worker 0, which leads the group: {error}") from None
            finally:
                self._close()
                self._connection.close()

    def _heard(self) -> Sequence[Message]:
        waiting = 0.0 if self._workers is not None else _POLL_SECONDS
        return [m for m in self._connection.receive(waiting) if not isinstance(m, Log) and isinstance(m.get("do"), str)]

    def _obey(self, said: Message, logs: Path, prepare: Callable[[], str], spec_of: Callable[[Message], WorkerSpec]) -> None:
        what = said["do"]
        if what == "prepare":
            try:
                answer: dict[str, Json] = {"do": "ready", "scratch": prepare()}
            except Exception as error:
                answer = {"do": "ready", "error": to_record(error)}
            self._connection.send(answer)
        elif what == "look":
            self._connection.send({"do": "seen", "there": Path(str(said["path"])).exists()})
        elif what == "start":
            self._start(said, logs, spec_of)
        elif what == "stop" and self._workers is not None:
            self._workers.stop(float(said["grace_s"]))
        elif what == "dump" and self._workers is not None:
            self._workers.dump(0)
        elif what == "close":
            self._close()
            self._connection.send({"do": "closed", "attempt": said["attempt"]})

    def _start(self, said: Message, logs: Path, spec_of: Callable[[Message], WorkerSpec]) -> None:
        self._close()
        self._attempt = int(said["attempt"])
        store = self._store()
        try:
            spec = spec_of(said)
            passed_on = {k: str(v) for k, v in dict(said["variables"]).items() if k in _PASSED_ON}
            spec = replace(
                spec,
                attempt=self._attempt,
                threads=int(said["threads"]),
                log_folder=logs,
                environment={**(spec.environment or {}), **passed_on},
                forked=None,
            )
            address, port = str(said["address"]), int(said["port"])
            place = environment.Placement(
                self._rank, self._size, int(said["local_rank"]), address, port, int(said["local_size"])
            )
            if store is not None and (spec.command is not None or self._size == 1):
                store.close()  # the command's rank 0 listens there itself
                store = None
            log = logs / f"rank-{self._rank}.log"
            log.unlink(missing_ok=True)
            workers = LocalWorkers(acquire_server(() if spec.command is not None else spec.preload, fork=True))
            self._workers = workers
            fd = None if store is None else store.fileno()
            workers.add(self._rank, spec, port, fd, place=place, interface=self._interface(address, said))
            workers.await_pids()
            self._log = log.open("rb")
        except Exception as error:
            self._close()
            self._connection.send({"do": "refused", "attempt": self._attempt, "error": to_record(error)})
            return
        finally:
            if store is not None:
                store.close()
        self._connection.send({"do": "started", "attempt": self._attempt, "pid": workers.members[0].pid})

    def _interface(self, address: str, said: Message) -> str:
        """Return the network interface for the worker: the user's choice, or that of this machine's address."""
        chosen = environment.get("GLOO_SOCKET_IFNAME")
        if address == LOOPBACK or chosen:
            return chosen if chosen and address != LOOPBACK else "lo"
        return interface_of(str(said["own_address"] or self._connection.own_address))

    def _tell(self) -> None:
        if self._workers is None:
            return
        happened = self._workers.poll(_POLL_SECONDS)
        for one in happened:
            if isinstance(one, Event):
                self._connection.send({"do": "event", "attempt": self._attempt, "time": one.time, "body": one.body})
        self._send_log()
        for one in happened:
            if isinstance(one, Exit):
                self._connection.send({"do": "exit", "attempt": self._attempt, "code": one.code, "time": one.time})

    def _send_log(self) -> None:
        while self._log is not None and (text := self._log.read(_LOG_BYTES)):
            self._connection.send_log(self._attempt, text)

    def _pass_on(self) -> None:
        """Tell rank 0 that this rank is asked to stop; a second time, that it cannot wait."""
        if self._stop is not None and self._passed_on < self._stop.times:
            self._passed_on += 1
            self._connection.send({"do": "stop", "why": self._stop.reason, "code": self._stop.exit_code})

    def _close(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        if self._log is not None:
            self._log.close()
            self._log = None


@final
class FollowingThread:
    """Rank 0's own `Follower`, beside what leads the group."""

    def __init__(self, connection: Connection, size: int, store: Callable[[], socket.socket | None]) -> None:
        self.spec: WorkerSpec | None = None  # set before the word to start is sent
        self._follower = Follower(connection, 0, size, store=store)
        self._thread = threading.Thread(target=self._serve, name="phalanx-follower", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end; its connection is closed."""
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(PlatformError):  # its other end is in this process, and knows why it ended
            self._follower.serve(lambda: "", self._spec)

    def _spec(self, said: Mapping[str, Json]) -> WorkerSpec:
        if self.spec is None:
            raise PlatformError("rank 0 was told to start nothing")
        return self.spec
