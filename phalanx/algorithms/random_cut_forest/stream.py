"""A random cut forest that follows a stream: every row is scored by what came before it, then may enter the samples.

Each tree keeps a sample of its own, in which a row's weight fades with the rows that came after it (Efraimidis and Spirakis,
2006); taking a row in and out leaves the tree as if built from its sample (Guha et al., ICML 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from ...contracts import Array
from ...errors import UserError
from .sample import windows_of
from .trees import Following, Trees

_FADING_SAMPLES = 100.0  # samples of rows in which a row's weight falls to 1/e, unless told otherwise


@final
@dataclass(slots=True)
class Stream:
    """The place in a stream; the trees are the model's own, and change."""

    trees: Trees
    keys: Array  # (T, M) float64
    recent: Array  # (at most shingle_size - 1, C) the last rows
    shingle_size: int
    seed: int
    decay: float
    seen: int = 0  # windows
    quiet: int = 0  # of them whose score is 0: the trees hold too little

    def follow(self, rows: Array, *, explained: bool, threads: int) -> tuple[Array, Array]:
        """Return scores (N,) and, where asked for, what each number of the window adds to them (N, D).

        Args:
            rows: (N, C) in order of time; or (N, D), whole windows.
            explained: whether to return the second.
            threads: to use.
        """
        width = self.trees.columns
        count = len(rows)
        if self.shingle_size > 1 and rows.shape[1] != width:
            known = np.concatenate([self.recent, rows])
            self.recent = known[-(self.shingle_size - 1) :].copy()
            rows = windows_of(known, self.shingle_size)
        how = Following(self.seed, self.seen, self.decay, explained)
        scores, shares = self.trees.follow(rows, self.keys, how, threads)
        silent = min(max(self.quiet - self.seen, 0), len(rows))
        scores[:silent] = 0
        shares[:silent] = 0
        self.seen += len(rows)
        missing = count - len(rows)  # rows before the first whole window
        return np.pad(scores, (missing, 0)), np.pad(shares, ((missing if explained else 0, 0), (0, 0)))

    def arrays(self) -> dict[str, Array]:
        """Return what an artifact keeps beside the trees."""
        return {"keys": self.keys, "recent": self.recent}


def begun(columns: int, shape: tuple[int, int], shingle_size: int, seed: int, decay: float | None) -> Stream:
    """Return a stream whose trees are empty.

    Args:
        columns: C, of a row.
        shape: trees, rows of a tree's sample.
        shingle_size: rows of a window.
        seed: of all draws.
        decay: of weights a row; None: as fits the samples.
    """
    trees = Trees.empty(*shape, columns * shingle_size)
    return Stream(
        trees=trees,
        keys=np.zeros(shape),
        recent=np.zeros((0, columns), np.float32),
        shingle_size=shingle_size,
        seed=seed,
        decay=fading(shape[1], decay),
        quiet=shape[1] // 4,
    )


def after_training(trees: Trees, rows: int, shingle_size: int, seed: int, decay: float | None) -> Stream:
    """Return a stream that goes on from trained trees.

    Their samples are taken for what a stream as long as the training's would have left, or as rows are remembered if less.

    Args:
        trees: trained.
        rows: that they were trained on.
        shingle_size: rows of a window.
        seed: of all draws.
        decay: of weights a row; None: as fits the samples.
    """
    count, most = trees.places.shape
    decay = fading(most, decay)
    remembered = max(min(rows, int(1 / decay) if decay else rows), most)
    draws = np.random.default_rng([seed, 1])
    # the smallest of `remembered` exponential variables, from their independent gaps
    gaps = draws.exponential(size=(count, most)) / (remembered - np.arange(most))
    keys = draws.permuted(np.log(np.cumsum(gaps, axis=1)), axis=1)
    recent = np.zeros((0, trees.columns // shingle_size), np.float32)
    return Stream(trees, keys, recent, shingle_size, seed, decay)


def resumed(
    trees: Trees, found: Mapping[str, Array], shingle_size: int, seed: int, decay: float | None, place: tuple[int, int]
) -> Stream:
    """Return the stream whose `arrays` and (seen, quiet) these are.

    Raises:
        UserError: the arrays do not fit the trees.
    """
    keys, recent = found["keys"], found["recent"]
    if keys.shape != trees.places.shape or keys.dtype != np.float64 or np.isnan(keys).any():
        raise UserError(f"the forest's keys are no float64 array {trees.places.shape}")
    if recent.ndim != 2 or recent.dtype != np.float32 or recent.shape[1] * shingle_size != trees.columns:
        raise UserError(f"the forest's recent rows are no float32 array (rows, {trees.columns // shingle_size})")
    return Stream(trees, keys, recent, shingle_size, seed, fading(keys.shape[1], decay), *place)


def fading(rows: int, decay: float | None) -> float:
    """Return the decay of weights a row for samples of `rows` rows."""
    return 1 / (_FADING_SAMPLES * rows) if decay is None else decay
