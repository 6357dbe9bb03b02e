"""The one place that waits for a worker group: root cause, restarts, stops, the time limit."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from .. import environment, heartbeat
from ..contracts import Event, Exit, Launcher, Member, Workers, WorkerSpec
from ..errors import AlgorithmError, GroupLost, Interruption, PhalanxError, PlatformError, Stopped, UserError, from_record
from .hangs import Hang, HangWatch, beat_seconds
from .interruptions import Notice, Watch
from .logs import Logs
from .starting import Starting
from .stopping import POLL_SECONDS, StopRequest

_DECLARE_SECONDS = 2.0  # after the first failure the other ranks may still declare theirs
_FOLLOW_SECONDS = 0.25  # the same after a death by signal: what its peers have to say but what happened before, follows from it
_ANSWER_SECONDS = 1.0  # in which a rank that hangs may write its stack
_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 60.0
_LEAST_GRACE_S = 0.5
_SHOWN = 500  # characters


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a group is started again: after failures, and after interruptions by the platform."""

    max_restarts: int = 0
    max_interruptions: int | None = None  # None: they count as failures


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
    restarts: int  # of both kinds
    interruptions: int = 0


def decide(
    error: PhalanxError, restarts: int, budget: Budget, interruptions: int = 0, fruitless: int | None = None
) -> Retry | GiveUp:
    """Return what to do after a failed attempt: only what another attempt may mend is tried again.

    Args:
        error: why it failed.
        restarts: made already, after failures.
        budget: what is allowed.
        interruptions: that the group was started again after.
        fruitless: of the restarts, those in a row whose attempts came no further; the pause doubles with each. Default: all.
    """
    if isinstance(error, Interruption) and budget.max_interruptions is not None:
        return Retry(0.0) if interruptions < budget.max_interruptions else GiveUp()
    if isinstance(error, (UserError, Stopped, GroupLost)) or restarts >= budget.max_restarts:
        return GiveUp()
    row = restarts if fruitless is None else fruitless
    delay_s = _FIRST_DELAY_S * 2.0 ** min(row - 1, 30) if row else 0.0
    return Retry(min(_MAX_DELAY_S, delay_s))


