"""Random cut forest: anomaly scores from trees of random cuts, after Guha et al., ICML 2016.

The rows with the smallest hashes of (seed, global row number) are the sample; so the forest is the same, bit for bit, for
every number of workers and threads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, final

import numpy as np

from ...contracts import Array, Batch, Entry, Features, Session, Shard, State
from ...errors import AlgorithmError, UserError
from ...hyperparameters import hyper, parse, to_json
from ...parallel.collective import together
from ..reading import NumericBatches, numbers, refuse_not_finite, train_channel, width_of

if TYPE_CHECKING:  # numba takes a second to load: who only reads hyperparameters is spared
    from .sample import Sample, Shingles
    from .stream import Stream
    from .trees import Trees

_FOREST = "forest.npz"
_SETTINGS = "random_cut_forest.json"
_EVALUATED = ("validation", "test")
_EVALUATED_ROWS = 8192  # at once
_THRESHOLD_ROWS = 1024  # of the sample: enough for mean and deviation of their scores


@dataclass(frozen=True)
class RandomCutForestHyperparameters:
    """Names and defaults as users of managed random cut forests know them; from `shingle_size` on they are ours."""

    feature_dim: int | None = hyper(None, low=1, high=10000, help="number of features; taken from the data when not given")
    num_trees: int = hyper(100, low=50, high=1000, tunable=(50, 1000), help="trees of the forest")
    num_samples_per_tree: int = hyper(
        256, low=1, high=2048, tunable=(1, 2048), help="rows of a tree; 1 / this is about the share of anomalies"
    )
    eval_metrics: list[Literal["accuracy", "precision_recall_fscore"]] = hyper(  # noqa: RUF009
        ["accuracy", "precision_recall_fscore"], help="reported for the test and validation channels, which need labels"
    )
    mini_batch_size: int = hyper(5000, low=1, help="rows of a step, over all workers; it does not change the model")
    shingle_size: int = hyper(
        1, low=1, high=1024, help="rows of a time series, one after another, that are scored as one: a window ends at every row"
    )
    time_decay: float | Literal["auto"] = hyper(
        "auto",
        low=0,
        high=1,
        help="update_and_score: the weight of a row falls by this share with every row after it; 0: all rows weigh the same; "
        "auto: 1 / (100 num_samples_per_tree)",
    )
    attribution: bool = hyper(False, help="responses also say what each feature (of each row of a window) adds to the score")

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better; they need labels in channel `test`."""
        return dict.fromkeys(("f1", "precision", "recall", "accuracy"), "maximize")


