"""Rules that watch the metrics of a run: one small class each, by name in `RULES`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ...errors import UserError, nearest
from .losses import LossNotDecreasing, Overfit, Overtraining
from .numbers import ExplodingTensor, VanishingGradient
from .seen import Rule

RULES: dict[str, type[Any]] = {
    "exploding_tensor": ExplodingTensor,
    "loss_not_decreasing": LossNotDecreasing,
    "overfit": Overfit,
    "overtraining": Overtraining,
    "vanishing_gradient": VanishingGradient,
}
ACTIONS = ("warn", "stop")


def rule_of(text: str) -> tuple[str, Rule, str]:
    """Return (name, rule, action) of "NAME" or "NAME:parameter=value,action=stop".

    Raises:
        UserError: there is no such rule or parameter, or a value is not allowed.
    """
    if not isinstance(text, str):
        raise UserError(f"a rule is given as 'NAME' or 'NAME:parameter=value', not as {text!r}")
    name, _, rest = text.partition(":")
    if name not in RULES:
        raise UserError(f"there is no rule '{name}'; {nearest(name, RULES)}")
    known = {f.name: f for f in fields(RULES[name]) if f.init}
    values: dict[str, Any] = {}
    action = "warn"
    for pair in filter(None, rest.split(",")):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key == "action":
            if value not in ACTIONS:
                raise UserError(f"the action of the rule '{name}' is {' or '.join(ACTIONS)}, not '{value}'")
            action = value
            continue
        if key not in known:
            raise UserError(f"the rule '{name}' has no parameter '{key}'; {nearest(key, [*known, 'action'])}")
        kind: Any = type(known[key].default)
        try:
            values[key] = kind(value)
        except ValueError:
            raise UserError(f"{key} of the rule '{name}' is a number ({kind.__name__}), not '{value}'") from None
        if not values[key] >= (1 if kind is int and key != "start_step" else 0):
            raise UserError(f"{key}={value} of the rule '{name}' is not allowed: it is too small")
    return name, RULES[name](**values), action
