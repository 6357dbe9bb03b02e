"""When to save and what to keep, by table."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx.checkpoint.policy import (
    Auto,
    EverySeconds,
    EverySteps,
    Kept,
    Progress,
    Retention,
    Schedule,
    When,
    kept,
    observed_mtbi_s,
    parse_when,
    young_daly_s,
)
from phalanx.errors import UserError
from phalanx.parallel.collective import Solo
from phalanx.trainer.saving import Saver


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100", EverySteps(100)),
        (100, EverySteps(100)),
        ("60s", EverySeconds(60)),
        (" 0.5S ", EverySeconds(0.5)),
        ("5m", EverySeconds(300)),
        ("2h", EverySeconds(7200)),
        ("auto", Auto()),
    ],
)
def test_what_users_write(text: str | int, expected: When) -> None:
    assert parse_when(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "0s", "s", "60x", "often", "1e3", "60 s"])
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="give a number of steps as 100, a time as 60s, 5m or 2h, or auto"):
        parse_when(text)


@pytest.mark.parametrize(
    ("when", "progress", "due"),
    [
        (EverySteps(10), Progress(10, 0, 0), True),
        (EverySteps(10), Progress(11, 0, 999), False),
        (EverySteps(10), Progress(20, 10, 0), True),
        (EverySteps(10), Progress(20, 20, 0), False),
        (EverySeconds(60), Progress(5, 0, 59.9), False),
        (EverySeconds(60), Progress(5, 0, 60), True),
        (EverySeconds(60), Progress(5, 5, 60), False),
        (Auto(), Progress(3, 0, 1.9), False),
        (Auto(), Progress(3, 0, 2), True),
        (Auto(60), Progress(9, 3, 2.4, stall_s=0.05, write_s=0.0), False),
        (Auto(60), Progress(9, 3, 2.5, stall_s=0.05, write_s=0.0), True),
        (Auto(60), Progress(9, 3, 19.9, stall_s=0.0, write_s=10.0), False),
        (Auto(60), Progress(9, 3, 20.1, stall_s=0.0, write_s=10.0), True),
    ],
)
def test_when_a_save_is_due(when: When, progress: Progress, due: bool) -> None:
    assert when.due(progress) is due


@pytest.mark.parametrize(
    ("cost", "mtbi", "expected"),
    [(0.0, 100.0, 0.0), (300.0, 100.0, 100.0), (1.0, 20_000.0, 199.3), (60.0, 3600.0, 618.5), (0.05, 60.0, 2.416)],
)
def test_the_interval_follows_daly(cost: float, mtbi: float, expected: float) -> None:
    assert young_daly_s(cost, mtbi) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("cost", "mtbi"), [(0.05, 60.0), (1.0, 600.0), (5.0, 3600.0)])
def test_no_other_interval_loses_less(cost: float, mtbi: float) -> None:
    """Daly's complete model of the expected run time (his equation 20, no restart time) has its minimum there."""

    def run_time(interval: float) -> float:
        return mtbi * (math.exp((interval + cost) / mtbi) - 1) / interval

    candidates = np.geomspace(cost, mtbi, 4000)
    best = candidates[np.argmin([run_time(candidate) for candidate in candidates])]
    assert young_daly_s(cost, mtbi) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize(("running", "interruptions", "expected"), [(0, 0, 900), (3600, 0, 4_500), (600, 10, 60), (60, 1, 60)])
def test_the_time_between_interruptions_is_observed(running: float, interruptions: int, expected: float) -> None:
    assert observed_mtbi_s(running, interruptions) == expected


def test_a_schedule_retunes_while_running() -> None:
    now = itertools.count(0.0, 0.5)
    schedule = Schedule(Auto(mtbi_s=100), clock=lambda: next(now))
    assert schedule.needs_agreement
    saves = []
    for step in range(1, 200):
        if schedule.due(step):
            schedule.saved(step)
            saves.append(step)
            schedule.measured(stall_s=0.5 if len(saves) < 4 else 0.005, write_s=0.0)
    gaps = np.diff(saves)
    assert gaps[0] > gaps[-1], "cheaper saves are made more often"
    assert not Schedule(EverySteps(5)).needs_agreement


def test_a_schedule_goes_on_with_what_an_earlier_attempt_measured() -> None:
    schedule = Schedule(Auto(), clock=lambda: 0.0, stall_s=0.1, write_s=1.0, running_s=300, interruptions=5)
    progress = schedule.progress(1)
    assert (progress.stall_s, progress.write_s, progress.running_s, progress.interruptions) == (0.1, 1.0, 300, 5)
    assert not schedule.due(1)


STEPS = [Kept(step, {"loss": loss}) for step, loss in [(1, 0.5), (2, 0.1), (3, None), (4, 0.1), (5, 0.9), (6, 0.7)]]


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (Retention(last=1), {6}),
        (Retention(last=3), {4, 5, 6}),
        (Retention(last=99), {1, 2, 3, 4, 5, 6}),
        (Retention(last=1, best="loss"), {4, 6}),
        (Retention(last=1, best="loss", best_count=2), {2, 4, 6}),
        (Retention(last=1, best="loss", mode="max"), {5, 6}),
        (Retention(last=1, best="unknown"), {6}),
        (Retention(last=1, every=3), {3, 6}),
        (Retention(last=2, best="loss", every=5), {4, 5, 6}),
    ],
)
def test_what_is_kept(retention: Retention, expected: set[int]) -> None:
    assert kept(STEPS, retention) == expected
    assert kept(list(reversed(STEPS)), retention) == expected
    assert kept([], retention) == set()


@pytest.mark.parametrize("wrong", [{"last": 0}, {"best_count": 0}, {"every": 0}])
def test_a_retention_that_keeps_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="each must be 1 or more"):
        Retention(**wrong)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.none() | st.floats(allow_nan=False)), unique_by=lambda pair: pair[0], min_size=1),
    st.integers(1, 5),
    st.none() | st.integers(1, 5),
)
def test_the_newest_is_always_kept(found: list[tuple[int, float | None]], last: int, every: int | None) -> None:
    stays = kept([Kept(step, {"m": value}) for step, value in found], Retention(last=last, best="m", every=every))
    assert max(step for step, _ in found) in stays
    assert stays <= {step for step, _ in found}
    assert len(stays) >= min(last, len(found))


def test_a_saver_tells_the_schedule_of_earlier_attempts(tmp_path: Path) -> None:
    """The second attempt of a job that began two minutes ago has seen one interruption."""
    given = {"url": str(tmp_path), "job": "j", "every": "auto", "keep": {"last": 3}, "begun": time.time() - 120}
    saver = Saver(given, world=Solo(), attempt=1, send=lambda event: None)
    progress = saver.schedule.progress(1)
    saver.close()
    assert progress.interruptions == 1
    assert 120 <= progress.running_s < 180
