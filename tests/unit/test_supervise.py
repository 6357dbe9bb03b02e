"""Decisions and root causes, without processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from phalanx.contracts import Event, Exit
from phalanx.errors import AlgorithmError, PhalanxError, PlatformError, Stopped, UserError, to_record
from phalanx.launch.supervise import Budget, GiveUp, Retry, StopRequest, decide, root_cause


def failed(rank: int, error: PhalanxError, when: float) -> Event:
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
        (AlgorithmError("x"), 0, 1, Retry(0.0)),
        (UserError("x"), 0, 9, GiveUp()),
        (Stopped("x"), 0, 9, GiveUp()),
    ],
)
def test_decisions(error: PhalanxError, restarts: int, allowed: int, decision: Retry | GiveUp) -> None:
    assert decide(error, restarts, Budget(allowed)) == decision


@pytest.mark.parametrize(
    ("events", "exits", "kind", "text"),
    [
        ([failed(1, UserError("bad row"), 2.0), failed(0, PlatformError("lost a peer"), 1.0)], [Exit(1, 2, 2.1)], UserError, "bad row"),
        ([failed(1, AlgorithmError("b"), 2.0), failed(0, AlgorithmError("a"), 1.0)], [], AlgorithmError, "a"),
        ([failed(0, PlatformError("lost a peer"), 1.0)], [Exit(1, -9, 1.5), Exit(0, 75, 1.1)], PlatformError, "worker 1 was killed by SIGKILL"),
        ([failed(0, PlatformError("lost a peer"), 1.0)], [Exit(0, 75, 1.1)], PlatformError, "lost a peer"),
        ([], [Exit(0, 3, 1.0), Exit(1, -11, 2.0)], PlatformError, "worker 1 was killed by SIGSEGV"),
        ([], [Exit(0, 3, 1.0)], AlgorithmError, "worker 0 ended with exit code 3: the last line"),
        ([failed(0, Stopped("in order"), 1.0)], [Exit(0, 143, 1.1)], Stopped, "in order"),
    ],
)  # fmt: skip
def test_root_causes(tmp_path: Path, events: list[Event], exits: list[Exit], kind: type[PhalanxError], text: str) -> None:
    (tmp_path / "rank-0.log").write_text("first\nthe last line\n")
    error = root_cause(events, exits, tmp_path)
    assert type(error) is kind
    assert text in str(error)


def test_clean_exits_are_no_failure(tmp_path: Path) -> None:
    assert root_cause([], [Exit(0, 0, 1.0), Exit(1, 0, 1.0)], tmp_path) is None


def test_the_first_request_to_stop_stays_and_the_second_is_urgent() -> None:
    stop = StopRequest()
    assert not stop.requested()
    stop.request("first", 130)
    assert (stop.reason, stop.exit_code, stop.urgent) == ("first", 130, False)
    stop.request("second", 143)
    assert (stop.reason, stop.exit_code, stop.urgent) == ("first", 130, True)
