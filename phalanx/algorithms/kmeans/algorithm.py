"""Web-scale k-means: a stream moves K = k·x centres, Lloyd's algorithm reduces them to k, some more batches polish these.

After Sculley, "Web-scale k-means clustering" (2010), with batches in place of single rows. Polishing is ours: the reduction
moves each of the K centres as a whole, though it may straddle the border of two clusters.

The model is the same, bit for bit, for every number of workers and threads: see `kernels.kmeans`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, final

import numpy as np

from ...contracts import Array, Entry, Features, Session, Shard, State
from ...errors import AlgorithmError, UserError
from ...hyperparameters import hyper, parse, to_json
from ..reading import NumericBatches, Part, first_not_finite, numbers, train_channel, width_of

if TYPE_CHECKING:
    from ..kernels.nearest import Assigner
    from ..kernels.stream import Stream
    from .batch import Progress

_CENTERS = "centers.npy"
_SETTINGS = "kmeans.json"
_EVALUATED = ("validation", "test")
_OF_STREAM = ("epochs", "extra_center_factor", "half_life_time_size", "init_method", "mini_batch_size", "polish_steps")
_AUTO_CENTERS, _AUTO_FACTOR = 250, 3  # a few hundred centres describe the data well enough to find k good ones
_AUTO_DIRECT_NUMBERS = 1 << 22  # in a channel of one batch: so few that every row is reduced directly
_AUTO_TRIALS, _AUTO_TRIAL_COST = 10, 10**9
_AUTO_POLISH_STEPS, _AUTO_POLISH_ROWS = 10, 300  # rows for each cluster


@dataclass(frozen=True)
class KMeansHyperparameters:
    """Names and defaults as users of managed k-means know them."""

    k: int = hyper(low=1, help="number of clusters")
    solver: Literal["stream", "lloyd"] = hyper(
        "stream",
        help="stream: web-scale mini-batches, few passes; lloyd: passes over all rows until nothing improves",
    )
    feature_dim: int | None = hyper(None, low=1, help="number of features; taken from the data when not given")
    epochs: int = hyper(1, low=1, tunable=(1, 10), help="passes over the training data of solver=stream")
    extra_center_factor: int | Literal["auto"] = hyper(
        "auto",
        low=1,
        tunable=(4, 10),
        help="the stream keeps k times this many centres, which are reduced to k at the end; "
        "auto: 250 in all, at least 3 times k; a channel of one batch is reduced directly",
    )
    half_life_time_size: int = hyper(
        0, low=0, help="rows after which a row weighs half as much as a new one; 0: rows never lose weight"
    )
    init_method: Literal["random", "kmeans++"] = hyper(
        "random", tunable=("random", "kmeans++"), help="how the stream's first centres are chosen from a sample of all rows"
    )
    local_lloyd_init_method: Literal["random", "kmeans++"] = hyper(
        "kmeans++", help="how the final reduction (with solver=lloyd: the descent) chooses its first centres"
    )
    local_lloyd_max_iter: int = hyper(
        300, low=1, help="most iterations of the final reduction; solver=lloyd: most passes over all rows"
    )
    local_lloyd_num_trials: int | Literal["auto"] = hyper(
        "auto",
        low=1,
        help="starts of the final reduction, of which the best is kept; auto: 10, less where k is large; "
        "solver=lloyd: starts on a sample; auto: 3, less where k is large",
    )
    local_lloyd_tol: float = hyper(
        1e-4,
        low=0,
        high=1,
        help="the final reduction (solver=lloyd: the descent) ends when the loss improves by less than this share of it",
    )
    mini_batch_size: int = hyper(
        5000,
        low=1,
        tunable=(3000, 15000),
        help="rows of a step of solver=stream, over all workers",
    )
    polish_steps: int | Literal["auto"] = hyper(
        "auto",
        low=0,
        help="mini-batches, read once more, that move the k centres after the reduction; "
        "auto: at least 10 and 300 rows a cluster, at most a pass; 0 with half_life_time_size",
    )
    eval_metrics: list[Literal["msd", "ssd"]] = hyper(  # noqa: RUF009
        ["msd"], help="mean (msd) and sum (ssd) of squared distances, reported for the test and validation channels"
    )

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better."""
        return dict.fromkeys(self.eval_metrics, "minimize")

    def check(self) -> None:
        """Raise `UserError` where values do not fit together."""
        if not self.eval_metrics:
            raise UserError("eval_metrics is empty: it must name msd, ssd or both")

    @property
    def without_effect(self) -> list[str]:
        """Names of what was set and plays no part in the solver."""
        set_ = (field.name for field in fields(self) if getattr(self, field.name) != field.default)
        return [name for name in set_ if name in _OF_STREAM] if self.solver == "lloyd" else []


