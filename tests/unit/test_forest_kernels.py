"""The kernels of random cut forests against the same formulas in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - loads what sets variables before the test begins

from phalanx.algorithms.kernels import forest
from phalanx.contracts import Array

POINTS, COLUMNS = 40, 3


def tree(points: Array, seed: int) -> tuple[Array, ...]:
    nodes = 2 * len(points) - 1
    made = (
        np.full(nodes, -1, np.int32),
        np.zeros(nodes, np.float32),
        np.zeros((nodes, 2), np.int32),
        np.zeros(nodes, np.int32),
        np.zeros((nodes, points.shape[1]), np.float32),
        np.zeros((nodes, points.shape[1]), np.float32),
    )
    forest.build(points, np.uint64(seed), *made)
    return made


def score(row: Array, made: tuple[Array, ...]) -> float:
    """Return the score of a row: from the leaf up, as the open formula has it (damped where the row is the leaf's point)."""
    dims, cuts, children, mass, low, high = made

    def at(node: int, depth: int) -> float:
        sides = [(float(a), float(b), float(x)) for a, b, x in zip(low[node], high[node], row, strict=True)]
        outside = sum(max(a - x, 0) + max(x - b, 0) for a, b, x in sides)
        if dims[node] < 0:
            if outside:
                return 1 / (depth + 1)
            return (1 - mass[node] / (2 * mass[0])) / (depth + math.log2(mass[node] + 1))
        below = at(children[node, 0 if row[dims[node]] <= cuts[node] else 1], depth + 1)
        share = outside / (outside + sum(b - a for a, b, _ in sides))
        return share / (depth + 1) + (1 - share) * below

    return at(0, 0) * math.log2(mass[0] + 1)


@pytest.fixture
def points() -> Array:
    generator = np.random.default_rng(1)
    found = generator.normal(size=(POINTS, COLUMNS)).astype(np.float32)
    found[5] = found[6] = found[7]  # equal points share a leaf
    return found


def test_a_tree_cuts_its_points_apart(points: Array) -> None:
    dims, cuts, children, mass, low, high = tree(points, 3)
    used = np.flatnonzero(mass)
    assert mass[0] == POINTS
    assert sorted(mass[(mass > 0) & (dims < 0)].tolist()) == [1] * (POINTS - 3) + [3]
    for node in used[dims[used] >= 0]:
        left, right = children[node]
        assert mass[left] + mass[right] == mass[node]
        assert high[left, dims[node]] <= cuts[node] < low[right, dims[node]]
        assert (np.minimum(low[left], low[right]) == low[node]).all()
        assert (np.maximum(high[left], high[right]) == high[node]).all()


def test_cuts_fall_in_proportion_to_the_sides() -> None:
    corners = np.array([[0, 0], [1, 3]], dtype=np.float32)
    first = [int(tree(corners, seed)[0][0]) for seed in range(4000)]
    assert np.mean(first) == pytest.approx(0.75, abs=0.03)


def test_scores_are_those_of_the_formula(points: Array) -> None:
    trees = [tree(points, seed) for seed in range(5)]
    generator = np.random.default_rng(2)
    rows = np.concatenate([points[:10], generator.normal(scale=2, size=(30, COLUMNS)).astype(np.float32)])
    shares = np.empty((len(rows), COLUMNS))
    forest.attribute(rows, *(np.stack(parts) for parts in zip(*trees, strict=True)), shares)
    expected = [np.mean([score(row, made) for made in trees]) for row in rows]
    np.testing.assert_allclose(shares.sum(axis=1), expected, rtol=1e-9)
    assert (shares >= 0).all()


def test_what_makes_a_row_strange_gets_the_share(points: Array) -> None:
    trees = [tree(points, seed) for seed in range(20)]
    row = np.array([[0, 50, 0]], dtype=np.float32)
    shares = np.empty((1, COLUMNS))
    forest.attribute(row, *(np.stack(parts) for parts in zip(*trees, strict=True)), shares)
    assert shares[0].argmax() == 1
    assert shares[0, 1] > 0.9 * shares.sum()


def test_keys_are_distinct_and_depend_on_the_seed() -> None:
    numbers, one, other = np.arange(1000, dtype=np.uint64), np.empty(1000, np.uint64), np.empty(1000, np.uint64)
    forest.keys_of(np.uint64(1), numbers, one)
    forest.keys_of(np.uint64(2), numbers, other)
    assert len(set(one.tolist())) == len(set(other.tolist())) == 1000
    assert not (one == other).any()
    assert np.mean(one / 2**64) == pytest.approx(0.5, abs=0.05)