def root_cause(events: Sequence[Event], exits: Sequence[Exit], log_tail: Callable[[int], str]) -> PhalanxError | None:
    """Return why a group failed, None when it did not.

    A failure that a rank declared beats one that is only seen from outside, and the earliest wins; but a declared
    `PlatformError` (a peer was lost) follows from a crash, and yields to it.

    Args:
        events: the failures that ranks declared.
        exits: how ranks ended, but for those that were ended from here.
        log_tail: returns the end of a rank's log.
    """
    declared = sorted((_declared(event) for event in events), key=lambda found: found.time)
    for found in declared:
        if isinstance(found.error, (UserError, AlgorithmError)):
            return found.error
    for found in declared:
        if isinstance(found.error, Interruption):  # a node was lost: all else follows from it
            return found.error
    spoken = {event.rank for event in events}
    crashes = sorted((e for e in exits if e.code != 0 and e.rank not in spoken), key=lambda e: (e.code >= 0, e.time))
    if crashes:
        return _crash(crashes[0], log_tail(crashes[0].rank))
    for found in declared:
        if isinstance(found.error, Stopped):  # nobody here asked for it; the others lose contact with a rank that stops
            error = Interruption(f"worker {found.rank} was interrupted from outside: {found.error}")
            error.details = found.error.details
            return error
    return declared[0].error if declared else None


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
    on_retry: Callable[[PhalanxError], None] = lambda error: None,
    watch: Watch | None = None,
    hang_timeout_s: float | None = None,
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
        on_retry: told why a group is to be started again.
        watch: knows of notices of the platform: they interrupt the group, and none is started while one is in force.
        hang_timeout_s: how long a rank may give no sign of life, or keep others waiting, before the group has failed; None: for
            ever.
    """
    beat = {environment.HEARTBEAT: f"{beat_seconds(hang_timeout_s):g}"}
    spec = replace(spec, environment={**(spec.environment or {}), **beat})
    notice: Callable[[], Notice | None] = watch.notice if watch is not None else lambda: None
    limit = _Limit(stop, None if max_runtime_s is None else time.monotonic() + max_runtime_s)
    failures = interruptions = fruitless = newest = saved = 0
    stopped = limit.reached()
    while stopped is None:
        restarts = failures + interruptions
        attempt = _Attempt(replace(spec, attempt=restarts), limit, grace_s, on_event, notice, hang_timeout_s)
        error = attempt.run(launcher, on_group)
        stopped = attempt.stopped
        if stopped is not None:
            break
        if error is None:
            return Outcome(None, "Completed", restarts, interruptions)
        if attempt.newest > newest or attempt.saved > saved:
            fruitless = 0
        newest, saved = max(newest, attempt.newest), max(saved, attempt.saved)
        decision = decide(error, failures, budget, interruptions, fruitless)
        if isinstance(decision, GiveUp):
            return Outcome(error, "Failed", restarts, interruptions)
        on_retry(error)
        stopped = limit.pause(decision.delay_s)
        while stopped is None and notice() is not None:
            stopped = limit.pause(POLL_SECONDS)
        if stopped is None:
            is_interruption = isinstance(error, Interruption) and budget.max_interruptions is not None
            failures, interruptions = failures + (not is_interruption), interruptions + is_interruption
            fruitless += not is_interruption
    return Outcome(stopped, limit.secondary, failures + interruptions, interruptions)


@final
class _Limit:
    """What may end a job early: somebody asks for it, or its time is up."""

    def __init__(self, stop: StopRequest, deadline: float | None) -> None:
        self.stop = stop
        self.secondary = "Stopped"
        self._deadline = deadline

    def reached(self) -> Stopped | None:
        """Return why the job has to stop now, None as long as it may go on."""
        if self.stop.requested():
            return Stopped(self.stop.reason or "the job was asked to stop", self.stop.exit_code)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.secondary = "MaxRuntimeExceeded"
            return Stopped("the job ran longer than max_runtime_s allows")
        return None

    def pause(self, seconds: float) -> Stopped | None:
        """Let so much time pass, less when the job has to stop before; return why it has to."""
        if self._deadline is not None:
            seconds = min(seconds, self._deadline - time.monotonic())
        self.stop.wait(seconds)
        return self.reached()


@final
class _Attempt:
    """One group: starts it, waits until every worker has ended, and sees to it that they do."""

    def __init__(
        self,
        spec: WorkerSpec,
        limit: _Limit,
        grace_s: float,
        on_event: Callable[[Event], None],
        notice: Callable[[], Notice | None],
        hang_timeout_s: float | None,
    ) -> None:
        self.stopped: Stopped | None = None
        self.newest = 0  # step that was done
        self.saved = 0  # step that was saved
        self._spec = spec
        self._limit = limit
        self._grace_s = grace_s
        self._on_event = on_event
        self._notice = notice
        self._hang_timeout_s = hang_timeout_s
        self._hangs: HangWatch | None = None
        self._hang: tuple[Hang, int, float] | None = None  # who hangs, the size of its log then, and when to go on
        self._interruption: Interruption | None = None
        self._failures: list[Event] = []
        self._exits: list[Exit] = []
        self._left = spec.workers
        self._killed = False
        self._failed_at: float | None = None
        self._declare_s = _DECLARE_SECONDS

    def run(self, launcher: Launcher, on_group: Callable[[Sequence[Member], int], None]) -> PhalanxError | None:
        """Run the group to its end; return why it failed, None when it did not or was stopped."""
        logs = Logs(self._spec.log_folder, self._spec.workers)
        try:
            workers = Starting(launcher, self._spec).wait(self._is_enough, POLL_SECONDS)
        except PlatformError as error:
            return error
        if workers is None:
            self.stopped = self._limit.reached()
            notice = self._notice()
            if self.stopped is None:
                return Interruption("worker group: interrupted while it started" if notice is None else _announced(notice))
            return None
        try:
            self._left = len(workers.members)  # an elastic group may have fewer than it was asked for
            on_group(workers.members, self._spec.attempt)
            if self._hang_timeout_s is not None:
                self._hangs = HangWatch(workers.members, self._hang_timeout_s)
            while self._left:
                for happened in workers.poll(POLL_SECONDS):
                    self._take(happened)
                self._check_limit(workers)
                self._check_notice(workers)
                self._check_failure(workers)
                self._check_hangs(workers, logs)
        finally:
            workers.close()
        return None if self.stopped is not None else self._cause(logs)

    def _is_enough(self) -> bool:
        return self._limit.reached() is not None or self._notice() is not None

    def _cause(self, logs: Logs) -> PhalanxError | None:
        cause = root_cause(self._failures, self._exits, logs.tail)
        if self._hang is not None and not isinstance(cause, UserError):
            hang, begin, _ = self._hang
            error = PlatformError(hang.message)
            error.details = logs.since(hang.rank, begin)
            return error
        if self._interruption is None or isinstance(cause, UserError) or (cause is None and not self._killed):
            return cause  # a group that ended well before it could be stopped has ended well
        return self._interruption

    def _take(self, happened: Event | Exit) -> None:
        if isinstance(happened, Event):
            kind, step = happened.body.get("kind"), happened.body.get("step")
            if kind == heartbeat.KIND:
                if self._hangs is not None:
                    self._hangs.heard(happened.rank, happened.body)
                self._on_event(happened)
                return
            if kind != "failure":
                if kind == "step" and isinstance(step, int):
                    self.newest = max(self.newest, step)
                if kind == "saved" and isinstance(step, int):
                    self.saved = max(self.saved, step)
                self._on_event(happened)
                return
            self._failures.append(happened)
        else:
            self._left -= 1
            if self._hangs is not None:
                self._hangs.ended(happened.rank)
            if happened.code == 0 or (self._killed and happened.code == -signal.SIGKILL):
                return  # ended well, or from here
            self._exits.append(happened)
        if self._failed_at is None:
            self._failed_at = time.monotonic()
            is_crash = happened.code < 0 if isinstance(happened, Exit) else is_interruption(happened)
            self._declare_s = _FOLLOW_SECONDS if is_crash else _DECLARE_SECONDS

    def _check_limit(self, workers: Workers) -> None:
        if self._left == 0 or self._killed:
            return
        if self.stopped is not None:
            if self._limit.stop.urgent:
                self._kill(workers)
            return
        reached = self._limit.reached()
        if reached is None:
            return
        if (
            self._failed_at is not None and self._interruption is None
        ):  # it has failed before somebody asked: that stands, and is not waited with
            self._kill(workers)
            return
        self.stopped = reached
        if self._interruption is None:  # else it is stopping already, and its time runs
            workers.stop(self._grace_s)

    def _check_notice(self, workers: Workers) -> None:
        """A notice asks the workers to stop, within the time that the platform leaves them."""
        busy = self._left == 0 or self._killed or self._failed_at is not None
        notice = self._notice()
        if busy or self.stopped is not None or self._interruption is not None or notice is None:
            return
        self._interruption = Interruption(_announced(notice))
        left = self._grace_s if notice.deadline is None else notice.deadline - time.time()
        workers.stop(max(_LEAST_GRACE_S, min(self._grace_s, left)))

    def _check_failure(self, workers: Workers) -> None:
        """Survivors of a failure are not waited for: they get a moment to declare theirs."""
        if self._failed_at is None or self.stopped is not None or self._interruption is not None or self._killed:
            return
        if time.monotonic() - self._failed_at >= self._declare_s:
            self._kill(workers)

    def _check_hangs(self, workers: Workers, logs: Logs) -> None:
        """A rank that hangs is asked for its stack, and the group is killed a moment later."""
        busy = self._left == 0 or self._killed or self._failed_at is not None
        if self._hangs is None or busy or self.stopped is not None or self._interruption is not None:
            return
        if self._hang is None:
            hang = self._hangs.look()
            if hang is None:
                return
            self._hang = (hang, logs.size(hang.rank), time.monotonic() + (_ANSWER_SECONDS if hang.answers else 0.0))
            if hang.answers:
                workers.dump(hang.rank)
        if time.monotonic() >= self._hang[2]:
            self._kill(workers)

    def _kill(self, workers: Workers) -> None:
        self._killed = True
        workers.stop(0)


@dataclass(frozen=True, slots=True)
class _Declared:
    """A failure that a rank declared."""

    rank: int
    time: float
    error: PhalanxError


def _announced(notice: Notice) -> str:
    return f"interrupted by notice: {notice.what}"


def _declared(event: Event) -> _Declared:
    try:
        record = event.body["error"]
        return _Declared(event.rank, float(record["time"]), from_record(record))
    except (KeyError, TypeError, ValueError, AttributeError):  # a command wrote it by hand
        error = AlgorithmError(f"worker {event.rank} declared a failure: {json.dumps(event.body)[:_SHOWN]}")
        return _Declared(event.rank, event.time, error)


def is_interruption(event: Event) -> bool:
    """Return whether a failure says that the platform took a worker away."""
    record = event.body.get("error")
    return isinstance(record, Mapping) and bool(record.get("interruption"))


def _crash(seen: Exit, tail: str) -> PhalanxError:
    if seen.reason:
        error: PhalanxError = PlatformError(seen.reason)
    elif seen.code < 0:
        hint = "; perhaps the machine ran out of memory" if -seen.code == signal.SIGKILL else ""
        kind = Interruption if seen.code == -signal.SIGTERM else PlatformError
        error = kind(f"worker {seen.rank} was killed by {_signal_name(-seen.code)}{hint}")
    else:
        last = tail.strip().splitlines()[-1][:_SHOWN] if tail.strip() else "its log is empty"
        error = AlgorithmError(f"worker {seen.rank} ended with exit code {seen.code}: {last}")
    error.details = tail
    return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
