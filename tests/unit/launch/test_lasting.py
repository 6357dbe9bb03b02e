"""Processes that do one job after another: as fresh for each, and nothing of one job meets the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from phalanx.contracts import Event, Exit
from phalanx.launch.lasting import MOST_JOBS
from phalanx.launch.local import LocalLauncher, LocalWorkers
from phalanx.launch.warm import acquire_server, close_servers
from phalanx.testing.launcher_checks import of_kind, run_to_end, spec, until, wait_until_gone


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No server, and so no worker, before or after."""
    close_servers()
    yield
    close_servers()


def begun(place: Path, target: str = "report", **changes: Any) -> LocalWorkers:
    return LocalLauncher("fork").start(spec(place, target, 1, **{"lasts": "tests", **changes}))


def done(place: Path, target: str = "report", **changes: Any) -> tuple[int, list[Event], list[Exit]]:
    """Run a job to its end; return its process, events and exits."""
    group = begun(place, target, **changes)
    pid = group.members[0].pid
    return pid, *run_to_end(group)


def codes(exits: list[Exit]) -> list[int]:
    return [e.code for e in exits]


def test_one_process_does_one_job_after_another(tmp_path: Path) -> None:
    first, *_ = done(tmp_path / "a")
    for number in range(3):
        pid, events, exits = done(tmp_path / f"b{number}", payload={"number": number}, attempt=number)
        assert (pid, codes(exits)) == (first, [0])
        hello, seen = of_kind(events, "hello")[0].body, of_kind(events, "environment")[0].body
        assert (hello["pid"], hello["payload"], seen["attempt"]) == (first, {"number": number}, number)
        assert (tmp_path / f"b{number}" / "logs" / "rank-0.log").read_text() == "hello from 0\n"
    assert (tmp_path / "a" / "logs" / "rank-0.log").read_text() == "hello from 0\n"


def state_of(events: list[Event]) -> tuple[dict[str, Any], list[float]]:
    """Return what a job told of its process, and what it drew."""
    found = dict(of_kind(events, "state")[0].body)
    found.pop("at")
    return found, found.pop("random")


def test_a_job_finds_its_process_as_the_first_one_did(tmp_path: Path) -> None:
    _, events, _ = done(tmp_path / "log", "state")
    expected, _ = state_of(events)
    close_servers()
    pid, _, exits = done(tmp_path / "a", "disturb")
    assert codes(exits) == [0]
    later = [done(tmp_path / "log", "state") for _ in range(2)]
    assert {process for process, *_ in later} == {pid}
    states = [state_of(events) for _, events, _ in later]
    assert [found for found, _ in states] == [expected] * 2
    assert expected["files"] == ["/dev/null", *[str(tmp_path / "log" / "logs" / "rank-0.log")] * 2]
    assert states[0][1] == states[1][1]  # what is drawn is drawn anew
    assert (tmp_path / "log" / "logs" / "rank-0.log").read_text() == "state told\n" * 3
    assert (tmp_path / "a" / "logs" / "rank-0.log").read_text() == "a line without an end"


@pytest.mark.parametrize(
    ("left", "code"),
    [
        ("thread", 0),
        ("child", 0),
        ("file", 0),
        ("memory", 0),
        ("stream", 0),
        ("failure", 2),
        ("exit", 3),
        ("death", -signal.SIGKILL),
    ],
)
def test_a_process_that_cannot_be_made_fresh_ends_with_its_job(left: str, code: int, tmp_path: Path) -> None:
    pid, _, exits = done(tmp_path / "a", "disturb", payload=left)
    assert [e.code if e.code <= 0 or left == "exit" else 2 for e in exits] == [code]
    wait_until_gone([pid])
    after, events, exits = done(tmp_path / "b")
    assert codes(exits) == [0]
    assert of_kind(events, "hello")[0].body["pid"] == after != pid


def test_a_process_is_shared_by_jobs_of_one_kind_only(tmp_path: Path) -> None:
    first, *_ = done(tmp_path / "a")
    changes: list[dict[str, Any]] = [{"lasts": "other"}, {"lasts": None}, {"threads": 2}, {"environment": {"OTHER": "1"}}]
    pids = [done(tmp_path / str(number), **change)[0] for number, change in enumerate(changes)]
    assert len({first, *pids}) == 1 + len(changes)
    assert done(tmp_path / "b")[0] == first
    group = LocalLauncher("fork").start(spec(tmp_path / "two", "report", 2, lasts="tests"))
    assert first not in {member.pid for member in group.members}
    run_to_end(group)


def test_jobs_at_once_have_a_process_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: done(tmp_path / str(number), payload=number), range(24)))
    for number, (pid, events, exits) in enumerate(found):
        assert codes(exits) == [0]
        hello = of_kind(events, "hello")[0].body
        assert (hello["pid"], hello["payload"]) == (pid, number)
        assert (tmp_path / str(number) / "logs" / "rank-0.log").read_text() == "hello from 0\n"
    assert len({pid for pid, *_ in found}) < 24


def test_a_process_does_not_last_for_ever(tmp_path: Path) -> None:
    pids = [done(tmp_path / "a")[0] for _ in range(MOST_JOBS + 1)]
    assert len(set(pids)) == 2
    assert pids[-1] != pids[-2]


def test_a_stop_is_in_order_and_meets_one_job(tmp_path: Path) -> None:
    group = begun(tmp_path / "a", "wait_in_order")
    pid = group.members[0].pid
    until(group, "ready", 1)
    group.stop(60.0)
    _, exits = run_to_end(group)
    assert codes(exits) == [143]
    after, _, exits = done(tmp_path / "b")
    assert (after, codes(exits)) == (pid, [0])
    group.stop(0)  # too late: the process is another job's
    assert done(tmp_path / "c")[0] == pid


def test_a_process_that_is_killed_while_it_waits_is_replaced(tmp_path: Path) -> None:
    pid, *_ = done(tmp_path / "a")
    os.kill(pid, signal.SIGKILL)
    after, _, exits = done(tmp_path / "b")
    assert codes(exits) == [0]
    assert after != pid


def test_a_job_whose_process_dies_before_it_takes_it_gets_another(tmp_path: Path) -> None:
    pid, *_ = done(tmp_path / "a")
    os.kill(pid, signal.SIGSTOP)  # it will not take the job
    given = spec(tmp_path / "b", "report", 1, lasts="tests")
    given.log_folder.mkdir(parents=True)
    group = LocalWorkers(acquire_server(given.preload, fork=True))
    group.add(0, given, 1, None)
    other, *_ = done(tmp_path / "c")  # the server has handed the job over by now
    os.kill(pid, signal.SIGKILL)
    group.await_pids()
    taker = group.members[0].pid
    events, exits = run_to_end(group)
    assert codes(exits) == [0]
    assert of_kind(events, "hello")[0].body["pid"] == taker
    assert pid not in (taker, other)


def test_a_process_waits_for_a_while_only(tmp_path: Path) -> None:
    pid, *_ = done(tmp_path / "a")
    assert psutil.Process(pid).name() == "phalanx-idle"
    wait_until_gone([pid])


def test_a_process_that_waits_ends_with_its_server(tmp_path: Path) -> None:
    pid, *_ = done(tmp_path / "a")
    close_servers()
    wait_until_gone([pid])
