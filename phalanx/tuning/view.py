"""What a person sees while a sweep runs: a live table on a terminal, a line for every trial elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Protocol, TextIO, final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import storage
from .plan import Plan
from .table import best_of, first_text, number_text, values_text
from .trial import Trial

_SHOWN = 12  # trials of the live table
_EVERY_SECONDS = 0.25


class View(Protocol):
    """Told of what happens to a sweep, from the driver's thread."""

    def started(self, plan: Plan) -> None: ...
    def changed(self, trials: Sequence[Trial], running: Iterable[int]) -> None: ...
    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None: ...
    def ended(self, trials: Sequence[Trial], reason: str) -> None: ...


def view_for(stream: TextIO | None = None) -> View:
    """Return the live table where `stream` (standard error) is a terminal, plain lines where not."""
    out = sys.stderr if stream is None else stream
    return LiveView(out) if out.isatty() else PlainView(out)


@final
class SilentView:
    """Shows nothing."""

    def started(self, plan: Plan) -> None: ...
    def changed(self, trials: Sequence[Trial], running: Iterable[int]) -> None: ...
    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None: ...
    def ended(self, trials: Sequence[Trial], reason: str) -> None: ...


@final
class PlainView:
    """A line for every trial that ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._plan: Plan | None = None

    def started(self, plan: Plan) -> None:
        """Say what begins, and why so."""
        self._plan = plan
        self._line(f"{plan.name}: {headline(plan)}")
        self._line(plan.why)

    def changed(self, trials: Sequence[Trial], running: Iterable[int]) -> None: ...

    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None:
        """Show a trial, and the best so far."""
        if self._plan is None or trial.status == "InProgress":
            return
        best = best_of(trials, self._plan.objectives)
        tail = "" if best is None else f"  best {first_text(best)} (trial {best.number})"
        what = trial.failure or first_text(trial)
        head = f"trial {trial.number}/{self._plan.max_jobs}  {trial.status}"
        self._line(f"{head}  {what}  {trial.seconds:.1f} s  {values_text(trial)}{tail}")

    def ended(self, trials: Sequence[Trial], reason: str) -> None:
        """Say why it ended."""
        self._line(f"ended: {reason}")

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


@final
class LiveView:
    """A live table of the trials that run, the best and the latest."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False)
        self._live = Live(Text(""), console=self._console, refresh_per_second=4, transient=True)
        self._plan: Plan | None = None
        self._begun = time.monotonic()
        self._drawn = 0.0
        self._before: int | None = None  # trials that had ended when this driver began

    def started(self, plan: Plan) -> None:
        """Say what begins and start the table."""
        self._plan = plan
        self._console.print(Text.assemble((plan.name, "bold"), "  ", (headline(plan), "dim")))
        self._console.print(Text(plan.why, "dim"))
        self._live.start()

    def changed(self, trials: Sequence[Trial], running: Iterable[int]) -> None:
        """Draw again, if it was not just drawn."""
        if time.monotonic() - self._drawn >= _EVERY_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._render(trials, set(running)))

    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None:
        """Draw at the next change."""
        self._drawn = 0.0

    def ended(self, trials: Sequence[Trial], reason: str) -> None:
        """Leave the last table standing."""
        self._live.stop()
        self._console.print(self._render(trials, set()))
        self._console.print(Text(f"ended: {reason}", "bold"))

    def _render(self, trials: Sequence[Trial], running: set[int]) -> Group:
        plan = self._plan
        if plan is None:
            return Group()
        best = best_of(trials, plan.objectives)
        table = Table("trial", "status", plan.objectives[0].metric, "step", "seconds", "hyperparameters", box=None)
        rows = [t for t in trials if t.number in running or t is best]
        rows += [t for t in reversed(trials) if t not in rows][: max(0, _SHOWN - len(rows))]
        for trial in sorted(rows, key=lambda t: t.number):
            mark = "★ " if trial is best else "  "
            value = trial.objective[0] if trial.objective else _newest(trial, plan)
            style = "bold green" if trial is best else "cyan" if trial.number in running else ""
            cells = (str(trial.number), trial.status, number_text(value), str(trial.step), f"{trial.seconds:.1f}")
            table.add_row(mark + cells[0], *cells[1:], values_text(trial), style=style)
        return Group(table, Text(self._left(trials, plan, len(running)), "dim"))

    def _left(self, trials: Sequence[Trial], plan: Plan, running: int) -> str:
        done = sum(t.status != "InProgress" for t in trials)
        if self._before is None:
            self._before = done
        text = f"{done} of {plan.max_jobs} trials, {running} running"
        if done == self._before:
            return text
        left = int((time.monotonic() - self._begun) / (done - self._before) * (plan.max_jobs - done))
        return f"{text}, at most {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def headline(plan: Plan) -> str:
    """Return what a sweep does, in one line."""
    goal = ", ".join(f"{o.direction} {o.metric}" for o in plan.objectives)
    what = f"{plan.max_jobs} trials, {plan.room.slots} at once, {plan.strategy}, early stopping {plan.stopping}"
    return f"{goal}; {what}, to {storage.redact(plan.folder)}"


def _newest(trial: Trial, plan: Plan) -> float | None:
    return plan.objectives[0].sign * trial.curve.values[-1] if trial.curve.values else None
