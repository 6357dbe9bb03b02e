"""DeepAR's training: windows drawn at random from all series, gradients added over the ranks, Adam.

What a step draws is a function of seed and step alone, so that a state needs no generators. Ranks take their run of every
global batch of windows; sums over ranks depend on how many there are, beyond that runs are equal to the bit.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts import Array, Entry, Session, State
from ...errors import UserError
from .calendar import Frequency
from .hyperparameters import DeepARHyperparameters
from .lstm import Runner
from .network import Network
from .reading import Shape
from .series import Series
from .step import Loss, Share, Stepper
from .windows import Prepared

_SLOWEST = 0.01  # of the learning rate, at the end
_BATCHES = 50
_MEMORY = 0.99  # of the average of the weights: the last hundred steps or so


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

    def __init__(
        self, session: Session, wanted: DeepARHyperparameters, series: list[Series], shape: Shape, runner: Runner
    ) -> None:
        usable = [one for one in series if len(one.target) > wanted.prediction_length and not np.isnan(one.target).all()]
        if not usable:
            raise UserError(
                f"channel 'train' has no series longer than prediction_length={wanted.prediction_length} with values in it"
            )
        self._world, self._seed = session.world, session.seed
        self._wanted = wanted
        self._prepared = Prepared(usable, Frequency.parse(wanted.time_freq), wanted.context_length, wanted.prediction_length)
        self.network = make_network(wanted, shape, self._prepared.width, session.seed)
        self._stepper = Stepper(Loss(self.network, wanted, runner), wanted, session.world, session.device, session.seed)
        auto = max(_BATCHES, -(-len(usable) // wanted.mini_batch_size))
        self.per_epoch = auto if wanted.batches_per_epoch == "auto" else wanted.batches_per_epoch
        self.steps = wanted.epochs * self.per_epoch
        self.step = 0
        self._average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self._seen = [np.unique(column) for column in self._prepared.cat.T]  # values of each category that occur
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
        loss = self._stepper.step(self._share(), self._wanted.learning_rate * self._speed())
        self.step += 1
        memory = min(_MEMORY, self.step / (9 + self.step))  # the first steps count less, the fewer there are of them
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self.network.state_dict().values()), 1 - memory)
        self._sum += loss
        metrics = {"train:loss:batch": loss}
        if self.step % self.per_epoch == 0:
            self.loss = self._sum / self.per_epoch
            self._sum = 0.0
            metrics["train:loss"] = self.loss
            self._judge()
        return metrics

    def finish(self) -> None:
        """Take the averaged weights (Polyak and Juditsky, 1992), of the best epoch where that was asked for.

        A value of a category that occurs in no series gets the mean of what those that occur have learned.
        """
        self.network.load_state_dict(self._average if self._best is None else self._best)
        self.loss = self.loss if self._best is None else self._best_loss
        with torch.no_grad():
            for table, seen in zip(self.network.embeddings, self._seen, strict=True):
                assert isinstance(table, nn.Embedding)
                others = np.setdiff1d(np.arange(table.num_embeddings), seen)
                table.weight[others] = table.weight[seen].mean(dim=0)

    def close(self) -> None:
        """Give back what the strategy holds."""
        self._stepper.close()

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
        state |= {f"average/{name}": Entry(_copy(value)) for name, value in self._average.items()}
        for number, parameter in enumerate(self.network.parameters()):
            moments = self._stepper.optimizer.state.get(parameter, {})
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
                self._stepper.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": first[str(number)],
                    "exp_avg_sq": second[str(number)],
                }
        self._average = _named(state, "average/")
        self._best = _named(state, "best/") or None

    def _share(self) -> Share:
        """Return this rank's run of the windows of a global batch; what is drawn follows from seed and step."""
        generator = np.random.default_rng([self._seed, self.step])
        series, begin = self._chosen(generator)
        count = len(series)
        keys = generator.integers(1 << 32, size=count, dtype=np.uint32)
        known = self._prepared.known(series, begin)
        own = np.array_split(np.arange(count), self._world.size)[self._world.rank]
        weight = known[own].sum() / max(known.sum(), 1)
        own = own if len(own) else np.zeros(1, dtype=np.int64)  # stands in, with a weight of 0
        return Share(self._prepared.windows(series[own], begin[own]), keys[own], float(weight))

    def _chosen(self, generator: np.random.Generator) -> tuple[Array, Array]:
        """Return the series and begins of a global batch of windows, which end within their series."""
        count = self._wanted.mini_batch_size
        series = generator.integers(len(self._prepared.lengths), size=count)
        last = self._prepared.lengths[series] - self._wanted.prediction_length
        return series, 1 + (generator.random(count) * last).astype(np.int64)

    def _speed(self) -> float:
        """Return the share of the learning rate: all of it in the first half, then falling along a line."""
        gone = self.step / self.steps
        return 1.0 if gone < 0.5 else _SLOWEST + (1 - _SLOWEST) * 2 * (1 - gone)

    def _judge(self) -> None:
        if self._wanted.early_stopping_patience is None:
            return
        if self.loss < self._best_loss:
            self._best_loss, self._waited = self.loss, 0
            self._best = {name: value.clone() for name, value in self._average.items()}
        else:
            self._waited += 1


def make_network(wanted: DeepARHyperparameters, shape: Shape, width: int, seed: int) -> Network:
    """Return a network for series of a shape, with new weights."""
    lags = len(Frequency.parse(wanted.time_freq).lags())
    layers, cells, likelihood = wanted.num_layers, wanted.num_cells, wanted.likelihood
    return Network(width, lags, shape.cardinality, wanted.embedding_dimension, layers, cells, likelihood, seed)


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
