"""The one place that waits for a worker group: root cause, restarts, stops, the time limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from ..contracts import Event, Exit, Launcher, Member, Workers, WorkerSpec
from ..errors import EXIT_SIGTERM, AlgorithmError, PhalanxError, PlatformError, Stopped, UserError, from_record

_POLL_SECONDS = 0.1
_DECLARE_SECONDS = 2.0  # after the first failure the other ranks may still declare theirs
_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 60.0
_LOG_TAIL = 4096


@dataclass(frozen=True, slots=True)
class Budget:
    """How much failing is allowed."""

    max_restarts: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """Start the group again after a pause."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The failure stands."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job's workers ended: no error means that all ended well."""

    error: PhalanxError | None
    secondary_status: str  # Completed, Failed, Stopped, MaxRuntimeExceeded
    restarts: int


@final
class StopRequest:
    """Asks a running job to stop, from any thread or a signal handler; a second request does not wait for the workers."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.exit_code = EXIT_SIGTERM
        self.urgent = False
        self._event = threading.Event()

    def request(self, reason: str, exit_code: int) -> None:
        """Ask; the first reason stays."""
        if self.reason is not None:
            self.urgent = True
            return
        self.reason, self.exit_code = reason, exit_code
        self._event.set()

    def requested(self) -> bool:
        """Return whether somebody asked."""
        return self.reason is not None

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for a request; return whether there is one."""
        return self._event.wait(seconds)


def decide(error: PhalanxError, restarts: int, budget: Budget) -> Retry | GiveUp:
    """Return what to do after a failed attempt: only what another attempt may mend is tried again."""
    if isinstance(error, (UserError, Stopped)) or restarts >= budget.max_restarts:
        return GiveUp()
    return Retry(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** (restarts - 1)) if restarts else 0.0)


def root_cause(events: Sequence[Event], exits: Sequence[Exit], logs: Path) -> PhalanxError | None:
    """Return why a group failed, None when it did not.

    A failure that a rank declared beats one that is only seen from outside, and the earliest wins; but a declared
    `PlatformError` (a peer was lost) follows from a crash, and yields to it.
    """
    declared = sorted((e for e in events if e.body.get("kind") == "failure"), key=lambda e: float(e.body["error"]["time"]))
    own = [e for e in declared if e.body["error"]["kind"] not in ("PlatformError", "Stopped")]
    if own:
        return _declared(own[0])
    silent = {e.rank for e in declared}
    crashes = sorted((e for e in exits if e.code != 0 and e.rank not in silent), key=lambda e: (e.code >= 0, e.time))
    if crashes:
        return _crash(crashes[0], logs)
    if declared:
        lost = [e for e in declared if e.body["error"]["kind"] == "PlatformError"]
        return _declared((lost or declared)[0])
    return None


def supervise(
    launcher: Launcher,
    spec: WorkerSpec,
    *,
    budget: Budget,
    stop: StopRequest,
    max_runtime_s: float | None,
    grace_s: float,
    on_event: Callable[[Event], None],
    on_group: Callable[[Sequence[Member], int], None],
) -> Outcome:
    """Run a group to its end, restarting it within the budget.

    Args:
        launcher: who starts groups.
        spec: the group; its attempt is counted up at every restart.
        budget: how often a failed group is started again.
        stop: may ask for an orderly stop at any time.
        max_runtime_s: stop after so many seconds over all attempts.
        grace_s: how long workers may take to stop before they are killed.
        on_event: told of every event but failures.
        on_group: told of every new group and its attempt.
    """
    deadline = None if max_runtime_s is None else time.monotonic() + max_runtime_s
    restarts = 0
    while True:
        workers = launcher.start(replace(spec, attempt=restarts))
        try:
            on_group(workers.members, restarts)
            watch = _Watch(workers, stop, deadline, grace_s, on_event)
            watch.run()
        finally:
            workers.close()
        if watch.stopped is not None:
            return Outcome(watch.stopped, watch.secondary, restarts)
        error = root_cause(watch.events, watch.exits, spec.log_folder)
        if error is None:
            return Outcome(None, "Completed", restarts)
        decision = decide(error, restarts, budget)
        if isinstance(decision, GiveUp):
            if isinstance(error, Stopped):  # nobody here asked for it: the workers were told by somebody else
                error = PlatformError(f"a worker was interrupted: {error}")
            return Outcome(error, "Failed", restarts)
        if stop.wait(decision.delay_s):
            return Outcome(_stopped(stop), "Stopped", restarts)
        restarts += 1


@final
class _Watch:
    """One attempt: waits until every worker has ended, and sees to it that they do."""

    def __init__(
        self, workers: Workers, stop: StopRequest, deadline: float | None, grace_s: float, on_event: Callable[[Event], None]
    ) -> None:
        self.events: list[Event] = []  # failures
        self.exits: list[Exit] = []
        self.stopped: Stopped | None = None
        self.secondary = "Stopped"
        self._workers = workers
        self._stop = stop
        self._deadline = deadline
        self._grace_s = grace_s
        self._on_event = on_event
        self._left = len(workers.members)
        self._killed = False
        self._failed_at: float | None = None

    def run(self) -> None:
        """Wait for all exits."""
        while self._left:
            for happened in self._workers.poll(_POLL_SECONDS):
                self._take(happened)
            self._check_stop()
            self._check_failure()

    def _take(self, happened: Event | Exit) -> None:
        if isinstance(happened, Exit):
            self._left -= 1
            self.exits.append(happened)
            if happened.code != 0:
                self._note_failure()
        elif happened.body.get("kind") == "failure":
            self.events.append(happened)
            self._note_failure()
        else:
            self._on_event(happened)

    def _check_stop(self) -> None:
        if self.stopped is None:
            if self._stop.requested():
                self.stopped = _stopped(self._stop)
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self.stopped, self.secondary = Stopped("the job ran longer than max_runtime_s allows"), "MaxRuntimeExceeded"
            else:
                return
            self._workers.stop(self._grace_s)
        elif self._stop.urgent and not self._killed:
            self._killed = True
            self._workers.stop(0)

    def _check_failure(self) -> None:
        """Survivors of a failure are not waited for: they get a moment to declare theirs."""
        if self._failed_at is None or self.stopped is not None or self._killed:
            return
        if time.monotonic() - self._failed_at >= _DECLARE_SECONDS:
            self._killed = True
            self._workers.stop(0)

    def _note_failure(self) -> None:
        if self._failed_at is None:
            self._failed_at = time.monotonic()


def _stopped(stop: StopRequest) -> Stopped:
    return Stopped(stop.reason or "the job was asked to stop", stop.exit_code)


def _declared(event: Event) -> PhalanxError:
    return from_record(event.body["error"])


def _crash(seen: Exit, logs: Path) -> PhalanxError:
    tail = _log_tail(logs / f"rank-{seen.rank}.log")
    if seen.code < 0:
        name = _signal_name(-seen.code)
        hint = "; perhaps the machine ran out of memory" if -seen.code == signal.SIGKILL else ""
        error: PhalanxError = PlatformError(f"worker {seen.rank} was killed by {name}{hint}")
    else:
        last = tail.strip().splitlines()[-1] if tail.strip() else "its log is empty"
        error = AlgorithmError(f"worker {seen.rank} ended with exit code {seen.code}: {last}")
    error.details = tail
    return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _log_tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
