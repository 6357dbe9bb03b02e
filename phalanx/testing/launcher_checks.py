"""What every launcher does: a subclass gives `launcher`, and inherits the suite.

class TestLocal(LauncherChecks):
    @pytest.fixture
    def launcher(self):
        return LocalLauncher()
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from ..contracts import Event, Exit, Launcher, Workers, WorkerSpec
from ..errors import AlgorithmError, PlatformError, Stopped, UserError
from ..launch.lasting import IDLE_NAME
from ..launch.stopping import StopRequest
from ..launch.supervise import Budget, Outcome, supervise

_HERE = "phalanx.testing.launcher_targets"
_PATIENCE_S = 60.0
_GONE_S = 10.0


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


def descendants() -> list[psutil.Process]:
    """Return the processes below this one, but for workers that wait for another job: those end by themselves."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() != IDLE_NAME:
                found.append(process)
    return found


def _kept() -> tuple[int, int, int]:
    """Return this process's open files, threads and descendants."""
    me = psutil.Process()
    return me.num_fds(), me.num_threads(), len(descendants())


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


def wait_until_gone(pids: Iterable[int], patience_s: float = _GONE_S) -> None:
    """Wait until these processes have ended; fail when one does not within so long."""
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                process.wait(patience_s)
        except psutil.NoSuchProcess:
            continue


_COMMAND = """
import json, os, signal
events = int(os.environ["PHALANX_EVENTS_FD"])
files = sorted(int(fd) for fd in os.listdir("/dev/fd"))
listing = os.open(".", os.O_RDONLY)  # takes the number that listing the folder took
seen = {"kind": "inside", "events": events, "files": [fd for fd in files if fd != listing],
        "sigpipe": signal.getsignal(signal.SIGPIPE).name}
lines = [b"not json", b'{"kind": 1}', b"[" * 100000, b'["kind"]', b'{"kind": "number", "n": 0}', b'{"at": null, "kind": "x"}',
         json.dumps(seen).encode(), b"\\xff\\xfe", b'{"kind": "number", "n": 1}', b'{"kind": "number", "n"']
pipe = os.fdopen(events, "wb")
pipe.write(b"\\n".join(lines))
pipe.flush()
os._exit(3)
"""

_DRIVER = """
import importlib, json, pathlib, sys
from phalanx.testing.launcher_checks import run_to_end, spec, until
launcher = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*json.loads(sys.argv[3]))
group = launcher.start(spec(pathlib.Path(sys.argv[4]), "with_descendant", payload={"wait": True}))
descendants = [e.body["pid"] for e in until(group, "descendant", 2)]
print(json.dumps([[m.pid for m in group.members], descendants]), flush=True)
_, exits = run_to_end(group)
print(json.dumps([e.code for e in exits]), flush=True)
"""


