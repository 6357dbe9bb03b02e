"""Sums that are exact, and so the same in any order and for any split over threads and ranks.

Numbers are rounded to a common grid whose spacing is so wide that no partial sum needs more than float64's 53 bits. Adding
them is then exact, hence associative. The grid must be agreed upon by all ranks first: it follows from the largest magnitude
(one max all-reduce) and the number of addends. With n addends a number keeps 52 - log2(n) bits below the largest: 39 for a
batch of 5,000 rows, where float32 itself has 24.

    anchor = grid(world.all_reduce(largest, "max"), rows)
    total = world.all_reduce(snap(values, anchor).sum(axis=0))

After Demmel and Nguyen, "Fast reproducible floating-point summation" (2013).
"""

from __future__ import annotations

import numpy as np

from ..contracts import Array


def grid(largest: Array | float, addends: int) -> Array:
    """Return the anchors (float64, shape of `largest`) of grids on which sums are exact.

    Args:
        largest: bounds of the magnitudes to be added, finite; the same on every rank.
        addends: how many numbers are added at most, over all ranks.
    """
    exponent = np.frexp(np.asarray(largest, dtype=np.float64))[1]
    bits = max(1, (addends - 1).bit_length())
    anchors: Array = np.ldexp(1.5, exponent + bits)
    return anchors


def snap(values: Array, anchor: Array | float) -> Array:
    """Return `values` in float64, each rounded to the grid of its anchor.

    In the anchor's binade float64 has the grid's spacing, so adding the anchor rounds, and taking it away is exact.
    """
    rounded: Array = (values.astype(np.float64) + anchor) - anchor
    return rounded
