"""Where a rank's time goes: the phase is read off the stack, windows wait for their step, the profile is a trace and sums."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from phalanx import pulse
from phalanx.contracts import Event
from phalanx.observing import Observer
from phalanx.phases import PHASES, Processor, phase_of
from phalanx.tracking.profile import ProfileRecord, summary
from phalanx.tracking.rules.seen import Window
from phalanx.trainer.measuring import Measuring
from phalanx.trainer.profiling import Profile
from phalanx.trainer.windows import Machine, Windows


@pytest.fixture(autouse=True)
def _steps_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "now", pulse.Pulse())


def _frame(*files: str) -> FrameType | None:
    """Return the innermost frame of functions that call each other, each as if it stood in one of the files."""
    found: list[FrameType] = []
    space: dict[str, Any] = {"keep": lambda: found.append(sys._getframe(1))}
    source = "def f(rest):\n    return rest[0](rest[1:]) if rest else keep()\n"
    functions = []
    for file in files:
        own = dict(space)
        exec(compile(source, file, "exec"), own)
        functions.append(own["f"])
    functions[0](functions[1:])
    return found[0]


@pytest.mark.parametrize(
    ("files", "idle", "phase"),
    [
        (["/x/train.py"], False, "compute"),
        (["/x/train.py"], True, "data"),
        (["/x/torch/nn/modules/linear.py"], False, "compute"),
        (["/x/phalanx/trainer/feeding.py", "/x/train.py"], True, "data"),
        (["/x/phalanx/trainer/feeding.py", "/x/train.py"], False, "loading"),
        (["/x/torch/utils/data/dataloader.py", "/x/queue.py"], True, "data"),
        (["/x/torch/autograd/graph.py"], True, "communication"),
        (["/x/torch/autograd/graph.py"], False, "compute"),
        (["/x/phalanx/algorithms/xgboost/algorithm.py", "/x/xgboost/core.py"], True, "communication"),
    ],
)
def test_the_phase_is_where_the_thread_is(files: list[str], idle: bool, phase: str) -> None:
    assert phase_of(_frame(*files), idle=idle) == phase


def test_what_was_noted_goes_before_the_stack() -> None:
    pulse.now.wait("all_reduce")
    assert phase_of(_frame("/x/train.py"), idle=False) == "communication"
    pulse.now.waited()
    pulse.now.phase = "Checkpointing"
    assert phase_of(_frame("/x/train.py"), idle=True) == "stall"


class _Looks:
    """Looks at given times, without a thread."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, Any]] = []
        self.stretches: list[tuple[str, float, float, int]] = []
        self.windows = Windows(rank=1, size=2, tell=self.told.append, note=lambda *stretch: self.stretches.append(stretch))
        self._now = 1000.0
        self.windows._slot = 4000

    def go(self, number: int, seconds: float = 0.125) -> None:
        for _ in range(number):
            self.windows._look(self._now, self._now + seconds)
            self._now += seconds


def test_windows_are_told_once_a_step_follows_them() -> None:
    looks = _Looks()
    pulse.now.stepped(1)
    looks.go(5)
    assert looks.told == []  # what came before the first step is nobody's
    looks.go(4)
    pulse.now.stepped(2)
    looks.go(1)
    assert len(looks.told) >= 1
    window = Window(**looks.told[-1])
    assert (window.rank, window.size) == (1, 2)
    assert sum(getattr(window, phase) for phase in PHASES) == pytest.approx(1, abs=0.01)
    told = len(looks.told)
    looks.go(20)
    assert len(looks.told) == told  # nor is what comes after the last


def test_stretches_end_where_phase_or_step_changes() -> None:
    looks = _Looks()
    looks.go(3)
    pulse.now.stepped(1)
    looks.go(3)
    pulse.now.phase = "Checkpointing"
    looks.go(2)
    looks.windows._cut(2000.0, None)
    assert [(begin, step) for _, begin, _, step in looks.stretches[-2:]] == [(1000.375, 1), (1000.75, 1)]
    assert looks.stretches[-1][0] == "stall"
    assert all(end > begin for _, begin, end, _ in looks.stretches)


