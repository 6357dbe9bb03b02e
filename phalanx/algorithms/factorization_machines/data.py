"""What factorization machines read: checked rows, the columns that occur, rows that name columns by their place among them.

Legend of shapes: N rows, D columns of the channel, T columns that occur in channel `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ...contracts import Array, Batch, Collective, Csr, Session, Shard
from ...errors import UserError
from ...parallel.collective import together
from ..fixed_point import grid, snap
from ..kernels import factorization as loops
from ..reading import copies, first_not_finite, numbers, width_of
from .hyperparameters import FactorizationMachinesHyperparameters

READ_ROWS = 8192
_SPARE = 64  # every rank may see all rows of a channel
_WAITING = 1 << 20  # entries of rows whose columns are looked at together
_LABELS = 1_000_000  # first rows that the labels' mean and deviation are taken from
_SHAPED = 10_000  # first rows that columns' means and deviations are taken from
_FLATTEST = 1 / 512  # deviation of a column over its largest magnitude, from where on float32 cannot tell
_TINY = 1e-30  # magnitude of a column that counts as zero


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of this rank's part of a global batch."""

    indptr: Array  # (N + 1,) int64
    indices: Array  # (nnz,) int64; of the channel, then places among the columns that occur, -1 for others
    values: Array  # (nnz,) float32
    label: Array  # (N,) float64; 0 and 1 for a binary_classifier
    weight: Array  # (N,) float64
    batch: int  # rows of the whole global batch

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, slots=True)
class Survey:
    """What the channel `train` is like, the same on all ranks."""

    columns: Array  # (T,) int64, ascending
    middle: Array  # (T,) float32, taken from the values first; zero for most columns
    scale: Array  # (T,) float32; values are divided by it
    filled: Array  # (C,) int64 places of the columns whose middle is not zero: every row has an entry of theirs
    label_mean: float
    label_deviation: float
    row_entries: float  # mean number of them

    def compact(self, piece: Piece) -> Piece:
        """Return rows with places for columns, scaled."""
        places = np.empty(len(piece.indices), dtype=np.int64)
        loops.find_columns(self.columns, piece.indices, places)
        values = piece.values
        if len(self.columns):
            values = np.where(places >= 0, (values - self.middle[places]) / self.scale[places], np.float32(0))
        whole = Piece(piece.indptr, places, values, piece.label, piece.weight, piece.batch)
        return self._fill(whole) if len(self.filled) else whole

    def _fill(self, piece: Piece) -> Piece:
        """Add the entries that stand for zeros of the filled columns."""
        rows = np.repeat(np.arange(len(piece)), np.diff(piece.indptr))
        at = np.minimum(np.searchsorted(self.filled, piece.indices), len(self.filled) - 1)
        known = self.filled[at] == piece.indices
        missing = np.ones((len(piece), len(self.filled)), dtype=bool)
        missing[rows[known], at[known]] = False
        row, column = np.nonzero(missing)
        if not len(row):
            return piece
        order = np.argsort(np.concatenate([rows, row]), kind="stable")
        places = self.filled[column]
        indices = np.concatenate([piece.indices, places])[order]
        values = np.concatenate([piece.values, -self.middle[places] / self.scale[places]])[order]
        indptr = piece.indptr + np.concatenate([[0], np.cumsum(missing.sum(axis=1))])
        return Piece(indptr, indices, values, piece.label, piece.weight, piece.batch)


