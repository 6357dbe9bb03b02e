"""One training of the linear learner: survey, passes or mini-batches, choice of the best candidate, evaluation.

Legend of shapes: N rows, D columns, P candidates, K outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import numpy as np

from ...contracts import Array, Entry, Session, State, Stateful
from ...errors import UserError
from ..reading import copies, train_channel, used_channels
from . import metrics as measures
from .algorithm import default_threshold, probabilities
from .candidates import class_weights, grid_of
from .curvature import MOST_COLUMNS, Curvature, measure
from .data import Piece, Reader
from .descent import Descent, Schedule
from .early_stopping import Best
from .hyperparameters import LinearLearnerHyperparameters
from .losses import loss_of, slope_change
from .objective import Crew, Objective, scores
from .rotation import rotation
from .screening import KEPT, LOOSER, MEMORY, STAGE_PASSES, Heat, Sample, screening
from .solver import LASTING_MEMORY, LASTING_STAGE, Penalty, Solver

if TYPE_CHECKING:
    from .algorithm import LinearLearner

_SPARE = 64  # channels beside train may have more rows, and every rank may see them all
_CURVATURE_ROWS, _CURVATURE_ROWS_A_COLUMN = 8192, 8  # that the curvature is measured on, at least
_WATCHED = 5  # passes after which candidates are measured on channel `validation`
_CALIBRATED_NUMBERS = 1 << 28  # scores that are held for the choice


@final
class Training:
    """One call of `fit`.

    Args:
        session: of the job.
        wanted: hyperparameters.
        restored: what `state_dict` gave, to go on from.
        crew: of threads.
    """

    def __init__(self, session: Session, wanted: LinearLearnerHyperparameters, restored: State | None, crew: Crew) -> None:
        self._session = session
        self._crew = crew
        self._wanted = wanted
        _check_channels(session, wanted)
        self._train = session.channels["train"]
        self._reader = Reader(session, wanted)
        self._survey = survey = self._reader.survey(keep=wanted.solves)
        self._validated = "validation" in session.channels and session.channels["validation"].rows > 0
        rows = self._train.rows
        self._candidates = candidates = grid_of(wanted, survey, validated=self._validated, rows=rows)
        self._objective = self._objective_of(survey.largest)
        bias_wd = 0.0 if wanted.bias_wd_mult == "auto" else wanted.bias_wd_mult
        self._penalty = Penalty(candidates.wd, candidates.l1, bias_wd, wanted.use_bias)
        self._step = 0
        self._per_epoch = -(-rows // wanted.mini_batch_size)
        self._screening = screening(len(candidates.wd), rows, self._columns * wanted.outputs) if wanted.solves else None
        self._measured_by = self._curvature() if wanted.solves else None
        self._sample = Sample([], None)  # this rank's rows to screen by
        self._screened_by = self._objective
        self._descending = None if wanted.solves else self._descent()
        self._members = np.arange(len(candidates.wd))  # who is still in the race
        if restored is not None and wanted.solves:
            self._members = np.array(restored["members"].value)
            self._screening = self._screening if int(restored["screening"].value) else None
        self._heats = self._all_heats() if wanted.solves else []
        self._watched: Best | None = None  # on channel `validation`
        if restored is not None and "watched/best" in restored:
            self._watched = Best(np.zeros(np.shape(restored["watched/best"].value)), *self._stopping)
        if restored is not None:
            self._step = int(restored["step"].value)
            for name, part in self._parts().items():
                part.load_state_dict({n[len(name) :]: e for n, e in restored.items() if n.startswith(name)})

    def state_dict(self) -> State:
        """Return the step and what the next one depends on."""
        inner = {f"{name}{n}": entry for name, part in self._parts().items() for n, entry in part.state_dict().items()}
        race = {"members": Entry(self._members), "screening": Entry(int(self._screening is not None))}
        return {"step": Entry(self._step), **race, **inner}

    def _parts(self) -> dict[str, Stateful]:
        if self._descending is not None:
            return {"descent/": self._descending}
        heats: dict[str, Stateful] = {f"heat-{number}/": heat.solver for number, heat in enumerate(self._heats)}
        return heats if self._watched is None else {**heats, "watched/": self._watched}

    def run(self, model: LinearLearner) -> None:
        """Collective. Train to the end; write the result into `model`."""
        if self._descending is None:
            self._solve(model)
        else:
            self._descend(model, self._descending)
        if model.weights is None:
            self._finish(model)

    def _solve(self, model: LinearLearner) -> None:
        wanted = self._wanted
        while True:
            if self._screening is not None and not self._goes_on():
                self._narrow()
            if not self._goes_on():
                return
            screening = self._screening
            for heat in self._heats:
                heat.advance(wanted.solver_tolerance * (LOOSER if screening else 1))
            self._step += 1
            metrics = {"train:objective_loss": min(float(heat.solver.loss.min()) for heat in self._heats)}
            if screening is None and self._step % _WATCHED == 0:
                metrics |= self._watch(self._heats[0])
            if screening is None and not self._goes_on():
                metrics |= self._finish(model)
            self._session.report(self._step, metrics, rows=self._train.rows // (screening.every if screening else 1))

    def _watch(self, heat: Heat) -> dict[str, float]:
        """Collective. End candidates that no longer gain on channel `validation`, where many columns make passes many."""
        solver = heat.solver
        if not self._validated or self._exact or not len(solver.active):
            return {}
        weights, losses = solver.weights, np.full(len(heat.members), np.inf)
        if self._watched is None:
            self._watched = Best(weights, *self._stopping)
        active = solver.active
        losses[active] = self._losses("validation", weights[:, active], heat.members[active])
        solver.end(np.flatnonzero(self._watched.judge(losses, weights, active)))
        return {"validation:objective_loss": _least(losses)}

    @property
    def _exact(self) -> bool:
        """Whether steps are along the curvature's eigenvectors: then passes are few, and strong weights not learnt first."""
        return self._measured_by is not None and self._measured_by.full

    def _goes_on(self) -> bool:
        most = self._wanted.max_passes
        if self._screening is not None:
            most = min(self._screening.passes, most // 2)
        return any(len(heat.solver.active) for heat in self._heats) and self._step < most

    def _all_heats(self) -> list[Heat]:
        """Collective. Return who is solved with whom: all together, but while screened those without L1 in rotated rows."""
        if self._screening is None:
            return [self._heat(self._members, None)]
        session, wanted, penalty = self._session, self._wanted, self._penalty
        sample = self._sample = self._screening.of(session.world, self._pieces("train"), self._columns)
        self._screened_by = (
            self._objective if sample.columns is None else self._objective_of(self._survey.largest[sample.columns])
        )
        members, smooth = self._members, penalty.l1 == 0
        turned = rotation(
            session.world,
            sample.pieces,
            self._columns if sample.columns is None else len(sample.columns),
            int(smooth.sum()) * wanted.outputs,
            slope_change(wanted),
            copies=copies(session.world, self._train),
            use_bias=wanted.use_bias,
            free_bias=penalty.bias_wd == 0,
            crew=self._crew,
        )
        if turned is None:
            return [self._heat(members, None)]
        solver = Solver(
            len(turned.largest), self._sharper(members[smooth]), wanted.outputs, turned.curvature, self._crew, memory=MEMORY
        )
        heats = [Heat(members[smooth], solver, self._objective_of(turned.largest), lambda: turned.pieces, turned.back)]
        return heats if smooth.all() else [*heats, self._heat(members[~smooth], None)]

    def _heat(self, members: Array, start: Array | None) -> Heat:
        """Return candidates to be solved in the columns they have."""
        assert self._measured_by is not None
        outputs, of, screening = self._wanted.outputs, self._sample.columns, self._screening
        columns = self._columns if of is None else len(of)
        gentle = 0.0
        if not self._exact:
            gentle = (screening.sharper if screening else 1.0) / max(self._train.rows, 1)
        memory, stage = (MEMORY, STAGE_PASSES) if screening else (LASTING_MEMORY, LASTING_STAGE)
        solver = Solver(
            columns,
            self._sharper(members),
            outputs,
            self._measured_by.among(of),
            self._crew,
            start,
            memory=memory,
            gentle=gentle,
            stage=stage,
        )
        if screening is None:
            return Heat(members, solver, self._objective, lambda: self._pieces("train"))
        return Heat(members, solver, self._screened_by, lambda: self._sample.pieces)

    def _sharper(self, members: Array) -> Penalty:
        return self._penalty.of(members, self._screening.sharper if self._screening else 1.0)

    def _narrow(self) -> None:
        """Collective. End the screening: the best candidates go on, with all rows, from where they are."""
        heats, everyone = self._heats, np.concatenate([heat.members for heat in self._heats])
        value = np.concatenate([self._screened_value(heat) for heat in heats])
        best = np.sort(everyone[np.lexsort((everyone, -value))[:KEPT]])
        start = np.zeros((self._columns + 1, len(best), self._wanted.outputs))
        for heat in heats:
            chosen = np.isin(best, heat.members)
            start[:, chosen] = self._sample.widened(heat.weights_of(best[chosen]), self._columns)
        self._members, self._screening, self._sample = best, None, Sample([], None)
        self._heats = [self._heat(best, start)]

    def _screened_value(self, heat: Heat) -> Array:
        """Collective. Return how good candidates are (P,): more is better."""
        if self._by_loss and not self._validated:
            return -heat.solver.loss
        weights = heat.weights_of(heat.members)
        if self._by_loss:
            return -self._losses("validation", weights, heat.members)
        found = self._judged("validation" if self._validated else "sample", weights)
        return np.array([criterion for _, criterion in found] or np.zeros(len(heat.members)))

    def _objective_of(self, largest: Array) -> Objective:
        """Return the objective over columns with such bounds."""
        survey, wanted = self._survey, self._wanted
        return Objective(
            self._session.world,
            loss_of(wanted),
            class_weights(wanted, survey, self._candidates),
            crew=self._crew,
            largest=largest,
            largest_label=survey.largest_label + wanted.margin,
            largest_weight=survey.largest_weight,
            addends=max(self._train.rows, 1) * _SPARE,
        )

    @property
    def _stopping(self) -> tuple[float, int]:
        return self._wanted.early_stopping_tolerance, self._wanted.early_stopping_patience

    @property
    def _columns(self) -> int:
        return self._train.columns or 0

    def _descend(self, model: LinearLearner, descent: Descent) -> None:
        wanted = self._wanted
        for epoch in range(self._step // self._per_epoch, wanted.epochs):
            if not len(descent.active):
                return
            number = epoch * self._per_epoch
            for batch in self._reader.batches("train", wanted.mini_batch_size, epoch, shuffle=True):
                number += 1
                if number <= self._step:
                    continue
                metrics, rows = (
                    self._learn(descent, self._reader.piece(self._train, wanted.mini_batch_size, batch, self._survey.scaler)),
                    wanted.mini_batch_size,
                )
                self._step = number
                if number % self._per_epoch == 0:
                    rows = self._train.rows - rows * (self._per_epoch - 1)
                    metrics |= self._end_epoch(descent)
                    if epoch + 1 == wanted.epochs or not len(descent.active):
                        metrics |= self._finish(model)
                self._session.report(number, metrics, rows=rows)

    def _learn(self, descent: Descent, piece: Piece) -> dict[str, float]:
        active = descent.active
        losses, gradients, weight = self._objective.sums(descent.weights[:, active], active, [piece] if len(piece) else [])
        weight = max(weight, 1e-300)
        descent.epoch_loss[active] += losses
        descent.epoch_weight += weight
        descent.advance(gradients / weight)
        return {"train:objective_loss": _least(losses / weight)}

    def _end_epoch(self, descent: Descent) -> dict[str, float]:
        """Collective. Judge every candidate that goes on."""
        active = descent.active
        values, metrics = np.full(len(descent.done), np.inf), {}
        if self._validated:
            values[active] = self._losses("validation", descent.weights[:, active], active)
            metrics = {"validation:objective_loss": _least(values)}
        else:
            values[active] = descent.epoch_loss[active] / descent.epoch_weight
        descent.judge(values)
        descent.epoch_loss[:], descent.epoch_weight = 0.0, 0.0
        return metrics

    def _curvature(self) -> Curvature:
        """Collective. Return the curvature that some of the rows give the loss."""
        columns, rows = self._train.columns or 0, max(self._train.rows, 1)
        every = max(rows // max(_CURVATURE_ROWS, _CURVATURE_ROWS_A_COLUMN * min(columns, MOST_COLUMNS)), 1)
        return measure(
            self._session.world,
            (piece for piece in self._pieces("train") if piece.batch % every == 0),
            self._survey.largest,
            rows * _SPARE,
            slope_change(self._wanted),
            use_bias=self._wanted.use_bias,
            missed=every > 1 and self._survey.sparse,
            crew=self._crew,
        )

    @property
    def _by_loss(self) -> bool:
        wanted = self._wanted
        criterion = wanted.binary_classifier_model_selection_criteria
        return wanted.predictor_type != "binary_classifier" or criterion in ("cross_entropy_loss", "loss_function")

    def _losses(self, name: str, weights: Array, active: Array) -> Array:
        """Collective. Return the mean losses of candidates on a channel."""
        objective = self._screened_by if self._screening else self._objective
        losses, _, weight = objective.sums(weights, active, self._pieces(name), gradients=False)
        return losses / max(weight, 1e-300)

    def _pieces(self, name: str) -> Iterable[Piece]:
        """Return this rank's rows; but for training, in the columns that candidates are screened by."""
        if name == "sample":
            return self._sample.pieces
        if name == "train" and self._survey.pieces is not None:
            return self._survey.pieces
        pieces = self._reader.pieces(name, self._survey.scaler)
        return pieces if name == "train" else map(self._sample.cut, pieces)

    # The end.

    def _finish(self, model: LinearLearner) -> dict[str, float]:
        """Collective. Choose the best candidate, make the model of it, measure it on the other channels."""
        descent, wanted = self._descending, self._wanted
        weights = self._final_weights() if descent is None else descent.best.weights
        by = "validation" if self._validated else "train"
        if descent is not None and not np.isfinite(descent.best.value).any():
            raise UserError("the loss of every candidate is infinite: lower learning_rate, or leave normalize_data=true")
        best, threshold = 0, default_threshold(wanted)
        everyone = np.arange(weights.shape[1])
        criterion = wanted.binary_classifier_model_selection_criteria
        if self._by_loss and len(everyone) > 1:
            if descent is None and not self._validated:  # the solver has been over these rows
                best = int(np.argmin(self._heats[0].solver.loss))
            else:
                best = int(np.argmin(self._losses(by, weights, self._members)))
        if not self._by_loss and (self._validated or len(everyone) > 1 or criterion != "accuracy"):
            best, threshold = self._calibrated(by, weights)
        model.weights = self._survey.scaler.folded(weights[:, best])
        model.threshold, model.chosen = threshold, self._candidates.described(int(self._members[best]))
        if self._session.world.rank == 0 and len(everyone) > 1:
            print(f"Best model found for hyperparameters: {json.dumps(model.chosen)}", flush=True)
        metrics: dict[str, float] = {}
        for name in [name for name in ("validation", "test") if name in self._session.channels]:
            loss = float(self._losses(name, weights[:, [best]], self._members[[best]])[0])
            z, label = self._collected(name, weights[:, [best]], self._session.channels[name].rows)
            metrics |= {f"{name}:{metric}": value for metric, value in self._measured(z, label, threshold, loss).items()}
        return metrics

    def _final_weights(self) -> Array:
        """Collective. Return the solver's weights (D + 1, P, K), or what was better of them before."""
        weights = self._heats[0].solver.weights
        if self._watched is None:
            return weights
        self._watched.judge(self._losses("validation", weights, self._members), weights, np.arange(len(self._members)))
        return self._watched.weights

    def _measured(self, z: Array, label: Array, threshold: float, loss: float) -> dict[str, float]:
        wanted, scaler = self._wanted, self._survey.scaler
        values = {"objective_loss": loss}
        if wanted.predictor_type == "binary_classifier":
            return values | measures.binary(probabilities(z, wanted)[:, 0], label, threshold, wanted.f_beta)
        if wanted.predictor_type == "multiclass_classifier":
            return values | measures.multiclass(z, label, wanted)
        return values | measures.regression(
            z[:, 0] * scaler.label_deviation + scaler.label_mean, label * scaler.label_deviation + scaler.label_mean
        )

    def _calibrated(self, name: str, weights: Array) -> tuple[int, float]:
        """Collective. Return the candidate and the threshold with the best criterion; of equals that with the lowest loss."""
        found = self._judged(name, weights)
        if not found:
            return 0, default_threshold(self._wanted)
        value = np.array([criterion for _, criterion in found])
        best = np.flatnonzero(value == value.max())  # few rows make many equals
        if len(best) > 1:
            best = best[[self._losses(name, weights[:, best], self._members[best]).argmin()]]
        return int(best[0]), found[best[0]][0]

    def _judged(self, name: str, weights: Array) -> list[tuple[float, float]]:
        """Collective. Return each candidate's best threshold and the criterion there; nothing where there are no rows."""
        wanted = self._wanted
        most = min(wanted.num_calibration_samples, max(_CALIBRATED_NUMBERS // weights.shape[1], 1))
        z, label = self._collected(name, weights, most)
        if not len(label):
            return []
        world, columns = self._session.world, probabilities(z, wanted).T
        own = [measures.calibrate(column, label, wanted) for column in columns[world.rank :: world.size]]  # all have all rows
        shares = [np.asarray(share).reshape(-1, 2) for share in world.all_gather(np.array(own))]
        found = [shares[number % world.size][number // world.size] for number in range(len(columns))]
        return [(float(threshold), float(criterion)) for threshold, criterion in found]

    def _collected(self, name: str, weights: Array, most: int) -> tuple[Array, Array]:
        """Collective. Return scores (n, P·K) and labels (n,) of at most `most` rows of a channel."""
        flat = weights.reshape(len(weights), -1)
        world, shard = self._session.world, self._session.channels["train" if name == "sample" else name]
        found, labels, left = [np.zeros((0, flat.shape[1]))], [np.zeros(0)], most // (world.size // copies(world, shard))
        for piece in self._pieces(name):
            taken = min(len(piece), left)
            left -= taken
            found.append(scores(piece.features, flat, piece.block)[:taken])
            labels.append(piece.label[:taken])
        z, label = np.concatenate(found), np.concatenate(labels)
        if copies(world, shard) == 1 and world.size > 1:
            return np.concatenate(world.all_gather(z)), np.concatenate(world.all_gather(label))
        return z, label

    def _descent(self) -> Descent:
        wanted = self._wanted
        shape = ((self._train.columns or 0) + 1, len(self._candidates.wd), wanted.outputs)
        generator = np.random.Generator(np.random.Philox(key=self._session.seed & (2**64 - 1)))
        single = (shape[0], 1, shape[2])  # all candidates begin alike
        if wanted.init_method == "uniform":
            weights = generator.uniform(-wanted.init_scale, wanted.init_scale, single)
        else:
            weights = generator.normal(0.0, wanted.init_sigma, single)
        weights[-1] = wanted.init_bias if wanted.use_bias else 0.0
        method = "adam" if wanted.optimizer == "auto" else wanted.optimizer
        return Descent(
            np.repeat(weights, shape[1], axis=1),
            self._penalty,
            self._schedule(),
            method,
            _or(wanted.momentum, 0.9),
            (_or(wanted.beta_1, 0.9), _or(wanted.beta_2, 0.999)),
            _or(wanted.bias_lr_mult, 1.0),
            self._stopping,
        )

    def _schedule(self) -> Schedule:
        wanted, rates = self._wanted, self._candidates.rate
        if not wanted.use_lr_scheduler:
            return Schedule(rates, 1, 1.0, 0.0)
        steps = self._per_epoch * wanted.epochs
        every = max(1, steps // 100) if wanted.lr_scheduler_step == "auto" else wanted.lr_scheduler_step
        factor = 0.01 ** (every / max(steps, 1)) if wanted.lr_scheduler_factor == "auto" else wanted.lr_scheduler_factor
        return Schedule(rates, every, factor, _or(wanted.lr_scheduler_minimum_lr, 1e-5))


def _or(value: float | str, default: float) -> float:
    return default if isinstance(value, str) else value


def _least(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if len(finite) else float(np.finfo(np.float64).max)


def _check_channels(session: Session, wanted: LinearLearnerHyperparameters) -> None:
    train = train_channel(session, "linear_learner")
    for name in used_channels(session):
        columns = session.channels[name].columns or 0
        if columns > (train.columns or 0):
            raise UserError(f"channel '{name}' has {columns} features where channel 'train' has {train.columns}")
    if wanted.feature_dim not in ("auto", train.columns):
        raise UserError(
            f"feature_dim={wanted.feature_dim} but channel 'train' has {train.columns} features; "
            "leave feature_dim out to take it from the data"
        )
