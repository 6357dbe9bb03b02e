"""The profile of a job in its folder: the ranks' traces, their windows, and a summary that names who keeps the others waiting.

profile/rank-N.trace.json   for Perfetto (ui.perfetto.dev) or chrome://tracing
profile/windows.jsonl       every quarter of a second of every rank: shares of phases, cores, GPU, memory
profile/summary.json, .txt
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ..contracts import Event
from ..phases import PHASES
from .rules.machines import slow_rank

SLOW = 0.5  # share of a rank's working time that the others do not work: it keeps them waiting


@final
class ProfileRecord:
    """Writes the profile of a job.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "profile"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ranks: dict[int, Mapping[str, Any]] = {}

    def event(self, event: Event) -> None:
        """Take what a worker said, if it is of a profile."""
        body = event.body
        if body["kind"] == "profile":
            self._ranks[int(body["rank"])] = {name: value for name, value in body.items() if name not in ("kind", "rank", "at")}
        elif body["kind"] == "observed" and body["what"] == "windows":
            with (self.folder / "windows.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": event.time, **body["seen"]}) + "\n")

    def write(self) -> None:
        """Write the summary of the ranks that have told theirs."""
        if not self._ranks:
            return
        found = summary(self._ranks)
        (self.folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (self.folder / "summary.txt").write_text(text_of(found), encoding="utf-8")


def summary(ranks: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what summary.json holds.

    Args:
        ranks: rank -> its event "profile".
    """
    rows = []
    for rank in sorted(ranks):
        told = ranks[rank]
        total = sum(told["phases"].values()) or 1.0
        shares = {phase: round(told["phases"].get(phase, 0.0) / total, 4) for phase in PHASES}
        working = shares["compute"] + shares["data"] + shares["loading"]
        rows.append({"rank": rank, **told, "shares": shares, "working": round(working, 4)})
    return {"ranks": rows, "slow_rank": slow_rank({row["rank"]: row["working"] for row in rows}, SLOW)}


def text_of(found: Mapping[str, Any]) -> str:
    """Return a summary for people."""
    lines = ["rank  steps  seconds/step  " + "  ".join(f"{phase:>13}" for phase in PHASES)]
    for row in found["ranks"]:
        each = row["seconds"] / max(1, row["steps"] - 1)
        shares = "  ".join(f"{100 * row['shares'][phase]:12.1f}%" for phase in PHASES)
        lines.append(f"{row['rank']:>4}  {row['steps']:>5}  {each:>12.6f}  {shares}")
    slow = found["slow_rank"]
    lines += ["", "no rank keeps the others waiting" if slow is None else f"rank {slow} keeps the others waiting"]
    operators = found["ranks"][0]["operators"]
    if operators:
        lines += ["", f"operators of rank {found['ranks'][0]['rank']}, ms of their own in the recorded steps"]
        lines += [f"{entry['self_cpu_ms']:>12.3f}  {entry['calls']:>7} x  {entry['name']}" for entry in operators]
    return "\n".join(lines) + "\n"
