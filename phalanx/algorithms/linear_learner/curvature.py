"""The curvature that the features alone give a loss: what the solver's steps are measured by, so that few passes are enough.

At weights zero the Hessian of the mean loss is a number times the features' second moments. Taken around their mean, so that
the bias stands apart, and plus a candidate's penalty, they precondition the solver: by their eigenvectors where the features
are not too many, otherwise by their diagonal. Moments of some of the rows are enough; sums of them are exact, so every number
of workers and threads gets the same (`fixed_point`).

Legend of shapes: D columns, M outputs of all candidates; weights are (D + 1, M), the last row is the bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np

from ...contracts import Array, Collective, Csr
from ..fixed_point import grid, snap
from ..kernels import linear as rows_loops
from ..kernels import quasi_newton as loops
from ..kernels.blas import single_threaded_blas
from .data import Piece
from .objective import Crew

# whose eigenvectors are taken: it costs their cube; and passes that end early, as they mostly do where there are many more,
# then fit weak directions before strong ones, which answers new rows less well (Fashion-MNIST: log loss 0.51 against 0.45)
MOST_COLUMNS = 256
_FLAT = 1e-6  # of the mean eigenvalue: directions without curvature are taken to have at least this


@final
class Curvature:
    """Second moments of the features, made ready for solving.

    Args:
        mean: (D,) of the features; zeros where there is no bias that could take them up.
        covariance: (D, D), or (D,) its diagonal alone.
        slope_change: of a row's loss at score zero: the second derivative.
        use_bias: whether a bias is learnt.
    """

    def __init__(self, mean: Array, covariance: Array, slope_change: float, *, use_bias: bool) -> None:
        self._mean = mean
        diagonal = covariance if covariance.ndim == 1 else np.diag(covariance)
        self._diagonal = np.maximum(diagonal, _FLAT * max(float(diagonal.mean()), 1e-30))
        self._change = slope_change
        self._use_bias = use_bias
        if covariance.ndim == 1:
            self._values, self._vectors = np.maximum(covariance, 0), None
        else:
            with single_threaded_blas():  # the number of threads could change bits
                values, self._vectors = np.linalg.eigh(covariance)
            self._values = np.maximum(values, 0)
        self._values = np.maximum(self._values, _FLAT * max(float(self._values.mean()), 1e-30))

    @property
    def full(self) -> bool:
        """Whether it knows how columns go together."""
        return self._vectors is not None

    def among(self, columns: Array | None) -> Curvature:
        """Return the same of some of the columns; only their diagonal where that is all there is of these."""
        if columns is None:
            return self
        return Curvature(self._mean[columns], self._diagonal[columns], self._change, use_bias=self._use_bias)

    def solve(self, vector: Array, wd: Array, sharp: Array, scale: Array, crew: Crew) -> None:
        """Divide gradients (D + 1, M), one column a candidate's output, by curvature + wd; multiply with `scale`; in place.

        Args:
            vector: of the candidates.
            wd: (M,) their L2 penalties.
            sharp: (M,) who has an L1 penalty: their weights stay in an orthant, which only steps along the axes respect.
            scale: (M,) of the answer.
            crew: of threads.
        """
        bias = vector[-1].copy() if self._use_bias else np.zeros(vector.shape[1])
        coupled = np.where(sharp, 0.0, bias)
        if self._vectors is not None and not sharp.all():
            inner = vector[:-1] - self._mean[:, None] * coupled
            with single_threaded_blas():
                turned = (self._vectors.T @ inner) * (scale / (self._change * self._values[:, None] + wd))
                inner = self._vectors @ turned
            along_axes = vector[:-1] * (scale / (self._change * self._diagonal[:, None] + wd)) if sharp.any() else inner
            vector[:-1] = np.where(sharp, along_axes, inner)
            moved = self._mean @ inner
        else:
            parts = (self._mean, self._diagonal)

            def work(start: int, stop: int, sums: Array) -> None:
                of = (part[start:stop] for part in parts)
                loops.over_diagonal(vector[start:stop], *of, coupled, self._change, wd, scale, sums)

            moved = crew.sums(work, len(vector) - 1, vector.shape[1], (vector.shape[1],))
        vector[-1] = scale * bias / self._change - np.where(sharp, 0.0, moved) if self._use_bias else 0.0


def measure(
    world: Collective,
    pieces: Iterable[Piece],
    largest: Array,
    addends: int,
    slope_change: float,
    *,
    use_bias: bool,
    missed: bool,
    crew: Crew,
) -> Curvature:
    """Collective. Return the curvature of the rows in `pieces`.

    Args:
        world: the ranks.
        pieces: this rank's rows.
        largest: (D,) bounds of the features.
        addends: rows that are added at most, over all ranks.
        slope_change: second derivative of a row's loss at score zero.
        use_bias: whether a bias is learnt.
        missed: whether some columns may be in rows that are not among these.
        crew: of threads.
    """
    columns = len(largest)
    full = columns <= MOST_COLUMNS
    anchors = grid(largest, addends)
    of_column = np.ldexp(1.0, np.frexp(largest)[1])  # a product of two columns is at most the product of these
    anchor = float(np.ldexp(1.5, addends.bit_length() + 1))
    parts: list[tuple[Array, int]] = []
    crew.run(lambda piece: parts.append((_moments(piece, anchors, of_column, anchor, full=full), len(piece))), pieces)
    sums, count = np.zeros((columns + 1, columns)) if full else np.zeros((2, columns)), 0.0
    for part, rows in parts:
        sums += part
        count += rows
    sums = world.all_reduce(sums)
    count = float(world.all_reduce(np.array([count]))[0])
    mean = sums[-1] / max(count, 1) if use_bias else np.zeros(columns)
    unseen = largest * largest / max(count, 1) if missed else np.zeros(columns)  # as if each column were in one row more
    squares = sums[:-1] / max(count, 1)
    if not full:
        return Curvature(mean, squares[0] - mean * mean + unseen, slope_change, use_bias=use_bias)
    whole = np.triu(squares) + np.triu(squares, 1).T - np.outer(mean, mean) + np.diag(unseen)
    return Curvature(mean, whole, slope_change, use_bias=use_bias)


def _moments(piece: Piece, anchors: Array, of_column: Array, anchor: float, *, full: bool) -> Array:
    """Return sums of products of columns (D, D), of which the upper half counts, or of squares (1, D); below, sums (D,)."""
    features, columns = piece.features, len(of_column)
    if isinstance(features, Csr):
        if full:
            out = np.zeros((columns + 1, columns))
            rows_loops.sparse_products(features.indptr, features.indices, features.values, anchors, of_column, anchor, out)
            return out
        out = np.zeros((2, columns))
        rows_loops.sparse_moments(features.indices, features.values, anchors, of_column * of_column * anchor, out)
        return out[::-1]
    out = np.zeros((columns + 1, columns)) if full else np.zeros((2, columns))
    grids = np.outer(of_column, of_column) * anchor
    for start in range(0, len(features), piece.block):
        rows = features[start : start + piece.block]
        if full:
            out[:-1] += snap(rows.T @ rows, grids)
        else:
            out[0] += snap(np.einsum("nd,nd->d", rows, rows), of_column * of_column * anchor)
        out[-1] += snap(rows, anchors).sum(axis=0)
    return out
