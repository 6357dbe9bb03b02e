"""Training of word vectors: skipgram, batch_skipgram, cbow."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np

from ...contracts import Array, Session
from ..kernels.blazingtext import learn_means, learn_windows
from .corpus import count_channel, lines_of_step, pieces, runs, train_channel, turns_of_steps
from .exchange import Exchange
from .hyperparameters import BlazingTextHyperparameters
from .model import Model, expanded, reachable, started, stride_of
from .vocabulary import Vocabulary, merged

_PIECE = 1 << 14  # tokens that a thread takes at once
_PIECE_OF_TURN = 1 << 12  # likewise, where ranks exchange rows between
# Tokens of a turn, after which ranks exchange common rows: one for each four words, within these.
_TURN = 1 << 7, 1 << 14
_WHOLE = 1 << 19  # tokens of a rank, after which all rows are exchanged
# What outputs, which start at zero, learn faster, over the epochs: one pass is too short for them else.
_BOOSTS = {"skipgram": 1.5, "batch_skipgram": 0.75, "cbow": 3.0}
_POWER = 0.75  # of the counts, for negatives; Mikolov et al., 2013


@final
class VectorTraining:
    """Collective. Reads the channel, counts words, and is ready to learn step by step.

    Args:
        session: what fit was given.
        wanted: the hyperparameters.

    Attributes:
        model: that learns.
        steps: of the whole job.
    """

    def __init__(self, session: Session, wanted: BlazingTextHyperparameters) -> None:
        self._session, self._wanted = session, wanted
        train = train_channel(session)
        self._lines = lines_of_step(train, wanted.lines_per_step)
        self._rows = train.rows
        self._per_epoch = -(-train.rows // self._lines)
        self.steps = self._per_epoch * wanted.epochs
        self._exchange: Exchange | None = None  # made when learning begins, from what a checkpoint may have put back
        table, self._spill = count_channel(session, "train", train, self._lines, shuffle=False)
        try:
            vocabulary, self._numbers = merged(session.world, table, wanted.min_count, classifies=False, lines=train.rows)
            del table
            self.model = _begun(vocabulary, wanted, session.seed)
            self._keep = chances(vocabulary.counts, wanted.sampling_threshold)
            self._alias = alias_table(vocabulary.counts.astype(np.float64) ** _POWER)
            self._parts = expanded(vocabulary, wanted, self.model.rows_of_buckets())
            self._learn = self._kernel()
            turn = min(max(len(vocabulary) // 4, _TURN[0]), _TURN[1])
            self._turns, self._work = turns_of_steps(session.world, self._spill.lengths(), turn)
        except BaseException:
            self._spill.close()
            raise

    def learn(self, step: int) -> tuple[dict[str, float], int]:
        """Collective. Do step `step`, counted from 0; return its metrics and lines."""
        number = step % self._per_epoch
        world, rate = self._session.world, self._wanted.learning_rate
        tokens = self._numbers[self._spill[number][0]]
        generator = np.random.Generator(
            np.random.Philox(key=[self._session.seed & (2**64 - 1), step * world.size + world.rank])
        )
        exchange = self.exchange()
        found, turns = np.zeros(3), int(self._turns[number])
        for turn, run in enumerate(runs(tokens, turns)):
            first, last = (rate * (1 - (step + (turn + after) / turns) / self.steps) for after in (0, 1))
            found += self._learn_run(run, first, last, generator)
            if exchange is None:
                continue
            exchange.turn(turn + 1, self._work[number] / turns, first)
        if exchange is not None:
            exchange.mark([self._touched(tokens), None])
            exchange.end_step(_WHOLE, last=number == self._per_epoch - 1)
            found = world.all_reduce(found)
        metrics = {"train:loss": float(found[0] / found[1])} if found[1] else {}
        return metrics, min(self._lines, self._rows - number * self._lines)

    def exchange(self) -> Exchange | None:
        """Collective. Return what brings ranks together, where there are several."""
        world, model = self._session.world, self.model
        if world.size > 1 and self._exchange is None:
            self._exchange = Exchange(world, [model.inputs, model.outputs], self._updates(), self._wanted.vector_dim)
        return self._exchange

    def _learn_run(self, tokens: Array, first: float, last: float, generator: np.random.Generator) -> Array:
        """Learn from a run of tokens, the threads from a piece each; return what kernels return."""
        parts = pieces(tokens, _PIECE if self._session.world.size == 1 else _PIECE_OF_TURN)
        seeds = generator.integers(1, 2**63, len(parts), dtype=np.uint64)
        done = np.concatenate([[0], np.cumsum([len(part) for part in parts])]) / max(len(tokens), 1)
        rates = first + (last - first) * done
        given = parts, rates[:-1], rates[1:], seeds
        if self._session.threads == 1 or len(parts) == 1:
            found = list(map(self._learn, *given))
        else:
            with ThreadPoolExecutor(self._session.threads) as threads:
                found = list(threads.map(self._learn, *given))
        total: Array = np.sum(found or [np.zeros(3)], axis=0)
        return total

    def close(self) -> None:
        """Give the files back."""
        self._spill.close()

    def _updates(self) -> list[Array]:
        """Return the updates that a word of text brings each row of inputs and outputs; see `Exchange`."""
        wanted, counts = self._wanted, self.model.vocabulary.counts
        kept = counts / counts.sum() * (self._keep / 2**32)
        weights = counts.astype(np.float64) ** _POWER
        outputs = kept + kept.sum() * wanted.negative_samples * weights / weights.sum()
        inputs = np.zeros(len(self.model.inputs))
        indptr, rows = self._parts
        np.add.at(inputs, rows, np.repeat(kept, np.diff(indptr)))
        contexts = wanted.window_size + 1  # of a word, in the mean
        boost = 1 + _BOOSTS[wanted.mode] / wanted.epochs
        return [inputs * contexts, outputs * boost / (contexts if wanted.mode == "cbow" else 1)]

    def _touched(self, tokens: Array) -> Array:
        """Return the rows of inputs that tokens may move."""
        seen = np.zeros(len(self.model.vocabulary), bool)
        seen[tokens[tokens >= 0]] = True
        indptr, rows = self._parts
        found: Array = rows[np.repeat(seen, np.diff(indptr))]
        return found

    def _kernel(self) -> Callable[[Array, float, float, np.uint64], Array]:
        wanted, model = self._wanted, self.model
        shared = (model.inputs, model.outputs, self._keep, self._alias, wanted.window_size, wanted.negative_samples)
        boost = _BOOSTS[wanted.mode]
        faster = np.float32(1 + boost / wanted.epochs)
        if wanted.mode == "cbow" or wanted.subwords:
            indptr, rows = self._parts
            cbow = wanted.mode == "cbow"
            return lambda tokens, first, last, seed: learn_means(tokens, *shared, cbow, faster, first, last, seed, indptr, rows)
        batch = wanted.batch_size if wanted.mode == "batch_skipgram" else 1
        return lambda tokens, first, last, seed: learn_windows(tokens, *shared, batch, faster, first, last, seed)


def _begun(vocabulary: Vocabulary, wanted: BlazingTextHyperparameters, seed: int) -> Model:
    """Return a model before the first step."""
    buckets = reachable(vocabulary, wanted) if wanted.subwords else np.empty(0, np.int32)
    outputs = np.zeros((len(vocabulary), stride_of(wanted.vector_dim)), np.float32)
    return Model(wanted, vocabulary, buckets, started(len(vocabulary) + len(buckets), wanted.vector_dim, seed), outputs)


def chances(counts: Array, threshold: float) -> Array:
    """Return the chance that an occurrence of each word is kept, times 2^32, (V,) uint32."""
    ratio = threshold * counts.sum() / counts
    found: Array = np.minimum((np.sqrt(ratio) + ratio) * 2**32, 2**32 - 1).astype(np.uint32)
    return found


def alias_table(weights: Array) -> Array:
    """Return a table to draw from in constant time (Walker 1977; Vose 1991).

    Args:
        weights: (V,), how likely each is.

    Returns:
        (V, 2) uint32: the chance of the place's own number times 2^32, and the number that shares the place.
    """
    share: Array = weights / weights.sum() * len(weights)
    table = np.empty((len(weights), 2), np.uint32)
    own = np.minimum(share, 1.0)
    other = np.arange(len(weights))
    small, large = np.flatnonzero(share < 1).tolist(), np.flatnonzero(share >= 1).tolist()
    left = share.tolist()
    while small and large:
        low, high = small.pop(), large[-1]
        own[low], other[low] = left[low], high
        left[high] -= 1 - left[low]
        if left[high] < 1:
            small.append(large.pop())
    for rest in (*small, *large):  # what rounding left over
        own[rest] = 1.0
    table[:, 0] = np.minimum(own * 2**32, 2**32 - 1)
    table[:, 1] = other
    return table
