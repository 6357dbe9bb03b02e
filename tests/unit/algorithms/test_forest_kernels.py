"""The kernels of random cut forests against the same formulas in plain Python."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - loads what sets variables before the test begins

from phalanx.algorithms.kernels import forest
from phalanx.algorithms.random_cut_forest.trees import Following, Trees
from phalanx.contracts import Array
from phalanx.errors import UserError

POINTS, COLUMNS = 40, 3


def grown(points: Array, seeds: int) -> Trees:
    made = Trees.empty(seeds, len(points), points.shape[1])
    made.grow(np.stack([points] * seeds), 3, 1)
    return made


def score(row: Array, trees: Trees, t: int) -> float:
    """Return the score of a row: from the leaf up, as the open formula has it (damped where the row is the leaf's point)."""
    words, ints, width = trees.words[t], trees.ints[t], trees.points.shape[2]
    rows = int(trees.heads[t, forest.ROWS])

    def outside(low: Array, high: Array) -> float:
        sides = zip(low[: len(row)], high[: len(row)], row, strict=True)
        return sum(max(float(a) - float(x), 0) + max(float(x) - float(b), 0) for a, b, x in sides)

    def at(node: int, depth: int) -> float:
        if node < 0:
            point, mass = trees.points[t, ~node], int(trees.leaves[t, ~node, 0])
            if outside(point, point):
                return 1 / (depth + 1)
            return (1 - mass / (2 * rows)) / (depth + math.log2(mass + 1))
        low, high = words[node, forest.HEAD : forest.HEAD + width], words[node, forest.HEAD + width :]
        side = int(row[ints[node, forest.DIM]] > words[node, forest.CUT])
        below, out = at(int(ints[node, forest.LEFT + side]), depth + 1), outside(low, high)
        share = out / (out + float((high - low).sum()))
        return share / (depth + 1) + (1 - share) * below

    return at(int(trees.heads[t, forest.ROOT]), 0) * math.log2(rows + 1)


def check_sound(trees: Trees, t: int) -> Counter[bytes]:
    """Assert that boxes, cuts, parents and masses of a tree fit together; return its points with how often each is there."""
    words, ints, width, found = trees.words[t], trees.ints[t], trees.points.shape[2], Counter[bytes]()

    def at(node: int, parent: int) -> tuple[Array, Array]:
        if node < 0:
            assert trees.leaves[t, ~node, 1] == parent
            found[trees.points[t, ~node].tobytes()] += int(trees.leaves[t, ~node, 0])
            return trees.points[t, ~node], trees.points[t, ~node]
        assert ints[node, forest.PARENT] == parent
        dim, cut = int(ints[node, forest.DIM]), words[node, forest.CUT]
        (left_low, left_high), (right_low, right_high) = (at(int(ints[node, forest.LEFT + side]), node) for side in (0, 1))
        low, high = words[node, forest.HEAD : forest.HEAD + width], words[node, forest.HEAD + width :]
        assert left_high[dim] <= cut < right_low[dim]
        np.testing.assert_array_equal(low, np.minimum(left_low, right_low))
        np.testing.assert_array_equal(high, np.maximum(left_high, right_high))
        assert words[node, forest.SIZE] == pytest.approx(float((high - low).sum()), rel=1e-5)
        return low, high

    at(int(trees.heads[t, forest.ROOT]), -1)
    assert found.total() == trees.heads[t, forest.ROWS]
    places = Counter(trees.points[t, leaf].tobytes() for leaf in trees.places[t, : trees.heads[t, forest.ROWS]])
    assert places == found, "every row of the sample is at a leaf"
    return found


@pytest.fixture
def points() -> Array:
    generator = np.random.default_rng(1)
    found = generator.normal(size=(POINTS, COLUMNS)).astype(np.float32)
    found[5] = found[6] = found[7]  # equal points share a leaf
    return found


def test_a_tree_cuts_its_points_apart(points: Array) -> None:
    found = check_sound(grown(points, 3), 2)
    assert sorted(found.values()) == [1] * (POINTS - 3) + [3]


def test_cuts_fall_in_proportion_to_the_sides() -> None:
    corners = np.array([[0, 0], [1, 3]], dtype=np.float32)
    made = grown(corners, 4000)
    assert np.mean(made.ints[:, 0, forest.DIM]) == pytest.approx(0.75, abs=0.03)


def test_scores_are_those_of_the_formula(points: Array) -> None:
    trees = grown(points, 5)
    generator = np.random.default_rng(2)
    rows = np.concatenate([points[:10], generator.normal(scale=2, size=(30, COLUMNS)).astype(np.float32)])
    expected = [np.mean([score(row, trees, t) for t in range(5)]) for row in rows]
    np.testing.assert_allclose(trees.score(rows), expected, rtol=1e-6)
    shares = trees.explain(rows)
    np.testing.assert_allclose(shares.sum(axis=1), expected, rtol=1e-6)
    assert (shares >= 0).all()


def test_what_makes_a_row_strange_gets_the_share(points: Array) -> None:
    shares = grown(points, 20).explain(np.array([[0, 50, 0]], dtype=np.float32))
    assert shares[0].argmax() == 1
    assert shares[0, 1] > 0.9 * shares.sum()


@pytest.mark.parametrize("columns", [1, 2, 3, 9, 32, 33])
def test_threads_and_company_do_not_change_a_score(columns: int) -> None:
    generator = np.random.default_rng(4)
    points = generator.normal(size=(120, columns)).astype(np.float32)
    points[:20, 0] = 0  # cuts at zero, and rows on them, of either sign
    trees = grown(points, 7)
    rows = np.concatenate([points, generator.normal(scale=2, size=(5000, columns)).astype(np.float32)])
    rows[generator.random(rows.shape) < 0.05] = -0.0
    together = trees.score(rows, 3)
    np.testing.assert_array_equal(trees.score(rows), together)
    np.testing.assert_array_equal(np.concatenate([trees.score(rows[i : i + 1]) for i in range(0, 300, 5)]), together[:300:5])
    expected = [np.mean([score(row, trees, t) for t in range(7)]) for row in rows[:200]]
    np.testing.assert_allclose(together[:200], expected, rtol=1e-6)


@pytest.mark.parametrize("most", [1, 2, 256, 300])
def test_many_rows_find_the_leaves_of_trees_that_a_stream_has_changed(most: int) -> None:
    generator = np.random.default_rng(9)
    trees, keys = Trees.empty(4, most, 3), np.zeros((4, most))
    trees.follow(generator.integers(0, 9, size=(700, 3)).astype(np.float32), keys, Following(1, 0, 0.01))
    rows = generator.integers(-1, 10, size=(4500, 3)).astype(np.float32)
    rows[::2] += generator.normal(size=(2250, 3)).astype(np.float32)
    found = trees.score(rows, 2)
    np.testing.assert_array_equal(found[:900], trees.score(rows[:900]))
    expected = [np.mean([score(row, trees, t) for t in range(4)]) for row in rows[:200]]
    np.testing.assert_allclose(found[:200], expected, rtol=1e-6)


def test_an_empty_forest_scores_nothing() -> None:
    assert not Trees.empty(3, 8, 2).score(np.ones((5000, 2), np.float32)).any()


@pytest.mark.parametrize("columns", [1, 3, 9])
def test_a_stream_leaves_trees_that_are_sound(columns: int) -> None:
    generator = np.random.default_rng(5)
    rows = generator.integers(0, 6, size=(600, columns)).astype(np.float32)  # many are equal
    trees, keys = Trees.empty(6, 16, columns), np.zeros((6, 16))
    for start in range(0, 600, 20):
        trees.follow(rows[start : start + 20], keys, Following(1, start, 0.02))
        for t in range(6):
            check_sound(trees, t)
    assert (trees.heads[:, forest.ROWS] == 16).all()


def test_a_stream_scores_by_what_came_before() -> None:
    rows = np.random.default_rng(6).normal(size=(300, COLUMNS)).astype(np.float32)
    whole, keys = Trees.empty(5, 32, COLUMNS), np.zeros((5, 32))
    scores, shares = whole.follow(rows, keys, Following(2, 0, 0.01, explained=True), threads=3)
    np.testing.assert_allclose(shares.sum(axis=1), scores, rtol=1e-6)
    again, keys_again = Trees.empty(5, 32, COLUMNS), np.zeros((5, 32))
    for i, row in enumerate(rows):
        expected = np.mean([score(row, again, t) for t in range(5)]) if i else 0
        found, _ = again.follow(row[None], keys_again, Following(2, i, 0.01))
        assert found[0] == scores[i], "how rows are cut into calls changes nothing"
        assert found[0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(keys, keys_again)
    np.testing.assert_array_equal(whole.words, again.words)


def test_insertion_leaves_trees_as_if_built_from_their_sample() -> None:
    rows = np.random.default_rng(7).normal(size=(40, 2)).astype(np.float32)
    probe = np.array([[3, 0], [0, 0.5], [-2, -2]], dtype=np.float32)
    trees, keys = Trees.empty(4000, 8, 2), np.zeros((4000, 8))
    trees.follow(rows, keys, Following(3, 0, 0.1))
    samples = np.stack([trees.points[t, trees.places[t], :2] for t in range(4000)])
    built = Trees.empty(4000, 8, 2)
    built.grow(samples, 9, 1)
    np.testing.assert_allclose(trees.score(probe), built.score(probe), rtol=0.015)


def test_weights_fade() -> None:
    trees, keys = Trees.empty(300, 32, 1), np.zeros((300, 32))
    rows = np.arange(2000, dtype=np.float32)[:, None]
    trees.follow(rows, keys, Following(4, 0, 0.01))
    age = 2000 - trees.points[:, :, 0].ravel()
    draws = np.log(np.random.default_rng(8).exponential(size=(300, 2000))) - 0.01 * np.arange(2000)
    expected = 2000 - np.argpartition(draws, 32, axis=1)[:, :32]  # weighted sampling without replacement
    assert np.mean(age) == pytest.approx(float(np.mean(expected)), rel=0.05)
    even, keys = Trees.empty(300, 32, 1), np.zeros((300, 32))
    even.follow(rows, keys, Following(4, 0, 0.0))
    assert np.mean(even.points[:, :, 0]) == pytest.approx(1000, rel=0.1)


def test_what_is_unpacked_is_what_was_packed(points: Array) -> None:
    trees = grown(points, 4)
    again = Trees.unpacked(trees.packed(), "forest.npz")
    for name, array in trees.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), array, err_msg=name)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("nodes", (1, 0, 2), 999), ("nodes", (1, 3, 4), 3), ("nodes", (0, 0, 1), 77), ("leaves", (2, 1, 1), -5),
     ("leaves", (0, 0, 0), 9), ("heads", (0, 0), 4), ("heads", (0, 1), 90), ("places", (3, 2), -1)],
)  # fmt: skip
def test_arrays_that_are_no_trees_are_refused(points: Array, name: str, place: tuple[int, ...], value: int) -> None:
    packed = {key: array.copy() for key, array in grown(points, 4).packed().items()}
    packed[name][place] = value
    with pytest.raises(UserError, match=r"forest\.npz holds"):
        Trees.unpacked(packed, "forest.npz")


def test_keys_are_distinct_and_depend_on_the_seed() -> None:
    numbers, one, other = np.arange(1000, dtype=np.uint64), np.empty(1000, np.uint64), np.empty(1000, np.uint64)
    forest.keys_of(np.uint64(1), numbers, one)
    forest.keys_of(np.uint64(2), numbers, other)
    assert len(set(one.tolist())) == len(set(other.tolist())) == 1000
    assert not (one == other).any()
    assert np.mean(one / 2**64) == pytest.approx(0.5, abs=0.05)
