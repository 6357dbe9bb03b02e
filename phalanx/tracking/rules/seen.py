"""What rules see of a run, and what a rule is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

# Metrics that a training makes smaller, by the end of their name in small letters: what scripts and peers call them.
_LOSS = re.compile(
    r"(loss|nll|mse|msd|ssd|rmse|rmsle|mae|mape|mphe|logloss|cross_entropy|crossentropy|perplexity|deviance|error|objective|wquantileloss"
    r"|-cost|_cost|^cost|kl|elbo_loss|hinge)$"
)
_CHANNEL = re.compile(r"(train|training|validation|valid|val|eval)[:_/.-]", re.IGNORECASE)
FINITE = 1e300  # numbers that are not finite come as this one, or less than its negative
# Shares of rows: they move in jumps and come to stand at 0, so that one which stands still says nothing.
_SHARES = re.compile(r"(error|merror)(@.*)?$")


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was done."""

    step: int
    time: float  # seconds since 1970
    metrics: Mapping[str, float | None]  # None: not finite
    goals: Mapping[str, str] = field(default_factory=dict)  # metric without channel -> "minimize" or "maximize", as declared
    busy: bool = False  # it held an evaluation, a checkpoint or a restart: its length is no step's


@dataclass(frozen=True, slots=True)
class Tick:
    """Time goes by."""

    now: float
    begun: float | None  # when the attempt's workers were started, None between attempts
    stepped: float | None  # when its newest step was done, None before the first


@dataclass(frozen=True, slots=True)
class Tensors:
    """Statistics of the tensors of a `phalanx.Trainer` at a step, as one rank has them: name -> statistic -> value.

    Numbers that are not finite come as 1e300 or -1e300; a weight without a gradient has no change.

    gradients: axes, mean_abs (of entries that are not 0), zero (share of entries), spread (5th to 95th percentile; None
    after the first steps), nan, inf.
    weights: axes, zero, nan, inf, std, scale (variance times fan-in; 0 for embeddings), alike (whether all rows are the same),
    norm, change (norm of the step's change, None where it was not had), same (as at the look before; None at the first).
    activations: by layer: kind (relu, tanh, sigmoid), units (their number), active (quantiles over units of the share of rows
    in which a unit is at work), zero (share of outputs).
    """

    step: int
    rank: int
    gradients: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Mapping[str, Any]]
    activations: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Labels:
    """Rows of a classifier, counted by label and prediction."""

    step: int
    classes: Sequence[str]
    confusion: Sequence[Sequence[int]]  # [label][prediction]
    final: bool = False  # of what has been learnt to the end


@dataclass(frozen=True, slots=True)
class Trees:
    """The trees of a boosted model."""

    step: int
    importance: Mapping[str, float]  # feature -> how often it splits
    columns: int
    depth: int  # of the newest trees
    leaves: float  # of a tree, on average over the newest
    rows: int  # that a tree is grown on


@dataclass(frozen=True, slots=True)
class Window:
    """How a rank spent a quarter of a second, and what its machine did in it. Shares are of 1, uses are percent."""

    rank: int
    size: int
    slot: int  # number of the quarter of a second, the same on all ranks
    samples: int
    step: int
    compute: float
    data: float  # waits for data that does not come: storage, network
    loading: float  # computes data: decoding, parsing
    communication: float  # waits for other ranks
    stall: float  # saves a checkpoint
    cpu: float  # of all cores of the machine
    gpu: float | None  # None: no GPU
    gpu_memory: float | None
    memory: float = 0.0  # of the rank's process, bytes


Seen: TypeAlias = Step | Tick | Tensors | Labels | Trees | Window


class Rule(Protocol):
    """Watches a run."""

    watches: ClassVar[str]  # in words, for the table of rules
    sees: ClassVar[tuple[type, ...]]  # which of `Seen` it wants

    def see(self, seen: Any) -> str | None:
        """Look at one of what it `sees`; return what is wrong, None as long as nothing is."""
        ...


def losses(seen: Step, channel: str) -> dict[str, float]:
    """Return the finite metrics of a channel that should fall, by name without the channel; those that should rise negated.

    A metric is known by the goal that the algorithm declares, else by its name.
    """
    found: dict[str, float] = {}
    for name, value in seen.metrics.items():
        place, short = parted(name)
        if value is not None and place == channel:
            goal = goal_of(short, seen.goals)
            if goal:
                found[short] = goal * value
    return found


@functools.cache
def parted(name: str) -> tuple[str, str]:
    """Return the channel of a metric, and its name there: "train:loss", "train_loss" and "loss" are ("train", "loss")."""
    match = _CHANNEL.match(name)
    if match is None:
        return "train" if is_loss(name) and ":" not in name else "", name
    return "train" if match[1].lower().startswith("train") else "validation", name[match.end() :]


def goal_of(name: str, goals: Mapping[str, str]) -> float:
    """Return 1 for a metric (without its channel) that should fall, -1 for one that should rise, 0 where nobody knows."""
    declared = goals.get(name.partition("@")[0])
    if declared is not None:
        return 1.0 if declared == "minimize" else -1.0
    return 1.0 if is_loss(name) else 0.0


@functools.cache
def is_loss(name: str) -> bool:
    """Return whether a metric is a loss by its name."""
    return _LOSS.search(name.lower()) is not None


@functools.cache
def is_smooth(name: str) -> bool:
    """Return whether a metric is a loss that a training moves at every step, as shares of rows are not."""
    return is_loss(name) and _SHARES.search(name.lower()) is None