@final
class Reader:
    """Reads channels; every method but `sparse` is Collective.

    Args:
        session: of the job.
        wanted: hyperparameters.
        columns: features that a model takes.
    """

    def __init__(self, session: Session, wanted: FactorizationMachinesHyperparameters, columns: int) -> None:
        self._session = session
        self._wanted = wanted
        self._columns = columns

    def pieces(self, name: str, rows: int, epoch: int = 0, *, shuffle: bool = False) -> Iterator[Piece]:
        """Yield this rank's part of every global batch of `rows` rows, empty parts too.

        Raises:
            UserError: on every rank, for rows that cannot be read, labels that do not fit, numbers that are not finite.
        """
        world, shard = self._session.world, self._session.channels[name]
        batches: Iterator[Batch] | None = None
        minus = zero = False
        number = 0
        while True:
            piece, error = None, None
            flags = np.zeros(3, dtype=np.int64)  # failed, a label -1, a label 0
            try:
                batches = batches or shard.batches(rows, epoch=epoch, shuffle=shuffle)
                batch = next(batches, None)
                if batch is not None:
                    expected = min(rows, shard.rows - number * rows)
                    piece = self._piece(name, batch, expected, lambda row: shard.where(row, epoch=epoch, shuffle=shuffle))
                    if self._wanted.classifies:
                        flags[1:] = np.any(piece.label < 0), np.any(piece.label == 0)
                        np.maximum(piece.label, 0, out=piece.label)
            except Exception as problem:
                error = problem
                flags[0] = 1
            flags = world.all_reduce(flags, "max")
            if flags[0]:
                together(world, f"reading channel '{name}'", lambda error=error: _raise(error))  # type: ignore[misc]
            minus, zero = minus or bool(flags[1]), zero or bool(flags[2])
            if minus and zero:
                raise UserError(f"channel '{name}' has labels -1 and 0; a binary_classifier needs 0 and 1, or -1 and 1")
            if piece is None:
                return
            number += 1
            yield piece

    def survey(self, pieces: Iterator[Piece], shard: Shard) -> Survey:
        """Look once at the rows of channel `train`."""
        world = self._session.world
        known, largest = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        labels: list[Array] = []
        waiting: list[tuple[Array, Array]] = []
        shaped: list[Piece] = []
        seen = entries = total = 0
        for piece in pieces:
            waiting.append((piece.indices, np.abs(piece.values)))
            entries += len(piece.indices)
            total += len(piece.indices)
            if entries > len(known) + _WAITING:  # rarely: each time costs as much as there are columns
                known, largest = _largest([(known, largest), *waiting])
                waiting, entries = [], 0
            if seen < _LABELS:
                labels.append(piece.label)
            if seen < _SHAPED:
                shaped.append(piece)
            seen += piece.batch
        known, largest = _largest([(known, largest), *waiting])
        columns, scale = known, largest
        if world.size > 1:
            columns, scale = _largest(list(zip(world.all_gather(known), world.all_gather(largest), strict=True)))
        scale[scale < _TINY] = 1  # weights for such values would not be float32 numbers
        all_labels = world.all_gather(np.concatenate(labels) if labels else np.zeros(0))
        mean, deviation = _moments(all_labels[0] if shard.parts == 1 else np.concatenate(all_labels))
        auto = self._wanted.solver == "auto"
        if self._wanted.classifies or not auto:
            mean, deviation = (mean if auto else 0.0), 1.0
        times = copies(world, shard)
        every = int(world.all_reduce(np.array([total], dtype=np.int64))[0]) // times
        found = Survey(
            columns,
            np.zeros_like(scale),
            scale if auto else np.ones_like(scale),
            np.zeros(0, dtype=np.int64),
            mean,
            deviation,
            every / max(shard.rows, 1),
        )
        standardises = auto and self._wanted.use_bias and self._wanted.use_linear  # which take up what the middles change
        return _standardised(world, found, shaped, times) if standardises else found

    def _piece(self, name: str, batch: Batch, rows: int, where: Callable[[int], str]) -> Piece:
        features = numbers(batch.features, f"channel '{name}'")
        width = width_of(features)
        if width > self._columns or (width < self._columns and not isinstance(features, Csr)):
            raise UserError(f"channel '{name}' has {width} features where {self._columns} are expected")
        if not np.isfinite(features.values if isinstance(features, Csr) else features).all():
            row, column, value = first_not_finite(features)
            place = where(batch.first_row + row)
            raise UserError(
                f"channel '{name}', {place}: feature {column + 1} is {value}; only finite numbers can be trained on"
            )
        label = self._label(name, batch, where)
        weight = np.ones(len(batch)) if batch.weight is None else batch.weight.astype(np.float64)
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise UserError(f"channel '{name}' has row weights that are negative or not finite")
        rows_of = sparse(features)
        return Piece(rows_of.indptr, rows_of.indices, rows_of.values, label, weight, rows)

    def _label(self, name: str, batch: Batch, where: Callable[[int], str]) -> Array:
        label = batch.label
        if label is None:
            raise UserError(f"channel '{name}' has no labels; csv needs them in the first column (;label_size=1)")
        good, needed = np.isfinite(label), "a finite number"
        if self._wanted.classifies:
            good, needed = (label == 0) | (label == 1) | (label == -1), "0 or 1 (or -1 or 1)"
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise UserError(
                f"channel '{name}', {where(batch.first_row + row)}: the label is {label[row]:g}; "
                f"{self._wanted.predictor_type} needs {needed}"
            )
        return np.array(label, dtype=np.float64)


