"""What vectors are like: nearest words, analogies, agreement with people's judgements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from ...contracts import Array, Collective, Shard
from ...errors import UserError
from ...parallel.collective import together
from .corpus import encoded
from .model import Model


@final
class Neighbours:
    """Cosines of words' vectors.

    Args:
        words: (V,).
        vectors: (V, D).
    """

    def __init__(self, words: Sequence[str], vectors: Array) -> None:
        self._words = words
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._directions = vectors / np.maximum(lengths, 1e-12)

    def nearest(self, vector: Array, k: int, *, without: Sequence[str] = ()) -> list[tuple[str, float]]:
        """Return the k words whose directions are nearest to a vector's, with their cosines."""
        length = float(np.linalg.norm(vector))
        cosines = self._directions @ (vector / max(length, 1e-12))
        found = []
        for at in np.argsort(-cosines, kind="stable")[: k + len(without)]:
            if self._words[at] not in without:
                found.append((self._words[at], float(cosines[at])))
        return found[:k]


def mean_rho(world: Collective, model: Model, shard: Shard) -> tuple[float, int]:
    """Collective. Return the rank correlation of cosines with the judgements of a channel's pairs, and the pairs left out.

    A line is `word word number`, parted by spaces, tabs or commas; lines that begin with # are skipped. A pair with a word that
    has no vector is left out.

    Raises:
        UserError: a line of another form; fewer than two pairs whose words are known.
    """

    def measure() -> tuple[float, int]:
        pairs = [pair for data in encoded("evaluation", shard, 4096) for pair in _pairs(data.tobytes().decode())]
        ours, theirs = [], []
        for one, other, judged in pairs:
            a, b = _vector(model, one), _vector(model, other)
            if a is not None and b is not None:
                ours.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)))
                theirs.append(judged)
        if len(ours) < 2:
            raise UserError(
                f"channel 'evaluation' has {len(ours)} pairs whose words are both known, of {len(pairs)}; give two or more"
            )
        return spearman(ours, theirs), len(pairs) - len(ours)

    return together(world, "reading channel 'evaluation'", measure)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation; 0 where one side is all the same."""
    a, b = _ranks(one), _ranks(other)
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> Array:
    """Return ranks less their mean; equal values share the mean of their ranks. (scipy.stats takes a second to load.)"""
    _, at, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    shared = np.cumsum(counts) - (counts - 1) / 2
    ranks: Array = shared[at] - (len(values) + 1) / 2
    return ranks


def _pairs(text: str) -> list[tuple[str, str, float]]:
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        parts = line.replace(",", " ").split()
        try:
            one, other, judged = parts
            found.append((one, other, float(judged)))
        except ValueError:
            raise UserError(f"channel 'evaluation': '{line[:80]}' is not of the form 'word word number'") from None
    return found


def _vector(model: Model, word: str) -> Array | None:
    """Return a word's vector, as it is written or in small letters."""
    for form in (word, word.lower()):
        vector = model.vector(form)
        if vector.any():
            return vector
    return None
