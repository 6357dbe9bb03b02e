"""`Trainer`: a torch module, its loss and optimizer, trained by any strategy; the strategy is one argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, final

import torch

from .. import environment, observing
from ..contracts import Entry, Recipe, Replica, Session, State, Strategy
from ..errors import UserError
from ..parallel import connections
from ..parallel.exact import Exact
from ..parallel.failure import shared_failure
from ..parallel.strategies import strategy_of
from .batches import Mover
from .ema import Average
from .evaluating import evaluate, predict
from .feeding import Collate, Loading, Share
from .fitting import Fit, Limits, Progress
from .history import EarlyStopping, History
from .readout import Readout
from .script import session as current_session
from .sources import feed_of
from .statistics import Statistics

MakeOptimizer = Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
Metric = Callable[[Any, Any], Any]
_PRECISIONS = ("fp32", "bf16", "fp16")
_AVERAGED = ("single", "ddp", "exact", "horovod", "fsdp", "tensor")


@final
class Trainer:
    """Trains a module on the ranks of this session, which may be one.

    Args:
        module: what to train; for a pipeline an `nn.Sequential` or a list of layers. All ranks build the same one.
        loss: `loss(output, target)` -> mean over the rows, as torch's; None: the module takes the whole batch, a tuple as its
            arguments and a mapping as keywords, and returns its loss (a scalar, `.loss` or `["loss"]`).
        optimizer: makes the optimizer of the parameters, e.g. `lambda params: torch.optim.AdamW(params, lr=3e-4)`.
        strategy: a name (single, ddp, exact, horovod, zero1, zero2, zero3, fsdp, pipeline, tensor, auto) or an object of
            `phalanx.parallel`; default: ddp, or single on one rank. `phalanx run --strategy` wins over it.
        precision: of the computation; weights stay in fp32. fp16 scales the loss.
        accumulate: micro-batches that a rank computes for one step, to save memory; the result is that of one large batch.
        clip_norm: largest 2-norm of the global gradient; `math.inf` measures it without clipping.
        schedule: makes a learning rate schedule of the optimizer.
        schedule_every: whether the schedule goes on every step or every epoch.
        compile: run the module through `torch.compile`.
        seed: of row order and of all random numbers of the training.
        deterministic: make torch refuse operations whose result varies from run to run.
        activation_checkpointing: compute activations of repeated blocks again in the backward pass, to save memory.
        channels_last: lay images out with their channels last.
        ema: decay of an exponential moving average of the weights, which evaluation and export then use; None for none.
        metrics: name -> function(output, target) -> mean over the rows, computed in every evaluation.
        flops_per_row: floating point operations to learn from one row, for the readout.
        peak_flops: that all devices of the group together can do in a second, for the readout of MFU.
        session: what the training reports to; default: `phalanx.session()`.

    Raises:
        UserError: a value is not allowed.
    """

    def __init__(
        self,
        module: torch.nn.Module | Sequence[torch.nn.Module],
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        *,
        optimizer: MakeOptimizer,
        strategy: str | Strategy | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        accumulate: int = 1,
        clip_norm: float | None = None,
        schedule: MakeSchedule | None = None,
        schedule_every: Literal["step", "epoch"] = "step",
        compile: bool = False,
        seed: int | None = None,
        deterministic: bool = False,
        activation_checkpointing: bool = False,
        channels_last: bool = False,
        ema: float | None = None,
        metrics: Mapping[str, Metric] | None = None,
        flops_per_row: float | None = None,
        peak_flops: float | None = None,
        session: Session | None = None,
    ) -> None:
        self.module = _module(module)
        self.session: Session = current_session() if session is None else session
        self.world = self.session.world
        _one_of("precision", precision, _PRECISIONS)
        _one_of("schedule_every", schedule_every, ("step", "epoch"))
        _whole("accumulate", accumulate)
        if clip_norm is not None and not (isinstance(clip_norm, (int, float)) and clip_norm > 0):
            raise UserError(f"clip_norm={clip_norm!r} is not allowed: it must be above 0, or None")
        if isinstance(loss, torch.nn.Module) and next(loss.parameters(), None) is not None:
            raise UserError("the loss has parameters of its own: make it part of the module and give loss=None")
        if deterministic:
            torch.use_deterministic_algorithms(True)
        chosen = environment.get(environment.STRATEGY) or strategy or ("ddp" if self.world.size > 1 else "single")
        self.strategy = strategy_of(chosen)
        if ema is not None and self.strategy.name not in _AVERAGED:
            raise UserError(f"ema is not there for strategy '{self.strategy.name}'; it is for {', '.join(_AVERAGED)}")
        self._evaluation_pieces = 1
        if isinstance(self.strategy, Exact):
            if accumulate != 1:
                raise UserError("strategy 'exact' has micro_batches in place of accumulate")
            accumulate = self._evaluation_pieces = self.strategy.share(self.world.size)
        device = torch.device(self.session.device)
        if channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(loss, torch.nn.Module):
            loss.to(device)
        self.seed = self.session.seed if seed is None else seed
        self._recipe = Recipe(
            module=self.module,
            loss=loss,
            make_optimizer=_checked(optimizer),
            device=device,
            precision=precision,
            accumulate=accumulate,
            clip_norm=None if clip_norm is None else float(clip_norm),
            compile=compile,
            activation_checkpointing=activation_checkpointing,
            seed=self.seed,
        )
        self._make_schedule, self._schedule_every = schedule, schedule_every
        self._ema_decay = ema
        self._metrics = dict(metrics or {})
        if self._metrics and loss is None:
            raise UserError("metrics compare the module's output with a target: they need a loss function")
        self._mover = Mover(device, seed=self.seed, has_loss=loss is not None, channels_last=channels_last)
        self._readout = Readout(flops_per_row, peak_flops)
        self._replica: Replica | None = None
        self._average: Average | None = None
        self._schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self._progress = Progress()
        self._batch_size: int | None = None
        self._restored = False
        self._statistics: Statistics | None = None

    @property
    def replica(self) -> Replica:
        """Collective at its first use. The module as the strategy trains it on this rank."""
        if self._replica is None:
            with connections.groups.noted():
                self._replica = self.strategy.prepare(self._recipe, self.world)
            if self._ema_decay is not None:
                self._average = Average(self.module, self._ema_decay)
            if self._make_schedule is not None:
                self._schedule = self._make_schedule(self._replica.optimizer)
        return self._replica

    @property
    def step(self) -> int:
        """Steps done so far, over all fits."""
        return self._progress.step

    def fit(
        self,
        train: Any,
        *,
        validation: Any = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        drop_last: bool = False,
        collate: Collate | None = None,
        processes: int = 0,
        evaluate_every: int | None = None,
        early_stopping: EarlyStopping | None = None,
        keep_best: bool = False,
        best: str = "validation:loss",
        best_mode: Literal["min", "max"] = "min",
    ) -> History:
        """Collective. Train; return what it came to.

        Args:
            train: a Dataset, DataLoader, channel of `phalanx.session()`, tensor or tuple of tensors. Batches are
                (inputs, target). Samplers, workers and collate functions of a loader are used; rows are spread here.
            validation: the same, to evaluate on; at the end of every epoch, or every `evaluate_every` steps.
            epochs: passes over the data; default 1 unless `steps` is given.
            steps: updates in all, instead of epochs.
            batch_size: rows of a global batch, over all ranks; default: the loader's.
            shuffle: a new order every epoch; default: yes, or as the loader has it. The order is a function of seed and epoch.
            drop_last: leave out a last batch that is not full.
            collate: makes a batch of a list of samples, or of a `phalanx.Batch` of a channel.
            processes: that fetch ahead; 0: this one fetches.
            evaluate_every: steps between evaluations; default: every epoch.
            early_stopping: when to stop before the end.
            keep_best: put the weights (and optimizer) of the best evaluation back at the end.
            best: the metric that says which evaluation is best; early stopping brings its own.
            best_mode: whether smaller or larger is better.

        Raises:
            UserError: wrong arguments, data or module, on every rank.
            AlgorithmError: the loss is no finite number; says at which step and rank.
            Stopped: the job was asked to stop.
        """
        if epochs is not None:
            _whole("epochs", epochs)
        if steps is not None:
            _whole("steps", steps)
        if epochs is not None and steps is not None:
            raise UserError("give epochs or steps, not both")
        if evaluate_every is not None:
            _whole("evaluate_every", evaluate_every)
        if validation is None and (evaluate_every is not None or early_stopping is not None or keep_best):
            raise UserError("evaluate_every, early_stopping and keep_best need validation data")
        loading = Loading(batch_size, shuffle, drop_last, collate, processes)
        with shared_failure(self.world):
            feed = feed_of(train, loading, seed=self.seed, training=True)
            self._batch_size = batch_size or self._batch_size
            replica = self.replica
            if not self._restored:
                self._restored = True
                self.session.restore({"trainer": self})
            evaluation = None
            if validation is not None:
                evaluation = lambda: self.evaluate(validation, batch_size=batch_size, collate=collate)  # noqa: E731
            limits = Limits(None if steps is not None else epochs or 1, steps, evaluate_every)
            fit = Fit(
                replica=replica,
                session=self.session,
                mover=self._mover,
                feed=feed,
                share=Share(replica.data_rank, replica.data_size, self._recipe.accumulate),
                limits=limits,
                progress=self._progress,
                readout=self._readout,
                evaluation=evaluation,
                average=self._average,
                schedule=self._schedule,
                schedule_every=self._schedule_every,
                statistics=self._looked_at(replica),
            )
            return fit.run(early_stopping, keep_best, best, best_mode)

    def evaluate(self, data: Any, *, batch_size: int | None = None, collate: Collate | None = None) -> dict[str, float]:
        """Collective. Return {"loss": mean loss over all rows, name: every metric}; the module learns nothing from it."""
        loading = Loading(batch_size or self._batch_size, False, collate=collate)
        with shared_failure(self.world), self._averaged():
            feed = feed_of(data, loading, seed=self.seed, training=False)
            return evaluate(self.replica, feed, self._evaluation_share(), self._mover, self._recipe, self._metrics, self.world)

    def predict(self, data: Any, *, batch_size: int | None = None, collate: Collate | None = None) -> Any:
        """Collective. Return the module's outputs for all rows, in their order, on every rank, on the CPU.

        Args:
            data: as for `fit`; targets in (inputs, target) are passed over.
            batch_size: rows of a global batch; default: that of the last fit.
            collate: as for `fit`.
        """
        loading = Loading(batch_size or self._batch_size or 256, False, collate=collate)
        with shared_failure(self.world), self._averaged():
            feed = feed_of(data, loading, seed=self.seed, training=False)
            return predict(self.replica, feed, self._evaluation_share(), self._mover, self._recipe, self.world)

    def export(self, folder: str | Path | None = None) -> Path | None:
        """Collective. Write the full weights as `model.safetensors`; return its path on rank 0, None on others.

        Args:
            folder: where to; default: the job's model folder (SM_MODEL_DIR), from which the artifact is made.
        """
        from safetensors.torch import save_file

        with shared_failure(self.world), self._averaged():
            weights = self.replica.export()
        if weights is None:
            return None
        place = Path(folder or environment.get("SM_MODEL_DIR") or "model")
        place.mkdir(parents=True, exist_ok=True)
        path = place / "model.safetensors"
        save_file(weights, path, metadata={"format": "pt"})
        return path

    def state_dict(self) -> State:
        """Collective. Return everything that goes on: weights, optimizer, schedule, average, position, history."""
        state: dict[str, Entry] = dict(self.replica.state_dict())
        state["progress"] = Entry(self._progress.to_json())
        if self._schedule is not None:
            plain = {k: v for k, v in self._schedule.state_dict().items() if _is_json(v)}
            state["schedule"] = Entry(plain)
        if self._average is not None:
            state |= self._average.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        """Collective. Put back what `state_dict` returned."""
        self.replica.load_state_dict(state)
        self._progress.load_json(_mapping(state["progress"].value))
        if self._schedule is not None and "schedule" in state:
            self._schedule.load_state_dict(dict(_mapping(state["schedule"].value)))
        if self._average is not None:
            self._average.load_state_dict(state)

    def close(self) -> None:
        """Give back what the strategy holds. Safe to call twice."""
        if self._replica is not None:
            self._replica.close()
            self._replica = self._statistics = None

    def _looked_at(self, replica: Replica) -> Statistics | None:
        """Return what takes the statistics that the job's rules want, None where they want none."""
        wanted = any(observing.now.wants(kind) for kind in ("tensors", "labels"))
        if wanted and self._statistics is None:
            self._statistics = Statistics(
                self.module, replica.optimizer, strategy=self.strategy.name, compiled=self._recipe.compile
            )
        return self._statistics if wanted else None

    def _evaluation_share(self) -> Share:
        return Share(self.replica.data_rank, self.replica.data_size, self._evaluation_pieces)

    def _averaged(self) -> AbstractContextManager[Any]:
        self.replica  # noqa: B018 - the average is made with it
        return nullcontext() if self._average is None else self._average.in_place()


def _module(given: Any) -> torch.nn.Module:
    if isinstance(given, torch.nn.Module):
        return given
    if isinstance(given, (list, tuple)) and given and all(isinstance(layer, torch.nn.Module) for layer in given):
        return torch.nn.Sequential(*given)
    raise UserError(f"module must be a torch.nn.Module or a list of them, not {type(given).__name__}")


def _checked(make: MakeOptimizer) -> MakeOptimizer:
    example = "optimizer=lambda params: torch.optim.AdamW(params, lr=3e-4)"
    if isinstance(make, torch.optim.Optimizer) or not callable(make):
        raise UserError(f"optimizer must be a function of the parameters, as the strategy chooses them: {example}")

    def made(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        found = make(parameters)
        if not isinstance(found, torch.optim.Optimizer):
            raise UserError(f"optimizer(params) returned {type(found).__name__}, no torch optimizer: {example}")
        return found

    return made


def _is_json(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_json(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError("the saved state is not a Trainer's")
    return value


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r} is not allowed; allowed: {', '.join(allowed)}")


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value!r} is not allowed: it must be a whole number of at least 1")
