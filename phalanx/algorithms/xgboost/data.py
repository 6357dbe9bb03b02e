"""From a channel to XGBoost's matrices: labels checked, -1/+1 mapped, groups counted, in memory or streamed through disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import scipy.sparse
import xgboost as xgb

from ...contracts import Array, Batch, Csr, Records, Shard
from ...errors import UserError
from .hyperparameters import XGBoostHyperparameters

_HIST = ("auto", "hist", "gpu_hist")
_STREAM_VALUES = 16_000_000  # of a streamed batch, about: 64 MB
_Allowed = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as the library takes them."""

    features: Any  # (N, D) float32 or scipy csr
    label: Array  # (N,)
    weight: Array | None  # (N,), or one a group when ranking
    groups: Array | None  # rows of each group, when ranking


@final
@dataclass(slots=True)
class Intake:
    """Takes the batches of one channel, checks and converts them.

    Args:
        name: of the channel, for error texts.
        shard: the channel.
        settings: the hyperparameters.
        columns: features of channel `train`; None while that is what is being read.
    """

    name: str
    shard: Shard
    settings: XGBoostHyperparameters
    columns: int | None = None
    saw_minus: bool = field(default=False, init=False)  # a label -1, which then stands for class 0
    saw_other: bool = field(default=False, init=False)  # a label that is neither -1 nor 1
    _weight_first: bool = field(default=False, init=False)  # the first feature column is the weight

    @property
    def streaming(self) -> bool:
        """Whether the channel must not be held in memory."""
        return self.shard.streaming

    @property
    def width(self) -> int:
        """Features of the model."""
        if self.columns is not None:
            return self.columns
        columns = self.shard.columns
        if columns is None:
            raise UserError(f"channel '{self.name}' holds records; xgboost needs rows of numbers")
        return columns - int(self._weight_first)

    def check(self) -> None:
        """Raise `UserError` for a channel that cannot be used whatever its rows hold."""
        if self.shard.rows == 0:
            raise UserError(f"channel '{self.name}' has no rows")
        if self.settings.csv_weights:  # a reader that knows nothing of weights leaves them where they stand in the file
            first = next(self.batches(), None)
            self._weight_first = first is not None and first.weight is None and isinstance(first.features, np.ndarray)
        own = (self.shard.columns or 0) - int(self._weight_first)
        if own > self.width:
            raise UserError(f"channel '{self.name}' has {own} features, but channel 'train' has {self.width}")

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's rows: all at once, or in pieces when the channel is streamed."""
        rows = self.shard.rows
        if self.streaming:
            rows = min(max(_STREAM_VALUES // max(self.shard.columns or 1, 1), 1024), 65536, rows)
        return self.shard.batches(rows)

    def take(self, batch: Batch) -> _Rows:
        """Return a batch's rows, checked.

        Raises:
            UserError: what is wrong with a row, and where the row is.
        """
        features, weight = batch.features, batch.weight
        if isinstance(features, Records):
            raise UserError(f"channel '{self.name}' holds records; xgboost needs rows of numbers")
        if batch.label is None:
            raise UserError(f"channel '{self.name}' has no labels; xgboost needs one for every row (label_size=1)")
        if self._weight_first and isinstance(features, np.ndarray):
            features, weight = features[:, 1:], np.ascontiguousarray(features[:, 0])
        if weight is not None:
            self._refuse(batch, ~(np.isfinite(weight) & (weight >= 0)), weight, "a weight must be a number >= 0")
        groups = None
        if self.settings.objective.startswith("rank:"):
            groups, weight = self._grouped(batch, weight)
        return _Rows(self._as_matrix(features), self._checked_labels(batch, batch.label), weight, groups)

    def nothing(self) -> _Rows:
        """Return no rows, with the right columns."""
        ranking = self.settings.objective.startswith("rank:")
        no_groups = np.zeros(0, dtype=np.uint32) if ranking else None
        return _Rows(np.empty((0, self.width), dtype=np.float32), np.empty(0, dtype=np.float32), None, no_groups)

    def _as_matrix(self, features: Array | Csr) -> Any:
        if isinstance(features, Csr):
            parts = (features.values, features.indices, features.indptr)
            return scipy.sparse.csr_matrix(parts, shape=(len(features), self.width))  # narrower channels are padded
        if features.shape[1] != self.width:
            raise UserError(f"channel '{self.name}' has {features.shape[1]} features, but channel 'train' has {self.width}")
        return features

    def _grouped(self, batch: Batch, weight: Array | None) -> tuple[Array, Array | None]:
        if batch.group is None:
            raise UserError(
                f"objective={self.settings.objective} needs query groups, and channel '{self.name}' has none; "
                "libsvm rows name theirs as qid:N after the label"
            )
        starts = (
            np.flatnonzero(np.concatenate([[True], batch.group[1:] != batch.group[:-1]])) if len(batch) else np.zeros(0, int)
        )
        sizes = np.diff(np.append(starts, len(batch)))
        if weight is not None and len(batch):
            differs = weight != np.repeat(weight[starts], sizes)
            self._refuse(batch, differs, weight, "when ranking, all rows of a group must have the same weight")
            weight = weight[starts]
        return sizes.astype(np.uint32), weight

    def _checked_labels(self, batch: Batch, labels: Array) -> Array:
        objective = self.settings.objective
        self._refuse(batch, ~np.isfinite(labels), labels, "a label must be a finite number")
        if objective.startswith("binary:"):
            minus = labels == -1
            self.saw_minus |= bool(minus.any())
            self.saw_other |= bool((~minus & (labels != 1)).any())
            labels = np.where(minus, np.float32(0), labels)
        allowed, sentence = _rule(self.settings)
        self._refuse(batch, ~allowed(labels), labels, f"objective={objective} {sentence}")
        return labels

    def _refuse(self, batch: Batch, bad: Array, values: Array, sentence: str) -> None:
        """Raise `UserError` naming the first bad row, if there is one."""
        if not bad.any():
            return
        first = int(np.argmax(bad))
        place = self.shard.where(batch.first_row + first)
        raise UserError(f"channel '{self.name}', {place}: {values[first]:g} is not allowed: {sentence}")


def quantises(settings: XGBoostHyperparameters) -> bool:
    """Return whether the booster works on quantised features (hist), so that channel `train` need not be kept otherwise."""
    return settings.booster != "gblinear" and settings.updater is None and settings.tree_method in _HIST


def build_all(
    channels: Mapping[str, Shard], settings: XGBoostHyperparameters, *, parameters: dict[str, Any], quantile: bool, cache: Path
) -> tuple[dict[str, xgb.DMatrix], list[Intake]]:
    """Collective. Return every channel as a matrix of the library, `train` first, and what took them in; see `build`."""
    matrices: dict[str, xgb.DMatrix] = {}
    intakes: list[Intake] = []
    for name in ("train", *sorted(set(channels) - {"train"})):
        columns = intakes[0].width if intakes else None
        intakes.append(Intake(name, channels[name], settings, columns))
        matrices[name] = build(intakes[-1], parameters=parameters, train=matrices.get("train"), quantile=quantile, cache=cache)
    return matrices, intakes


def build(intake: Intake, *, parameters: dict[str, Any], train: xgb.DMatrix | None, quantile: bool, cache: Path) -> xgb.DMatrix:
    """Collective. Return the channel as a matrix of the library.

    Args:
        intake: the channel.
        parameters: of the booster.
        train: the matrix of channel `train`; None while that is what is being built.
        quantile: the booster works on quantised features (hist): channel `train` need not be kept otherwise.
        cache: folder for what does not fit in memory.
    """
    intake.check()
    threads, bins = int(parameters["nthread"]), int(parameters.get("max_bin", 256))
    if intake.streaming:
        prefix = cache / intake.name
        feed = _Feed(intake, str(prefix))
        if train is not None:  # not quantised: its values need not lie between the cuts of the train channel
            return xgb.DMatrix(feed, missing=np.nan, nthread=threads)
        if quantile:
            return xgb.ExtMemQuantileDMatrix(feed, missing=np.nan, nthread=threads, max_bin=bins)
        if parameters.get("tree_method") != "approx":
            raise UserError("mode=stream works with trees grown by tree_method=hist or approx only; use mode=file")
        return xgb.DMatrix(feed, missing=np.nan, nthread=threads)
    rows = _joined([intake.take(batch) for batch in intake.batches()] or [intake.nothing()])
    with xgb.config_context(verbosity=int(parameters["verbosity"]) if len(rows.label) else 0):  # to have no rows is no warning
        matrix = _in_memory(rows, threads=threads, bins=bins if quantile and train is None else None)
    if intake.settings.objective == "survival:aft":
        _bound(matrix, rows.label)
    return matrix


def _in_memory(rows: _Rows, *, threads: int, bins: int | None) -> xgb.DMatrix:
    """Collective. Return the rows as a matrix, quantised to `bins` where that is a number."""
    if bins is None:
        return xgb.DMatrix(rows.features, rows.label, weight=rows.weight, group=rows.groups, missing=np.nan, nthread=threads)
    return xgb.QuantileDMatrix(
        rows.features, rows.label, weight=rows.weight, group=rows.groups, missing=np.nan, nthread=threads, max_bin=bins
    )


class _Feed(xgb.DataIter):  # type: ignore[misc]
    """Hands a streamed channel to the library, as often as it asks. (Its interface is a base class.)"""

    def __init__(self, intake: Intake, prefix: str) -> None:
        self._intake = intake
        self._batches = intake.batches()
        self._given = False
        self._groups = 0
        super().__init__(cache_prefix=prefix)

    def next(self, input_data: Callable[..., Any]) -> bool:
        for batch in self._batches:
            if len(batch):
                self._give(input_data, self._intake.take(batch))
                return True
        if self._given:
            return False
        self._give(input_data, self._intake.nothing())  # the library wants one batch at least
        return True

    def reset(self) -> None:
        self._batches = self._intake.batches()
        self._given = False
        self._groups = 0

    def _give(self, input_data: Callable[..., Any], rows: _Rows) -> None:
        self._given = True
        more: dict[str, Any] = {} if rows.weight is None else {"weight": rows.weight}
        if rows.groups is not None:
            more["qid"] = np.repeat(np.arange(self._groups, self._groups + len(rows.groups)), rows.groups)
            self._groups += len(rows.groups)
        if self._intake.settings.objective == "survival:aft":
            lower, upper = bounds(rows.label)
            more |= {"label_lower_bound": lower, "label_upper_bound": upper}
        input_data(data=rows.features, label=rows.label, **more)


def bounds(label: Array) -> tuple[Array, Array]:
    """Return between what times each event lies: at |label|; after it, where the label is negative (as in survival:cox)."""
    lower = np.abs(label)
    return lower, np.where(label < 0, np.float32(np.inf), lower)


def _bound(matrix: xgb.DMatrix, label: Array) -> None:
    lower, upper = bounds(label)
    matrix.set_float_info("label_lower_bound", lower)
    matrix.set_float_info("label_upper_bound", upper)


def _joined(pieces: list[_Rows]) -> _Rows:
    """Return the pieces of a channel as one; one piece is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    stack = scipy.sparse.vstack if scipy.sparse.issparse(pieces[0].features) else np.concatenate
    joined = [_concatenated([getattr(piece, name) for piece in pieces]) for name in ("label", "weight", "groups")]
    label, weight, groups = joined
    if label is None:
        raise UserError("a batch without labels")
    return _Rows(stack([piece.features for piece in pieces]), label, weight, groups)


def _concatenated(parts: list[Array | None]) -> Array | None:
    given = [part for part in parts if part is not None]
    return np.concatenate(given) if len(given) == len(parts) else None


def _rule(settings: XGBoostHyperparameters) -> tuple[_Allowed, str]:
    """Return which labels the objective can learn, as a test and in words."""
    objective = settings.objective
    classes = settings.num_class or 0
    if objective.startswith("multi:"):
        return (
            lambda y: (y >= 0) & (y < classes) & (y == np.floor(y)),
            f"with num_class={classes} needs whole labels from 0 to {classes - 1}",
        )
    rules: dict[str, tuple[_Allowed, str]] = {
        "binary:hinge": (lambda y: (y == 0) | (y == 1), "needs labels 0 and 1 (or -1 and 1)"),
        "binary:logistic": (lambda y: (y >= 0) & (y <= 1), "needs labels 0 and 1 (or -1 and 1, or probabilities)"),
        "binary:logitraw": (lambda y: (y >= 0) & (y <= 1), "needs labels 0 and 1 (or -1 and 1, or probabilities)"),
        "reg:logistic": (lambda y: (y >= 0) & (y <= 1), "needs labels from 0 to 1"),
        "reg:gamma": (lambda y: y > 0, "needs labels > 0"),
        "reg:tweedie": (lambda y: y >= 0, "needs labels >= 0"),
        "count:poisson": (lambda y: y >= 0, "needs labels >= 0"),
        "reg:squaredlogerror": (lambda y: y > -1, "needs labels > -1"),
        "rank:pairwise": (lambda y: y >= 0, "needs labels (relevance) >= 0"),
        "rank:ndcg": (lambda y: (y >= 0) & (y <= 31) & (y == np.floor(y)), "needs whole labels (relevance) from 0 to 31"),
        "rank:map": (lambda y: (y == 0) | (y == 1), "needs labels (relevance) 0 and 1"),
        "survival:aft": (lambda y: y != 0, "needs times; a negative one is censored; 0 is none"),
        "survival:cox": (lambda y: y != 0, "needs times; a negative one is censored; 0 is none"),
    }
    return rules.get(objective, (np.isfinite, "needs finite labels"))
