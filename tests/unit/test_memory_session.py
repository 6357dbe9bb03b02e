"""The session that conformance checks train with must itself notice what an algorithm does wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phalanx.contracts import Entry, State
from phalanx.errors import AlgorithmError, Stopped, UserError
from phalanx.testing.sessions import BrokenShard, MemorySession, Rows, Snapshot


class Part:
    """A part of a checkpoint that holds a number."""

    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> State:
        return {"number": Entry([self.number])}

    def load_state_dict(self, state: State) -> None:
        self.number = state["number"].value[0]


@pytest.mark.parametrize("steps", [(0,), (2,), (1, 1), (1, 3), (1, 2, 1)])
def test_steps_out_of_order_are_refused(tmp_path: Path, steps: tuple[int, ...]) -> None:
    session = MemorySession({}, tmp_path)
    for step in steps[:-1]:
        session.report(step, {})
    with pytest.raises(AlgorithmError, match=rf"step {steps[-1]} was reported where step {len(steps)} was due"):
        session.report(steps[-1], {})


def test_more_steps_than_announced_are_refused(tmp_path: Path) -> None:
    session = MemorySession({}, tmp_path)
    session.report(1, {}, of=1)
    with pytest.raises(AlgorithmError, match="step 2 of 1 was reported"):
        session.report(2, {}, of=1)


def test_it_keeps_reports_and_stops_where_told(tmp_path: Path) -> None:
    session = MemorySession({}, tmp_path, stop_at=2)
    session.report(1, {"train:a": 1, "train:b": 5}, rows=7)
    with pytest.raises(Stopped, match="after step 2"):
        session.report(2, {"train:a": 2})
    assert session.metrics == {"train:a": 2, "train:b": 5}
    assert [report.rows for report in session.reports] == [7, 0]


def test_a_snapshot_is_a_copy_and_restores_into_new_parts(tmp_path: Path) -> None:
    part = Part()
    session = MemorySession({}, tmp_path, snapshot_at=1)
    assert session.restore({"algorithm": part}) == 0
    part.number = 4
    session.report(1, {})
    part.number = 5
    snapshot = session.snapshot
    assert snapshot is not None
    again, other = MemorySession({}, tmp_path, resumed=snapshot), Part()
    assert again.restore({"algorithm": other}) == 1
    assert other.number == 4
    again.report(2, {})


def test_restore_comes_once_and_first_and_with_the_same_parts(tmp_path: Path) -> None:
    late = MemorySession({}, tmp_path)
    late.report(1, {})
    twice = MemorySession({}, tmp_path)
    twice.restore({})
    for session in (late, twice):
        with pytest.raises(AlgorithmError, match="restore is called once, before the first report"):
            session.restore({})
    other = MemorySession({}, tmp_path, resumed=Snapshot(3, {"algorithm": {}}))
    with pytest.raises(AlgorithmError, match=r"the parts \['model'\] are restored, \['algorithm'\] were saved"):
        other.restore({"model": Part()})


def test_a_broken_shard_breaks_at_its_last_batch() -> None:
    shard = BrokenShard(Rows(np.zeros((10, 2))).shard())
    batches = shard.batches(4)
    assert [len(next(batches)) for _ in range(2)] == [4, 4]
    with pytest.raises(UserError, match=r"broken\.csv line 7"):
        next(batches)
