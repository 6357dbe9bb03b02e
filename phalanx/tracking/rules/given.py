"""A rule as a user gives it: "NAME:parameter=value,action=stop", read and checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...errors import UserError, nearest
from .boosting import FeatureImportanceOverweight, TreeDepth
from .classes import ClassImbalance, Confusion
from .clocks import MaxInitializationTime, StalledTraining, StepOutlier
from .layers import DeadRelu, SaturatedActivation
from .losses import LossNotDecreasing, Overfit, Overtraining
from .machines import CPUBottleneck, GPUMemoryIncrease, IOBottleneck, LoadBalancing, LowGPUUtilization
from .numbers import ExplodingTensor, VanishingGradient
from .seen import Labels, Rule, Tensors, Trees, Window
from .weights import (
    AllZero,
    PoorWeightInitialization,
    TensorVariance,
    UnchangedTensor,
    WeightUpdateRatio,
)

ALL = "all"
ACTIONS = ("warn", "stop")
_KINDS = {Tensors: "tensors", Labels: "labels", Trees: "trees", Window: "windows"}  # of observations that workers must make
RULES: dict[str, type[Any]] = {
    "all_zero": AllZero,
    "class_imbalance": ClassImbalance,
    "confusion": Confusion,
    "cpu_bottleneck": CPUBottleneck,
    "dead_relu": DeadRelu,
    "exploding_tensor": ExplodingTensor,
    "feature_importance_overweight": FeatureImportanceOverweight,
    "gpu_memory_increase": GPUMemoryIncrease,
    "io_bottleneck": IOBottleneck,
    "load_balancing": LoadBalancing,
    "loss_not_decreasing": LossNotDecreasing,
    "low_gpu_utilization": LowGPUUtilization,
    "max_initialization_time": MaxInitializationTime,
    "overfit": Overfit,
    "overtraining": Overtraining,
    "poor_weight_initialization": PoorWeightInitialization,
    "saturated_activation": SaturatedActivation,
    "stalled_training": StalledTraining,
    "step_outlier": StepOutlier,
    "tensor_variance": TensorVariance,
    "tree_depth": TreeDepth,
    "unchanged_tensor": UnchangedTensor,
    "vanishing_gradient": VanishingGradient,
    "weight_update_ratio": WeightUpdateRatio,
}


@dataclass(frozen=True, slots=True)
class Actions:
    """What happens when a rule fires, beside the warning."""

    stop: bool = False
    webhook: str | None = None  # a URL that gets the finding by POST
    command: str | None = None  # gets the finding on its standard input

    @property
    def text(self) -> str:
        """As findings.jsonl has it."""
        done = [name for name in ("stop", "webhook", "command") if getattr(self, name)]
        return ",".join(done) or "warn"


@dataclass(frozen=True, slots=True)
class Given:
    """A rule of a job."""

    name: str
    rule: Rule
    actions: Actions = Actions()
    every: int | None = None  # steps between statistics; None: as their cost allows


def rules_of(texts: Sequence[str]) -> list[Given]:
    """Return the rules that a job names; "all" stands for every one.

    Raises:
        UserError: there is no such rule or parameter, or a value is not allowed.
    """
    found: list[Given] = []
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"a rule is given as 'NAME' or 'NAME:parameter=value', not as {text!r}")
        name, _, rest = text.partition(":")
        if name == ALL:
            _, actions, every = _settings(ALL, {}, rest)
            named = {given.name for given in found}
            found += [Given(each, RULES[each](), actions, every) for each in RULES if each not in named]
        else:
            found.append(_one(name, rest))
    return found


def observations(given: Sequence[Given]) -> dict[str, Any]:
    """Return what workers must observe for these rules, as `phalanx.observing.start` takes it; {} where nothing."""
    wanted = sorted({_KINDS[kind] for each in given for kind in each.rule.sees if kind in _KINDS})
    if not wanted:
        return {}
    every = [each.every for each in given if each.every is not None]
    measured: dict[str, Any] = {}
    for each in given:
        if isinstance(each.rule, (SaturatedActivation, UnchangedTensor)):
            measured |= each.rule.measured_with()
    return {"kinds": wanted, "every": min(every) if every else None, "measure": measured}


def table() -> list[tuple[str, str, str]]:
    """Return (name, what it watches, parameters with their defaults) of every rule."""
    rows = []
    for name, cls in RULES.items():
        parameters = [f"{f.name}={'unset' if f.default is None else f.default}" for f in fields(cls) if f.init]
        rows.append((name, str(cls.watches), ", ".join(parameters)))
    return rows


def _one(name: str, rest: str) -> Given:
    if name not in RULES:
        raise UserError(f"there is no rule '{name}'; {nearest(name, [*RULES, ALL])}")
    known = {f.name: f.default for f in fields(RULES[name]) if f.init}
    values, actions, every = _settings(name, known, rest)
    if every is not None and Tensors not in RULES[name].sees:
        raise UserError(f"every={every} is for rules on the statistics of tensors, which '{name}' does not look at")
    return Given(name, RULES[name](**values), actions, every)


def _settings(name: str, known: Mapping[str, Any], rest: str) -> tuple[dict[str, Any], Actions, int | None]:
    """Read "parameter=value,…"; a command goes to the end of the text."""
    values: dict[str, Any] = {}
    does: dict[str, Any] = {}
    every: int | None = None
    while rest:
        key, _, rest = rest.partition("=")
        key = key.strip()
        if key == "command":
            value, rest = rest, ""
        else:
            value, _, rest = rest.partition(",")
        value = value.strip()
        if key == "action":
            if value not in ACTIONS:
                raise UserError(
                    f"the action of the rule '{name}' is {' or '.join(ACTIONS)}, not '{value}'; "
                    "webhook=URL and command=TEXT stand for themselves"
                )
            does["stop"] = value == "stop"
        elif key in ("webhook", "command"):
            does[key] = _checked(name, key, value)
        elif key == "every":
            every = int(_number(name, key, value, 1))
        elif key in known:
            values[key] = _number(name, key, value, known[key])
        else:
            raise UserError(
                f"the rule '{name}' has no parameter '{key}'; {nearest(key, [*known, 'action', 'webhook', 'command', 'every'])}"
            )
    return values, Actions(**does), every


def _checked(name: str, key: str, value: str) -> str:
    if key == "webhook" and not value.startswith(("http://", "https://")):
        raise UserError(f"the webhook of the rule '{name}' is a URL that begins with http:// or https://, not '{value}'")
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise UserError(f"the command of the rule '{name}' cannot be read: {error}: {value}") from None
    if not words:
        raise UserError(f"the command of the rule '{name}' is empty: give a command line, at the end of the rule")
    return value


def _number(name: str, key: str, value: str, default: Any) -> Any:
    """Return a parameter's value, of the kind that its default has; None stands for a number that is not set."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise UserError(f"{key} of the rule '{name}' is true or false, not '{value}'")
        return value.lower() == "true"
    kind: Any = float if default is None else type(default)
    try:
        found = kind(value)
    except ValueError:
        raise UserError(f"{key} of the rule '{name}' is a number ({kind.__name__}), not '{value}'") from None
    if key.endswith(("_min", "_max")) and found == found:
        return found
    if not found >= (1 if kind is int and default != 0 else 0):
        raise UserError(f"{key}={value} of the rule '{name}' is not allowed: it is too small")
    return found
