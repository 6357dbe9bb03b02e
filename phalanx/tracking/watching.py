"""Rules beside a running job: each fires once at most, its finding goes to findings.jsonl, and it may stop the job."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from .rules import rule_of

_NOT_FINITE = re.compile(r"the loss is (nan|-?inf)")


@final
class RuleWatch:
    """Shows every step to a job's rules.

    Args:
        given: as `TrainingJob.rules` has them.
        folder: where findings.jsonl is written.
        warn: told of every finding.
        stop: called with the reason where a rule's action is to stop.
    """

    def __init__(self, given: Sequence[str], folder: Path, warn: Callable[[str], None], stop: Callable[[str], None]) -> None:
        self._rules = [rule_of(text) for text in given]
        self._path = folder / "findings.jsonl"
        self._warn = warn
        self._stop = stop
        self._fired: set[int] = set()

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Look at a step."""
        for number, (name, rule, action) in enumerate(self._rules):
            if number in self._fired:
                continue
            message = rule.see(step, metrics)
            if message is not None:
                self._fired.add(number)
                self._found(name, step, message, action)

    def failed(self, step: int, message: str) -> None:
        """Look at why the job failed: a Trainer ends before it reports a loss that is not finite."""
        if _NOT_FINITE.search(message):
            self.step(step + 1, {"train:loss": None})

    def _found(self, name: str, step: int, message: str, action: str) -> None:
        line = {"time": time.time(), "step": step, "rule": name, "message": message, "action": action}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._warn(f"rule {name}, step {step}: {message}")
        if action == "stop":
            self._stop(f"stopped by the rule {name} at step {step}: {message}")