def test_who_is_alone_waits_for_no_other_rank() -> None:
    library = _frame("/x/train.py", "/x/xgboost/core.py")
    assert phase_of(library, idle=True) == "communication"
    pulse.now.alone = True
    assert phase_of(library, idle=True) == "compute"
    assert phase_of(_frame("/x/train.py"), idle=True) == "data"


def test_a_thread_that_waits_is_idle() -> None:
    meter = Processor(threading.main_thread().native_id)
    meter.idle(1.0)
    assert meter.idle(1e6)
    assert not meter.idle(1e-9)
    meter.close()
    meter.close()


def test_the_machine_is_read() -> None:
    found = Machine().read()
    assert 0 <= float(found["cpu"] or 0) <= 100
    assert float(found["memory"] or 0) > 1e6


@pytest.fixture
def profiled(tmp_path: Path) -> tuple[Profile, list[Mapping[str, Any]]]:
    events: list[Mapping[str, Any]] = []
    given = {"profile": {"folder": str(tmp_path / "profile")}}
    return Profile(given["profile"], Observer(given, rank=2, size=3, send=events.append)), events


def test_a_profile_of_torch(profiled: tuple[Profile, list[Mapping[str, Any]]], tmp_path: Path) -> None:
    import torch

    profile, events = profiled
    for step in range(1, 11):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profile.stretch("compute", step, step + 0.75, step)
        profile.stretch("communication", step + 0.75, step + 1.0, step)
        profile.stepped(step)
    profile.close()
    trace = json.loads((tmp_path / "profile" / "rank-2.trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::mm") == 5
    assert names.count("compute") == 10
    assert "step 7" in names
    assert all(event["dur"] >= 0 for event in trace["traceEvents"] if event.get("cat") in ("phase", "step"))
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["rank-2.trace.json"]
    told = events[0]
    assert (told["kind"], told["rank"], told["steps"]) == ("profile", 2, 10)
    assert told["phases"]["compute"] == pytest.approx(7.5)
    assert "aten::mm" in [entry["name"] for entry in told["operators"]]


def test_a_profile_of_a_job_without_steps(profiled: tuple[Profile, list[Mapping[str, Any]]], tmp_path: Path) -> None:
    profile, events = profiled
    profile.close()
    assert json.loads((tmp_path / "profile" / "rank-2.trace.json").read_text())["traceEvents"]
    assert events[0]["seconds"] == 0


def test_measuring_ends_its_thread_and_may_be_closed_twice(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    measuring = Measuring(Observer({"profile": {"folder": str(tmp_path)}}, send=events.append))
    pulse.now.stepped(1)
    measuring.stepped(1)
    measuring.close()
    measuring.close()
    assert [event["kind"] for event in events if event["kind"] == "profile"] == ["profile"]
    Measuring(Observer({})).close()


def _told(rank: int, compute: float, communication: float) -> dict[str, Any]:
    phases = {"compute": compute, "data": 0.0, "loading": 0.0, "communication": communication, "stall": 0.0}
    return {"kind": "profile", "rank": rank, "steps": 11, "seconds": 10.0, "phases": phases, "operators": [], "trace": "t"}


def test_the_summary_names_the_slow_rank(tmp_path: Path) -> None:
    record = ProfileRecord(tmp_path)
    record.write()
    assert not (record.folder / "summary.json").exists()
    for rank, compute in enumerate((2.0, 3.0, 9.0)):
        record.event(Event(rank, 1.0, _told(rank, compute, 10 - compute)))
    record.event(Event(0, 5.0, {"kind": "observed", "what": "windows", "seen": {"rank": 0, "compute": 1.0}}))
    record.event(Event(0, 5.0, {"kind": "step", "step": 3}))
    record.write()
    found = json.loads((record.folder / "summary.json").read_text())
    assert found["slow_rank"] == 2
    assert [row["working"] for row in found["ranks"]] == [0.2, 0.3, 0.9]
    assert "rank 2 keeps the others waiting" in (record.folder / "summary.txt").read_text()
    assert json.loads((record.folder / "windows.jsonl").read_text()) == {"time": 5.0, "rank": 0, "compute": 1.0}


def test_even_ranks_keep_nobody_waiting() -> None:
    assert summary({rank: _told(rank, 8.0, 2.0) for rank in range(2)})["slow_rank"] is None
    assert summary({0: _told(0, 8.0, 2.0)})["slow_rank"] is None
