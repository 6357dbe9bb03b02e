"""One training of factorization machines: survey, mini-batches, the best epoch by `validation`, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

import numpy as np

from ...contracts import Array, Entry, Session, State
from ...errors import UserError
from ..reading import copies, train_channel, used_channels
from .data import READ_ROWS, Piece, Reader, Survey
from .hyperparameters import FactorizationMachinesHyperparameters
from .penalty import FEWEST_ROWS, MOST_ROWS, STRENGTHS, speed_at, strength_by_held_out_rows
from .tables import SUMS, Tables, measured, metrics_of, raw_scores, summed

if TYPE_CHECKING:
    from .algorithm import FactorizationMachines


@final
class Training:
    """One call of `fit`; Collective.

    Args:
        session: of the job.
        wanted: hyperparameters.
        restored: what `state_dict` gave, to go on from.
    """

    def __init__(self, session: Session, wanted: FactorizationMachinesHyperparameters, restored: State | None) -> None:
        self._session = session
        self._wanted = wanted
        self._width = _check_channels(session, wanted)
        self._train = train = session.channels["train"]
        self._reader = Reader(session, wanted, self._width)
        self._held: list[Piece] | None = None
        self._survey = self._prepare()
        self._copies = copies(session.world, train)
        self._per_epoch = -(-train.rows // wanted.mini_batch_size)
        self._epochs = wanted.passes(train.rows)
        bias = self._survey.label_mean
        if wanted.classifies and wanted.solver == "auto":
            share = min(max(bias, 1e-3), 1 - 1e-3)
            bias = float(np.log(share / (1 - share)))
        elif wanted.solver == "auto":
            bias = 0.0
        self._bias = bias
        self._strength = STRENGTHS[0] if restored is None else float(restored["strength"].value)
        few = FEWEST_ROWS <= train.rows <= MOST_ROWS
        if restored is None and not train.streaming and few and wanted.chooses_penalty:
            self._strength = self._chosen_strength()
        self._tables = self._begin(self._strength)
        self._validated = "validation" in session.channels and session.channels["validation"].rows > 0
        self._best: Array = np.zeros((0, 0), dtype=np.float32)
        self._best_loss, self._waited, self._step = float("inf"), 0, 0
        self._sums = np.zeros(len(SUMS))  # over the rows of this epoch
        if restored is not None:
            self._load(restored)

    def state_dict(self) -> State:
        """Return the step and what the next one depends on."""
        return {
            "step": Entry(self._step),
            "best": Entry(self._best.copy()),
            "best_loss": Entry(None if np.isinf(self._best_loss) else self._best_loss),
            "waited": Entry(self._waited),
            "sums": Entry(self._sums.copy()),
            "strength": Entry(self._strength),
            **self._tables.state_dict(),
        }

    def run(self, model: FactorizationMachines) -> None:
        """Train to the end; write the result into `model`."""
        size, rows = self._wanted.mini_batch_size, self._train.rows
        for epoch in range(self._step // self._per_epoch, self._epochs):
            if self._ended:
                break
            number = epoch * self._per_epoch
            for piece in self._epoch(epoch):
                number += 1
                if number <= self._step:
                    continue
                metrics = self._learn(piece, number)
                self._step = number
                if number % self._per_epoch == 0:
                    metrics |= self._end_epoch()
                    if epoch + 1 == self._epochs or self._ended:
                        metrics |= self._finish(model)
                last = self._per_epoch * self._epochs
                known = None if self._validated else last
                taken = size if number % self._per_epoch else rows - size * (self._per_epoch - 1)
                self._session.report(number, metrics, rows=taken, of=known)
        if model.table is None:
            self._finish(model)

    @property
    def _ended(self) -> bool:
        return self._waited >= self._wanted.early_stopping_patience

    def _begin(self, strength: float) -> Tables:
        parts = self._wanted.parts(self._train.rows, self._survey.row_entries, strength)
        return Tables(self._wanted, len(self._survey.columns), parts, self._bias, self._session.seed)

    def _chosen_strength(self) -> float:
        pieces = [self._scaled(piece) for piece in self._held or ()]
        world, rows = self._session.world, self._train.rows
        classifies = self._wanted.classifies
        return strength_by_held_out_rows(world, pieces, rows, self._begin, self._epochs, self._copies, classifies=classifies)

    def _prepare(self) -> Survey:
        """Read the channel once: to hold its rows, or, where it is streamed, to know its columns."""
        reader, train = self._reader, self._train
        if train.streaming:
            return reader.survey(reader.pieces("train", READ_ROWS), train)
        held = list(reader.pieces("train", self._wanted.mini_batch_size, shuffle=True))
        survey = reader.survey(iter(held), train)
        for number, piece in enumerate(held):
            held[number] = survey.compact(piece)
        self._held = held
        return survey

    def _epoch(self, epoch: int) -> Iterator[Piece]:
        """Yield an epoch's batches: held ones, whose rows were shuffled once, in a new order; streamed ones shuffled anew."""
        if self._held is None:
            size = self._wanted.mini_batch_size
            yield from map(self._survey.compact, self._reader.pieces("train", size, epoch, shuffle=True))
            return
        key = np.array([self._session.seed & (2**64 - 1), epoch], dtype=np.uint64)
        for number in np.random.Generator(np.random.Philox(key=key)).permutation(len(self._held)).tolist():
            yield self._held[number]

    def _learn(self, piece: Piece, number: int) -> dict[str, float]:
        speed = 1.0
        if self._wanted.solver == "auto":
            speed = speed_at((number - 1) / (self._per_epoch * self._epochs))
        sums = self._tables.step(self._session.world, self._scaled(piece), number, speed, self._copies)
        self._sums += np.array(list(sums.values()))
        return self._named("train", sums)

    def _end_epoch(self) -> dict[str, float]:
        self._sums = np.zeros(len(SUMS))
        if not self._validated:
            return {}
        sums = self._evaluated("validation", self._tables.table)
        loss = sums["loss"] / max(sums["weight"], 1e-300)
        if loss < self._best_loss:
            self._best, self._best_loss, self._waited = self._tables.table.copy(), loss, 0
        else:
            self._waited += 1
        return self._named("validation", sums)

    def _finish(self, model: FactorizationMachines) -> dict[str, float]:
        """Make the model, measure it on the other channels."""
        table = self._best if self._validated and self._best.size else self._tables.table
        model.take(table, self._survey, self._unit, self._width)
        metrics: dict[str, float] = {}
        for name in [name for name in ("validation", "test") if name in self._session.channels]:
            metrics |= self._named(name, self._evaluated(name, table))
        return metrics

    def _evaluated(self, name: str, table: Array) -> dict[str, float]:
        world, shard = self._session.world, self._session.channels[name]
        total = np.zeros(len(SUMS))
        for piece in self._reader.pieces(name, READ_ROWS):
            compact = self._scaled(self._survey.compact(piece))
            rows = measured(raw_scores(compact, table)[0], compact, classifies=self._wanted.classifies)
            total += summed(world, rows, piece.batch, copies(world, shard))
        return dict(zip(SUMS, total.tolist(), strict=True))

    @property
    def _unit(self) -> tuple[float, float]:
        """Mean and deviation that labels are learnt in."""
        return (0.0, 1.0) if self._wanted.classifies else (self._survey.label_mean, self._survey.label_deviation)

    def _scaled(self, piece: Piece) -> Piece:
        mean, deviation = self._unit
        if (mean, deviation) == (0.0, 1.0):
            return piece
        label = (piece.label - mean) / deviation
        return Piece(piece.indptr, piece.indices, piece.values, label, piece.weight, piece.batch)

    def _named(self, channel: str, sums: dict[str, float]) -> dict[str, float]:
        found = metrics_of(sums, classifies=self._wanted.classifies, deviation=self._unit[1])
        return {f"{channel}:{name}": value for name, value in found.items()}

    def _load(self, state: State) -> None:
        self._step, self._waited = int(state["step"].value), int(state["waited"].value)
        self._best = np.array(state["best"].value, dtype=np.float32)
        best = state["best_loss"].value
        self._best_loss = float("inf") if best is None else float(best)
        self._sums = np.array(state["sums"].value, dtype=np.float64)
        self._tables.load_state_dict(state)


def _check_channels(session: Session, wanted: FactorizationMachinesHyperparameters) -> int:
    """Return the width of rows."""
    train = train_channel(session, "factorization_machines")
    width = (train.columns or 0) if wanted.feature_dim == "auto" else wanted.feature_dim
    for name in used_channels(session):
        columns = session.channels[name].columns or 0
        if columns > width:
            limit = f"channel 'train' has {width}" if wanted.feature_dim == "auto" else f"feature_dim={width}"
            raise UserError(f"channel '{name}' has {columns} features where {limit}; set feature_dim={columns} or leave it out")
    return width
