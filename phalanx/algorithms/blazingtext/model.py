"""What was learnt: a vocabulary, the rows of its words and n-grams, the outputs; and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ...contracts import Array
from ..kernels import words as loops
from .hyperparameters import BlazingTextHyperparameters
from .vocabulary import Vocabulary

ALIGN = 16  # floats of a cache line: rows are whole lines


def stride_of(dimension: int) -> int:
    """Return the floats of a row in memory."""
    return -(-dimension // ALIGN) * ALIGN


@final
@dataclass
class Model:
    """A model; all matrices have rows of `stride_of(vector_dim)` floats, those beyond the dimension zero."""

    hyperparameters: BlazingTextHyperparameters
    vocabulary: Vocabulary
    buckets: Array  # (B,) int32 ascending: the buckets of n-grams that training met; the others' rows are zero
    inputs: Array  # (V + B, S) float32
    outputs: Array  # (V or L, S) float32

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return self.hyperparameters.vector_dim

    @property
    def table_size(self) -> int:
        """Buckets that there are; 0 where there are no n-grams."""
        wanted = self.hyperparameters
        return wanted.buckets if (wanted.word_ngrams > 1 if wanted.classifies else wanted.subwords) else 0

    def rows_of_buckets(self) -> Array:
        """Return the row of every bucket, (table_size or 1,) int32, -1 for those that training did not meet."""
        rows = np.full(max(self.table_size, 1), -1, np.int32)
        rows[self.buckets] = len(self.vocabulary) + np.arange(len(self.buckets), dtype=np.int32)
        return rows

    def vectors(self) -> Array:
        """Return the vectors of all words, (V, D) float32."""
        words = len(self.vocabulary)
        if not self.hyperparameters.subwords:
            return self.inputs[:words, : self.dimension]
        indptr, rows = expanded(self.vocabulary, self.hyperparameters, self.rows_of_buckets())
        found = np.empty((words, self.dimension), np.float32)
        for at in range(0, words, 4096):
            stop = min(at + 4096, words)
            first, last = indptr[at], indptr[stop]
            sums = np.add.reduceat(self.inputs[rows[first:last], : self.dimension], indptr[at:stop] - first, axis=0)
            found[at:stop] = sums / np.diff(indptr[at : stop + 1])[:, None]
        return found

    def vector(self, word: str) -> Array:
        """Return the vector of any word, (D,) float32: zero for an unknown one without n-grams."""
        number = self.vocabulary.number(word.encode())
        if not self.hyperparameters.subwords:
            known = number >= 0
            return self.inputs[number, : self.dimension].copy() if known else np.zeros(self.dimension, np.float32)
        rows = self.rows_of_word(word.encode(), number)
        if not len(rows):
            return np.zeros(self.dimension, np.float32)
        total: Array = self.inputs[rows[rows >= 0], : self.dimension].sum(axis=0) / np.float32(len(rows))
        return total

    def rows_of_word(self, word: bytes, number: int) -> Array:
        """Return the rows of a word and its n-grams, -1 for those that training did not meet."""
        grams = buckets_of(word, self.hyperparameters)
        at = np.searchsorted(self.buckets, grams)
        found = np.append(self.buckets, -1)[np.minimum(at, len(self.buckets))] == grams
        rows = np.where(found, len(self.vocabulary) + at, -1)
        return rows if number < 0 else np.concatenate([[number], rows])


def buckets_of(word: bytes, wanted: BlazingTextHyperparameters) -> Array:
    """Return the buckets of a word's character n-grams, int32."""
    data = np.frombuffer(bytearray(b"<" + word + b">"), np.uint8)
    out = np.empty(len(data) * wanted.max_char, np.int32)
    return out[: loops.subwords(data, wanted.min_char, wanted.max_char, wanted.buckets, out)]


def reachable(vocabulary: Vocabulary, wanted: BlazingTextHyperparameters) -> Array:
    """Return the buckets that the subwords of any word fall into, ascending, int32."""
    found = np.zeros(wanted.buckets, bool)
    for word in vocabulary.words:
        found[buckets_of(word, wanted)] = True
    return np.flatnonzero(found).astype(np.int32)


def expanded(vocabulary: Vocabulary, wanted: BlazingTextHyperparameters, rows_of_buckets: Array) -> tuple[Array, Array]:
    """Return the rows of every word: word v has rows[indptr[v]:indptr[v + 1]], itself first; int64 and int32."""
    count = len(vocabulary)
    if not wanted.subwords:
        return np.arange(count + 1, dtype=np.int64), np.arange(count, dtype=np.int32)
    rows = []
    for number, word in enumerate(vocabulary.words):
        grams = rows_of_buckets[buckets_of(word, wanted)]
        rows.append(np.concatenate([[number], grams[grams >= 0]]).astype(np.int32))
    indptr = np.concatenate([[0], np.cumsum([len(one) for one in rows])]).astype(np.int64)
    return indptr, np.concatenate(rows)


def started(rows: int, dimension: int, seed: int) -> Array:
    """Return rows of random numbers within 1 / dimension of zero, (rows, stride) float32."""
    found = np.zeros((rows, stride_of(dimension)), np.float32)
    generator = np.random.Generator(np.random.Philox(seed & (2**64 - 1)))
    for at in range(0, rows, 65536):
        part = found[at : at + 65536, :dimension]
        part[:] = (generator.random(part.shape, np.float32) * 2 - 1) / np.float32(dimension)
    return found