def sparse(features: Array | Csr) -> Csr:
    """Return rows as `Csr` with int64 indices; of dense ones what is not zero."""
    if isinstance(features, Csr):
        indptr = np.ascontiguousarray(features.indptr, dtype=np.int64)
        indices = np.ascontiguousarray(features.indices, dtype=np.int64)
        return Csr(indptr, indices, np.ascontiguousarray(features.values, dtype=np.float32), features.columns)
    row, column = np.nonzero(features)
    indptr = np.searchsorted(row, np.arange(len(features) + 1)).astype(np.int64)
    return Csr(indptr, column.astype(np.int64), np.ascontiguousarray(features[row, column]), int(features.shape[1]))


def _largest(entries: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return the distinct columns, ascending, and the largest of their sizes."""
    every, size = (np.concatenate(column) for column in zip(*entries, strict=True))
    if not len(every):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    order = np.argsort(every, kind="stable")
    ordered = every[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts].astype(np.int64), np.maximum.reduceat(size[order], starts).astype(np.float32)


def _standardised(world: Collective, survey: Survey, pieces: list[Piece], times: int) -> Survey:
    """Collective. Return a survey by which columns of many different numbers have mean 0 and deviation 1.

    Of a column that most rows have the largest magnitude says little: without the mean its weights compete with the bias, and
    the penalty is stronger the less the column varies. Indicators stay as they are.

    Args:
        world: the ranks.
        survey: whose scales are largest magnitudes.
        pieces: this rank's rows to look at.
        times: how many ranks have each row.
    """
    own, rows = sum(len(piece) for piece in pieces), max(sum(piece.batch for piece in pieces), 1)
    places = [np.searchsorted(survey.columns, piece.indices) for piece in pieces]
    seen = np.zeros(len(survey.columns), dtype=np.int64)
    for at in places:
        seen += np.bincount(at, minlength=len(seen))
    common = np.flatnonzero(2 * seen >= max(own, 1))
    union = np.unique(np.concatenate(world.all_gather(common)))  # a column of half of all rows is of half of some rank's
    if not len(union):
        return survey
    anchor, sums, ends = grid(1.0, rows * _SPARE), np.zeros((3, len(union))), np.full((2, len(union)), -np.inf)
    for piece, every in zip(pieces, places, strict=True):
        at = np.minimum(np.searchsorted(union, every), len(union) - 1)
        known = union[at] == every
        at, values = at[known], (piece.values[known] / survey.scale[every[known]]).astype(np.float64)
        for number, weights in enumerate((None, snap(values, anchor), snap(values**2, anchor))):
            sums[number] += np.bincount(at, weights, len(union))
        np.maximum.at(ends[0], at, -values)
        np.maximum.at(ends[1], at, values)
    count, mean, square = world.all_reduce(sums) / times
    low, high = world.all_reduce(ends, "max")
    mean, square = mean / rows, square / rows
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    chosen = (2 * count >= rows) & (-low < high) & (deviation > _FLATTEST)
    filled = union[chosen]
    middle, scale = survey.middle.copy(), survey.scale.copy()
    middle[filled], scale[filled] = (mean * scale[union])[chosen], (deviation * scale[union])[chosen]
    entries = survey.row_entries + float((1 - count[chosen] / rows).sum())
    return replace(survey, middle=middle, scale=scale, filled=filled, row_entries=entries)


def _moments(label: Array) -> tuple[float, float]:
    """Return mean and deviation, the same for any order of the labels."""
    if not len(label):
        return 0.0, 1.0
    ordered = np.sort(label)
    mean = float(ordered.mean())
    deviation = float(np.sqrt(np.mean((ordered - mean) ** 2)))
    return mean, deviation if deviation > 1e-7 * abs(mean) else 1.0


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
