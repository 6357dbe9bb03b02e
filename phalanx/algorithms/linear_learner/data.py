"""What the linear learner reads: a survey of the channel, normalisation, pieces of rows that are ready for the products.

Legend of shapes: N rows, D columns, P candidates, K outputs of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ...contracts import Array, Batch, Collective, Csr, Session, Shard
from ...data.order import block_rows
from ...errors import UserError
from ..fixed_point import grid, snap
from ..kernels import linear as loops
from ..reading import NumericBatches, copies
from .hyperparameters import LinearLearnerHyperparameters

READ_ROWS = 8192  # that are read at once where the batch is ours to choose; its blocks have 256 rows
_MOST_MOMENT_ROWS = 1024
_TINY, _LARGEST = 1e-30, 1e30  # of a deviation; of a normalised magnitude: what is beyond leaves no room in float32


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of this rank, normalised."""

    features: Array | Csr  # float32
    label: Array  # (N,) float64, normalised in regression
    weight: Array  # (N,) float64
    block: int  # rows of the fixed blocks it consists of; only the channel's last may be shorter
    batch: int = 0  # number of the global batch it is of
    offset: int = 0  # rows of that batch before it

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, slots=True)
class Scaler:
    """Normalisation: features become (x - mean) / deviation, labels (y - label_mean) / label_deviation."""

    mean: Array  # (D,) zeros for sparse rows
    deviation: Array  # (D,)
    label_mean: float = 0.0
    label_deviation: float = 1.0

    def features(self, rows: Array | Csr) -> Array | Csr:
        """Return rows normalised, float32."""
        if isinstance(rows, Csr):
            values = rows.values
            if (self.deviation != 1).any():
                values = (values / self.deviation[rows.indices]).astype(np.float32)
            return Csr(rows.indptr.astype(np.int64), rows.indices.astype(np.int64), values, rows.columns)
        found = np.subtract(rows, self.mean.astype(np.float32), dtype=np.float32)  # the mean is a float32 number
        found *= (1 / self.deviation).astype(np.float32)
        return np.ascontiguousarray(found)

    def label(self, label: Array) -> Array:
        """Return labels normalised, float64."""
        return (np.asarray(label, dtype=np.float64) - self.label_mean) / self.label_deviation

    def largest(self, largest: Array) -> Array:
        """Return bounds of normalised magnitudes (D,) from those of the raw ones."""
        return (largest + np.abs(self.mean)) / self.deviation * (1 + 1e-6)

    def folded(self, weights: Array) -> Array:
        """Return weights (D + 1, K) for raw features and labels from those for normalised ones; the last row is the bias."""
        raw = weights[:-1] / self.deviation[:, None] * self.label_deviation
        bias = weights[-1] * self.label_deviation + self.label_mean - self.mean @ raw
        return np.concatenate([raw, bias[None, :]])


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over channel `train` tells, the same on all ranks."""

    scaler: Scaler
    largest: Array  # (D,) of normalised features
    largest_label: float  # normalised
    largest_weight: float  # of a row, as given
    class_weight: Array  # (classes,) sums of row weights; one class in regression
    sparse: bool
    pieces: list[Piece] | None  # this rank's rows, where they may be held in memory


@dataclass(frozen=True, slots=True)
class Read:
    """One rank's part of a global batch, as the channel has it."""

    batch: Batch
    features: Array | Csr
    largest: Array  # (D,) magnitudes, over all ranks
    label: Array  # (N,) float64; 0 and 1 for a binary_classifier
    weight: Array  # (N,) float64


