"""The loop: epochs and steps, evaluation, schedule, average, early stopping, the best model, one report a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch

from ..contracts import MicroBatch, Replica, Session, State, StepOutput
from ..errors import AlgorithmError, UserError
from .batches import Mover, ahead
from .ema import Average
from .feeding import Feed, Portion, Share
from .history import EarlyStopping, History, Watch
from .readout import Readout
from .statistics import Statistics


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a fit goes on, and how often it evaluates."""

    epochs: int | None
    steps: int | None
    evaluate_every: int | None  # steps; None: every epoch


@final
@dataclass(slots=True)
class Progress:
    """Where a training is: what a checkpoint must hold beside the replica."""

    step: int = 0  # over all fits
    epoch: int = 0  # of the fit under way, counted from 0
    step_in_epoch: int = 0
    steps_before: int = 0  # of the fits before this one
    fitting: bool = False
    best: float | None = None
    waited: int = 0
    history: History = field(default_factory=History)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        names = ("step", "epoch", "step_in_epoch", "steps_before", "fitting", "best", "waited")
        return {**{name: getattr(self, name) for name in names}, "history": self.history.to_json()}

    def load_json(self, given: Mapping[str, Any]) -> None:
        """Put back what `to_json` wrote."""
        for name, value in given.items():
            setattr(self, name, History.from_json(value) if name == "history" else value)


@final
@dataclass(slots=True)
class Fit:
    """One call of `Trainer.fit`."""

    replica: Replica
    session: Session
    mover: Mover
    feed: Feed
    share: Share
    limits: Limits
    progress: Progress
    readout: Readout
    evaluation: Callable[[], dict[str, float]] | None
    average: Average | None
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    schedule_every: Literal["step", "epoch"]
    statistics: Statistics | None = None  # where rules look at tensors

    def run(
        self, early_stopping: EarlyStopping | None, keep_best: bool, best: str, best_mode: Literal["min", "max"]
    ) -> History:
        """Collective. Train to the end; return the history."""
        progress = self.progress
        if not progress.fitting:
            progress.steps_before, progress.epoch, progress.step_in_epoch = progress.step, 0, 0
            progress.history, progress.best, progress.waited = History(), None, 0
            progress.fitting = True
        self.readout.read()  # what went before is not this fit's
        watch = Watch(early_stopping, best, best_mode)
        watch.best, watch.waited = progress.best, progress.waited
        best_state: State | None = None
        while not self._done(watch):
            improved = self._epoch(watch, keep_best)
            best_state = best_state if improved is None else improved
        progress.fitting = False
        if best_state is not None:
            self.replica.load_state_dict(best_state)
        return progress.history

    def _epoch(self, watch: Watch, keep_best: bool) -> State | None:
        """Train on the rest of the epoch; return the state of the best evaluation in it, None where none was the best."""
        progress, readout = self.progress, self.readout
        best_state: State | None = None
        number = progress.step
        portions = self.feed.epoch(progress.epoch, self.share, skip=progress.step_in_epoch)

        def prepared(portion: Portion) -> list[MicroBatch]:
            nonlocal number
            number += 1
            return self.mover.micro_batches(portion, number)

        steps = ahead(portions, prepared)
        trained = False
        while True:
            with readout.timed("data_wait"):
                following = next(steps, None)
            if following is None:
                break
            portion, micro_batches, last = following
            trained = True
            with readout.timed("step"):
                output = self._step(micro_batches)
            readout.rows(portion.rows)
            metrics = self._taken(output)
            ends = last or self._at_end()
            progress.epoch, progress.step_in_epoch = (
                (progress.epoch + 1, 0) if last else (progress.epoch, progress.step_in_epoch + 1)
            )
            if self.schedule is not None and (self.schedule_every == "step" or last):
                self.schedule.step()
            if ends or (self.limits.evaluate_every and progress.step % self.limits.evaluate_every == 0):
                found, improved = self._look(watch, metrics)
                metrics |= found
                if keep_best and improved:
                    best_state = copy.deepcopy(dict(self.replica.state_dict()))
            with readout.timed("report"):
                self.session.report(progress.step, metrics, rows=portion.rows, of=self._steps_in_all())
            if self._at_end() or watch.exhausted:
                return best_state
        if not trained:
            raise UserError("the data has no rows" if progress.step_in_epoch == 0 else "the data has fewer rows than before")
        return best_state

    def _step(self, micro_batches: list[MicroBatch]) -> StepOutput:
        try:
            if self.statistics is not None:
                return self.statistics.step(self.progress.step + 1, micro_batches, self.replica.train_step)
            return self.replica.train_step(micro_batches)
        except AlgorithmError as error:
            error.message = f"step {self.progress.step + 1}: {error.message}"
            error.args = (error.message,)
            raise

    def _taken(self, output: StepOutput) -> dict[str, float]:
        """Count a step and return its metrics.

        Raises:
            AlgorithmError: the loss is not finite.
        """
        progress = self.progress
        if output.applied and not math.isfinite(output.loss):
            raise AlgorithmError(f"step {progress.step + 1}: the loss is {output.loss}: look at the learning rate and the data")
        progress.step += 1
        progress.history.losses.append(output.loss)
        if self.average is not None and output.applied:
            self.average.update()
        metrics = {"train:loss": output.loss}
        if output.grad_norm is not None:
            metrics["train:grad_norm"] = output.grad_norm
        return metrics

    def _look(self, watch: Watch, metrics: Mapping[str, float]) -> tuple[dict[str, float], bool]:
        """Evaluate, keep the history, follow the watched metric; return the new metrics, and whether they are the best."""
        progress = self.progress
        found: dict[str, float] = {}
        if self.evaluation is not None:
            with self.readout.timed("evaluation"):
                found = {f"validation:{name}": value for name, value in self.evaluation().items()}
        found |= self.readout.read()
        found["train:learning_rate"] = float(self.replica.optimizer.param_groups[0]["lr"])
        record = {"step": progress.step, "epoch": progress.epoch, **metrics, **found}
        progress.history.evaluations.append(record)
        improved = self.evaluation is not None and watch.see(record)
        if improved:
            progress.history.best = record
        progress.best, progress.waited = watch.best, watch.waited
        progress.history.stopped_early = watch.exhausted
        return found, improved

    def _at_end(self) -> bool:
        return self.limits.steps is not None and self.progress.step - self.progress.steps_before >= self.limits.steps

    def _done(self, watch: Watch) -> bool:
        finished = self.limits.epochs is not None and self.progress.epoch >= self.limits.epochs
        return finished or self._at_end() or watch.exhausted

    def _steps_in_all(self) -> int | None:
        if self.limits.steps is not None:
            return self.progress.steps_before + self.limits.steps
        if self.feed.steps is None or self.limits.epochs is None:
            return None
        return self.progress.steps_before + self.feed.steps * self.limits.epochs
