"""DeepAR's training: windows drawn at random from all series, gradients added over the ranks, Adam.

What a step draws is a function of seed and step alone, so that a state needs no generators. Ranks take their run of every
global batch of windows; sums over ranks depend on how many there are, beyond that runs are equal to the bit.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts import Array, Entry, Session, State
from ..errors import UserError
from .deepar_calendar import Frequency
from .deepar_hyperparameters import DeepARHyperparameters
from .deepar_lstm import Dropout, Runner
from .deepar_network import Network, negative_log_likelihood
from .deepar_reading import Shape
from .deepar_series import Series
from .deepar_windows import Prepared

_CLIP = 10.0  # largest norm of a gradient
_SLOWEST = 0.01  # of the learning rate, at the end
_BATCHES = 50


@final
class Training:
    """What changes from step to step; every method but the states' is Collective.

    Args:
        session: of the job.
        wanted: hyperparameters.
        series: of channel train.
        shape: what they have in common.
        runner: that the network's layers are computed with.

    Raises:
        UserError: no series is long enough.
    """

    def __init__(self, session: Session, wanted: DeepARHyperparameters, series: list[Series], shape: Shape, runner: Runner) -> None:
        usable = [one for one in series if len(one.target) > wanted.prediction_length and not np.isnan(one.target).all()]
        if not usable:
            raise UserError(
                f"channel 'train' has no series longer than prediction_length={wanted.prediction_length} with values in it"
            )
        self._world, self._seed = session.world, session.seed
        self._runner = runner
        self._wanted = wanted
        self._prepared = Prepared(usable, Frequency.parse(wanted.time_freq), wanted.context_length, wanted.prediction_length)
        self.network = make_network(wanted, shape, self._prepared.width, session.seed)
        self._adam = torch.optim.Adam(self.network.parameters(), lr=wanted.learning_rate, fused=True)
        auto = max(_BATCHES, -(-len(usable) // wanted.mini_batch_size))
        self.per_epoch = auto if wanted.batches_per_epoch == "auto" else wanted.batches_per_epoch
        self.steps = wanted.epochs * self.per_epoch
        self.step = 0
        self._sum = 0.0  # of the losses of this epoch
        self._best: dict[str, Tensor] | None = None
        self._best_loss, self._waited = float("inf"), 0
        self.loss = float("nan")  # of the last whole epoch

    @property
    def done(self) -> bool:
        """Whether there is nothing more to learn."""
        patience = self._wanted.early_stopping_patience
        return self.step >= self.steps or (patience is not None and self._waited >= patience)

    def learn(self) -> dict[str, float]:
        """Collective. Do one step; return its metrics."""
        wanted, parameters = self._wanted, list(self.network.parameters())
        generator = np.random.default_rng([self._seed, self.step])
        count = wanted.mini_batch_size
        series = generator.integers(len(self._prepared.lengths), size=count)
        last = self._prepared.lengths[series] - wanted.prediction_length  # windows end within the series
        begin = 1 + (generator.random(count) * last).astype(np.int64)
        keys = generator.integers(1 << 32, size=count, dtype=np.uint32)
        own = np.array_split(np.arange(count), self._world.size)[self._world.rank]
        total, known = self._gradients(series[own], begin[own], keys[own])
        flat = np.concatenate([_gradient(p).ravel() for p in parameters] + [np.array([total, known])]).astype(np.float64)
        flat = self._world.all_reduce(flat)
        share = 1 / max(float(flat[-1]), 1.0)
        loss = float(flat[-2]) * share
        place = 0
        for parameter in parameters:
            size = parameter.numel()
            found = (flat[place : place + size] * share).astype(np.float32).reshape(parameter.shape)
            parameter.grad = torch.from_numpy(found)
            place += size
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        for group in self._adam.param_groups:
            group["lr"] = wanted.learning_rate * self._speed()
        self._adam.step()
        self.step += 1
        self._sum += loss
        metrics = {"train:loss:batch": loss}
        if self.step % self.per_epoch == 0:
            self.loss = self._sum / self.per_epoch
            self._sum = 0.0
            metrics["train:loss"] = self.loss
            self._judge()
        return metrics

    def finish(self) -> None:
        """Take the best epoch's network, where that was asked for."""
        if self._best is not None:
            self.network.load_state_dict(self._best)
            self.loss = self._best_loss

    def state_dict(self) -> State:
        """Return what the next step depends on."""
        state = {
            "step": Entry(self.step),
            "sum": Entry(self._sum),
            "loss": Entry(_or_none(self.loss)),
            "best_loss": Entry(_or_none(self._best_loss)),
            "waited": Entry(self._waited),
        }
        state |= {f"network/{name}": Entry(_copy(value)) for name, value in self.network.state_dict().items()}
        for number, parameter in enumerate(self.network.parameters()):
            moments = self._adam.state.get(parameter, {})
            if moments:
                state[f"first/{number}"] = Entry(_copy(moments["exp_avg"]))
                state[f"second/{number}"] = Entry(_copy(moments["exp_avg_sq"]))
        if self._best is not None:
            state |= {f"best/{name}": Entry(_copy(value)) for name, value in self._best.items()}
        return state

    def load_state_dict(self, state: State) -> None:
        """Go back to a state.

        Raises:
            UserError: it is of another network.
        """
        network = _named(state, "network/")
        if {n: v.shape for n, v in network.items()} != {n: v.shape for n, v in self.network.state_dict().items()}:
            raise UserError("the checkpoint is of a network of another shape: its hyperparameters or categories are not these")
        self.network.load_state_dict(network)
        self.step, self._sum = int(state["step"].value), float(state["sum"].value)
        self.loss, self._best_loss = (
            missing if state[name].value is None else float(state[name].value)
            for name, missing in (("loss", float("nan")), ("best_loss", float("inf")))
        )
        self._waited = int(state["waited"].value)
        first, second = _named(state, "first/"), _named(state, "second/")
        for number, parameter in enumerate(self.network.parameters()):
            if str(number) in first:
                self._adam.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": first[str(number)],
                    "exp_avg_sq": second[str(number)],
                }
        self._best = _named(state, "best/") or None

    def _gradients(self, series: Array, begin: Array, keys: Array) -> tuple[float, float]:
        """Leave the gradients of the summed loss of some windows; return that and how many values it is over."""
        wanted, network = self._wanted, self.network
        network.zero_grad(set_to_none=True)
        if not len(series):
            return 0.0, 0.0
        windows = self._prepared.windows(series, begin)
        inputs, static, cat = (torch.from_numpy(part) for part in (windows.inputs, windows.static, windows.cat))
        parameters = network(inputs, static, cat, Dropout(wanted.dropout_rate, keys), self._runner)
        scale = torch.from_numpy(windows.scale).expand(len(inputs), -1)
        losses = negative_log_likelihood(wanted.likelihood, parameters, torch.from_numpy(windows.target), scale)
        weight = torch.from_numpy(windows.observed)
        total = (losses * weight).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach()), float(weight.sum())

    def _speed(self) -> float:
        """Return the share of the learning rate: all of it in the first half, then falling along a line."""
        gone = self.step / self.steps
        return 1.0 if gone < 0.5 else _SLOWEST + (1 - _SLOWEST) * 2 * (1 - gone)

    def _judge(self) -> None:
        if self._wanted.early_stopping_patience is None:
            return
        if self.loss < self._best_loss:
            self._best_loss, self._waited = self.loss, 0
            self._best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        else:
            self._waited += 1


def make_network(wanted: DeepARHyperparameters, shape: Shape, width: int, seed: int) -> Network:
    """Return a network for series of a shape, with new weights."""
    return Network(
        width, shape.cardinality, wanted.embedding_dimension, wanted.num_layers, wanted.num_cells, wanted.likelihood, seed
    )


def _gradient(parameter: nn.Parameter) -> Array:
    if parameter.grad is None:
        return np.zeros(parameter.shape, dtype=np.float32)
    found: Array = parameter.grad.numpy()
    return found


def _named(state: State, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(np.array(entry.value))
        for name, entry in state.items()
        if name.startswith(prefix)
    }


def _copy(value: Tensor) -> Array:
    found: Array = value.detach().cpu().numpy().copy()
    return found


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
