"""Hyperparameters of BlazingText: names, defaults and meanings as users of the managed original know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...hyperparameters import hyper


@dataclass(frozen=True)
class BlazingTextHyperparameters:
    """`loss` and `lines_per_step` are ours; each mode takes no notice of what is for the others."""

    mode: Literal["batch_skipgram", "skipgram", "cbow", "supervised"] = hyper(
        tunable=("batch_skipgram", "skipgram", "cbow"),
        help="what is learnt: word vectors (batch_skipgram is the fastest), or supervised: to classify lines",
    )
    vector_dim: int = hyper(100, low=1, high=2048, tunable=(32, 300), help="numbers of a vector")
    epochs: int = hyper(5, low=1, tunable=(5, 15), help="passes over the training lines")
    learning_rate: float = hyper(
        0.05, low=0, open_low=True, tunable=(0.005, 0.01), help="step size at the start; it falls to zero along a line"
    )
    min_count: int = hyper(5, low=0, tunable=(0, 100), help="words that occur less often are left out")
    window_size: int = hyper(5, low=1, high=100, tunable=(1, 10), help="most words to each side that are a word's context")
    negative_samples: int = hyper(5, low=1, high=100, tunable=(5, 25), help="random words that a true pair is held against")
    sampling_threshold: float = hyper(
        1e-4,
        low=0,
        open_low=True,
        high=1e-3,
        tunable=(1e-4, 1e-3),
        help="a word whose share of the text is above this is skipped at random, the more the commoner it is",
    )
    batch_size: int = hyper(
        11,
        low=1,
        tunable=(8, 32),
        help="batch_skipgram: most contexts of a word that share its negatives; 2 window_size + 1 for all",
    )
    subwords: bool = hyper(
        False, help="a vector is the mean of those of a word and of its character n-grams (not batch_skipgram)"
    )
    min_char: int = hyper(3, low=1, high=64, help="fewest characters of an n-gram of subwords")
    max_char: int = hyper(6, low=1, high=64, help="most characters of an n-gram of subwords")
    buckets: int = hyper(
        2_000_000, low=1, high=2**31 - 1, tunable=(1_000_000, 10_000_000), help="hash buckets that n-grams share"
    )
    evaluation: bool = hyper(
        True, help="word vectors: compare with people's judgements in the channel 'evaluation' (WS-353), if given"
    )
    word_ngrams: int = hyper(2, low=1, high=20, tunable=(1, 3), help="supervised: most words of an n-gram")
    early_stopping: bool = hyper(
        False, help="supervised: stop when the accuracy in channel 'validation' no longer rises; the best epoch is kept"
    )
    patience: int = hyper(4, low=1, help="supervised: epochs without a better accuracy before training stops")
    min_epochs: int = hyper(5, low=1, help="supervised: epochs before training may stop early")
    loss: Literal["auto", "softmax", "hierarchical"] = hyper(
        "auto", help="supervised: weigh all labels, or walk a tree of them; auto: a tree for more than 1000 labels"
    )
    lines_per_step: int | Literal["auto"] = hyper(
        "auto",
        low=1,
        help="lines of a step, over all workers, which then exchange what they learnt; auto: a sixteenth of all, 64 to 16384",
    )

    @property
    def classifies(self) -> bool:
        """Whether lines are classified; otherwise word vectors are learnt."""
        return self.mode == "supervised"

    def objectives(self) -> dict[str, Literal["minimize", "maximize"]]:
        """Return the metrics a sweep may judge by and which way is better."""
        return {"accuracy" if self.classifies else "mean_rho": "maximize"}

    def check(self) -> None:
        """Raise `UserError` where values do not fit together."""
        if self.subwords and self.mode == "batch_skipgram":
            raise UserError(
                "subwords=true is for mode=skipgram and mode=cbow; batch_skipgram shares its products over whole words"
            )
        if self.subwords and self.max_char < self.min_char:
            raise UserError(f"max_char={self.max_char} is below min_char={self.min_char}")
