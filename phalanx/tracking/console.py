"""What a person sees while a job runs: a live line on a terminal, plain lines elsewhere, nothing when a program reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO, final, runtime_checkable

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_PLAIN_SECONDS = 2.0  # plain lines tell about steps at most this often
_RANK_STYLES = ("cyan", "magenta", "green", "yellow", "blue", "red")


class Progress(Protocol):
    """Told of what happens to a job; called from more than one thread."""

    def started(self, name: str, headline: str) -> None: ...
    def status(self, secondary: str, message: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...


@runtime_checkable
class ShowsNodes(Protocol):
    """A `Progress` that says where a worker's line comes from: `[node:rank]` in place of `[rank]`."""

    def nodes(self, names: Sequence[str]) -> None:
        """Take the names of the ranks' nodes."""
        ...


def progress_for(stream: TextIO | None = None) -> Progress:
    """Return the live display where `stream` (standard error) is a terminal, plain lines where not."""
    out = sys.stderr if stream is None else stream
    return LiveProgress(out) if out.isatty() else PlainProgress(out)


def metrics_text(metrics: Mapping[str, float | None]) -> str:
    """Return metrics as a person reads them: `train:msd=20.48`."""
    return "  ".join(f"{name}={'-' if value is None else format(value, '.6g')}" for name, value in metrics.items())


@final
class Silent:
    """Shows nothing."""

    def started(self, name: str, headline: str) -> None: ...
    def status(self, secondary: str, message: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None: ...
    def log(self, rank: int, line: str) -> None: ...
    def ended(self) -> None: ...


@final
class _Rate:
    """Steps and rows so far, and how fast they come."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._first_step = 0
        self._first_rows = 0
        self.rows = 0

    def text(self, step: int, rows: int, total_steps: int | None) -> str:
        """Return "1.2M rows/s, 0:00:05 left", as far as it is known."""
        now = time.monotonic()
        self.rows += rows
        if self._begun is None:
            self._begun, self._first_step, self._first_rows = now, step, self.rows
            return ""
        elapsed = now - self._begun
        done = step - self._first_step
        if elapsed <= 0 or done <= 0:
            return ""
        parts = []
        if self.rows > self._first_rows:
            parts.append(f"{_short((self.rows - self._first_rows) / elapsed)} rows/s")
        if total_steps is not None and total_steps >= step:
            left = int((total_steps - step) * elapsed / done)
            parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        return ", ".join(parts)


@final
class PlainProgress:
    """Plain lines, for pipes, files and notebooks."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rate = _Rate()
        self._shown = 0.0
        self._pending = ""
        self._nodes: Sequence[str] = ()

    def started(self, name: str, headline: str) -> None:
        """Say what begins."""
        self._line(f"{name}: {headline}")

    def status(self, secondary: str, message: str) -> None:
        """Say which phase begins."""
        self._flush()
        self._line(f"{secondary}{': ' + message if message else ''}")

    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        """Tell of a step, at most every two seconds; the last one is always told."""
        of = "" if total_steps is None else f"/{total_steps}"
        rate = self._rate.text(step, rows, total_steps)
        self._pending = f"step {step}{of}  {metrics_text(metrics)}" + (f"  ({rate})" if rate else "")
        if time.monotonic() - self._shown >= _PLAIN_SECONDS:
            self._flush()

    def log(self, rank: int, line: str) -> None:
        """Show a worker's line."""
        self._line(f"{prefix_of(self._nodes, rank)} {line}")

    def nodes(self, names: Sequence[str]) -> None:
        """See `ShowsNodes`."""
        self._nodes = names

    def ended(self) -> None:
        """Show what was held back."""
        self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._line(self._pending)
            self._pending, self._shown = "", time.monotonic()

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


@final
class LiveProgress:
    """A live line under the workers' log lines, for terminals."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False)
        self._rate = _Rate()
        self._status = ""
        self._step = ""
        self._bar = ""
        self._metrics = ""
        self._speed = ""
        self._nodes: Sequence[str] = ()
        self._live = Live(self._render(), console=self._console, refresh_per_second=8, transient=True)

    def started(self, name: str, headline: str) -> None:
        """Say what begins and start the live line."""
        self._console.print(Text.assemble((name, "bold"), "  ", (headline, "dim")))
        self._live.start()

    def status(self, secondary: str, message: str) -> None:
        """Change the phase on the live line."""
        self._status = secondary
        if message:
            self._console.print(Text(message, "dim"))
        self._refresh()

    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        """Change step, metrics and rates on the live line."""
        of = "" if total_steps is None else f"/{total_steps}"
        if total_steps:
            filled = min(24, 24 * step // total_steps)
            self._bar = "━" * filled + "╌" * (24 - filled)
        self._step = f"step {step}{of}"
        self._metrics = metrics_text(metrics)
        self._speed = self._rate.text(step, rows, total_steps) or self._speed
        self._refresh()

    def log(self, rank: int, line: str) -> None:
        """Show a worker's line above the live one."""
        prefix = f"{prefix_of(self._nodes, rank)} "
        self._console.print(Text.assemble((prefix, _RANK_STYLES[rank % len(_RANK_STYLES)]), line))

    def nodes(self, names: Sequence[str]) -> None:
        """See `ShowsNodes`."""
        self._nodes = names

    def ended(self) -> None:
        """Leave the last state of the live line standing."""
        self._live.stop()
        if self._step:
            self._console.print(Text.assemble((self._step, "bold"), "  ", self._metrics))

    def _refresh(self) -> None:
        self._live.update(self._render())

    def _render(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        texts = (Text(self._status, "bold cyan"), Text(self._bar, "cyan"), Text(self._step), Text(self._metrics))
        grid.add_row(*texts, Text(self._speed, "dim"))
        return grid


def prefix_of(nodes: Sequence[str], rank: int) -> str:
    """Return what stands before a line that a worker wrote: `[node:rank]`, or `[rank]` where its node is not known."""
    return f"[{nodes[rank]}:{rank}]" if rank < len(nodes) else f"[{rank}]"


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
