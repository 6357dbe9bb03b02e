"""Random cut forest: anomaly scores from trees of random cuts, after Guha et al., ICML 2016.

The rows with the smallest hashes of (seed, global row number) are the sample; so the forest is the same, bit for bit, for
every number of workers and threads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self, final

import numpy as np

from ..contracts import Array, Entry, Features, Session, Shard, State
from ..errors import AlgorithmError, UserError
from ..hyperparameters import hyper, parse, to_json
from .reading import NumericBatches, first_not_finite, numbers, width_of

_POINTS = "points.npy"
_SETTINGS = "random_cut_forest.json"
_EVALUATED = ("validation", "test")


@dataclass(frozen=True)
class RandomCutForestHyperparameters:
    """Names and defaults as users of managed random cut forests know them."""

    feature_dim: int | None = hyper(None, low=1, high=10000, help="number of features; taken from the data when not given")
    num_trees: int = hyper(100, low=50, high=1000, tunable=(50, 1000), help="trees of the forest")
    num_samples_per_tree: int = hyper(
        256, low=1, high=2048, tunable=(1, 2048), help="rows of a tree; 1 / this is about the share of anomalies"
    )
    eval_metrics: list[Literal["accuracy", "precision_recall_fscore"]] = hyper(  # noqa: RUF009
        ["accuracy", "precision_recall_fscore"], help="reported for the test and validation channels, which need labels"
    )
    mini_batch_size: int = hyper(5000, low=1, help="rows of a step, over all workers; it does not change the model")


@final
class RandomCutForest:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.
    """

    Hyperparameters: ClassVar[type] = RandomCutForestHyperparameters

    def __init__(self, hyperparameters: RandomCutForestHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.points: Array | None = None  # (T, M, D) float32, once trained
        self.score_threshold = 0.0  # mean + 3 standard deviations of the sample's scores
        self._nodes: tuple[Array, ...] = ()
        self._seed = 0
        self._step = 0
        self._keys = np.zeros(0, np.uint64)  # of the sample, ascending
        self._rows = np.zeros((0, 0), np.float32)

    @property
    def columns(self) -> int | None:
        """Features that a request must have; None before training."""
        return None if self.points is None else int(self.points.shape[2])

    def fit(self, session: Session) -> None:
        """Collective. Sample channel `train` in one pass, build the forest, evaluate on `validation` and `test`.

        Raises:
            UserError: on every rank, for data that cannot be sampled.
            Stopped: the job was asked to stop.
        """
        from .kernels.nearest import Assigner

        train = self._train_channel(session)
        session.restore({"algorithm": self, "train": train})
        self._seed = session.seed
        size = self.hyperparameters.mini_batch_size
        steps = -(-train.rows // size)
        batches = NumericBatches(session.world, "train", train, Assigner(1).largest)
        for batch, rows, _ in batches.epoch(size, 0) if self._step < steps else ():
            number = batch.first_row // size
            if number < self._step:  # the channel itself may have gone on from its place
                continue
            self._sample(session, batch.first_row, numbers(rows, "channel 'train'"))
            self._step += 1
            metrics = {"train:sampled_rows": float(len(self._keys))}
            if self._step == steps:
                metrics |= self._finish(session)
            session.report(self._step, metrics, rows=min(size, train.rows - (self._step - 1) * size), of=steps)
        if self.points is None:
            self._finish(session)

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return the anomaly `score` of every request, (N,) float32.

        Raises:
            UserError: requests of another width than the model's, or with numbers that are not finite.
        """
        return {"score": self.attribution(requests).sum(axis=1).astype(np.float32)}

    def attribution(self, requests: Features) -> Array:
        """Return what each feature adds to the score of every request, (N, D) float64.

        Raises:
            UserError: as `predict`.
        """
        from .kernels import forest
        from .kernels.nearest import dense_rows

        if self.points is None:
            raise AlgorithmError("this random cut forest has not been trained yet: call fit or load first")
        given = numbers(requests, "the request")
        if width_of(given) != self.columns:
            raise UserError(
                f"the requests have {width_of(given)} features; this random cut forest was trained on {self.columns}"
            )
        rows = np.ascontiguousarray(dense_rows(given, 0, len(given)))
        if not np.isfinite(rows).all():
            row, column, value = first_not_finite(rows)
            raise UserError(f"request {row + 1}: feature {column + 1} is {value}; only finite numbers can be scored")
        shares = np.zeros(rows.shape)
        forest.attribute(rows, *self._nodes, shares)
        return shares

    def save(self, folder: Path) -> None:
        """Write the trees' points as one array, and hyperparameters, seed and threshold as JSON."""
        if self.points is None:
            raise AlgorithmError("this random cut forest has not been trained yet: call fit or load first")
        np.save(folder / _POINTS, self.points, allow_pickle=False)
        settings = {
            "hyperparameters": to_json(self.hyperparameters),
            "seed": self._seed,
            "score_threshold": self.score_threshold,
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold a random cut forest.
        """
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(RandomCutForestHyperparameters, settings["hyperparameters"], owner="random_cut_forest"))
        points = np.load(folder / _POINTS, allow_pickle=False)
        if points.ndim != 3 or points.dtype != np.float32 or 0 in points.shape or not np.isfinite(points).all():
            raise UserError(f"{_POINTS} holds no forest: a finite float32 array (trees, points, features) is expected")
        model._seed = int(settings["seed"])
        model.score_threshold = float(settings["score_threshold"])
        model._build(points)
        return model

    def state_dict(self) -> State:
        """Return the step, and the sample after it."""
        return {"step": Entry(self._step), "keys": Entry(self._keys.view(np.int64)), "rows": Entry(self._rows)}

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        self.points = None
        self._step = int(state["step"].value)
        self._keys = np.ascontiguousarray(state["keys"].value, dtype=np.int64).view(np.uint64)
        self._rows = np.asarray(state["rows"].value, dtype=np.float32)

    def _train_channel(self, session: Session) -> Shard:
        train, wanted = session.channels.get("train"), self.hyperparameters.feature_dim
        if train is None:
            given = ", ".join(sorted(session.channels)) or "none"
            raise UserError(f"random_cut_forest needs the channel 'train'; given: {given}")
        if train.columns is None:
            raise UserError("random_cut_forest needs rows of numbers, channel 'train' holds text or JSON records")
        if train.rows == 0:
            raise UserError("random_cut_forest needs at least one row; channel 'train' has none")
        if wanted is not None and wanted != train.columns:
            raise UserError(f"feature_dim={wanted} but channel 'train' has {train.columns} features; leave feature_dim out")
        return train

    def _sample(self, session: Session, first_row: int, rows: Features) -> None:
        """Collective. Keep the rows with the smallest keys among the sample and this batch; the same on every rank."""
        from .kernels import forest
        from .kernels.nearest import dense_rows

        part = numbers(rows, "channel 'train'")
        most = self.hyperparameters.num_trees * self.hyperparameters.num_samples_per_tree
        keys = np.empty(len(part), np.uint64)
        forest.keys_of(np.uint64(session.seed), np.arange(first_row, first_row + len(part), dtype=np.uint64), keys)
        low = keys < self._keys[-1] if len(self._keys) >= most else np.ones(len(keys), bool)
        own = dense_rows(part, 0, len(part))[low]
        seen = np.concatenate([self._keys, *(k.view(np.uint64) for k in session.world.all_gather(keys[low].view(np.int64)))])
        offered = np.concatenate(session.world.all_gather(np.ascontiguousarray(own)))
        values = np.concatenate([self._rows, offered]) if len(self._keys) else offered
        self._keys, kept = np.unique(seen, return_index=True)  # a replicated channel offers every row once a rank
        self._keys, self._rows = self._keys[:most], np.ascontiguousarray(values[kept[:most]])

    def _finish(self, session: Session) -> dict[str, float]:
        """Collective. Build the forest and return its metrics on the other channels."""
        from .kernels import forest

        trees, size, count = self.hyperparameters.num_trees, self.hyperparameters.num_samples_per_tree, len(self._rows)
        chosen = np.arange(trees * size).reshape(size, trees).T
        if count < trees * size:  # too few for all: trees share rows, no tree has one twice
            keys = np.empty(count, np.uint64)
            picks = []
            for tree in range(trees):
                forest.keys_of(np.uint64(tree), self._keys, keys)
                picks.append(np.argsort(keys, kind="stable")[:size])
            chosen = np.array(picks)
        self._build(self._rows[chosen])
        scores = self.attribution(self._rows).sum(axis=1)
        self.score_threshold = float(scores.mean() + 3 * scores.std())
        metrics: dict[str, float] = {}
        for name in [name for name in _EVALUATED if name in session.channels]:
            metrics |= {f"{name}:{metric}": value for metric, value in self._evaluate(session, name).items()}
        return metrics

    def _build(self, points: Array) -> None:
        from .kernels import forest

        trees, count, columns = points.shape
        nodes = 2 * count - 1
        dims, cuts = np.full((trees, nodes), -1, np.int32), np.zeros((trees, nodes), np.float32)
        children, mass = np.zeros((trees, nodes, 2), np.int32), np.zeros((trees, nodes), np.int32)
        low, high = np.zeros((trees, nodes, columns), np.float32), np.zeros((trees, nodes, columns), np.float32)
        for t in range(trees):
            seed = np.uint64((self._seed * 1009 + t) % 2**64)
            forest.build(np.ascontiguousarray(points[t]), seed, dims[t], cuts[t], children[t], mass[t], low[t], high[t])
        self.points, self._nodes = points, (dims, cuts, children, mass, low, high)

    def _evaluate(self, session: Session, name: str) -> dict[str, float]:
        """Collective. Return the metrics of a labelled channel (1: anomaly); none where it has no labels."""
        from .kernels.nearest import Assigner

        shard, counts = session.channels[name], np.zeros(4, np.int64)
        if shard.columns != self.columns:
            raise UserError(f"channel '{name}' has {shard.columns} features where channel 'train' has {self.columns}")
        for batch, rows, _ in NumericBatches(session.world, name, shard, Assigner(1).largest).epoch(5000, 0):
            if batch.label is not None:
                found = self.attribution(rows).sum(axis=1) > self.score_threshold
                counts += np.bincount(2 * found + (batch.label > 0), minlength=4)
        right_no, missed, wrong, hit = (int(value) for value in session.world.all_reduce(counts))
        total = right_no + missed + wrong + hit
        if total == 0:
            return {}
        metrics: dict[str, float] = {}
        if "accuracy" in self.hyperparameters.eval_metrics:
            metrics["accuracy"] = (right_no + hit) / total
        if "precision_recall_fscore" in self.hyperparameters.eval_metrics:
            metrics["precision"] = hit / max(hit + wrong, 1)
            metrics["recall"] = hit / max(hit + missed, 1)
            metrics["f1"] = 2 * hit / max(2 * hit + wrong + missed, 1)
        return metrics
