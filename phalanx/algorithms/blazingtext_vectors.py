"""Training of word vectors: skipgram, batch_skipgram, cbow."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np

from ..contracts import Array, Session
from .blazingtext_corpus import count_channel, lines_of_step, pieces, train_channel
from .blazingtext_exchange import combine
from .blazingtext_hyperparameters import BlazingTextHyperparameters
from .blazingtext_model import Model, expanded, reachable, started, stride_of
from .blazingtext_vocabulary import Vocabulary, merged
from .kernels.blazingtext import learn_means, learn_windows

_PIECE = 1 << 14  # tokens that a thread takes at once
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
        table, self._spill = count_channel(session, "train", train, self._lines, shuffle=False)
        try:
            vocabulary, self._numbers = merged(session.world, table, wanted.min_count, classifies=False, lines=train.rows)
            del table
            self.model = _begun(vocabulary, wanted, session.seed)
            self._keep = chances(vocabulary.counts, wanted.sampling_threshold)
            self._alias = alias_table(vocabulary.counts.astype(np.float64) ** _POWER)
            self._learn = self._kernel()
        except BaseException:
            self._spill.close()
            raise

    def learn(self, step: int) -> tuple[dict[str, float], int]:
        """Collective. Do step `step`, counted from 0; return its metrics and lines."""
        number = step % self._per_epoch
        model, world = self.model, self._session.world
        before = [matrix.copy() if world.size > 1 else matrix for matrix in (model.inputs, model.outputs)]
        tokens = self._numbers[self._spill[number][0]]
        parts = pieces(tokens, _PIECE)
        generator = np.random.Generator(
            np.random.Philox(key=[self._session.seed & (2**64 - 1), step * world.size + world.rank])
        )
        seeds = generator.integers(1, 2**63, len(parts), dtype=np.uint64)
        done = np.concatenate([[0], np.cumsum([len(part) for part in parts])]) / max(len(tokens), 1)
        rates = self._wanted.learning_rate * (1 - (step + done) / self.steps)
        with ThreadPoolExecutor(self._session.threads) as threads:
            found = np.sum(list(threads.map(self._learn, parts, rates[:-1], rates[1:], seeds)) or [np.zeros(3)], axis=0)
        if world.size > 1:
            combine(world, model.inputs, before[0])
            combine(world, model.outputs, before[1])
            found = world.all_reduce(found)
        metrics = {"train:loss": float(found[0] / found[1])} if found[1] else {}
        return metrics, min(self._lines, self._rows - number * self._lines)

    def close(self) -> None:
        """Give the files back."""
        self._spill.close()

    def _kernel(self) -> Callable[[Array, float, float, np.uint64], Array]:
        wanted, model = self._wanted, self.model
        shared = (model.inputs, model.outputs, self._keep, self._alias, wanted.window_size, wanted.negative_samples)
        boost = _BOOSTS[wanted.mode]
        faster = np.float32(1 + boost / wanted.epochs)
        if wanted.mode == "cbow" or wanted.subwords:
            indptr, rows = expanded(model.vocabulary, wanted, model.rows_of_buckets())
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
