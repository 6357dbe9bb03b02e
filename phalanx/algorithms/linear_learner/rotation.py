"""Few rows of many columns in coordinates of their own, as many as there are rows.

Weights under an L2 penalty alone are sums of the rows they are learnt from. So with the rows' products G = X·Xᵀ = U·Λ·Uᵀ,
learning from the rows of U·√Λ under the same penalty is learning from X, and X's weights are Xᵀ·U/√Λ times those found. The
new columns are uncorrelated, so the solver's diagonal curvature is exact.

Legend of shapes: N rows, D columns, R coordinates, P candidates, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...contracts import Array, Collective, Csr
from ..kernels import linear as loops
from ..kernels.blas import single_threaded_blas
from .curvature import Curvature
from .data import Piece
from .objective import Crew

MOST_ROWS = 2048  # it costs their cube
_PAYS = 4  # weights of all candidates over squared rows from where on it is worth that
_LEAST = 1e-7  # of the largest eigenvalue: what is below is not told from zero


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rows in their own coordinates, and the way back."""

    pieces: list[Piece]  # this rank's
    largest: Array  # (R,) of all ranks' rows
    curvature: Curvature
    _rows: Array | Csr  # of all ranks
    _to_rows: Array  # (N, R)
    _mean: Array  # (D,) that was taken off

    def back(self, weights: Array) -> Array:
        """Return weights (R + 1, P, K), the bias last, as those of the original columns (D + 1, P, K)."""
        of_rows = self._to_rows @ weights[:-1].reshape(len(weights) - 1, -1)
        found = np.empty((len(self._mean) + 1, of_rows.shape[1]))
        found[:-1] = _weighed(self._rows, of_rows, len(self._mean))
        found[-1] = weights[-1].ravel() - self._mean @ found[:-1]
        return found.reshape(-1, *weights.shape[1:])


def rotation(
    world: Collective,
    pieces: Sequence[Piece],
    columns: int,
    width: int,
    slope_change: float,
    *,
    copies: int,
    use_bias: bool,
    free_bias: bool,
    crew: Crew,
) -> Rotation | None:
    """Collective. Return rows in their own coordinates; None where there are too many, or too few weights to gain by it.

    Args:
        world: the ranks.
        pieces: this rank's rows.
        columns: of them.
        width: outputs of all candidates.
        slope_change: second derivative of a row's loss at score zero.
        copies: how many ranks have each row.
        use_bias: whether a bias is learnt.
        free_bias: whether it bears no penalty: only then may the rows' mean be taken off.
        crew: of threads.
    """
    sparse = any(isinstance(piece.features, Csr) for piece in pieces)
    mine = np.array([sum(len(piece) for piece in pieces), int(sparse)], dtype=np.int64)
    counts = np.array(world.all_gather(mine))
    count = int(counts[:, 0].sum()) // copies
    if not 0 < count <= MOST_ROWS or columns * width < _PAYS * count**2:
        return None
    rows, places = _gathered(world if copies == 1 else None, pieces, columns, sparse=bool(counts[:, 1].any()))
    products = _products(rows, count, columns, crew)
    mean = np.zeros(columns)
    centred = use_bias and free_bias
    if centred:
        mean = _weighed(rows, np.full((count, 1), 1 / count), columns)[:, 0]
        middle = products.mean(axis=0)
        products = products - middle - middle[:, None] + middle.mean()
    with single_threaded_blas():  # the number of threads could change bits
        values, vectors = np.linalg.eigh(products)
    kept = values > _LEAST * max(values[-1], 1e-300)
    root, vectors = np.sqrt(values[kept]), vectors[:, kept]
    features = np.ascontiguousarray(vectors * root, dtype=np.float32)
    around = np.zeros(len(root)) if centred or not use_bias else features.mean(axis=0, dtype=np.float64)
    curvature = Curvature(around, values[kept] / count - around**2, slope_change, use_bias=use_bias)
    turned = [replace(p, features=features[start : start + len(p)]) for p, start in zip(pieces, places, strict=True)]
    largest = np.abs(features).max(axis=0, initial=0.0).astype(np.float64) * (1 + 1e-6)
    return Rotation(turned, largest, curvature, rows, vectors / root, mean)


def _gathered(
    world: Collective | None, pieces: Sequence[Piece], columns: int, *, sparse: bool
) -> tuple[Array | Csr, list[int]]:
    """Return the rows of all ranks in the channel's order, and where among them this rank's pieces begin."""
    heads = np.array([[p.batch, p.offset, len(p)] for p in pieces], dtype=np.int64).reshape(-1, 3)
    of = [p.features for p in pieces]
    rows = [f for f in of if isinstance(f, Csr)]
    if sparse:
        sizes = _joined([np.diff(f.indptr) for f in rows], np.int64)
        sent = [heads, sizes, _joined([f.indices for f in rows], np.int64), _joined([f.values for f in rows], np.float32)]
    else:
        sent = [heads, np.concatenate([np.zeros((0, columns), np.float32), *(np.asarray(f) for f in of)])]
    every = [[array] if world is None else world.all_gather(array) for array in sent]
    heads = np.concatenate(every[0])
    order = np.lexsort((heads[:, 1], heads[:, 0]))  # of the pieces
    ends = np.cumsum(heads[:, 2])
    moved = np.concatenate([np.arange(ends[at] - heads[at, 2], ends[at]) for at in order])
    begins = np.empty(len(heads), dtype=np.int64)
    begins[order] = np.cumsum(heads[order, 2]) - heads[order, 2]
    before = 0 if world is None else sum(len(part) for part in every[0][: world.rank])
    own = begins[before : before + len(pieces)].tolist()
    if not sparse:
        return np.concatenate(every[1])[moved], own
    sizes = np.concatenate(every[1])
    stops = np.cumsum(sizes)
    entries = np.concatenate([np.arange(stops[row] - sizes[row], stops[row]) for row in moved])
    indptr = np.concatenate([[0], np.cumsum(sizes[moved])])
    return Csr(indptr, np.concatenate(every[2])[entries], np.concatenate(every[3])[entries], columns), own


def _joined(parts: list[Array], kind: type) -> Array:
    return np.concatenate([np.zeros(0, dtype=kind), *parts]).astype(kind)


def _products(rows: Array | Csr, count: int, columns: int, crew: Crew) -> Array:
    """Return the products of all rows (N, N)."""
    if not isinstance(rows, Csr):
        with single_threaded_blas():
            wide = rows.astype(np.float64)
            return np.asarray(wide @ wide.T)
    products = np.zeros((count, count))

    def work(start: int, stop: int) -> None:
        loops.sparse_gram(rows.indptr, rows.indices, rows.values, start, stop, np.zeros(columns), products)

    crew.over(work, count, columns)
    return products + np.tril(products, -1).T


def _weighed(rows: Array | Csr, factors: Array, columns: int) -> Array:
    """Return the sums of rows, each times its factors (N, M), as (D, M)."""
    if not isinstance(rows, Csr):
        return np.asarray(rows.T.astype(np.float64) @ factors)
    found = np.zeros((columns, factors.shape[1]))
    anchors = np.zeros(columns), np.zeros(factors.shape[1])  # no grid: one rank adds all, in their order
    loops.sparse_gradient(rows.indptr, rows.indices, rows.values, np.ascontiguousarray(factors), *anchors, found)
    return found
