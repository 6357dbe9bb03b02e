"""Metrics that a script prints: regular expressions over the lines of rank 0's log, as SageMaker's MetricDefinitions."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from ..errors import UserError, nearest

MAX_DEFINITIONS = 40
MAX_NAME = 255
MAX_REGEX = 500
Keep = Callable[[str, int, float, float | None], None]  # name, step, time, value; None where it is not finite
_MAX_LINE = 1 << 16
_WAIT_SECONDS = 2.0  # that a match waits for the script to report the same metric itself


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric: its name, and the expression whose first group is its value."""

    name: str
    regex: re.Pattern[str]


def definitions(given: Sequence[Mapping[str, str]]) -> list[Definition]:
    """Return metric definitions, checked.

    Args:
        given: mappings with "name" and "regex" ("Name" and "Regex" are taken too).

    Raises:
        UserError: one of them is not allowed.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise UserError('metric_definitions must be a list of mappings, as [{"name": "loss", "regex": "loss=([0-9.]+)"}]')
    if len(given) > MAX_DEFINITIONS:
        raise UserError(f"{len(given)} metric definitions are not allowed: there may be {MAX_DEFINITIONS}")
    found: dict[str, Definition] = {}
    for number, entry in enumerate(given):
        definition = _definition(f"metric_definitions[{number}]", entry)
        if definition.name in found:
            raise UserError(f"the metric '{definition.name}' is defined twice")
        found[definition.name] = definition
    return list(found.values())


def _definition(where: str, entry: Any) -> Definition:
    if not isinstance(entry, Mapping):
        raise UserError(f'{where} must be a mapping as {{"name": "loss", "regex": "loss=([0-9.]+)"}}')
    values = {str(key).lower(): value for key, value in entry.items()}
    for key in values:
        if key not in ("name", "regex"):
            raise UserError(f"{where} has no field '{key}'; {nearest(key, ('name', 'regex'))}")
    name, regex = values.get("name"), values.get("regex")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise UserError(f"{where} needs a name of 1 to {MAX_NAME} characters")
    if not isinstance(regex, str) or not 0 < len(regex) <= MAX_REGEX:
        raise UserError(f"{where} ({name}) needs a regex of 1 to {MAX_REGEX} characters")
    try:
        compiled = re.compile(regex)
    except re.error as error:
        raise UserError(f"the regex of the metric '{name}' is wrong: {error}: {regex}") from None
    if compiled.groups < 1:
        raise UserError(f"the regex of the metric '{name}' needs a group in brackets around the value: {regex}")
    return Definition(name, compiled)


@dataclass(frozen=True, slots=True)
class Match:
    """A value that was printed."""

    name: str
    step: int  # how many of this metric there were, counted from 1
    time: float
    value: float | None  # None: not finite


@final
class Scraper:
    """Looks for metrics in lines as they come, and keeps every one that the script does not report itself.

    Args:
        wanted: what to look for.
        keep: is given each match, once it is known that the script does not report it.
    """

    def __init__(self, wanted: Sequence[Definition], keep: Keep) -> None:
        self._wanted = wanted
        self._keep = keep
        self._waiting: deque[Match] = deque()
        self._reported: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()  # lines come in the thread that tails logs, reports in the job's

    def reported(self, names: Sequence[str]) -> None:
        """Note metrics that the script reports itself: what it prints of them is the same once more."""
        with self._lock:
            self._reported.update(names)

    def line(self, rank: int, text: str) -> None:
        """Look at a line of a rank's log; only rank 0's count."""
        if rank != 0:
            return
        for definition in self._wanted:
            for found in definition.regex.finditer(text[:_MAX_LINE]):
                try:
                    value = float(found[1])
                except (TypeError, ValueError):  # no number, or a group that took no part
                    continue
                with self._lock:
                    self._counts[definition.name] += 1
                    count = self._counts[definition.name]
                    self._waiting.append(Match(definition.name, count, time.time(), value if math.isfinite(value) else None))
        self.flush(time.time() - _WAIT_SECONDS)

    def flush(self, until: float = math.inf) -> None:
        """Keep all matches that are older than `until`."""
        while True:
            with self._lock:
                if not self._waiting or self._waiting[0].time > until:
                    return
                match = self._waiting.popleft()
                known = match.name in self._reported
            if not known:
                self._keep(match.name, match.step, match.time, match.value)
