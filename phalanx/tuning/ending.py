"""When a sweep needs no more trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .plan import Plan
from .search import Known
from .stopping import improved_at
from .trial import Trial

_CONVERGED_TRIALS, _CONVERGED_SHARE = 15, 0.01
_MISSING = 1e9  # the violation of a constraint on a metric that was not reported


def completed(plan: Plan, final: Mapping[int, Known], trials: Sequence[Trial]) -> str | None:
    """Return why no more trials are needed, None where more are; time and number are not looked at.

    Args:
        plan: of the sweep.
        final: what trials came to.
        trials: all of them, by number.
    """
    completion, first = plan.completion, plan.objectives[0]
    scores = [score for trial in trials if (score := _score(trial, first.sign, final.get(trial.number))) is not None]
    if all(score == -math.inf for score in scores):
        return None
    best = improved_at(scores)
    if completion.target is not None and scores[best] >= first.sign * completion.target:
        return "TargetReached"
    if completion.not_improving is not None and len(scores) - 1 - best >= completion.not_improving:
        return "NotImproving"
    window = max(_CONVERGED_TRIALS, 3 * len(plan.ranges))
    if completion.on_convergence and len(scores) > window:
        before = max(scores[:-window])
        if scores[best] - before <= _CONVERGED_SHARE * max(abs(scores[best]), 1e-12):
            return "Converged"
    return None


def _score(trial: Trial, sign: float, known: Known | None) -> float | None:
    """Return how good a trial is; one that was stopped early or breaks a constraint is no improvement, others do not count."""
    if known is not None and known.state == "Completed":
        return sign * known.values[0] if trial.feasible else -math.inf
    return -math.inf if trial.status == "Stopped" else None


def violations_of(plan: Plan, metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return by how much a trial of these metrics violates each constraint; 0 and below: it holds."""
    found = {}
    for name, (low, high) in plan.constraints.items():
        value = metrics.get(name)
        over = [] if high is None or value is None else [value - high]
        under = [] if low is None or value is None else [low - value]
        found[name] = _MISSING if value is None else max(over + under)
    return found
