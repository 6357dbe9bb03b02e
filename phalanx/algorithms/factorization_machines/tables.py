"""The tables that training moves, and one step of them, the same bits for any number of ranks.

Legend of shapes: N rows, T columns that occur, U of them in a batch, k factors.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ...contracts import Array, Collective, Entry, State
from ...errors import UserError
from ..fixed_point import grid, snap
from ..kernels import factorization as loops
from .data import Piece
from .hyperparameters import FactorizationMachinesHyperparameters, Part

SUMS = ("weight", "loss", "absolute", "squared", "hits", "taken", "positives", "right")
_SPARE = 64  # every rank may see all rows of a channel
_METHODS = {"adam": 0, "sgd": 1, "adagrad": 2, "ftrl": 3}
_DENSE_COLUMNS = 4096  # up to so many columns a whole table is reduced rather than the batch's columns


@final
class Tables:
    """Weights and what the update rule remembers; rows as `kernels.factorization` says.

    Args:
        wanted: hyperparameters.
        columns: T.
        parts: how bias, linear weights and factors are learnt.
        bias: beginning of the bias where its part begins at zero.
        seed: of the beginning.
    """

    def __init__(
        self,
        wanted: FactorizationMachinesHyperparameters,
        columns: int,
        parts: tuple[Part, Part, Part],
        bias: float,
        seed: int,
    ) -> None:
        self._wanted = wanted
        self._parts = parts
        shape = (columns + 1, wanted.num_factors + 1)
        generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1)))
        self.table = np.zeros(shape, dtype=np.float32)
        self.table[:-1, 1:] = _beginning(parts[2], (columns, wanted.num_factors), generator)
        if wanted.use_linear:
            self.table[:-1, 0] = _beginning(parts[1], (columns,), generator)
        if wanted.use_bias:
            self.table[-1, 0] = _beginning(parts[0], (), generator) + np.float32(bias)
        few = (0, shape[1])
        self._first = np.zeros(shape if wanted.method in ("adam", "ftrl") else few, dtype=np.float32)
        self._second = np.zeros(shape if wanted.method != "sgd" else few, dtype=np.float32)
        self._seen = np.zeros((columns + 1, 2), dtype=np.int64)
        self._marks = np.full(columns, -1, dtype=np.int64)
        if wanted.method == "ftrl":  # so that its rule yields the beginning
            for rows, part in ((slice(-1, None), parts[0]), (slice(0, -1), parts[1])):
                self._first[rows, 0] = -self.table[rows, 0] * _ftrl_share(part)
            self._first[:-1, 1:] = -self.table[:-1, 1:] * _ftrl_share(parts[2])

    def step(self, world: Collective, piece: Piece, number: int, speed: float, copies: int) -> dict[str, float]:
        """Collective. Move the tables by one batch; return sums over its rows, before the move.

        Args:
            world: the ranks.
            piece: this rank's rows of the batch.
            number: of the step, from 1.
            speed: factor of the step sizes.
            copies: how many ranks have each row.

        Raises:
            UserError: on every rank, when scores grow beyond all bounds.
        """
        wanted, table = self._wanted, self.table
        z, sums = raw_scores(piece, table)
        slopes = ((_sigmoid(z) if wanted.classifies else z) - piece.label) * piece.weight
        bound = loops.largest_gradient(piece.indptr, piece.indices, piece.values, table, slopes, sums)
        rows = measured(z, piece, classifies=wanted.classifies)
        tops = world.all_reduce(np.append(np.abs(rows).max(axis=0, initial=0.0), bound), "max")
        if not np.isfinite(tops).all() or tops.max() > 1e100:
            raise UserError(
                f"training diverges at step {number}: lower factors_lr, linear_lr and bias_lr, scale the features down, "
                "or leave solver=auto"
            )
        anchor = float(grid(tops[-1], piece.batch * _SPARE))
        keys, gradients = self._gradients(piece, slopes, sums, anchor)
        last = len(table) - 1
        extra = np.zeros((2 + len(SUMS), gradients.shape[1]))
        extra[0, 0] = snap(slopes, anchor).sum()
        extra[2:, 0] = snap(rows, grid(tops[:-1], piece.batch * _SPARE)).sum(axis=0)
        keys = np.concatenate([keys, last + np.arange(len(extra))])
        keys, gradients = self._exchanged(world, keys, np.concatenate([gradients, extra]), last + len(extra))
        totals = gradients[-len(SUMS) :, 0] / copies
        share = (1 / max(totals[0], 1e-300) if wanted.rescale_grad is None else wanted.rescale_grad) / copies
        count = len(keys) - len(extra) + 1
        loops.update(
            keys[:count],
            gradients[:count] * share,
            table,
            self._first,
            self._second,
            self._seen,
            number,
            _METHODS[wanted.method],
            np.array([part.rate * speed for part in self._parts]),
            np.array([part.decay for part in self._parts]),
            np.inf if wanted.clip_gradient is None else wanted.clip_gradient,
            1e-8 if wanted.eps is None else wanted.eps,
        )
        return dict(zip(SUMS, totals.tolist(), strict=True))

    def state_dict(self) -> State:
        """Return all tables."""
        return {
            "table": Entry(self.table.copy()),
            "first": Entry(self._first.copy()),
            "second": Entry(self._second.copy()),
            "seen": Entry(self._seen.copy()),
        }

    def load_state_dict(self, state: State) -> None:
        """Put tables back."""
        self.table = np.array(state["table"].value, dtype=np.float32)
        self._first = np.array(state["first"].value, dtype=np.float32)
        self._second = np.array(state["second"].value, dtype=np.float32)
        self._seen = np.array(state["seen"].value, dtype=np.int64)

    def _gradients(self, piece: Piece, slopes: Array, sums: Array, anchor: float) -> tuple[Array, Array]:
        """Return the columns (U,) of a batch and their gradients (U, 1 + k)."""
        places, keys = np.empty((2, len(piece.indices)), dtype=np.int64)
        count = loops.number_columns(piece.indices, self._marks, places, keys)
        found = np.zeros((count, self.table.shape[1]))
        loops.gradient(piece.indptr, piece.indices, places, piece.values, self.table, slopes, sums, anchor, found)
        return keys[:count], found

    def _exchanged(self, world: Collective, keys: Array, rows: Array, width: int) -> tuple[Array, Array]:
        """Collective. Return keys and rows summed over ranks; the bias and the sums come last."""
        if world.size == 1:
            return keys, rows
        if width > _DENSE_COLUMNS:
            return world.sparse_sum(keys, rows)
        whole = np.zeros((width, rows.shape[1] + 1))
        whole[keys, :-1] = rows
        whole[keys, -1] = 1
        whole = world.all_reduce(whole)
        found = np.flatnonzero(whole[:, -1])
        return found, np.ascontiguousarray(whole[found, :-1])


def raw_scores(piece: Piece, table: Array) -> tuple[Array, Array]:
    """Return scores (N,) and the factors' sums (N, k)."""
    z, sums = np.empty(len(piece)), np.empty((len(piece), table.shape[1] - 1))
    loops.scores(piece.indptr, piece.indices, piece.values, table, z, sums)
    return z, sums


