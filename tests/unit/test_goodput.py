"""Every second of a job is training, stall, lost work or restart."""

from __future__ import annotations

import pytest

from phalanx.tracking.goodput import Goodput


def adds_up(read: dict[str, float]) -> bool:
    parts = read["training_s"] + read["stall_s"] + read["lost_work_s"] + read["restart_s"]
    return parts == pytest.approx(read["wall_s"])


def test_an_undisturbed_job() -> None:
    goodput = Goodput()
    goodput.began(2.0)
    for step in range(1, 9):
        goodput.step(step, 2.0 + step)
    read = goodput.read(0.0, 10.5)
    assert (read["training_s"], read["lost_work_s"], read["restart_s"]) == (8.0, 0.0, 2.5)
    assert read["goodput"] == pytest.approx(8 / 10.5, abs=1e-4)
    assert adds_up(read)


def test_stalls_are_taken_out_of_the_steps_they_fell_in() -> None:
    goodput = Goodput()
    goodput.began(0.0)
    for step in range(1, 5):
        goodput.step(step, float(step))
    goodput.saved(2, 0.25)
    read = goodput.read(0.0, 4.0)
    assert (read["training_s"], read["stall_s"]) == (3.75, 0.25)
    assert adds_up(read)


def test_work_after_the_checkpoint_is_lost_and_the_gap_is_restart() -> None:
    goodput = Goodput()
    goodput.began(1.0)
    for step in range(1, 7):
        goodput.step(step, 1.0 + step)  # steps 1 to 6 end at 2 … 7
    goodput.saved(4, 0.1)
    goodput.saved(6, 0.2)  # the save itself did not end well
    goodput.lost(7.5)
    goodput.began(9.0)
    goodput.restored(4, 9.5)
    for step in range(5, 9):
        goodput.step(step, 9.5 + step - 4)
    read = goodput.read(0.0, 14.0)
    assert read["lost_work_s"] == 2.5  # steps 5, 6 and half a step
    assert read["training_s"] + read["stall_s"] == 8.0
    assert read["stall_s"] == 0.1
    assert read["restart_s"] == pytest.approx(14.0 - 8.0 - 2.5)
    assert adds_up(read)


def test_two_losses_in_a_row_do_not_count_the_gap_as_work() -> None:
    goodput = Goodput()
    goodput.began(0.0)
    goodput.step(1, 1.0)
    goodput.step(2, 2.0)
    goodput.lost(2.0)
    goodput.began(10.0)
    goodput.restored(2, 10.0)
    goodput.step(3, 11.0)
    goodput.lost(11.0)
    goodput.began(20.0)
    goodput.restored(1, 20.0)
    goodput.step(2, 21.0)
    read = goodput.read(0.0, 21.0)
    assert (read["training_s"], read["lost_work_s"], read["restart_s"]) == (2.0, 2.0, 17.0)


def test_an_attempt_that_is_lost_before_it_trains_costs_only_restart() -> None:
    goodput = Goodput()
    goodput.lost(3.0)
    goodput.began(5.0)
    goodput.step(1, 6.0)
    read = goodput.read(0.0, 6.0)
    assert (read["training_s"], read["lost_work_s"], read["restart_s"]) == (1.0, 0.0, 5.0)


def test_a_clock_that_goes_back_makes_no_time() -> None:
    goodput = Goodput()
    goodput.began(10.0)
    goodput.step(1, 9.0)
    goodput.step(2, 10.0)
    assert goodput.read(0.0, 10.0)["training_s"] == 1.0
