"""Early stopping rules on made-up curves; larger is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from phalanx.tuning.stopping import Curve, Halving, MedianRule, Never


def curve(values: Sequence[float], *, of: int | None = None, ended: bool = False) -> Curve:
    made = Curve(of=of or len(values), ended=ended)
    for step, value in enumerate(values, 1):
        made.add(step, value)
    return made


def test_curve() -> None:
    made = curve([1.0, 3.0, 2.0])
    made.add(3, 9.0)  # done again after a restart
    made.add(4, float("nan"))
    assert made.steps == [1, 2, 3]
    assert (made.value_at(3), made.best_to(3), made.mean_to(3), made.mean_to(2)) == (2.0, 3.0, 2.0, 2.0)
    assert made.value_at(7) == 2.0
    assert not made.reaches(4)
    made.ended = True
    assert made.reaches(4)


def test_expected_goes_on_as_the_last_doublings_went() -> None:
    slow = curve([-(step**-0.5) for step in range(1, 401)])  # a power law: every doubling brings 0.71 of the gain before
    assert slow.expected(50, 50) < slow.expected(50, 200) < slow.expected(50, 400) < slow.value_at(400)
    gain = math.log(slow.value_at(400) / slow._level(50))
    assert 0.5 < math.log(slow.expected(50, 400) / slow._level(50)) / gain < 0.7  # three fifths of what is to come
    assert curve([-(0.98**step) for step in range(400)]).expected(100, 400) < 0.0  # no loss falls below 0
    flat = curve([1.0] * 40)
    assert flat.expected(20, 400) == 1.0
    falling = curve([-float(step) for step in range(40)])
    assert falling.expected(20, 400) < falling.value_at(10)
    assert curve([0.0, 1.0, 2.0]).expected(3, 400) == 2.0  # too few steps to say


def test_never() -> None:
    assert not Never().due(0, 1, 10)
    assert not Never().stops(0, 1, {0: curve([0.0])})
    assert Never().promoted([0], {0: curve([0.0])}) is None


def test_median_rule_compares_the_best_with_the_median_of_means() -> None:
    curves = {n: curve([0.1 * n] * 10) for n in range(1, 6)}
    rule = MedianRule(fewest=3)
    curves[9] = curve([0.25, 0.0, 0.0, 0.0, 0.0])
    assert rule.stops(9, 5, curves)  # 0.25 < 0.3
    curves[9] = curve([0.35, 0.0, 0.0, 0.0, 0.0])
    assert not rule.stops(9, 5, curves)
    few = {n: curves[n] for n in (4, 5)} | {9: curve([0.0])}
    assert not rule.stops(9, 1, few)


def test_median_rule_leaves_out_what_has_not_come_so_far() -> None:
    rule = MedianRule(fewest=1)
    curves = {0: curve([0.5] * 4, of=10), 1: curve([0.0] * 6, of=10)}
    assert not rule.stops(1, 6, curves)
    curves[0].ended = True  # it ended early, at its best
    assert rule.stops(1, 6, curves)


def test_median_rule_is_due_often_but_not_always() -> None:
    rule = MedianRule()
    assert [step for step in range(1, 101) if rule.due(0, step, 100)] == [*range(10, 101, 2)]
    unknown = [step for step in range(1, 10_000) if rule.due(0, step, None)]
    assert unknown[0] == 2
    assert len(unknown) < 120


def test_rungs() -> None:
    rule = Halving(least=1, most=27)
    assert rule.rungs(0, None) == [1, 2, 4, 8]
    assert Halving().rungs(0, 240) == [15, 30, 60, 120]
    assert Halving().rungs(0, 20) == [2, 4, 8]
    assert Halving().rungs(0, 48) == [4, 8, 16]
    assert Halving().rungs(0, 2) == [1]
    assert Halving(least=2, most=32, brackets=2).rungs(1, None) == [4, 8, 16]
    assert Halving(least=2, most=32, brackets=2).rungs(2, None) == [2, 4, 8, 16]


@pytest.mark.parametrize(("of", "kept"), [(48, 7), (24, 6), (12, 4), (6, 2), (None, 4)])
def test_halving_keeps_fewer_the_later_a_rung(of: int | None, kept: int) -> None:
    rule = Halving(least=3, most=of)
    curves = {n: Curve(steps=[3], values=[float(n)], _sums=[float(n)], _bests=[float(n)]) for n in range(10)}
    assert [rule.stops(n, 3, curves) for n in range(10)] == [True] * (10 - kept) + [False] * kept
    assert rule.stops(0, 3, {n: curves[n] for n in (0, 5)})
    assert not Halving(least=3, most=of, promotes=False).stops(0, 3, {n: curves[n] for n in (0, 5)})  # it would be for good


def test_of_equals_the_first_goes_on() -> None:
    curves = {n: curve([1.0] * 3, of=24) for n in range(10)}
    assert [Halving(least=3).stops(n, 3, curves) for n in range(10)] == [False] * 6 + [True] * 4


def test_a_stopped_trial_is_promoted_when_more_came_behind_it() -> None:
    rule = Halving(least=3, most=30)
    curves = {0: curve([5.0] * 4, of=30), 1: curve([6.0] * 4, of=30), 2: curve([7.0] * 4, of=30)}
    assert rule.stops(1, 3, curves)
    assert rule.promoted([0, 1], curves) is None
    curves |= {n: curve([0.0] * 3, of=30) for n in range(3, 8)}
    assert rule.promoted([0, 1], curves) == 1
    assert Halving(least=3, most=30, promotes=False).promoted([0, 1], curves) is None


def test_a_slow_learner_with_much_to_gain_is_no_poor_one() -> None:
    rule = Halving(least=40, most=400)
    quick = [curve([0.5 - 0.5 * 0.8**step for step in range(400)]) for _ in range(5)]  # ahead at first, and done
    slow = curve([1 - 1.02 * 0.99**step for step in range(400)])
    curves = dict(enumerate([*quick, slow]))
    assert slow.value_at(40) < quick[0].value_at(40)
    assert not rule.stops(5, 40, curves)