def measured(z: Array, piece: Piece, *, classifies: bool) -> Array:
    """Return what metrics are made of, (N, len(SUMS)), weighted."""
    label = piece.label
    out = np.zeros((len(piece), len(SUMS)))
    out[:, 0] = 1
    if classifies:
        chosen = z >= 0
        out[:, 1] = np.logaddexp(0, z) - label * z
        out[:, 4], out[:, 5], out[:, 6], out[:, 7] = chosen & (label > 0), chosen, label, chosen == (label > 0)
    else:
        error = z - label
        out[:, 1] = out[:, 3] = error * error
        out[:, 2] = np.abs(error)
    return np.asarray(out * piece.weight[:, None])


def summed(world: Collective, rows: Array, batch: int, copies: int) -> Array:
    """Collective. Return exact sums (len(SUMS),) of `measured` over the rows of a batch."""
    tops = world.all_reduce(np.abs(rows).max(axis=0, initial=0.0), "max")
    found: Array = world.all_reduce(snap(rows, grid(tops, batch * _SPARE)).sum(axis=0)) / copies
    return found


def metrics_of(sums: dict[str, float], *, classifies: bool, deviation: float) -> dict[str, float]:
    """Return metrics by the names users know; `deviation` is the unit of the errors."""
    weight = max(sums["weight"], 1e-300)
    if classifies:
        around = sums["taken"] + sums["positives"]
        return {
            "binary_classification_accuracy": sums["right"] / weight,
            "binary_classification_cross_entropy": sums["loss"] / weight,
            "binary_f_beta": 2 * sums["hits"] / around if around > 0 else 0.0,
        }
    mse = sums["squared"] / weight * deviation**2
    return {"rmse": mse**0.5, "mse": mse, "absolute_loss": sums["absolute"] / weight * deviation}


def _sigmoid(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1 + small))


def _beginning(part: Part, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if part.method == "constant":
        return np.full(shape, part.spread, dtype=np.float32)
    if part.method == "uniform":
        return np.asarray(generator.uniform(-part.spread, part.spread, shape), dtype=np.float32)
    return np.asarray(generator.standard_normal(shape, dtype=np.float32) * np.float32(part.spread), dtype=np.float32)


def _ftrl_share(part: Part) -> float:
    return 1 / part.rate + part.decay if part.rate > 0 else 0.0