class LauncherChecks:
    """The suite.

    Attributes:
        arguments: what a launcher equal to the fixture's is made with, in a process of its own.
        groups_in_a_row: that must leave nothing behind.
        gone_s: within which all processes of a killed driver have ended.
    """

    arguments: ClassVar[list[str]] = []
    groups_in_a_row: ClassVar[int] = 20
    gone_s: ClassVar[float] = _GONE_S

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
        for threads in (1, 2):
            events, _ = run_to_end(launcher.start(spec(tmp_path, "threads", 1, threads=threads, payload=["numpy"])))
            assert set(of_kind(events, "threads")[0].body["threads"].values()) == {threads}

    def test_threads_are_limited_in_a_library_that_comes_late(self, launcher: Launcher, tmp_path: Path) -> None:
        group = spec(tmp_path, "threads", 1, payload=["numba"], preload=["numba"])  # loads OpenMP when its pool starts
        events, _ = run_to_end(launcher.start(group))
        assert set(of_kind(events, "threads")[0].body["threads"].values()) == {1}

    def test_many_events_arrive_whole_and_in_order(self, launcher: Launcher, tmp_path: Path) -> None:
        events, _ = run_to_end(launcher.start(spec(tmp_path, "flood", 2)))
        for rank in range(2):
            assert [e.body["number"] for e in events if e.rank == rank] == list(range(5000))

    def test_a_declared_error_beats_the_peers_that_lost_contact(self, launcher: Launcher, tmp_path: Path) -> None:
        for _ in range(3):
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

    def test_a_worker_that_is_asked_writes_its_stack(self, launcher: Launcher, tmp_path: Path) -> None:
        group = launcher.start(spec(tmp_path, "deep_in_thought"))
        until(group, "alive", 4)
        log = tmp_path / "logs" / "rank-1.log"
        group.dump(1)
        while "in deep_in_thought" not in log.read_text():
            until(group, "alive", 1)
        group.stop(0)
        _, exits = run_to_end(group)
        assert [e.code for e in exits] == [-9, -9]
        assert "deep_in_thought" not in (tmp_path / "logs" / "rank-0.log").read_text()
        group.dump(1)  # nobody is there any more

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

    @pytest.mark.parametrize("payload", [{}, {"session": True}])
    def test_descendants_end_with_their_worker(self, launcher: Launcher, tmp_path: Path, payload: dict[str, bool]) -> None:
        if payload and sys.platform != "linux":
            pytest.skip("only Linux hands orphans to the server")
        events, _ = run_to_end(launcher.start(spec(tmp_path, "with_descendant", 1, payload=payload)))
        wait_until_gone([of_kind(events, "descendant")[0].body["pid"]])

    def test_a_worker_inherits_nothing_that_is_not_its_own(self, launcher: Launcher, tmp_path: Path) -> None:
        groups = [launcher.start(spec(tmp_path, "ignore_stop")), launcher.start(spec(tmp_path, "inside", folder=tmp_path))]
        events, exits = run_to_end(groups[1])
        groups[0].close()
        assert [e.code for e in exits] == [0, 0]
        for rank, event in of_kind(events, "inside").items():
            assert event.body["inheritable"] == [0, 1, 2]
            assert event.body["group"] == groups[1].members[rank].pid
            assert event.body["session"] != os.getsid(0), "Ctrl-C of the terminal would reach the worker"
            assert event.body["blocked"] == []
            assert set(event.body["ignored"]) <= {signal.SIGPIPE, signal.SIGXFSZ}
            assert event.body["folder"] == str(tmp_path)
            assert (tmp_path / "logs" / f"rank-{rank}.log").read_text().endswith("ünïcödé \\udc80\n")

    def test_a_worker_is_where_its_launcher_is(
        self, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_to_end(launcher.start(spec(tmp_path, "report", 1)))
        monkeypatch.chdir(tmp_path)
        events, _ = run_to_end(launcher.start(spec(tmp_path, "inside", 1)))
        assert of_kind(events, "inside")[0].body["folder"] == str(tmp_path)

    @pytest.mark.parametrize(("grace_s", "code"), [(_PATIENCE_S, -15), (0, -9)])
    def test_a_stop_reaches_workers_that_are_being_born(
        self, launcher: Launcher, tmp_path: Path, grace_s: float, code: int
    ) -> None:
        for _ in range(3):
            group = launcher.start(spec(tmp_path, "wait_for_ever"))
            group.stop(grace_s)
            _, exits = run_to_end(group)
            assert [e.code for e in exits] == [code, code]

    def test_a_failed_start_leaves_nothing(self, launcher: Launcher, tmp_path: Path) -> None:
        run_to_end(launcher.start(spec(tmp_path, "report")))
        (tmp_path / "logs" / "rank-1.log").unlink()
        (tmp_path / "logs" / "rank-1.log").mkdir()
        before = psutil.Process().num_fds()
        with pytest.raises(PlatformError, match=r"rank-1\.log"):
            launcher.start(spec(tmp_path, "wait_for_ever"))
        assert psutil.Process().num_fds() == before

    def test_a_large_payload_arrives(self, launcher: Launcher, tmp_path: Path) -> None:
        payload = ["x" * 1000] * 3000
        events, _ = run_to_end(launcher.start(spec(tmp_path, "report", 1, payload=payload)))
        assert of_kind(events, "hello")[0].body["payload"] == payload

    def test_a_torn_event_is_passed_over(self, launcher: Launcher, tmp_path: Path) -> None:
        events, exits = run_to_end(launcher.start(spec(tmp_path, "killed_while_it_sends", 1)))
        assert [e.body["number"] for e in events] == [0, 1, 2]
        assert [e.code for e in exits] == [-9]

    def test_an_event_that_is_no_json_is_an_error(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, "send_nonsense", 1))
        assert isinstance(outcome.error, AlgorithmError)
        assert "JSON" in str(outcome.error)

    def test_last_words_are_in_the_log(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, "say_and_exit", 1))
        assert isinstance(outcome.error, AlgorithmError)
        assert "exit code 1: no such flavour" in str(outcome.error)

    def test_a_command_tells_events_through_its_pipe(self, launcher: Launcher, tmp_path: Path) -> None:
        given = spec(tmp_path, None, 1, command=[sys.executable, "-c", _COMMAND])
        events, exits = run_to_end(launcher.start(given))
        assert [e.body for e in events if e.body["kind"] == "number"] == [
            {"kind": "number", "n": 0},
            {"kind": "number", "n": 1},
        ]
        seen = of_kind(events, "inside")[0].body
        assert seen["files"] == [0, 1, 2, seen["events"]]
        assert seen["sigpipe"] == "SIG_IGN"  # of a Python that found SIG_DFL
        assert [e.code for e in exits] == [3]

    def test_a_folder_that_is_not_there_is_the_users_error(self, launcher: Launcher, tmp_path: Path) -> None:
        outcome = self.supervised(launcher, spec(tmp_path, None, 1, command=["true"], folder=tmp_path / "nowhere"))
        assert isinstance(outcome.error, UserError)
        assert "nowhere" in str(outcome.error)

    def test_groups_may_be_started_from_several_threads(self, launcher: Launcher, tmp_path: Path) -> None:
        def one(number: int) -> list[int]:
            return [e.code for e in run_to_end(launcher.start(spec(tmp_path / str(number), "report")))[1]]

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(one, range(8))) == [[0, 0]] * 8

    @pytest.mark.parametrize("whom", ["driver", "server"])
    def test_whoever_is_killed_no_process_is_left(self, launcher: Launcher, tmp_path: Path, whom: str) -> None:
        """The driver is a process that runs `launcher`; servers are the parents of the workers."""
        module, name = type(launcher).__module__, type(launcher).__name__
        driver = [sys.executable, "-c", _DRIVER, module, name, json.dumps(self.arguments), str(tmp_path)]
        with subprocess.Popen(driver, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                workers, descendants = json.loads(process.stdout.readline())
                family = {p.pid for p in psutil.Process(process.pid).children(recursive=True)}
                assert set(workers) < family
                assert set(descendants) < family
                if whom == "driver":
                    process.kill()
                    wait_until_gone(family, self.gone_s)
                else:
                    for server in {psutil.Process(pid).ppid() for pid in workers}:
                        os.kill(server, signal.SIGKILL)
                    wait_until_gone([*workers, *descendants], self.gone_s)
                    assert json.loads(process.stdout.readline()) == [-9, -9]
            finally:
                process.kill()

    def test_groups_in_a_row_leave_nothing(self, launcher: Launcher, tmp_path: Path) -> None:
        run_to_end(launcher.start(spec(tmp_path, "report")))
        before = _kept()
        for _ in range(self.groups_in_a_row):
            run_to_end(launcher.start(spec(tmp_path, "report")))
        give_up = time.monotonic() + _PATIENCE_S  # the system forgets a thread a moment after it was joined
        while any(now > then for now, then in zip(_kept(), before, strict=True)) and time.monotonic() < give_up:
            time.sleep(0.01)
        assert all(now <= then for now, then in zip(_kept(), before, strict=True)), f"{before} became {_kept()}"
