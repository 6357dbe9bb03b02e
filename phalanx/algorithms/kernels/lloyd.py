"""Lloyd's algorithm on weighted points in memory: reduces the many centres of a stream to the k that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...contracts import Array
from . import kmeans as loops
from .nearest import Assigner, Centers

Init = Literal["random", "kmeans++"]
_GREEDY_COST = 2 * 10**10  # multiplications that k-means++ may take: some seconds


@dataclass(frozen=True, slots=True)
class Reduction:
    """How K weighted points become k centres."""

    k: int
    init: Init
    iterations: int
    tolerance: float  # relative change of the mean squared distance below which it ends
    seed: int


def random_stream(seed: int, number: int) -> np.random.Generator:
    """Return the random numbers that `number` names under `seed`."""
    return np.random.Generator(np.random.Philox(key=np.array([seed & (2**64 - 1), number], dtype=np.uint64)))


def choose(
    points: Array, weights: Array, k: int, init: Init, generator: np.random.Generator, candidates: int | None = None
) -> Array:
    """Return the row numbers of k starting centres among weighted points; some repeat where distinct points run out.

    Args:
        points: (K, D) float32.
        weights: (K,) float64.
        k: how many to choose.
        init: how.
        generator: of random numbers.
        candidates: of k-means++ for every centre, of which the best is taken; None: 2 + log(k).
    """
    if init == "kmeans++":
        candidates = candidates or 2 + int(np.log(k))
        cost = points.size * k * candidates
        slices = min(-(-cost // _GREEDY_COST), max(k // 16, 1))
        if slices > 1:
            return _choose_by_slices(points, weights, k, slices, generator)
        chosen = np.empty(k, dtype=np.int64)
        loops.plus_plus(points, weights, generator.random((k, candidates)), chosen)
        return chosen
    return generator.permutation(len(points))[np.arange(k) % len(points)]


def _choose_by_slices(points: Array, weights: Array, k: int, slices: int, generator: np.random.Generator) -> Array:
    """Choose k / slices rows by k-means++ in each of several random slices: the cost falls by their number."""
    order = generator.permutation(len(points))
    found = []
    for number in range(slices):
        part = order[len(order) * number // slices : len(order) * (number + 1) // slices]
        wanted = k * (number + 1) // slices - k * number // slices
        heavy = weights[part]
        chosen = np.empty(wanted, dtype=np.int64)
        heavy = heavy if heavy.any() else np.ones(len(part))
        loops.plus_plus(points[part], heavy, generator.random((wanted, 2 + int(np.log(wanted)))), chosen)
        found.append(part[chosen])
    return np.concatenate(found)


def trial(points: Array, weights: Array, reduction: Reduction, number: int) -> tuple[float, Array]:
    """Run one trial: start, then Lloyd to convergence.

    Args:
        points: (K, D) float32.
        weights: (K,) float64, above 0.
        reduction: what is wanted.
        number: of the trial; it seeds the start.

    Returns:
        The weighted mean squared distance, and the centres (k, D) float32 that it belongs to.
    """
    generator = random_stream(reduction.seed, number)
    centers = points[choose(points, weights, reduction.k, reduction.init, generator)]
    assigner = Assigner(1)
    labels, distances = assigner.assign(points, Centers(centers))
    error = _mean(weights, distances)
    for _ in range(reduction.iterations):
        moved = _means(points, weights, labels, distances, centers)
        new_labels, new_distances = assigner.assign(points, Centers(moved))
        new_error = _mean(weights, new_distances)
        if new_error >= error:
            break
        ended = np.array_equal(labels, new_labels) or error - new_error <= reduction.tolerance * error
        centers, labels, distances, error = moved, new_labels, new_distances, new_error
        if ended:
            break
    return error, centers


def _means(points: Array, weights: Array, labels: Array, distances: Array, centers: Array) -> Array:
    """Return the weighted means by label; a centre that lost its points goes to the point that costs most."""
    sums = np.zeros(centers.shape)
    totals = np.zeros(len(centers))
    loops.add_weighted(points, weights, labels, sums, totals)
    empty = np.flatnonzero(totals == 0)
    totals[empty] = 1
    moved = (sums / totals[:, None]).astype(np.float32)
    if len(empty):
        costs = weights * distances
        dearest = np.argsort(-costs, kind="stable")[: len(empty)]
        dearest = dearest[costs[dearest] > 0]
        moved[empty] = centers[empty]
        moved[empty[: len(dearest)]] = points[dearest]
    return moved


def _mean(weights: Array, distances: Array) -> float:
    # numpy adds pairwise in an order that depends on the length alone
    return float((weights * distances).sum() / weights.sum())