@final
class RandomCutForest:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.

    Attributes:
        score_threshold: mean + 3 standard deviations of the scores of rows of the sample: what is above counts as an anomaly.
        threads: that scoring may use; it does not change a score.
    """

    Hyperparameters: ClassVar[type] = RandomCutForestHyperparameters

    def __init__(self, hyperparameters: RandomCutForestHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.score_threshold = 0.0
        self.threads = 1
        self._trees: Trees | None = None  # once trained
        self._stream: Stream | None = None  # once it follows one
        self._seed = 0
        self._learnt = 0  # windows of the training
        self._step = 0
        self._restored: State | None = None
        self._sample: Sample | None = None
        self._shingles: Shingles | None = None

    @classmethod
    def begin(cls, hyperparameters: RandomCutForestHyperparameters, columns: int, *, seed: int = 0) -> Self:
        """Return an untrained forest that follows a stream of rows (N, columns) by `update_and_score`.

        Args:
            hyperparameters: of the forest.
            columns: numbers of a row.
            seed: of all draws.
        """
        from .stream import begun

        model = cls(hyperparameters)
        shape = (hyperparameters.num_trees, hyperparameters.num_samples_per_tree)
        model._stream = begun(columns, shape, hyperparameters.shingle_size, seed, model._decay)
        model._trees, model._seed = model._stream.trees, seed
        return model

    @property
    def columns(self) -> int | None:
        """Features that a request must have; None before training, and of windows, which have two widths (`predict`)."""
        return None if self._trees is None or self.hyperparameters.shingle_size > 1 else self._trees.columns

    def fit(self, session: Session) -> None:
        """Collective. Sample channel `train` in one pass, build the forest, evaluate on `validation` and `test`.

        Raises:
            UserError: on every rank, for data that cannot be sampled.
            Stopped: the job was asked to stop.
        """
        from ..kernels.nearest import Assigner, dense_rows
        from .sample import Sample, Shingles

        train, wanted = self._train_channel(session), self.hyperparameters
        session.restore({"algorithm": self, "train": train})
        self._seed, self.threads = session.seed, session.threads
        size, columns = wanted.mini_batch_size, train.columns or 1
        self._learnt = train.rows - wanted.shingle_size + 1
        self._sample = Sample(wanted.num_trees * wanted.num_samples_per_tree, columns * wanted.shingle_size, session.seed)
        self._shingles = Shingles(wanted.shingle_size, columns, parted=train.parts > 1)
        if self._restored is not None:
            self._sample.load_state_dict(self._restored)
            self._shingles.recent = np.asarray(self._restored["recent"].value, dtype=np.float32)
        steps = -(-train.rows // size)
        batches = NumericBatches(session.world, "train", train, Assigner(1).largest)
        for batch, rows, largest, *_ in batches.epoch(size, 0) if self._step < steps else ():
            number = batch.first_row // size
            if number < self._step:  # the channel itself may have gone on from its place
                continue
            _refuse_large(float(largest.max()), "channel 'train'")
            dense = dense_rows(rows, 0, len(rows))
            self._sample.offer(session.world, *self._shingles.of(session.world, batch.first_row, dense))
            self._step += 1
            metrics = {"train:sampled_rows": float(len(self._sample.keys))}
            if self._step == steps:
                metrics |= self._finish(session)
            session.report(self._step, metrics, rows=min(size, train.rows - (self._step - 1) * size), of=steps)
        if self._trees is None:
            self._finish(session)

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return the anomaly `score` of every request, (N,) float32; with hyperparameter `attribution` that too, (N, D).

        With a `shingle_size` of S, requests are either whole windows, the oldest row first, or rows of one series in order of
        time. Then the first S - 1 rows share the score of the first whole window; of fewer than S rows the first counts as if
        it had lasted.

        Raises:
            UserError: requests of another width than the model's, or with numbers that are not finite.
        """
        trees = self._trained()
        rows = self._windows(requests)
        answers = {"score": trees.score(rows, self.threads).astype(np.float32)}
        if self.hyperparameters.attribution:
            answers["attribution"] = trees.explain(rows, self.threads).astype(np.float32)
        return answers

    def attribution(self, requests: Features) -> Array:
        """Return what each feature adds to the score of every request, (N, D) float64; D counts a window's rows one by one.

        Raises:
            UserError: as `predict`.
        """
        return self._trained().explain(self._windows(requests), self.threads)

    def update_and_score(self, rows: Features) -> dict[str, Array]:
        """Score every row by what came before it, then let it into the forest; return what `predict` does.

        The rows are those of one stream in order of time, also from call to call; how they are cut into calls changes nothing.
        With a `shingle_size` of S, rows before the first whole window have score 0; so do those that come before a forest from
        `begin` has seen a quarter of num_samples_per_tree.

        Raises:
            UserError: as `predict`.
        """
        from .stream import after_training

        trees, wanted = self._trained(), self.hyperparameters
        if self._stream is None:
            self._stream = after_training(trees, self._learnt, wanted.shingle_size, self._seed, self._decay)
        given = self._checked(rows)
        scores, shares = self._stream.follow(given, explained=wanted.attribution, threads=self.threads)
        answers = {"score": scores.astype(np.float32)}
        if wanted.attribution:
            answers["attribution"] = shares.astype(np.float32)
        return answers

    def save(self, folder: Path) -> None:
        """Write the trees, and the place in the stream, as arrays; hyperparameters, seed and threshold as JSON."""
        arrays = self._trained().packed() | ({} if self._stream is None else self._stream.arrays())
        np.savez(folder / _FOREST, allow_pickle=False, **arrays)
        settings = {
            "hyperparameters": to_json(self.hyperparameters),
            "seed": self._seed,
            "score_threshold": self.score_threshold,
            "rows": self._learnt,
            "streamed": None if self._stream is None else [self._stream.seen, self._stream.quiet],
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold a random cut forest.
        """
        from .stream import resumed
        from .trees import Trees

        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(RandomCutForestHyperparameters, settings["hyperparameters"], owner="random_cut_forest"))
        with np.load(folder / _FOREST, allow_pickle=False) as found:
            arrays = {str(name): np.asarray(found[name]) for name in found.files}
        model._trees = Trees.unpacked(arrays, _FOREST)
        model._seed, model._learnt = int(settings["seed"]), int(settings["rows"])
        model.score_threshold = float(settings["score_threshold"])
        if settings["streamed"] is not None:
            place = (int(settings["streamed"][0]), int(settings["streamed"][1]))
            model._stream = resumed(model._trees, arrays, model.hyperparameters.shingle_size, model._seed, model._decay, place)
        return model

    def state_dict(self) -> State:
        """Return the step, the sample after it, and the last rows of windows that go on."""
        if self._sample is None or self._shingles is None:
            return {"step": Entry(0)}
        return {"step": Entry(self._step), "recent": Entry(self._shingles.recent), **self._sample.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        self._trees = self._stream = None
        self._step = int(state["step"].value)
        self._restored = state if self._step else None

    @property
    def _decay(self) -> float | None:
        return None if self.hyperparameters.time_decay == "auto" else self.hyperparameters.time_decay

    def _trained(self) -> Trees:
        if self._trees is None:
            raise AlgorithmError("this random cut forest has not been trained yet: call fit or load first")
        return self._trees

    def _checked(self, requests: Features) -> Array:
        """Return requests as float32 rows of the width of the model's rows or windows."""
        from ..kernels.nearest import dense_rows

        given, size = numbers(requests, "the request"), self.hyperparameters.shingle_size
        width, wide = width_of(given), self._trained().columns
        if width not in (wide, wide // size):
            fits = f"{wide}" if size == 1 else f"rows of {wide // size} or windows of {wide} (shingle_size={size})"
            raise UserError(f"the requests have {width} features; this random cut forest was trained on {fits}")
        rows = np.ascontiguousarray(dense_rows(given, 0, len(given)))
        refuse_not_finite(rows)
        _refuse_large(float(np.abs(rows).max(initial=0)), "the request")
        return rows

    def _windows(self, requests: Features) -> Array:
        """Return requests as whole windows (N, D)."""
        from .sample import windows_of

        rows, size = self._checked(requests), self.hyperparameters.shingle_size
        if rows.shape[1] == self._trained().columns or not len(rows):
            return rows.reshape(len(rows), self._trained().columns)
        if len(rows) < size:
            return windows_of(np.concatenate([np.repeat(rows[:1], size - 1, axis=0), rows]), size)
        windows = windows_of(rows, size)
        return np.concatenate([np.repeat(windows[:1], size - 1, axis=0), windows])

    def _train_channel(self, session: Session) -> Shard:
        train, wanted = train_channel(session, "random_cut_forest"), self.hyperparameters
        if train.rows < wanted.shingle_size:
            raise UserError(f"shingle_size={wanted.shingle_size} needs as many rows; channel 'train' has {train.rows}")
        if wanted.feature_dim not in (None, train.columns):
            raise UserError(
                f"feature_dim={wanted.feature_dim} but channel 'train' has {train.columns} features; leave feature_dim out"
            )
        return train

    def _finish(self, session: Session) -> dict[str, float]:
        """Collective. Build the forest, each rank its share of the trees; return its metrics on the other channels."""
        from .trees import Trees

        assert self._sample is not None
        wanted, world = self.hyperparameters, session.world
        samples = self._sample.dealt(wanted.num_trees, wanted.num_samples_per_tree)
        first, last = _share_of(wanted.num_trees, world.rank, world.size)
        own = Trees.empty(last - first, wanted.num_samples_per_tree, samples.shape[2])
        own.grow(samples[first:last], self._seed, session.threads, first=first)
        self._trees = own.joined(world)
        rows = self._sample.first(_THRESHOLD_ROWS)  # in the order of their hashes: any of them
        mine = rows[slice(*_share_of(len(rows), world.rank, world.size))]
        scores = np.concatenate(world.all_gather(self._trees.score(mine, session.threads)))
        self.score_threshold = float(scores.mean() + 3 * scores.std())
        metrics: dict[str, float] = {}
        for name in [name for name in _EVALUATED if name in session.channels]:
            metrics |= {f"{name}:{metric}": value for metric, value in self._evaluate(session, name).items()}
        return metrics

    def _evaluate(self, session: Session, name: str) -> dict[str, float]:
        """Collective. Return the metrics of a labelled channel (1: anomaly); none where it has no labels."""
        from ..kernels.nearest import Assigner, dense_rows
        from .sample import Shingles

        shard, counts, size = session.channels[name], np.zeros(4, np.int64), self.hyperparameters.shingle_size
        trees, world, columns = self._trained(), session.world, self._trained().columns // size
        if shard.columns != columns:
            raise UserError(f"channel '{name}' has {shard.columns} features where channel 'train' has {columns}")
        shingles = Shingles(size, columns, parted=shard.parts > 1)
        for batch, rows, largest, *_ in NumericBatches(world, name, shard, Assigner(1).largest).epoch(_EVALUATED_ROWS, 0):
            _refuse_large(float(largest.max(initial=0)), f"channel '{name}'")
            first, windows = shingles.of(world, batch.first_row, dense_rows(rows, 0, len(rows)))
            if batch.label is None:
                continue
            together(world, f"reading channel '{name}'", lambda batch=batch: _refuse_labels(batch, name, shard))  # type: ignore[misc]
            label = batch.label[first - batch.first_row :] > 0
            mine = slice(None) if shard.parts > 1 else slice(*_share_of(len(windows), world.rank, world.size))
            found = trees.score(windows[mine], session.threads) > self.score_threshold
            counts += np.bincount(2 * found + label[mine], minlength=4)
        return _metrics_of(world.all_reduce(counts), self.hyperparameters.eval_metrics)


def _metrics_of(counts: Array, wanted: list[Literal["accuracy", "precision_recall_fscore"]]) -> dict[str, float]:
    """Return metrics from how many rows were rightly let pass, missed, wrongly and rightly taken for anomalies."""
    right_no, missed, wrong, hit = (int(value) for value in counts)
    total = right_no + missed + wrong + hit
    metrics: dict[str, float] = {}
    if total and "accuracy" in wanted:
        metrics["accuracy"] = (right_no + hit) / total
    if total and "precision_recall_fscore" in wanted:
        metrics["precision"] = hit / max(hit + wrong, 1)
        metrics["recall"] = hit / max(hit + missed, 1)
        metrics["f1"] = 2 * hit / max(2 * hit + wrong + missed, 1)
    return metrics


def _share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """Return the first and the end of a rank's share of `count` things."""
    return count * rank // size, count * (rank + 1) // size


def _refuse_labels(batch: Batch, name: str, shard: Shard) -> None:
    assert batch.label is not None
    wrong = np.flatnonzero(~np.isin(batch.label, (-1, 0, 1)))
    if len(wrong):
        place = shard.where(batch.first_row + int(wrong[0]))
        raise UserError(
            f"channel '{name}', {place}: the label is {batch.label[wrong[0]]:g}; 1 (an anomaly) or 0 is needed (or 1 or -1)"
        )


def _refuse_large(largest: float, what: str) -> None:
    from .trees import LARGEST

    if largest > LARGEST:
        raise UserError(
            f"{what} has a number of magnitude {largest:g}; random_cut_forest takes up to {LARGEST:g}: scale the features"
        )
