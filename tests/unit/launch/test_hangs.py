"""Who hangs, by a clock that the tests turn: stopped, silent, waited for, at odds; and who only computes for long."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from phalanx.contracts import Member
from phalanx.heartbeat import Reader
from phalanx.launch.hangs import Hang, HangWatch, ProcessState, _ProcessHere, _read, beat_seconds
from phalanx.pulse import Pulse

LIMIT = 30.0


def beat(**changes: Any) -> dict[str, Any]:
    """A sign of life of a rank that has done five steps and computes."""
    body = {"kind": "alive", "phase": "Training", "step": 5, "steps": 5, "calls": 9, "waiting": None, "waited_s": 0.0}
    return {**body, "noted": True, "last": "all_reduce", **changes}


@dataclass
class World:
    """Ranks that give their signs of life every two seconds, or do not."""

    size: int = 2
    now: float = 1000.0
    stopped: set[int] = field(default_factory=set)
    idle: set[int] = field(default_factory=set)  # the others compute

    def __post_init__(self) -> None:
        members = [Member(rank, 100 + rank, "here") for rank in range(self.size)]
        self.watch = HangWatch(members, LIMIT, clock=lambda: self.now, process=self.process)
        self.last = self.now

    def process(self, member: Member) -> ProcessState:
        return ProcessState(member.rank in self.stopped, 7.0 if member.rank in self.idle else 0.5 * self.now)

    def live(self, seconds: float, beats: Mapping[int, Mapping[str, Any]]) -> Hang | None:
        """Let so much time pass; a rank that waits does so for longer and longer. Return the first that hangs."""
        begun = self.now
        while self.now < begun + seconds:
            self.now += 0.5
            if self.now - self.last >= beat_seconds(LIMIT):
                self.last = self.now
                for rank, body in beats.items():
                    waited = self.now - begun if body.get("waiting") else 0.0
                    self.watch.heard(rank, {**body, "waited_s": waited})
            found = self.watch.look()
            if found is not None:
                return found
        return None


def test_the_beat_fits_the_limit() -> None:
    assert [beat_seconds(limit) for limit in (30.0, 4.0, 0.01)] == [2.0, 1.0, 0.05]


def test_long_computation_on_all_ranks_is_no_hang() -> None:
    world = World()
    assert world.live(3600, {0: beat(), 1: beat()}) is None


def test_a_silent_rank_is_named_when_another_is_alive() -> None:
    world = World()
    assert world.live(10, {0: beat(), 1: beat(step=7, steps=2)}) is None
    found = world.live(LIMIT + 5, {0: beat()})
    assert found is not None
    assert (found.rank, found.answers) == (1, True)
    assert "no sign of life for 30 s" in found.message
    assert "phase Training, after step 7, last collective: all_reduce" in found.message


def test_silence_of_all_is_a_machine_that_sleeps() -> None:
    world = World()
    world.live(10, {0: beat(), 1: beat()})
    assert world.live(600, {}) is None
    world.watch.heard(0, beat())  # it wakes up; the other does a moment later
    assert world.live(2, {}) is None
    assert world.live(60, {0: beat(), 1: beat()}) is None


def test_a_single_worker_that_computes_may_be_silent() -> None:
    world = World(1)
    world.live(10, {0: beat()})
    assert world.live(600, {}) is None


@pytest.mark.parametrize("size", [1, 2])
def test_silence_without_computing_is_a_hang(size: int) -> None:
    world = World(size, idle={0})
    assert world.live(600, {rank: beat() for rank in range(size)}) is None, "it waits for something, and says so"
    found = world.live(LIMIT + 5, {})
    assert found is not None
    assert (found.rank, found.answers) == (0, True)
    assert "no sign of life for 30 s, in which its process computed nothing; phase Training" in found.message


def test_an_idle_process_may_be_silent_until_its_first_step() -> None:
    world = World(1, idle={0})
    world.live(10, {0: beat(steps=0)})
    assert world.live(600, {}) is None


def test_a_pause_of_the_one_who_looks_is_not_the_ranks() -> None:
    world = World()
    world.live(10, {0: beat(), 1: beat()})
    for _ in range(20):
        world.now += 100.0
        world.watch.heard(0, beat())
        assert world.watch.look() is None, "at most a second of each pause counts"


@pytest.mark.parametrize("silent", [beat(steps=0), None])
def test_the_first_step_has_all_the_time(silent: dict[str, Any] | None) -> None:
    world = World()
    world.live(10, {0: beat(), **({} if silent is None else {1: silent})})
    assert world.live(600, {0: beat(waiting="all_reduce")}) is None


@pytest.mark.parametrize("size", [1, 2])
def test_a_stopped_process_is_named_at_any_time(size: int) -> None:
    world = World(size)
    world.stopped = {size - 1}
    found = world.live(LIMIT + 5, {})
    assert found is not None
    assert (found.rank, found.answers) == (size - 1, False)
    assert "its process was stopped by a signal (SIGSTOP) for 30 s; it had not told where it was" in found.message


def test_a_process_that_goes_on_in_time_is_not() -> None:
    world = World()
    for _ in range(5):
        world.stopped = {1}
        assert world.live(LIMIT - 5, {0: beat()}) is None
        world.stopped = set()
        assert world.live(5, {0: beat(), 1: beat()}) is None


def test_a_rank_that_others_wait_for_is_named() -> None:
    world = World(3)
    found = world.live(LIMIT + 5, {0: beat(), 1: beat(waiting="all_gather"), 2: beat(waiting="all_gather")})
    assert found is not None
    assert (found.rank, found.answers) == (0, True)
    assert "worker 0 hangs: worker 1 has waited for it for 32 s in all_gather" in found.message
    assert "last collective: all_reduce" in found.message


def test_a_wait_that_ends_in_time_is_no_hang() -> None:
    world = World()
    for step in range(20):
        late = beat(step=step, steps=step + 1, calls=step)
        assert world.live(LIMIT - 2, {0: late, 1: beat(step=step, steps=step + 1, waiting="all_reduce")}) is None


def test_a_rank_that_came_on_is_not_taken_for_the_cause() -> None:
    world = World(3)
    beats = {0: beat(), 1: beat(waiting="all_reduce"), 2: beat(waiting="all_reduce")}
    world.live(LIMIT - 4, beats)
    world.watch.heard(0, beat(calls=10))
    assert world.live(LIMIT - 4, beats) is None


@pytest.mark.parametrize("phase", ["Checkpointing", "Saving"])
def test_a_rank_that_saves_has_time(phase: str) -> None:
    world = World()
    assert world.live(600, {0: beat(phase=phase), 1: beat(phase=phase, waiting="all_gather")}) is None
    waits = beat(phase=phase, waiting="all_gather")
    found = World().live(LIMIT + 5, {0: beat(), 1: waits})
    assert found is not None, "the one that waits may be in any phase"
    assert found.rank == 0


def test_all_in_one_collective_is_a_slow_network() -> None:
    world = World()
    assert world.live(600, {0: beat(waiting="broadcast"), 1: beat(waiting="broadcast")}) is None


def test_ranks_in_different_collectives_are_a_hang() -> None:
    found = World().live(LIMIT + 5, {0: beat(waiting="barrier", calls=9), 1: beat(waiting="broadcast", calls=8)})
    assert found is not None
    assert found.rank == 1
    assert "it waits in broadcast, where worker 0 waits in barrier" in found.message
    guessed = beat(waiting="backward (torch.autograd)", noted=False)
    found = World().live(LIMIT + 5, {0: beat(waiting="barrier", calls=8), 1: guessed})
    assert found is not None
    assert found.rank == 1
    assert World().live(600, {0: guessed, 1: {**guessed, "waiting": "update (xgboost)"}}) is None, "they may compute on devices"


def test_a_rank_that_has_ended_is_not_missed() -> None:
    world = World()
    world.live(10, {0: beat(), 1: beat()})
    world.watch.ended(1)
    world.watch.heard(1, beat())
    assert world.live(600, {0: beat()}) is None


@pytest.mark.parametrize("body", [{"kind": "alive"}, beat(step="x"), beat(calls=None), beat(waited_s=[])])
def test_a_sign_of_life_that_cannot_be_read_is_one(body: dict[str, Any]) -> None:
    world = World()
    world.live(10, {0: beat(), 1: beat()})
    begun = world.now
    while world.now < begun + 600:
        world.now += 0.5
        world.watch.heard(0, beat())
        world.watch.heard(1, body)
        assert world.watch.look() is None


def test_the_state_of_a_process() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    words = b" 1 7 7 0 -1 64 1 2 3 4 %d %d 0 0" % (3 * tick, tick)
    assert _read(b"7 (a) T (x) T 1 7) S" + words) == ProcessState(False, 4.0)
    assert _read(b"7 (python) T" + words) == ProcessState(True, 4.0)
    assert _read(b"") == ProcessState()
    here = _ProcessHere()
    found = here(Member(0, os.getpid(), os.uname().nodename))
    assert not found.stopped
    assert found.computed_s is not None
    assert found.computed_s > 0
    assert here(Member(0, os.getpid(), "elsewhere")) == ProcessState()
    assert here(Member(0, 0, os.uname().nodename)) == ProcessState()


@dataclass
class Machine:
    """A process as its reader sees it."""

    now: float = 0.0
    computed: float = 0.0
    place: str | None = None

    def reader(self, pulse: Pulse) -> Reader:
        return Reader(pulse, lambda: self.place, clock=lambda: self.now, cpu=lambda: self.computed)

    def passes(self, seconds: float, *, computing: bool) -> None:
        self.now += seconds
        self.computed += seconds if computing else 0.0


def test_a_noted_wait_is_told_with_its_name() -> None:
    pulse, machine = Pulse(), Machine()
    reader = machine.reader(pulse)
    pulse.stepped(41)
    assert {**reader.read(), "kind": ""} == {**beat(step=41, steps=1, calls=0, last=None, noted=False), "kind": ""}
    pulse.waiting = ("all_reduce", 0.0)
    machine.passes(5.0, computing=True)
    told = reader.read()
    assert (told["waiting"], told["waited_s"], told["noted"]) == ("all_reduce", 5.0, True)
    pulse.waited()
    told = reader.read()
    assert (told["waiting"], told["calls"], told["last"]) == (None, 1, "all_reduce")


def test_an_idle_process_inside_a_library_waits() -> None:
    pulse, machine = Pulse(), Machine(place="backward (torch.autograd)")
    reader = machine.reader(pulse)
    machine.passes(2.0, computing=True)
    assert reader.read()["waiting"] is None, "it computes there"
    for waited in (2.0, 4.0, 6.0):
        machine.passes(2.0, computing=False)
        told = reader.read()
        assert (told["waiting"], told["waited_s"], told["noted"]) == ("backward (torch.autograd)", waited, False)
    pulse.stepped(1)
    machine.passes(2.0, computing=False)
    assert reader.read()["waited_s"] == 0.0, "it came on in between"
    machine.place = None
    machine.passes(2.0, computing=False)
    assert reader.read()["waiting"] is None, "idle in its own code: it is the one that others wait for"
