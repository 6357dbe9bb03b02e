"""Rules beside a running job: each fires once at most, its finding goes to findings.jsonl, and it may stop the job."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

from ..contracts import Event
from .actions import Performer
from .rules import Given, observations, rules_of
from .rules.seen import Labels, Seen, Step, Tensors, Tick, Trees, Window, parted

OBSERVED = "observed"  # the kind of event that brings what `phalanx.observing` saw
_NOT_FINITE = re.compile(r"the loss is (nan|-?inf)")
_TICK_SECONDS = 0.5
_SEEN: Mapping[str, type[Any]] = {"tensors": Tensors, "labels": Labels, "trees": Trees, "windows": Window}


@final
class RuleWatch:
    """Shows a job's rules what happens; a context manager while the job runs.

    Args:
        given: as `TrainingJob.rules` has them.
        folder: where findings.jsonl is written.
        warn: told of every finding.
        stop: called with the reason where a rule's action is to stop.
        goals: metric (without its channel) -> "minimize" or "maximize", as the algorithm declares them.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        given: Sequence[str],
        folder: Path,
        warn: Callable[[str], None],
        stop: Callable[[str], None],
        goals: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._given = rules_of(given)
        self._path = folder / "findings.jsonl"
        self._warn = warn
        self._stop = stop
        self._goals = dict(goals or {})
        self._clock = clock
        self._performer = Performer(warn)
        self._lock = threading.RLock()
        self._waiting = {
            kind: [each for each in self._given if kind in each.rule.sees] for kind in (Step, Tick, *_SEEN.values())
        }
        self._begun: float | None = clock()
        self._stepped: float | None = None
        self._newest = 0
        self._busy = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._waiting[Tick]:
            self._thread = threading.Thread(target=self._tick_on, name="phalanx-rules", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def observations(self) -> dict[str, Any]:
        """What the workers must observe for these rules, as `phalanx.observing.start` takes it; {} where nothing."""
        return observations(self._given)

    def event(self, event: Event) -> None:
        """Look at something that a worker said."""
        if not self._given:
            return
        body = event.body
        kind = body["kind"]
        if kind == "step":
            self.step(body["step"], body["metrics"], body["time"])
        elif kind == OBSERVED:
            self._see(_SEEN[body["what"]](**body["seen"]))
        elif kind in ("saved", "restored"):
            self._busy = True
        elif kind == "phase" and event.rank == 0 and body["phase"] == "Downloading":
            self._begun, self._busy = event.time, True

    def step(self, step: int, metrics: Mapping[str, float | None], when: float | None = None) -> None:
        """Look at a step; one that is done again after a restart is passed over."""
        now = self._clock() if when is None else when
        self._stepped = now
        if step <= self._newest:
            return
        self._newest = step
        busy = self._busy or any(parted(name)[0] == "validation" or name.startswith("test:") for name in metrics)
        self._busy = False
        self._see(Step(step, now, metrics, self._goals, busy))

    def printed(self, name: str, step: int, when: float, value: float | None) -> None:
        """Look at a metric that a worker printed; `step` counts its values. May be called from another thread."""
        self._see(Step(step, when, {name: value}, self._goals, busy=True))

    def tick(self) -> None:
        """Look at the time."""
        self._see(Tick(self._clock(), self._begun, self._stepped))

    def failed(self, step: int, message: str) -> None:
        """Look at why the job failed: a Trainer ends before it reports a loss that is not finite."""
        if _NOT_FINITE.search(message):
            self.step(max(step, self._newest) + 1, {"train:loss": None})

    def close(self) -> None:
        """Wait for webhooks and commands."""
        self._performer.close()

    def _tick_on(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            self.tick()

    def _see(self, seen: Seen) -> None:
        with self._lock:
            waiting = self._waiting[type(seen)]
            for given in list(waiting):
                try:
                    message = given.rule.see(seen)
                except Exception as error:  # a rule that is broken must not break the job
                    waiting.remove(given)
                    self._warn(f"rule {given.name} has failed and watches no longer: {type(error).__name__}: {error}")
                    continue
                if message is not None:
                    self._found(given, getattr(seen, "step", self._newest), message)

    def _found(self, given: Given, step: int, message: str) -> None:
        for waiting in self._waiting.values():  # a rule fires once
            if given in waiting:
                waiting.remove(given)
        line = {"time": time.time(), "step": step, "rule": given.name, "message": message, "action": given.actions.text}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._warn(f"rule {given.name}, step {step}: {message}")
        self._performer.perform(given.actions, line)
        if given.actions.stop:
            self._stop(f"stopped by the rule {given.name} at step {step}: {message}")
