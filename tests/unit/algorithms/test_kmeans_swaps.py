"""Swaps of k-means' clusters: which are worth doing, and that the loss falls by them."""

from __future__ import annotations

import numpy as np
import pytest

from phalanx.algorithms.fixed_point import grid
from phalanx.algorithms.kernels.nearest import Assigner
from phalanx.algorithms.kmeans.batch import Descent
from phalanx.algorithms.kmeans.swaps import Part, matched
from phalanx.contracts import Array
from phalanx.parallel.collective import Solo
from phalanx.testing.algorithm_checks import to_csr


def crowded(weight: Array | None = None, *, sparse: bool = False) -> tuple[Descent, Array, Array]:
    """Return a descent over ten clusters, and centres of which five lie in one of them."""
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(10, 6)) * 20
    rows = (np.repeat(middles, 50, axis=0) + generator.normal(size=(500, 6))).astype(np.float32)
    weights = np.zeros(0) if weight is None else weight
    heaviest = 1.0 if weight is None else float(weight.max())
    part: Part = (0, to_csr(rows) if sparse else rows, weights)
    largest = np.append(np.abs(rows).max(axis=0), heaviest)
    descent = Descent(Solo(), Assigner(1), lambda: iter([part]), largest, 500)
    return descent, rows, np.concatenate([rows[:5], rows[60:310:50]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_swaps_lower_the_loss_and_mend_a_bad_start(weighted: bool, sparse: bool) -> None:
    weight = np.random.default_rng(1).random(500) + 0.5 if weighted else None
    descent, _, centers = crowded(weight, sparse=sparse)
    for key in range(6):
        for _ in range(3):
            centers, error, _, repaired = descent.iterate(centers)
        assert not repaired
        moved, swapped = descent.swap(centers, key)
        if not swapped:
            break
        _, after, _, _ = descent.iterate(moved)
        assert after < error
        centers = moved
    assert error < 7  # six columns of variance 1


def test_swaps_of_equal_rows_do_nothing() -> None:
    rows = np.ones((40, 3), dtype=np.float32)
    descent = Descent(Solo(), Assigner(1), lambda: iter([(0, rows, np.zeros(0))]), np.ones(4), 40)
    centers, error, _, _ = descent.iterate(rows[:4].copy())
    moved, swapped = descent.swap(centers, 3)
    assert (error, swapped) == (0, 0)
    np.testing.assert_array_equal(moved, centers)


def test_a_single_cluster_has_no_partner() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    descent = Descent(Solo(), Assigner(1), lambda: iter([(0, rows, np.zeros(0))]), np.array([10.0, 11, 1]), 6)
    centers, _, _, _ = descent.iterate(rows[:1].copy())
    assert descent.swap(centers, 0)[1] == 0


def test_which_swaps_are_worth_doing() -> None:
    gains = np.array([0.0, 9.0, 0.0, 5.0, 1.0])
    partners, costs = np.array([2, 0, 0, 4, 3]), np.array([2.0, 8.0, 2.0, 0.1, 0.1])
    # the cheapest merger frees 3, so that 1 is split; the next one gains nothing: 3 and 1 are taken
    assert matched(gains, partners, costs) == [(1, 3, 4)]
    assert matched(np.zeros(5), partners, costs) == []
    assert matched(gains, partners, np.full(5, np.inf)) == []
    assert matched(np.array([3.0, 3.0]), np.array([1, 0]), np.zeros(2)) == []


def test_the_grid_of_halves_takes_rows_of_any_size() -> None:
    generator = np.random.default_rng(2)
    rows = (generator.normal(size=(300, 2)) * [1e15, 1e-15]).astype(np.float32)
    descent = Descent(Solo(), Assigner(1), lambda: iter([(0, rows, np.zeros(0))]), np.append(np.abs(rows).max(axis=0), 1), 300)
    centers, error, _, _ = descent.iterate(rows[:20].copy())
    moved, _ = descent.swap(centers, 1)
    assert np.isfinite(moved).all()
    assert descent.iterate(moved)[1] <= error
    assert np.isfinite(grid(error, 300))