@dataclass(frozen=True, slots=True)
class _Plan:
    """The steps of a job."""

    centers: int  # K, that the stream keeps
    per_epoch: int
    stream_steps: int  # that move the K centres of the stream
    steps: int  # in all: then come those that polish the k of the model


@final
class KMeans:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.
    """

    Hyperparameters: ClassVar[type] = KMeansHyperparameters

    def __init__(self, hyperparameters: KMeansHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.centers: Array | None = None  # (k, D) float32, once trained
        self._step = 0
        self._stream: Stream | None = None  # the centres after that step
        self._progress: Progress | None = None  # of solver=lloyd

    @property
    def columns(self) -> int | None:
        """Features that a request must have; None before training."""
        return None if self.centers is None else int(self.centers.shape[1])

    def fit(self, session: Session) -> None:
        """Collective. Learn from channel `train`, reporting every mini-batch; evaluate on `validation` and `test` at the end.

        Raises:
            UserError: on every rank, for data that cannot be clustered.
            Stopped: the job was asked to stop.
        """
        from ..kernels import stream as streams  # numba takes a second to load: who only reads hyperparameters is spared
        from ..kernels.nearest import Assigner

        wanted = self.hyperparameters
        train = self._train_channel(session)
        if wanted.solver == "lloyd":
            self._descend(session, train)
            return
        session.restore({"algorithm": self, "train": train})
        plan = self._plan(train.rows, train.columns or 1)
        with Assigner(session.threads) as assigner:
            batches = NumericBatches(session.world, "train", train, assigner.largest, weights=True)
            parts = self._parts(batches, plan)
            if self._stream is None:
                self._stream = streams.start(
                    session.world, batches, plan.centers, wanted.mini_batch_size, wanted.init_method, session.seed
                )
            for part in parts:
                self._turn(session, assigner, plan)
                error = self._stream.step(session.world, assigner, part, wanted.mini_batch_size, wanted.half_life_time_size)
                rows = min(wanted.mini_batch_size, train.rows - self._step % plan.per_epoch * wanted.mini_batch_size)
                self._step += 1
                polished = self._step > plan.stream_steps or plan.centers == wanted.k
                metrics = {"train:msd" if polished else "train:stream_msd": error}
                if self._step == plan.steps:
                    metrics |= self._finish(session, assigner, plan)
                session.report(self._step, metrics, rows=rows, of=plan.steps)
            if self.centers is None:
                self._finish(session, assigner, plan)

    def _descend(self, session: Session, train: Shard) -> None:
        """Collective. Learn with passes over all rows."""
        from ..kernels.nearest import Assigner
        from .batch import BatchKMeans, Plan, Progress

        wanted = self.hyperparameters
        session.restore({"algorithm": self})
        if session.world.rank == 0 and wanted.without_effect:
            print(f"solver=lloyd makes no use of {', '.join(wanted.without_effect)}: they belong to solver=stream", flush=True)
        progress = self._progress = self._progress or Progress()
        trials = wanted.local_lloyd_num_trials
        plan = Plan(
            wanted.k,
            wanted.local_lloyd_init_method,
            None if trials == "auto" else trials,
            wanted.local_lloyd_max_iter,
            wanted.local_lloyd_tol,
            session.seed,
        )
        with Assigner(session.threads) as assigner:
            for error, rows in BatchKMeans(session.world, assigner, train, plan, progress).steps():
                metrics = {"train:msd": error}
                if progress.done:
                    metrics |= self._conclude(session, assigner, progress)
                session.report(progress.step, metrics, rows=rows, of=progress.step if progress.done else None)
            if self.centers is None:
                self._conclude(session, assigner, progress)

    def _conclude(self, session: Session, assigner: Assigner, progress: Progress) -> dict[str, float]:
        self.centers = progress.centers
        return self._evaluate(session, assigner)

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return `closest_cluster` and `distance_to_cluster` (Euclidean) of every request, (N,) float32 each.

        Raises:
            UserError: requests of another width than the model's, or with numbers that are not finite.
        """
        from ..kernels.nearest import Assigner, Centers

        trained = self._trained()
        rows = numbers(requests, "the request")
        width = width_of(rows)
        if width != self.columns:
            raise UserError(f"the requests have {width} features; this k-means model was trained on {self.columns}")
        assigner = Assigner(1)
        if not np.isfinite(assigner.largest(rows)).all():
            row, column, value = first_not_finite(rows)
            raise UserError(f"request {row + 1}: feature {column + 1} is {value}; only finite numbers can be scored")
        labels, distances = assigner.assign(rows, Centers(trained))
        return {
            "closest_cluster": labels.astype(np.float32),
            "distance_to_cluster": np.minimum(np.sqrt(distances), np.finfo(np.float32).max).astype(np.float32),
        }

    def save(self, folder: Path) -> None:
        """Write the centres as one array and the hyperparameters as JSON."""
        np.save(folder / _CENTERS, self._trained(), allow_pickle=False)
        settings = json.dumps(to_json(self.hyperparameters), indent=2, sort_keys=True)
        (folder / _SETTINGS).write_text(settings + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold a k-means model.
        """
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(KMeansHyperparameters, settings, owner="kmeans"))
        centers = np.load(folder / _CENTERS, allow_pickle=False)
        if centers.ndim != 2 or centers.dtype != np.float32 or 0 in centers.shape or not np.isfinite(centers).all():
            raise UserError(f"{_CENTERS} holds no centres: a finite float32 array (k, features) is expected")
        model.centers = centers
        return model

    def state_dict(self) -> State:
        """Return the step, and the stream's centres and weights after it; the batch to go on with follows from the step."""
        if self._progress is not None:
            return self._progress.state_dict()
        if self._stream is None:
            return {"step": Entry(0)}
        return {"step": Entry(self._step), "centers": Entry(self._stream.centers), "weights": Entry(self._stream.weights)}

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        from ..kernels.stream import Stream

        self.centers = None
        if self.hyperparameters.solver == "lloyd":
            from .batch import Progress

            self._progress = Progress()
            self._progress.load_state_dict(state)
            return
        self._step = int(state["step"].value)
        self._stream = Stream(state["centers"].value, state["weights"].value) if self._step else None

    def _trained(self) -> Array:
        if self.centers is None:
            raise AlgorithmError("this k-means model has not been trained yet: call fit or load first")
        return self.centers

    def _train_channel(self, session: Session) -> Shard:
        """Return the channel `train`, which must fit the hyperparameters."""
        wanted = self.hyperparameters
        train = train_channel(session, "kmeans")
        if wanted.feature_dim is not None and wanted.feature_dim != train.columns:
            raise UserError(
                f"feature_dim={wanted.feature_dim} but channel 'train' has {train.columns} features; "
                "leave feature_dim out to take it from the data (a label column is announced by ';label_size=1')"
            )
        if wanted.k > train.rows:
            raise UserError(f"k={wanted.k} clusters need at least {wanted.k} rows; channel 'train' has {train.rows}")
        return train

    def _plan(self, rows: int, columns: int) -> _Plan:
        wanted, batch = self.hyperparameters, self.hyperparameters.mini_batch_size
        per_epoch = -(-rows // batch)
        polish = wanted.polish_steps
        if polish == "auto":
            enough = max(_AUTO_POLISH_STEPS, -(-_AUTO_POLISH_ROWS * wanted.k // batch))
            polish = enough if enough <= per_epoch else per_epoch * max(_AUTO_POLISH_STEPS // per_epoch, 1)
            polish = 0 if wanted.half_life_time_size else polish  # old rows would come back at full weight
        steps = wanted.epochs * per_epoch + polish
        if wanted.extra_center_factor != "auto":
            return _Plan(min(wanted.k * wanted.extra_center_factor, rows), per_epoch, steps - polish, steps)
        if polish and per_epoch == 1 and rows * columns <= _AUTO_DIRECT_NUMBERS:
            return _Plan(rows, per_epoch, 0, steps)  # every row is a centre: there is nothing to stream
        centers = max(wanted.k, min(max(_AUTO_CENTERS, _AUTO_FACTOR * wanted.k), batch // 4, rows))
        return _Plan(centers, per_epoch, steps - polish, steps)

    def _parts(self, batches: NumericBatches, plan: _Plan) -> Iterator[Part]:
        """Collective. Yield this rank's parts of the batches that are still to be done."""
        rows, done = self.hyperparameters.mini_batch_size, self._step
        for epoch in range(done // plan.per_epoch, -(-plan.steps // plan.per_epoch)):
            for part in batches.epoch(rows, epoch):
                number = epoch * plan.per_epoch + part[0].first_row // rows
                if number >= done:  # the channel itself may have gone on from its place
                    yield part
                if number + 1 == plan.steps:
                    return

    def _turn(self, session: Session, assigner: Assigner, plan: _Plan) -> None:
        """Collective. Between two steps: reduce the stream's centres to k when it has ended, begin a polishing pass."""
        from ..kernels.lloyd import Reduction
        from ..kernels.stream import reduce_stream

        wanted, stream = self.hyperparameters, self._stream
        if stream is None or self._step < plan.stream_steps or (self._step - plan.stream_steps) % plan.per_epoch:
            return
        if self._step == plan.stream_steps:
            reduction = Reduction(
                wanted.k, wanted.local_lloyd_init_method, wanted.local_lloyd_max_iter, wanted.local_lloyd_tol, session.seed
            )
            cost = stream.centers.size * wanted.k  # multiplications of an iteration
            auto = int(min(max(_AUTO_TRIAL_COST // cost, 1), _AUTO_TRIALS))
            trials = auto if wanted.local_lloyd_num_trials == "auto" else wanted.local_lloyd_num_trials
            stream = self._stream = reduce_stream(session.world, assigner, stream, reduction, trials)
        stream.forget()

    def _finish(self, session: Session, assigner: Assigner, plan: _Plan) -> dict[str, float]:
        """Collective. Take the model from the stream and return its metrics on the other channels."""
        if self._step == plan.stream_steps:
            self._turn(session, assigner, plan)
        assert self._stream is not None
        self.centers = self._stream.centers.astype(np.float32)
        return self._evaluate(session, assigner)

    def _evaluate(self, session: Session, assigner: Assigner) -> dict[str, float]:
        """Collective. Return the model's metrics on the other channels."""
        from ..kernels.stream import evaluate

        metrics: dict[str, float] = {}
        for name in [name for name in _EVALUATED if name in session.channels]:
            rows = self.hyperparameters.mini_batch_size
            values = evaluate(session.world, assigner, name, session.channels[name], self._trained(), rows)
            metrics |= {f"{name}:{metric}": values[metric] for metric in self.hyperparameters.eval_metrics}
        return metrics
