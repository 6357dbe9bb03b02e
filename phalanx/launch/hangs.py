"""Which rank hangs, judged from the signs of life of all of them.

A rank hangs when, beyond the limit,

- its process is stopped (state T of the kernel), or
- it gives no sign of life while another rank does, or none while its process computes nothing, or
- it goes on computing, or sits somewhere, while another rank waits for it in a collective, or
- all wait, but in different collectives.

Long computation on all ranks is none of these, even where it lets no other thread of the process run. Silence of all at once,
each with something to compute, is a machine that sleeps or is overloaded. Waits count only once every rank has done its first
step, and not while the others wait for one that saves.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..contracts import Json, Member

_MOST_BEAT_S, _LEAST_BEAT_S = 2.0, 0.05
_BEATS = 4  # signs of life within the limit, at least
_RECENT = 3  # beats after which a rank is no longer taken to be alive
_LEAST_SILENCE_S = 5.0  # a thread of a busy machine may not run for so long
_IDLE = 0.1  # cores: who uses less computes nothing; threads that ask for the interpreter use a percent, told in 10 ms a tick
_MOST_TICK_S = 1.0  # of one look: after a longer pause it was this process that did not run
_PATIENT = ("Checkpointing", "Saving")


def beat_seconds(timeout_s: float | None) -> float:
    """Return how often ranks are to give a sign of life; None: hangs are not looked for."""
    return _MOST_BEAT_S if timeout_s is None else max(_LEAST_BEAT_S, min(_MOST_BEAT_S, timeout_s / _BEATS))


@dataclass(frozen=True, slots=True)
class Hang:
    """A rank that hangs."""

    rank: int
    message: str
    answers: bool  # its process may still tell its stack


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the kernel says of a process.

    Attributes:
        stopped: by a signal.
        computed_s: CPU seconds so far, None where that is not known.
    """

    stopped: bool = False
    computed_s: float | None = None


@final
@dataclass(slots=True)
class _Rank:
    """What is known of one rank; times are seconds of looking, not of the clock."""

    heard_at: float | None = None
    phase: str = "Starting"
    step: int = 0
    steps: int = 0
    calls: int = 0
    waiting: str | None = None
    waited_s: float = 0.0
    noted: bool = False  # the wait was noted by the collective itself, and its name is sure
    last: str | None = None
    silent_s: float = 0.0  # while others gave their signs of life
    unheard_s: float = 0.0
    idle_s: float = 0.0  # without computing anything
    computed_s: float | None = None
    stuck_s: float = 0.0  # without a step, a collective call or another phase
    stopped_s: float = 0.0

    @property
    def armed(self) -> bool:
        """Whether it is past start-up, compilation and its first step."""
        return self.steps > 0

    def where(self) -> str:
        """Return what a person wants to know of its place."""
        if self.heard_at is None:
            return "it had not told where it was"
        last = "none yet" if self.last is None else self.last
        return f"phase {self.phase}, after step {self.step}, last collective: {last}"