@final
class Reader:
    """Reads channels as pieces; every method is Collective.

    Args:
        session: of the job.
        wanted: hyperparameters.
    """

    def __init__(self, session: Session, wanted: LinearLearnerHyperparameters) -> None:
        self.session = session
        self.wanted = wanted
        self._said = False

    def batches(self, name: str, rows: int, epoch: int = 0, *, shuffle: bool = False) -> Iterator[Read]:
        """Yield this rank's part of every global batch of `rows` rows.

        Raises:
            UserError: on every rank, for rows that cannot be read or labels that do not fit predictor_type.
        """
        world, shard = self.session.world, self.session.channels[name]
        binary = self.wanted.predictor_type == "binary_classifier"
        kinds = np.zeros(2)  # whether there was a label below zero, and of zero

        def look(batch: Batch, where: Callable[[int], str]) -> Array:
            label = self._label(name, batch, where)
            return np.array([np.any(label < 0), np.any(label == 0)], dtype=np.float64)

        batches = NumericBatches(world, name, shard, largest_of, weights=True, look=look, looked_at=len(kinds))
        for batch, features, largest, _, seen in batches.epoch(rows, epoch, shuffle=shuffle):
            label = np.asarray(batch.label, dtype=np.float64)
            if binary:
                np.maximum(kinds, seen, out=kinds)
                if kinds.all():
                    raise UserError(f"channel '{name}' has labels -1 and 0; a binary_classifier needs 0 and 1, or -1 and 1")
                label = np.maximum(label, 0)
            weight = np.ones(len(batch)) if batch.weight is None else batch.weight.astype(np.float64)
            yield Read(batch, features, largest, label, weight)

    def survey(self, *, keep: bool) -> Survey:
        """Read channel `train` once; with `keep`, hold its normalised rows unless the channel is to be streamed."""
        session, wanted = self.session, self.wanted
        shard = session.channels["train"]
        columns = shard.columns or 0
        moments = _Moments(session.world, columns, copies(session.world, shard), wanted.num_point_for_scaler)
        largest, extremes = np.zeros(columns), np.zeros(3)  # label low and high, weight
        classes = np.zeros(2 if wanted.predictor_type == "binary_classifier" else wanted.outputs)
        held: list[Read] = []
        sparse, counted = False, wanted.predictor_type != "regressor"
        extremes[:2] = -np.inf
        for read in self.batches("train", READ_ROWS):
            batch, features, tops, label, weight = read.batch, read.features, read.largest, read.label, read.weight
            sparse = sparse or isinstance(features, Csr)
            moments.add(batch, features, tops, label)
            np.maximum(largest, tops, out=largest)
            if len(batch):
                np.maximum(extremes, [(-label).max(), label.max(), weight.max()], out=extremes)
            if counted:
                classes += np.bincount(label.astype(np.int64), snap(weight, 1.5 * 2.0**32), len(classes))
            if keep and not shard.streaming and len(batch):
                held.append(read)
        extremes = session.world.all_reduce(extremes, "max")
        sparse = bool(session.world.all_reduce(np.array([sparse], dtype=np.int64), "max")[0])
        scaler = moments.scaler(wanted, sparse=sparse)
        label_size = np.abs(scaler.label(np.array([-extremes[0], extremes[1]]))).max()
        _refuse_large(largest, scaler)
        pieces = None
        if keep and not shard.streaming:
            pieces = [self.piece(shard, READ_ROWS, one, scaler) for one in held]
        return Survey(
            scaler=scaler,
            largest=scaler.largest(largest),
            largest_label=float(label_size),
            largest_weight=float(extremes[2]),
            class_weight=session.world.all_reduce(classes) / copies(session.world, shard),
            sparse=sparse,
            pieces=pieces,
        )

    def piece(self, shard: Shard, rows: int, read: Read, scaler: Scaler) -> Piece:
        """Return a part of a global batch of `rows` rows, normalised. Local."""
        length = min(rows, shard.rows - read.batch.first_row // rows * rows)
        return Piece(
            scaler.features(read.features),
            scaler.label(read.label),
            read.weight,
            block_rows(max(length, 1)),
            read.batch.first_row // rows,
            read.batch.first_row % rows,
        )

    def pieces(self, name: str, scaler: Scaler) -> Iterator[Piece]:
        """Yield this rank's rows of a channel, normalised."""
        shard = self.session.channels[name]
        for read in self.batches(name, READ_ROWS):
            if len(read.batch):
                yield self.piece(shard, READ_ROWS, read, scaler)

    def _label(self, name: str, batch: Batch, where: Callable[[int], str]) -> Array:
        """Return the labels of a batch (N,), which fit predictor_type."""
        wanted, label = self.wanted, batch.label
        columns = self.session.channels["train"].columns or 0
        if isinstance(batch.features, np.ndarray) and batch.features.shape[1] != columns:  # sparse rows may be narrower
            raise UserError(
                f"channel '{name}' has {batch.features.shape[1]} features where channel 'train' has {columns}; "
                "both must have the same columns in the same order"
            )
        if label is None:
            raise UserError(f"channel '{name}' has no labels; csv needs them in the first column (;label_size=1)")
        good = np.isfinite(label)
        if wanted.predictor_type == "binary_classifier":
            good, needed = (label == 0) | (label == 1) | (label == -1), "0 or 1 (or -1 or 1)"
        elif wanted.predictor_type == "multiclass_classifier":
            good = (label >= 0) & (label < wanted.outputs) & (label == np.floor(label))
            needed = f"a whole number from 0 to {wanted.outputs - 1} (num_classes={wanted.outputs})"
        else:
            needed = "a finite number"
        if batch.weight is not None and not (np.isfinite(batch.weight) & (batch.weight >= 0)).all():
            raise UserError(f"channel '{name}' has row weights that are negative or not finite")
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise UserError(
                f"channel '{name}', {where(row)}: the label is {label[row]:g}; {wanted.predictor_type} needs {needed}"
            )
        return np.asarray(label, dtype=np.float64)


@final
class _Moments:
    """Sums over the first rows of the channel, exact for any number of ranks."""

    def __init__(self, world: Collective, columns: int, copies: int, most: int) -> None:
        self._world = world
        self._copies = copies
        self._most = most
        self._shift: Array | None = None  # of features and label: without it squares would drown small deviations
        self._rows = 0.0
        self._sums = np.zeros((2, columns + 1))

    def add(self, batch: Batch, features: Array | Csr, largest: Array, label: Array) -> None:
        """Collective. Take in the rows of a global batch that are among the first."""
        if self._rows >= self._most:
            return
        sparse = isinstance(features, Csr)
        width = len(largest)
        if self._shift is None:
            first = np.zeros(width + 1)
            if len(batch) and batch.first_row == 0:
                first[-1] = label[0]
                if not isinstance(features, Csr):
                    first[:-1] = features[0]
            self._shift = self._world.all_reduce(first) / self._copies
        count = max(0, min(len(batch), self._most - batch.first_row))
        tops = self._world.all_reduce(np.append(largest + np.abs(self._shift[:-1]), _top(label, self._shift[-1])), "max")
        anchors, squares = grid(tops, READ_ROWS), grid(tops * tops, READ_ROWS)
        sums = np.zeros((3, width + 1))
        sums[2, 0] = count
        values = label[:count] - self._shift[-1]
        sums[0, -1] = snap(values, anchors[-1]).sum()
        sums[1, -1] = snap(values * values, squares[-1]).sum()
        if sparse and isinstance(features, Csr):
            stop = int(features.indptr[count])
            part = np.zeros((2, width))
            indices = features.indices[:stop].astype(np.int64)
            loops.sparse_moments(indices, features.values[:stop], anchors[:-1].copy(), squares[:-1].copy(), part)
            sums[:2, :-1] = part
        elif not isinstance(features, Csr):
            for start in range(0, count, _MOST_MOMENT_ROWS):
                part = features[start : min(start + _MOST_MOMENT_ROWS, count)] - self._shift[:-1]
                sums[0, :-1] += snap(part, anchors[:-1]).sum(axis=0)
                sums[1, :-1] += snap(part * part, squares[:-1]).sum(axis=0)
        sums = self._world.all_reduce(sums)
        self._rows += sums[2, 0] / self._copies
        self._sums += sums[:2] / self._copies

    def scaler(self, wanted: LinearLearnerHyperparameters, *, sparse: bool) -> Scaler:
        """Return the normalisation that the hyperparameters ask for."""
        shift = np.zeros(self._sums.shape[1]) if self._shift is None else self._shift
        around = self._sums[0] / max(self._rows, 1)
        variance = np.maximum(self._sums[1] / max(self._rows, 1) - around**2, 0)
        deviation = np.sqrt(variance)
        mean = (shift + around).astype(np.float32).astype(np.float64)
        deviation[deviation <= np.maximum(1e-7 * np.abs(mean), _TINY)] = 1.0  # constant
        regression = wanted.predictor_type == "regressor"
        unbias = (wanted.unbias_data in ("auto", True)) and wanted.use_bias and not sparse
        label_unbias = regression and wanted.unbias_label in ("auto", True) and wanted.use_bias
        label_scale = regression and wanted.normalize_label in ("auto", True)
        return Scaler(
            mean=mean[:-1] if unbias else np.zeros(len(mean) - 1),
            deviation=deviation[:-1] if wanted.normalize_data else np.ones(len(mean) - 1),
            label_mean=float(mean[-1]) if label_unbias else 0.0,
            label_deviation=float(deviation[-1]) if label_scale else 1.0,
        )


def largest_of(features: Array | Csr) -> Array:
    """Return the largest magnitude of each column (D,), not finite where a value is not."""
    if isinstance(features, Csr):
        largest = np.zeros(features.columns, dtype=np.float32)
        np.maximum.at(largest, features.indices, np.abs(features.values))
        return largest
    if not len(features):
        return np.zeros(features.shape[1])
    return np.asarray(np.maximum(features.max(axis=0), -features.min(axis=0)))


def rows_of(piece: Piece, start: int, stop: int) -> Piece:
    """Return rows [start, stop) of a piece."""
    features = piece.features
    if isinstance(features, Csr):
        low, high = int(features.indptr[start]), int(features.indptr[stop])
        indptr = features.indptr[start : stop + 1] - low
        cut: Array | Csr = replace(
            features, indptr=indptr, indices=features.indices[low:high], values=features.values[low:high]
        )
    else:
        cut = features[start:stop]
    return Piece(cut, piece.label[start:stop], piece.weight[start:stop], piece.block, piece.batch, piece.offset + start)


def _refuse_large(largest: Array, scaler: Scaler) -> None:
    bounds = np.maximum(scaler.largest(largest), largest)
    if len(bounds) and not bounds.max() <= _LARGEST:
        column = int(bounds.argmax())
        raise UserError(
            f"channel 'train': feature {column + 1} has a number of magnitude {largest[column]:.2g}; linear_learner takes up "
            f"to {_LARGEST:g}, before and after normalisation: scale the feature"
        )


def _top(label: Array, shift: float) -> float:
    return float(np.abs(label - shift).max()) if len(label) else 0.0
