"""The words that a model knows: counting them over all ranks, numbering them, finding them in lines.

Words are numbered by falling counts, equal counts in the order of their bytes: so numbers do not depend on who read what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from ...contracts import Array, Collective
from ...errors import UserError
from ..kernels import words as loops

LABEL = b"__label__"
LINE_END = b"</s>"
_FIRST_ENTRIES, _FIRST_BYTES = 1 << 14, 1 << 17


@final
class Table:
    """A hash table of words that grows.

    Attributes:
        counts: (E,) int64, how often each entry occurred; entries are numbered as they came.
    """

    def __init__(self) -> None:
        self._slots = np.full(2 * _FIRST_ENTRIES, -1, np.int32)
        self._hashes = np.empty(_FIRST_ENTRIES, np.uint32)
        self._starts = np.empty(_FIRST_ENTRIES, np.int64)
        self._lengths = np.empty(_FIRST_ENTRIES, np.int32)
        self._counts = np.zeros(_FIRST_ENTRIES, np.int64)
        self._blob = np.empty(_FIRST_BYTES, np.uint8)
        self._place = np.zeros(3, np.int64)

    def __len__(self) -> int:
        return int(self._place[0])

    @property
    def counts(self) -> Array:
        return self._counts[: len(self)]

    @property
    def hashes(self) -> Array:
        return self._hashes[: len(self)]

    def count(self, data: Array) -> Array:
        """Count the words of lines (bytes,) uint8, each ended by a newline; return their entries and `LINE_END`s, int32."""
        out = np.empty(len(data), np.int32)
        written = 0
        self._place[2] = 0
        while True:
            written += loops.count_words(data, *self._arrays(), self._counts, self._place, out[written:])
            if self._place[2] == len(data):
                return out[:written]
            self._grow(data)

    def find(self, data: Array) -> tuple[Array, Array]:
        """Return the entries of the words of lines, `UNKNOWN`s and `LINE_END`s, int32, and their hashes, uint32."""
        out, hashes = np.empty(len(data), np.int32), np.empty(len(data), np.uint32)
        written = loops.find_words(data, *self._arrays(), out, hashes)
        return out[:written], hashes[:written]

    def words(self) -> list[bytes]:
        """Return all words in the order of their entries."""
        text = self._blob.tobytes()
        ends = (self._starts + self._lengths)[: len(self)].tolist()
        return [text[start:end] for start, end in zip(self._starts[: len(self)].tolist(), ends, strict=True)]

    def _arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        return self._slots, self._hashes, self._starts, self._lengths, self._blob

    def _grow(self, data: Array) -> None:
        """Make room for at least one more word of `data`."""
        entries, used = len(self), int(self._place[1])
        self._hashes, self._starts, self._lengths, self._counts = (
            np.concatenate([column[:entries], np.zeros(entries, column.dtype)])
            for column in (self._hashes, self._starts, self._lengths, self._counts)
        )
        self._blob = np.concatenate([self._blob[:used], np.empty(max(used, len(data)), np.uint8)])
        self._slots = np.full(2 * len(self._slots), -1, np.int32)
        if 2 * len(self._hashes) > len(self._slots):
            self._slots = np.full(1 << (2 * len(self._hashes) - 1).bit_length(), -1, np.int32)
        loops.fill_slots(self._hashes, self._slots, entries)


def lines_of(words: Sequence[bytes]) -> Array:
    """Return words as one line each, (bytes,) uint8."""
    return np.frombuffer(bytearray(b"".join(word + b"\n" for word in words)), np.uint8)


@final
class Vocabulary:
    """Words and labels, numbered.

    Args:
        words: by falling counts.
        counts: (V,) how often each occurred.
        labels: by falling counts, with their `__label__`.
        label_counts: (L,) likewise.
        tokens: of the text, words left out included.
    """

    def __init__(
        self, words: Sequence[bytes], counts: Array, labels: Sequence[bytes], label_counts: Array, tokens: int
    ) -> None:
        self.words = list(words)
        self.counts = np.asarray(counts, np.int64)
        self.labels = list(labels)
        self.label_counts = np.asarray(label_counts, np.int64)
        self.tokens = tokens
        self._table: Table | None = None

    def __len__(self) -> int:
        return len(self.words)

    def number(self, word: bytes) -> int:
        """Return the number of a word, -1 for an unknown one."""
        if not word or len(word.split()) != 1:
            return -1
        return int(self.rows(lines_of([word]))[0][0])

    def rows(self, data: Array) -> tuple[Array, Array, Array]:
        """Find the words of lines.

        Returns:
            For each token its word's number (-1: unknown, -2 - l: label l); its entry, or `LINE_END`; its hash.
        """
        if self._table is None:
            self._table = Table()
            self._table.count(lines_of([*self.words, *self.labels]))
        entries, hashes = self._table.find(data)
        known = len(self.words)
        rows = np.where(entries >= known, known - 2 - entries, np.where(entries < 0, -1, entries)).astype(np.int32)
        return rows, entries, hashes


def merged(world: Collective, table: Table, min_count: int, *, classifies: bool, lines: int) -> tuple[Vocabulary, Array]:
    """Collective. Add up every rank's counts; return the vocabulary and, for this rank's entries, the word's number.

    An entry that is left out has -1; the entry of label l has -2 - l; one more number at the end stands for ends of lines.

    Raises:
        UserError: no word occurs often enough, or there are no labels.
    """
    total, numbers = _added(world, table)
    names, counts = total.words(), total.counts
    is_label = np.array([classifies and name.startswith(LABEL) for name in names], bool)
    ends = np.array([classifies and name == LINE_END for name in names], bool)  # counted apart
    words = _sorted(names, counts, ~is_label & ~ends & (counts >= max(min_count, 1)))
    labels = _sorted(names, counts, is_label)
    if classifies and not len(labels):
        raise UserError("channel 'train' has no labels: mode=supervised needs lines with words that begin with '__label__'")
    found_words, word_counts = [names[at] for at in words], counts[words]
    if classifies:  # as fastText counts the ends of lines among the words
        place = int(np.searchsorted(-word_counts, -lines, side="right"))
        found_words.insert(place, LINE_END)
        word_counts = np.insert(word_counts, place, lines)
        words = np.insert(words, place, -1)
    if len(found_words) < (1 if classifies else 2):
        most = int(counts.max(initial=0))
        raise UserError(
            f"min_count={min_count} leaves {len(found_words)} words: of {len(names)} the commonest occurs {most} times; "
            "lower min_count"
        )
    row = np.full(len(names) + 1, -1, np.int32)
    kept = words >= 0
    row[words[kept]] = np.flatnonzero(kept)
    row[labels] = -2 - np.arange(len(labels))
    tokens = int(counts.sum()) + (lines if classifies else 0)
    vocabulary = Vocabulary(found_words, word_counts, [names[at] for at in labels], counts[labels], tokens)
    return vocabulary, np.append(row[numbers], np.int32(-1))


def _added(world: Collective, table: Table) -> tuple[Table, Array]:
    """Collective. Return a table of all ranks' words, and the number there of each entry of this rank's."""
    if world.size == 1:
        return table, np.arange(len(table))
    mine = lines_of(table.words())
    total, numbers = Table(), np.empty(0, np.int64)
    for rank, (words, counts) in enumerate(zip(world.all_gather(mine), world.all_gather(table.counts), strict=True)):
        entries = total.count(words)
        entries = entries[entries >= 0]
        total.counts[entries] += counts - 1  # counting them has added one each
        if rank == world.rank:
            numbers = entries
    return total, numbers


def _sorted(names: Sequence[bytes], counts: Array, wanted: Array) -> Array:
    """Return the wanted entries by falling counts, equal ones in the order of their bytes."""
    by_name = np.array(sorted(np.flatnonzero(wanted).tolist(), key=names.__getitem__), np.int64)
    return by_name[np.argsort(-counts[by_name], kind="stable")]