@final
class HangWatch:
    """Judges one attempt.

    Args:
        members: of the group, by rank.
        timeout_s: the limit.
        clock: monotonic seconds.
        process: returns what the kernel says of a member's process.
    """

    def __init__(
        self,
        members: Sequence[Member],
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        process: Callable[[Member], ProcessState] | None = None,
    ) -> None:
        self._members = {member.rank: member for member in members}
        self._timeout_s = timeout_s
        self._beat_s = beat_seconds(timeout_s)
        self._clock = clock
        self._process = process or _ProcessHere()
        self._ranks = {member.rank: _Rank() for member in members}
        self._looked_at = self._asked_at = clock()

    def heard(self, rank: int, body: Mapping[str, Json]) -> None:
        """Take a sign of life; one that cannot be read (a command wrote it by hand) is one all the same."""
        state = self._ranks.get(rank)
        if state is None:
            return
        state.heard_at, state.silent_s, state.unheard_s = self._clock(), 0.0, 0.0
        before = (state.steps, state.calls, state.phase)
        try:
            state.phase = str(body["phase"])
            state.step, state.steps, state.calls = int(body["step"]), int(body["steps"]), int(body["calls"])
            state.waiting = None if body["waiting"] is None else str(body["waiting"])
            state.waited_s, state.noted = float(body["waited_s"]), bool(body["noted"])
            state.last = None if body["last"] is None else str(body["last"])
        except (KeyError, TypeError, ValueError):
            return
        if before != (state.steps, state.calls, state.phase):
            state.stuck_s = 0.0

    def ended(self, rank: int) -> None:
        """A rank has ended: nothing more is expected of it."""
        self._ranks.pop(rank, None)

    def look(self) -> Hang | None:
        """Return who hangs by now, None where nobody does; to be called several times a second."""
        now = self._clock()
        passed = min(now - self._looked_at, _MOST_TICK_S)
        self._looked_at = now
        self._ask(now)
        for rank, state in self._ranks.items():
            state.stuck_s += passed
            state.unheard_s += passed
            if any(self._recent(other, now) for number, other in self._ranks.items() if number != rank):
                state.silent_s += passed
        return self._stopped() or self._silent() or self._awaited(now) or self._at_odds(now)

    def _ask(self, now: float) -> None:
        """Look at the processes, once a beat; one that is found stopped twice was stopped all the time between."""
        if now - self._asked_at < self._beat_s / 2:
            return
        passed, self._asked_at = min(now - self._asked_at, _MOST_TICK_S), now
        for rank, state in self._ranks.items():
            found = self._process(self._members[rank])
            state.stopped_s = state.stopped_s + passed if found.stopped else 0.0
            before, state.computed_s = state.computed_s, found.computed_s
            idle = before is not None and found.computed_s is not None and found.computed_s - before < _IDLE * passed
            state.idle_s = state.idle_s + passed if idle else 0.0

    def _recent(self, state: _Rank, now: float) -> bool:
        return state.heard_at is not None and now - state.heard_at <= _RECENT * self._beat_s

    def _stopped(self) -> Hang | None:
        for rank, state in self._ranks.items():
            if state.stopped_s > self._timeout_s:
                why = f"its process was stopped by a signal (SIGSTOP) for {self._timeout_s:g} s"
                return Hang(rank, f"worker {rank} hangs: {why}; {state.where()}", False)
        return None

    def _silent(self) -> Hang | None:
        limit = max(self._timeout_s, _LEAST_SILENCE_S)
        for rank, state in self._ranks.items():
            if not state.armed:
                continue
            if state.silent_s > limit:
                why = f"no sign of life for {limit:g} s, while other workers gave theirs"
            elif min(state.unheard_s, state.idle_s) > limit:
                why = f"no sign of life for {limit:g} s, in which its process computed nothing"
            else:
                continue
            return Hang(rank, f"worker {rank} hangs: {why}; {state.where()}", True)
        return None

    def _awaited(self, now: float) -> Hang | None:
        """Somebody waits in a collective that another rank does not come to."""
        waiters = self._waiters(now)
        late = [rank for rank, state in self._ranks.items() if state.waiting is None and state.stuck_s > self._timeout_s]
        if not waiters or not late:
            return None
        rank, waiter = late[0], waiters[0]
        others = f" (so do workers {', '.join(map(str, late[1:]))})" if late[1:] else ""
        waiting = self._ranks[waiter]
        why = f"worker {waiter} has waited for it for {waiting.waited_s:.0f} s in {waiting.waiting}"
        return Hang(rank, f"worker {rank} hangs{others}: {why}; {self._ranks[rank].where()}", True)

    def _at_odds(self, now: float) -> Hang | None:
        """All wait, but not in the same collective: none can ever come back."""
        waiters = self._waiters(now)
        names = {state.waiting for state in self._ranks.values()}
        if len(waiters) < len(self._ranks) or len(names) < 2 or not any(state.noted for state in self._ranks.values()):
            return None  # where no name is sure, all may be computing on devices
        rank = min(waiters, key=lambda number: (self._ranks[number].noted, self._ranks[number].calls, number))
        other = next(number for number in waiters if self._ranks[number].waiting != self._ranks[rank].waiting)
        why = f"it waits in {self._ranks[rank].waiting}, where worker {other} waits in {self._ranks[other].waiting}"
        return Hang(rank, f"worker {rank} hangs: {why}; {self._ranks[rank].where()}", True)

    def _waiters(self, now: float) -> list[int]:
        """Return the ranks that have waited too long, none unless waits count now."""
        for state in self._ranks.values():
            saves = state.phase in _PATIENT and state.waiting is None
            if saves or not state.armed or not self._recent(state, now):
                return []
        return [rank for rank, s in self._ranks.items() if s.waiting is not None and s.waited_s > self._timeout_s]


@final
class _ProcessHere:
    """What the kernel of this machine says of a process; a debugger's stop (t) is none by a signal."""

    def __init__(self) -> None:
        self._host = socket.gethostname()

    def __call__(self, member: Member) -> ProcessState:
        if member.host != self._host or not member.pid:
            return ProcessState()
        try:
            return _read(Path(f"/proc/{member.pid}/stat").read_bytes())
        except OSError:  # it has ended, or this system has no /proc
            return ProcessState()


def _read(stat: bytes) -> ProcessState:
    """Return what is in a process's `stat`: words after its name, which may hold anything (proc_pid_stat(5))."""
    words = stat.rpartition(b")")[2].split()
    if len(words) < 13:
        return ProcessState()
    return ProcessState(words[0] == b"T", (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"))
