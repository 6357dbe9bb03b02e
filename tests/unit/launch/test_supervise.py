"""Decisions, root causes and the restart loop, over a launcher that plays a script: no processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from phalanx.contracts import Event, Exit, Member, WorkerSpec
from phalanx.errors import AlgorithmError, Interruption, PhalanxError, PlatformError, Stopped, UserError, to_record
from phalanx.launch import supervise as module
from phalanx.launch.stopping import StopRequest
from phalanx.launch.supervise import Budget, GiveUp, Outcome, Retry, decide, root_cause, supervise

LOST = PlatformError("lost a peer")
Happened = Event | Exit | Callable[[], None]  # a callable is played, and nobody is told


def failed(rank: int, error: PhalanxError, when: float = 1.0) -> Event:
    return Event(rank, when, {"kind": "failure", "error": {**to_record(error), "time": when}})


@pytest.mark.parametrize(
    ("error", "restarts", "allowed", "decision"),
    [
        (PlatformError("x"), 0, 0, GiveUp()),
        (PlatformError("x"), 0, 1, Retry(0.0)),
        (PlatformError("x"), 1, 1, GiveUp()),
        (PlatformError("x"), 1, 9, Retry(1.0)),
        (PlatformError("x"), 3, 9, Retry(4.0)),
        (PlatformError("x"), 30, 99, Retry(60.0)),
        (PlatformError("x"), 5000, 9999, Retry(60.0)),
        (AlgorithmError("x"), 0, 1, Retry(0.0)),
        (UserError("x"), 0, 9, GiveUp()),
        (Stopped("x"), 0, 9, GiveUp()),
    ],
)
def test_decisions(error: PhalanxError, restarts: int, allowed: int, decision: Retry | GiveUp) -> None:
    assert decide(error, restarts, Budget(allowed)) == decision


CAUSES: list[tuple[str, list[Event], list[Exit], type[PhalanxError], str]] = [
    (
        "a user's error beats the earlier loss of a peer",
        [failed(1, UserError("bad row"), 2.0), failed(0, LOST, 1.0)],
        [Exit(0, 75, 1.1), Exit(1, 2, 2.1)],
        UserError,
        "bad row",
    ),
    (
        "the earliest declared wins, in whatever order they came",
        [failed(1, AlgorithmError("b"), 2.0), failed(0, AlgorithmError("a"), 1.0)],
        [],
        AlgorithmError,
        "a",
    ),
    (
        "a killed rank explains who lost it",
        [failed(0, LOST, 1.0)],
        [Exit(1, -9, 1.5), Exit(0, 75, 1.1)],
        PlatformError,
        "worker 1 was killed by SIGKILL; perhaps the machine ran out of memory",
    ),
    ("a loss that nothing explains", [failed(0, LOST)], [Exit(0, 75, 1.1)], PlatformError, "lost a peer"),
    (
        "a signal beats an exit code",
        [],
        [Exit(0, 3, 1.0), Exit(1, -11, 2.0)],
        PlatformError,
        "worker 1 was killed by SIGSEGV",
    ),
    ("a signal without a name", [], [Exit(0, -40, 1.0)], PlatformError, "worker 0 was killed by signal 40"),
    (
        "the earliest exit code",
        [],
        [Exit(1, 4, 2.0), Exit(0, 3, 1.0)],
        AlgorithmError,
        "worker 0 ended with exit code 3: last of",
    ),
    (
        "a stop that nobody here asked for is an interruption",
        [failed(1, LOST, 0.9), failed(0, Stopped("in order"), 1.0)],
        [Exit(0, 143, 1.1)],
        Interruption,
        "worker 0 was interrupted from outside: in order",
    ),
    (
        "an error of an unknown kind is the algorithm's",
        [Event(0, 1.0, {"kind": "failure", "error": {"kind": "Odd", "message": "m", "time": 1.0}})],
        [],
        AlgorithmError,
        "m",
    ),
    (
        "a record without its fields",
        [Event(0, 1.0, {"kind": "failure", "error": 7})],
        [],
        AlgorithmError,
        'worker 0 declared a failure: {"kind"',
    ),
    ("no record at all", [Event(0, 1.0, {"kind": "failure"})], [], AlgorithmError, "worker 0 declared a failure"),
]


@pytest.mark.parametrize(("events", "exits", "kind", "text"), [c[1:] for c in CAUSES], ids=[c[0] for c in CAUSES])
def test_root_causes(events: list[Event], exits: list[Exit], kind: type[PhalanxError], text: str) -> None:
    error = root_cause(events, exits, lambda rank: f"first\nlast of {rank}\n")
    assert type(error) is kind
    assert text in str(error)


def test_clean_exits_are_no_failure() -> None:
    assert root_cause([], [Exit(0, 0, 1.0), Exit(1, 0, 1.0)], lambda rank: "") is None


def test_the_first_request_to_stop_stays_and_the_second_is_urgent() -> None:
    stop = StopRequest()
    assert (stop.requested(), stop.reason, stop.exit_code, stop.urgent) == (False, None, 143, False)
    stop.request("first", 130)
    assert (stop.requested(), stop.reason, stop.exit_code, stop.urgent) == (True, "first", 130, False)
    stop.request("second", 143)
    assert (stop.reason, stop.exit_code, stop.urgent) == ("first", 130, True)


def test_waiting_ends_when_somebody_asks() -> None:
    stop = StopRequest()
    assert not stop.wait(0.0)
    asking = threading.Timer(0.01, stop.request, ("now", 143))
    asking.start()
    assert stop.wait(60.0)
    asking.join()


@dataclass
class PlayedWorkers:
    """One group: tells what the script says; a stop ends whoever is left, at once."""

    script: list[Happened]
    size: int
    log: list[str]
    stop_code: int = 143
    left: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.left = set(range(self.size))
        self.members = [Member(rank, 1000 + rank, "here") for rank in range(self.size)]
        self.members: Sequence[Member]

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        if not self.script:
            return []
        happened = self.script.pop(0)
        if isinstance(happened, Exit):
            self.left.discard(happened.rank)
        if isinstance(happened, Event | Exit):
            return [happened]
        happened()
        return []

    def stop(self, grace_s: float) -> None:
        self.log.append(f"stop {grace_s:g}")
        code = -signal.SIGKILL if grace_s == 0 else self.stop_code
        self.script = [Exit(rank, code, 9.0) for rank in sorted(self.left)]

    def dump(self, rank: int) -> None:
        self.log.append(f"dump {rank}")

    def close(self) -> None:
        self.log.append("close")


class PlayedLauncher:
    """Plays one script after the other; a `PlatformError` in place of a script is raised by `start`."""

    def __init__(self, *scripts: list[Happened] | PlatformError, size: int = 2) -> None:
        self.scripts = list(scripts)
        self.size = size
        self.specs: list[WorkerSpec] = []
        self.log: list[str] = []

    def prepare(self, preload: Sequence[str]) -> None: ...

    def start(self, spec: WorkerSpec) -> PlayedWorkers:
        self.specs.append(spec)
        script = self.scripts.pop(0)
        if isinstance(script, PlatformError):
            raise script
        return PlayedWorkers(list(script), self.size, self.log)


def run(launcher: PlayedLauncher, place: Path, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "budget": Budget(),
        "stop": StopRequest(),
        "max_runtime_s": None,
        "grace_s": 20.0,
        "on_event": lambda event: None,
        "on_group": lambda members, attempt: None,
        **changes,
    }
    return supervise(launcher, WorkerSpec(launcher.size, place, 7, command=["x"]), **fields)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DECLARE_SECONDS", 0.0)


WELL: list[Happened] = [Exit(0, 0, 1.0), Exit(1, 0, 1.0)]


def test_events_and_groups_are_told_but_failures_are_not(tmp_path: Path) -> None:
    events: list[Event] = []
    groups: list[tuple[int, int]] = []
    step = Event(0, 1.0, {"kind": "step"})
    launcher = PlayedLauncher([failed(1, LOST), step, Exit(0, 0, 1.0), Exit(1, 75, 1.0)], WELL)
    outcome = run(
        launcher,
        tmp_path,
        budget=Budget(1),
        on_event=events.append,
        on_group=lambda members, attempt: groups.append((members[1].pid, attempt)),
    )
    assert outcome == Outcome(None, "Completed", 1)
    assert events == []  # the survivor was not waited for
    assert groups == [(1001, 0), (1001, 1)]
    assert [spec.attempt for spec in launcher.specs] == [0, 1]
    assert launcher.log == ["stop 0", "close", "close"]


def test_a_rank_that_ends_well_before_the_others_is_fine(tmp_path: Path) -> None:
    step = Event(1, 1.0, {"kind": "step"})
    events: list[Event] = []
    launcher = PlayedLauncher([Exit(0, 0, 1.0), step, step, Exit(1, 0, 1.0)])
    assert run(launcher, tmp_path, on_event=events.append) == Outcome(None, "Completed", 0)
    assert events == [step, step]
    assert launcher.log == ["close"]


def test_whom_the_supervisor_kills_is_not_the_cause(tmp_path: Path) -> None:
    outcome = run(PlayedLauncher([Exit(1, 3, 1.0)], size=3), tmp_path)
    assert isinstance(outcome.error, AlgorithmError)
    assert "worker 1 ended with exit code 3" in str(outcome.error)
    outcome = run(PlayedLauncher([failed(1, PlatformError("the storage is gone")), Exit(1, 75, 1.0)], size=3), tmp_path)
    assert str(outcome.error) == "the storage is gone"


def test_the_budget_is_used_up(tmp_path: Path) -> None:
    killed: list[Happened] = [Exit(0, -9, 1.0), Exit(1, 0, 1.0)]
    outcome = run(PlayedLauncher(killed, killed), tmp_path, budget=Budget(1))
    assert isinstance(outcome.error, PlatformError)
    assert (outcome.secondary_status, outcome.restarts) == ("Failed", 1)


def test_the_pause_before_a_restart_begins_anew_after_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(StopRequest, "wait", lambda self, seconds: pauses.append(seconds))

    def attempt(*steps: int) -> list[Happened]:
        told: list[Happened] = [Event(0, 1.0, {"kind": "step", "step": step}) for step in steps]
        return [*told, Exit(0, -9, 1.0), Exit(1, 0, 1.0)]

    launcher = PlayedLauncher(attempt(1, 2), attempt(), attempt(2), attempt(3), attempt(3), attempt(3), WELL)
    assert run(launcher, tmp_path, budget=Budget(9)).restarts == 6
    assert pauses == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0], "step 2 was done before, step 3 is new"


def test_a_users_error_is_not_tried_again(tmp_path: Path) -> None:
    outcome = run(PlayedLauncher([failed(0, UserError("no"))]), tmp_path, budget=Budget(5))
    assert isinstance(outcome.error, UserError)
    assert outcome.restarts == 0


def test_a_group_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    assert run(PlayedLauncher(PlatformError("no process"), WELL), tmp_path, budget=Budget(1)) == Outcome(None, "Completed", 1)
    outcome = run(PlayedLauncher(PlatformError("no process")), tmp_path)
    assert str(outcome.error) == "no process"


def test_an_interruption_from_outside_is_tried_again(tmp_path: Path) -> None:
    interrupted: list[Happened] = [failed(0, Stopped("SIGTERM")), failed(1, LOST), Exit(0, 143, 1.0), Exit(1, 75, 1.0)]
    assert run(PlayedLauncher(interrupted, WELL), tmp_path, budget=Budget(1)) == Outcome(None, "Completed", 1)


@pytest.mark.parametrize("stop_code", [143, -9, 0, 1])
def test_a_requested_stop_is_stopped_however_the_ranks_end(tmp_path: Path, stop_code: int) -> None:
    stop = StopRequest()
    launcher = PlayedLauncher([lambda: stop.request("Ctrl-C", 130), *([lambda: None] * 3)])
    outcome = run(launcher, tmp_path, stop=stop, budget=Budget(3))
    assert isinstance(outcome.error, Stopped)
    assert (str(outcome.error), outcome.error.exit_code) == ("Ctrl-C", 130)
    assert (outcome.secondary_status, outcome.restarts) == ("Stopped", 0)
    assert launcher.log == ["stop 20", "close"]


def test_a_second_request_does_not_wait(tmp_path: Path) -> None:
    stop = StopRequest()
    launcher = PlayedLauncher([lambda: stop.request("once", 130)])

    def deaf(grace_s: float) -> None:
        launcher.log.append(f"stop {grace_s:g}")
        if grace_s:
            workers.script = [lambda: stop.request("twice", 130)]
        else:
            workers.script = [Exit(0, -9, 1.0), Exit(1, -9, 1.0)]

    workers = launcher.start(WorkerSpec(2, tmp_path, 0))
    launcher.start = lambda spec: workers  # type: ignore[method-assign]
    workers.stop = deaf  # type: ignore[method-assign]
    outcome = run(launcher, tmp_path, stop=stop)
    assert isinstance(outcome.error, Stopped)
    assert launcher.log == ["stop 20", "stop 0", "close"]


def test_a_failure_before_the_stop_stands(tmp_path: Path) -> None:
    stop = StopRequest()

    def fails_then_asked() -> None:
        stop.request("Ctrl-C", 130)

    launcher = PlayedLauncher([failed(0, UserError("bad row")), fails_then_asked])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DECLARE_SECONDS", 3600.0)
        outcome = run(launcher, tmp_path, stop=stop)
    assert isinstance(outcome.error, UserError)
    assert launcher.log == ["stop 0", "close"]


def test_asked_before_it_begins_nothing_starts(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.request("never mind", 143)
    launcher = PlayedLauncher()
    outcome = run(launcher, tmp_path, stop=stop)
    assert isinstance(outcome.error, Stopped)
    assert launcher.specs == []


def test_a_stop_ends_the_pause_between_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    monkeypatch.setattr(module, "_FIRST_DELAY_S", 3600.0)
    monkeypatch.setattr(module, "_MAX_DELAY_S", 3600.0)
    killed: list[Happened] = [Exit(0, -9, 1.0), Exit(1, 0, 1.0)]
    asking = threading.Timer(0.05, stop.request, ("enough", 143))

    def on_group(members: Sequence[Member], attempt: int) -> None:
        if attempt == 1:
            asking.start()

    outcome = run(PlayedLauncher(killed, killed), tmp_path, stop=stop, budget=Budget(9), on_group=on_group)
    asking.join()
    assert isinstance(outcome.error, Stopped)
    assert (outcome.secondary_status, outcome.restarts) == ("Stopped", 1)


def test_the_time_limit_covers_the_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_S", 3600.0)
    monkeypatch.setattr(module, "_MAX_DELAY_S", 3600.0)
    killed: list[Happened] = [Exit(0, -9, 1.0), Exit(1, 0, 1.0)]
    outcome = run(PlayedLauncher(killed, killed), tmp_path, budget=Budget(9), max_runtime_s=0.2)
    assert isinstance(outcome.error, Stopped)
    assert outcome.secondary_status == "MaxRuntimeExceeded"


def test_a_stop_does_not_wait_for_a_group_that_is_slow_to_start(tmp_path: Path) -> None:
    stop = StopRequest()
    launcher = PlayedLauncher(WELL)
    go_on, closed = threading.Event(), threading.Event()
    start = launcher.start

    def slow(spec: WorkerSpec) -> PlayedWorkers:
        stop.request("Ctrl-C", 130)
        go_on.wait()
        workers = start(spec)
        workers.close = closed.set  # type: ignore[method-assign]
        return workers

    launcher.start = slow  # type: ignore[method-assign]
    groups: list[int] = []
    outcome = run(launcher, tmp_path, stop=stop, on_group=lambda members, attempt: groups.append(attempt))
    assert isinstance(outcome.error, Stopped)
    assert (outcome.error.exit_code, groups) == (130, [])
    go_on.set()
    assert closed.wait(60)  # the group that came too late


def test_what_a_launcher_raises_arrives(tmp_path: Path) -> None:
    def start(spec: WorkerSpec) -> PlayedWorkers:
        raise AlgorithmError("the payload is no JSON")

    launcher = PlayedLauncher()
    launcher.start = start  # type: ignore[method-assign]
    with pytest.raises(AlgorithmError, match="no JSON"):
        run(launcher, tmp_path, budget=Budget(3))


def test_an_error_of_a_listener_closes_the_group(tmp_path: Path) -> None:
    def on_event(event: Event) -> None:
        raise PlatformError("the record's disk is full")

    launcher = PlayedLauncher([Event(0, 1.0, {"kind": "step"})])
    with pytest.raises(PlatformError, match="disk is full"):
        run(launcher, tmp_path, on_event=on_event, budget=Budget(3))
    assert launcher.log == ["close"]


def test_a_crash_tells_of_its_own_attempt_only(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text("of an attempt before\n")
    outcome = run(PlayedLauncher([Exit(0, 3, 1.0), Exit(1, 0, 1.0)]), tmp_path)
    assert "its log is empty" in str(outcome.error)

    def prints() -> None:
        with log.open("a") as file:
            file.write("Traceback\nValueError: now\n")

    outcome = run(PlayedLauncher([prints, Exit(0, 3, 1.0), Exit(1, 0, 1.0)]), tmp_path)
    assert str(outcome.error) == "worker 0 ended with exit code 3: ValueError: now"
    assert outcome.error is not None
    assert outcome.error.details == "Traceback\nValueError: now\n"
