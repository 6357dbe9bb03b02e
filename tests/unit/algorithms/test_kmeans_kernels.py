"""What makes k-means exact: nearest centres whatever the company, sums in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.algorithms.fixed_point import grid, snap
from phalanx.algorithms.kernels import kmeans as loops
from phalanx.algorithms.kernels import lloyd
from phalanx.algorithms.kernels.lloyd import Reduction, trial
from phalanx.algorithms.kernels.nearest import Assigner, Centers, Known, Sums
from phalanx.contracts import Array
from phalanx.testing.algorithm_checks import to_csr


def exact_nearest(rows: Array, centers: Array) -> tuple[Array, Array]:
    """Return labels and squared distances by brute force in extended precision."""
    distances = ((rows[:, None].astype(np.longdouble) - centers[None].astype(np.longdouble)) ** 2).sum(axis=2)
    return distances.argmin(axis=1), distances.min(axis=1).astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 90),
    columns=st.integers(1, 40),
    count=st.integers(1, 50),
    offset=st.sampled_from([0.0, 1.0, 1e4, 1e7]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e15, 1e25]),
    integers=st.booleans(),
)
def test_the_nearest_centre_is_the_nearest(
    seed: int, rows: int, columns: int, count: int, offset: float, scale: float, integers: bool
) -> None:
    generator = np.random.default_rng(seed)

    def draw(n: int) -> Array:
        x = generator.integers(-2, 3, size=(n, columns)) if integers else generator.normal(size=(n, columns))
        return ((x + offset) * scale).astype(np.float32)

    data, centers = draw(rows), draw(count)
    labels, distances = Assigner(1).assign(data, Centers(centers))
    expected_labels, expected = exact_nearest(data, centers)
    np.testing.assert_allclose(distances, expected, rtol=1e-12, atol=0)
    if integers and scale == 1.0:  # no rounding at all: of equals the first
        np.testing.assert_array_equal(labels, expected_labels)
    for i in np.flatnonzero(labels != expected_labels):
        assert exact_nearest(data[[i]], centers[labels[[i]]])[1] == pytest.approx(expected[i], rel=1e-12)


def test_neighbours_chunks_and_threads_do_not_change_a_label() -> None:
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(1500, 70)).astype(np.float32)
    centers = Centers(rows[:200] + generator.normal(size=(200, 70)).astype(np.float32) * 1e-6)
    labels, distances = Assigner(1).assign(rows, centers)
    with Assigner(3) as three:
        for other in (three.assign(rows, centers), three.assign(to_csr(rows), centers)):
            np.testing.assert_array_equal(other[0], labels)
            np.testing.assert_array_equal(other[1], distances)
    for start, stop in ((0, 1), (7, 8), (100, 117), (511, 1023)):
        part = Assigner(1).assign(rows[start:stop], centers)
        np.testing.assert_array_equal(part[0], labels[start:stop])
        np.testing.assert_array_equal(part[1], distances[start:stop])


def test_sums_by_centre_are_the_same_for_any_split() -> None:
    generator = np.random.default_rng(4)
    rows = (generator.normal(size=(1000, 12)) * 10.0 ** generator.integers(-6, 6, size=12)).astype(np.float32)
    centers = Centers(rows[:30])
    largest = np.abs(rows).max(axis=0)
    anchors = grid(np.append(largest, centers.farthest(largest)), 1000)
    whole = Assigner(1).assign_and_sum(rows, centers, anchors)[2]
    assert whole.counts.sum() == 1000
    with Assigner(4) as four:
        np.testing.assert_array_equal(four.assign_and_sum(rows, centers, anchors)[2].flat, whole.flat)
    order = generator.permutation(1000)
    parts = [Assigner(1).assign_and_sum(rows[part], centers, anchors)[2].flat for part in np.array_split(order, 7)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), whole.flat)
    np.testing.assert_allclose(whole.rows.sum(axis=0), rows.sum(axis=0, dtype=np.float64), atol=1e-9 * largest.max())


def test_bounds_never_change_a_label() -> None:
    generator = np.random.default_rng(6)
    rows = generator.normal(size=(3000, 20)).astype(np.float32) + 5
    weights = generator.random(3000)
    largest = np.abs(rows).max(axis=0)
    anchors = grid(np.append(largest, 1.0), 3000)
    values = rows[:40].copy()
    known, drift, sums = Known.nothing(3000), None, Sums.zeros((40, 20))
    with Assigner(2) as assigner:
        for step in range(12):
            centers = Centers(values)
            deltas = [Sums.zeros((40, 20)) for _ in range(2)]
            anchor = grid(centers.farthest(largest), 3000)
            assigner.update(rows, weights, known, centers, drift, anchors, anchor, deltas)
            sums.flat += deltas[0].flat + deltas[1].flat
            labels, distances = assigner.assign(rows, centers)
            np.testing.assert_array_equal(known.labels, labels)
            np.testing.assert_array_equal(known.distances, distances)
            others = np.sort(np.linalg.norm(rows[:, None] - values[None].astype(np.float64), axis=2), axis=1)[:, 1]
            assert (known.lower <= others).all()
            np.testing.assert_allclose(sums.counts, np.bincount(labels, weights, 40), rtol=1e-9)
            moved = values + (generator.normal(size=values.shape) * 0.3**step).astype(np.float32)
            drift = np.linalg.norm(moved.astype(np.float64) - values, axis=1) * (1 + 1e-9)
            values = moved
        assert (known.lower > np.sqrt(known.distances)).mean() > 0.9, "rows are left out when centres hardly move"


def test_the_largest_magnitudes_and_what_is_not_finite() -> None:
    rows = np.random.default_rng(0).normal(size=(700, 9)).astype(np.float32)
    with Assigner(3) as assigner:
        np.testing.assert_array_equal(assigner.largest(rows), np.abs(rows).max(axis=0))
        np.testing.assert_array_equal(assigner.largest(to_csr(rows)), np.abs(rows).max(axis=0))
        np.testing.assert_array_equal(assigner.largest(rows[:0]), np.zeros(9))
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            rows[350, 4] = bad
            for given_rows in (rows, to_csr(rows)):
                assert np.isfinite(assigner.largest(given_rows)).tolist() == [column != 4 for column in range(9)]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=200),
    order=st.randoms(use_true_random=False),
    spare=st.integers(0, 10_000),
)
def test_snapped_numbers_add_exactly_in_any_order(values: list[float], order: object, spare: int) -> None:
    numbers = np.array(values)
    anchor = grid(np.abs(numbers).max(), len(numbers) + spare)
    snapped = snap(numbers, anchor)
    spacing = np.abs(numbers).max() * (len(numbers) + spare) * 2.0**-50
    assert (np.abs(snapped - numbers) <= spacing).all()
    total = 0.0
    for value in snapped:
        total += value
    shuffled = snapped.tolist()
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = 0.0
    for value in shuffled:
        again += value
    assert total == again == snapped.sum()


def test_plus_plus_spreads_and_survives_duplicates() -> None:
    corners = np.array([[0, 0], [100, 0], [0, 100]], dtype=np.float32)
    points = np.repeat(corners, 50, axis=0) + np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32)
    chosen = np.empty(3, dtype=np.int64)
    for seed in range(20):
        loops.plus_plus(points, np.ones(150), np.random.default_rng(seed).random((3, 2)), chosen)
        assert sorted(chosen // 50) == [0, 1, 2]
    chosen = np.empty(5, dtype=np.int64)
    loops.plus_plus(np.ones((4, 2), np.float32), np.ones(4), np.random.default_rng(0).random((5, 1)), chosen)
    assert set(chosen) <= set(range(4))


def test_many_centres_are_chosen_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lloyd, "_GREEDY_COST", 10**6)
    points = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    weights = np.r_[np.ones(1900), np.zeros(100)]
    chosen = lloyd.choose(points, weights, 150, "kmeans++", np.random.default_rng(1))
    assert len(chosen) == len(set(chosen.tolist())) == 150
    assert chosen.max() < 1900
    spread = Assigner(1).assign(points, Centers(points[chosen]))[1].mean()
    assert spread < Assigner(1).assign(points, Centers(points[:150]))[1].mean()


@pytest.mark.parametrize("init", ["random", "kmeans++"])
def test_a_trial_of_the_reduction_weighs_points(init: str) -> None:
    points = np.array([[0.0], [1.0], [10.0], [12.0]], dtype=np.float32)
    weights = np.array([1.0, 3.0, 1.0, 1.0])
    reduction = Reduction(2, init, 300, 0.0, 0)  # type: ignore[arg-type]
    error, centers = min((trial(points, weights, reduction, number) for number in range(10)), key=lambda found: found[0])
    np.testing.assert_allclose(np.sort(centers[:, 0]), [0.75, 11.0])
    assert error == pytest.approx((0.75**2 + 3 * 0.25**2 + 1 + 1) / 6)
