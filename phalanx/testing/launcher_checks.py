"""What every launcher does: a subclass gives `launcher`, and inherits the suite.

class TestLocal(LauncherChecks):
    @pytest.fixture
    def launcher(self):
        return LocalLauncher()
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ..contracts import Event, Exit, Launcher, Workers, WorkerSpec
from ..errors import AlgorithmError, PlatformError, Stopped, UserError
from ..launch.supervise import Budget, Outcome, StopRequest, supervise

_HERE = "phalanx.testing.launcher_targets"
_PATIENCE_S = 60.0


def spec(place: Path, target: str | None, workers: int = 2, **changes: Any) -> WorkerSpec:
    """Return the spec of a small group."""
    fields: dict[str, Any] = {
        "workers": workers,
        "log_folder": place / "logs",
        "attempt": 0,
        "target": None if target is None else f"{_HERE}:{target}",
        "preload": ("numpy", _HERE),
        **changes,
    }
    return WorkerSpec(**fields)


def run_to_end(workers: Workers) -> tuple[list[Event], list[Exit]]:
    """Poll until every worker has ended; return all events and exits in the order they came."""
    events: list[Event] = []
    exits: list[Exit] = []
    try:
        while len(exits) < len(workers.members):
            for happened in workers.poll(_PATIENCE_S):
                if isinstance(happened, Exit):
                    exits.append(happened)
                else:
                    assert happened.rank not in {e.rank for e in exits}, "an event came after its worker's exit"
                    events.append(happened)
    finally:
        workers.close()
    return events, exits


def until(workers: Workers, kind: str, count: int) -> list[Event]:
    """Poll until `count` events of a kind have come."""
    found: list[Event] = []
    while len(found) < count:
        happened = workers.poll(_PATIENCE_S)
        assert happened, f"no {kind} within {_PATIENCE_S} s"
        found += [e for e in happened if isinstance(e, Event) and e.body["kind"] == kind]
    return found


def of_kind(events: Sequence[Event], kind: str) -> dict[int, Event]:
    """Return the event of a kind of each rank."""
    return {e.rank: e for e in events if e.body["kind"] == kind}


class LauncherChecks:
    """The suite."""

    def supervised(self, launcher: Launcher, given: WorkerSpec, **changes: Any) -> Outcome:
        """Run a spec under `supervise`."""
        fields: dict[str, Any] = {
            "budget": Budget(),
            "stop": StopRequest(),
            "max_runtime_s": None,
            "grace_s": 20.0,
            "on_event": lambda event: None,
            "on_group": lambda members, attempt: None,
            **changes,
        }
        return supervise(launcher, given, **fields)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_every_rank_knows_its_place(self, launcher: Launcher, tmp_path: Path, workers: int) -> None:
        group = launcher.start(spec(tmp_path, "report", workers, payload={"a": [1, "ü"]}, environment={"EXTRA": "given"}))
        pids = [m.pid for m in group.members]
        events, exits = run_to_end(group)
        assert sorted((e.rank, e.code) for e in exits) == [(rank, 0) for rank in range(workers)]
        hellos, variables = of_kind(events, "hello"), of_kind(events, "environment")
        for rank in range(workers):
            assert hellos[rank].body["rank"] == rank
            assert hellos[rank].body["size"] == workers
            assert hellos[rank].body["pid"] == pids[rank]
            assert hellos[rank].body["payload"] == {"a": [1, "ü"]}
            found = variables[rank].body["variables"]
            expected = {"RANK": str(rank), "WORLD_SIZE": str(workers), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            assert {name: found[name] for name in expected} == expected
            assert found["EXTRA"] == "given"
            assert found["MASTER_PORT"] not in ("0", "29500")
            assert f"hello from {rank}" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()

    def test_every_group_has_a_fresh_port(self, launcher: Launcher, tmp_path: Path) -> None:
        ports = set()
        for _ in range(3):
            events, _ = run_to_end(launcher.start(spec(tmp_path, "report")))
            ports.add(of_kind(events, "environment")[0].body["variables"]["MASTER_PORT"])
        assert len(ports) == 3

    def test_threads_are_limited_in_the_worker(self, launcher: Launcher, tmp_path: Path) -> None:
        events, _ = run_to_end(launcher.start(spec(tmp_path, "threads", 1, threads=1)))
        assert set(of_kind(events, "threads")[0].body["threads"]) == {1}

    def test_many_events_arrive_whole_and_in_order(self, launcher: Launcher, tmp_path: Path) -> None:
        events, _ = run_to_end(launcher.start(spec(tmp_path, "flood", 2)))
        for rank in range(2):
            assert [e.body["number"] for e in events if e.rank == rank] == list(range(5000))

    def test_a_declared_error_beats_the_peers_that_lost_contact(self, launcher: Launcher, tmp_path: Path) -> None:
        for _ in range(5):
            outcome = self.supervised(launcher, spec(tmp_path, "fail", 3))
            assert isinstance(outcome.error, UserError)
            assert str(outcome.error) == "rank 0 was given something wrong"
            assert "launcher_targets" in outcome.error.details

    def test_a_killed_worker_is_named(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, "crash", 3))
        assert isinstance(outcome.error, PlatformError)
        assert "worker 2 was killed by SIGKILL" in str(outcome.error)

    def test_a_restart_is_within_the_budget(self, launcher: Launcher, tmp_path: Path) -> None:
        attempts: list[int] = []
        outcome = self.supervised(
            launcher, spec(tmp_path, "crash_once"), budget=Budget(2), on_group=lambda members, attempt: attempts.append(attempt)
        )
        assert outcome == Outcome(None, "Completed", 1)
        assert attempts == [0, 1]

    @pytest.mark.parametrize(("payload", "code"), [(0, 0), (7, 7)])
    def test_exit_codes_arrive(self, launcher: Launcher, tmp_path: Path, payload: int, code: int) -> None:
        _, exits = run_to_end(launcher.start(spec(tmp_path, "exit_with", 2, payload=payload)))
        assert [e.code for e in exits] == [code, code]

    def test_a_stop_is_in_order(self, launcher: Launcher, tmp_path: Path) -> None:
        group = launcher.start(spec(tmp_path, "wait_in_order"))
        until(group, "ready", 2)
        group.stop(_PATIENCE_S)
        events, exits = run_to_end(group)
        assert [e.code for e in exits] == [143, 143]
        assert {e.body["error"]["kind"] for e in events} == {"Stopped"}

    def test_a_deaf_worker_is_killed(self, launcher: Launcher, tmp_path: Path) -> None:
        group = launcher.start(spec(tmp_path, "ignore_stop"))
        until(group, "ready", 2)
        group.stop(0.2)
        _, exits = run_to_end(group)
        assert [e.code for e in exits] == [-9, -9]

    def test_a_requested_stop_ends_as_stopped(self, launcher: Launcher, tmp_path: Path) -> None:
        stop = StopRequest()

        def on_event(event: Event) -> None:
            stop.request("enough", 130)

        outcome = self.supervised(launcher, spec(tmp_path, "wait_in_order"), stop=stop, on_event=on_event)
        assert isinstance(outcome.error, Stopped)
        assert outcome.error.exit_code == 130
        assert outcome.secondary_status == "Stopped"

    def test_the_time_limit_stops(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, "wait_in_order"), max_runtime_s=0.1)
        assert isinstance(outcome.error, Stopped)
        assert outcome.secondary_status == "MaxRuntimeExceeded"

    def test_a_command_gets_a_fresh_interpreter_and_its_place(self, launcher: Launcher, tmp_path: Path) -> None:
        code = "import os, sys; assert 'phalanx' not in sys.modules; print('rank', os.environ['RANK'], os.getcwd())"
        given = spec(tmp_path, None, 2, command=[sys.executable, "-c", code], folder=tmp_path)
        assert self.supervised(launcher, given).error is None
        assert (tmp_path / "logs" / "rank-1.log").read_text().strip() == f"rank 1 {tmp_path}"

    def test_a_failing_command_tells_its_last_line(self, launcher: Launcher, tmp_path: Path) -> None:
        command = [sys.executable, "-c", "raise SystemExit('no such flavour')"]
        outcome = self.supervised(launcher, spec(tmp_path, None, 1, command=command))
        assert isinstance(outcome.error, AlgorithmError)
        assert "exit code 1: no such flavour" in str(outcome.error)

    def test_a_missing_command_is_the_users_error(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, None, 1, command=["no-such-program"]))
        assert isinstance(outcome.error, UserError)
        assert "no-such-program" in str(outcome.error)

    def test_a_missing_target_is_the_users_error(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, "no_such_function", 1))
        assert isinstance(outcome.error, UserError)
        assert "no_such_function" in str(outcome.error)

    def test_a_payload_that_is_no_json_is_refused(self, launcher: Launcher, tmp_path: Path) -> None:
        with pytest.raises(AlgorithmError, match="JSON"):
            launcher.start(spec(tmp_path, "report", payload=object()))

    def test_descendants_end_with_their_worker(self, launcher: Launcher, tmp_path: Path) -> None:
        events, _ = run_to_end(launcher.start(spec(tmp_path, "with_descendant", 1)))
        pid = of_kind(events, "descendant")[0].body["pid"]
        if psutil.pid_exists(pid):
            psutil.wait_procs([psutil.Process(pid)], timeout=10)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    def test_twenty_groups_leave_nothing(self, launcher: Launcher, tmp_path: Path) -> None:
        run_to_end(launcher.start(spec(tmp_path, "report")))
        me = psutil.Process()
        before = (me.num_fds(), me.num_threads(), len(me.children(recursive=True)))
        for _ in range(20):
            run_to_end(launcher.start(spec(tmp_path, "report")))
        assert (me.num_fds(), me.num_threads(), len(me.children(recursive=True))) == before
