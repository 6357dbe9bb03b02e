"""A job's status as lines that people read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .listing import duration, row_of
from .reading import TrackedJob

PARTS = (
    ("training_s", "training that counts"),
    ("stall_s", "waiting for saves"),
    ("lost_work_s", "work lost and done again"),
    ("restart_s", "starting and restarting"),
)


def rows_of(job: TrackedJob) -> list[list[str]]:
    """Return (what, value) of a job; of a status.json that is not whole as much as there is."""
    status = job.status
    secondary = status.get("secondary_status")
    rows = [
        ["job", job.name],
        ["trains", job.algorithm],
        ["status", job.state if secondary in (None, job.state) else f"{job.state} ({secondary})"],
    ]
    silent_s = row_of(job)["silent_s"]
    if silent_s is not None:
        rows.append(["silent", f"for {duration(silent_s)}: the process that ran it seems to be gone; --resume goes on with it"])
    if status.get("failure"):
        rows.append(["failure", str(status["failure"])])
    if status.get("created") is not None:
        rows.append(["created", datetime.fromtimestamp(status["created"]).isoformat(" ", "seconds")])
    saved = status.get("checkpoint") or {}
    rows.append(["step", str(max(status.get("step") or 0, saved.get("step") or 0))])
    rows.append(["restarts", str(status.get("restarts") or 0)])
    if status.get("resumed_from_step"):
        rows.append(["resumed from step", str(status["resumed_from_step"])])
    rows += [[f"passed over step {p['step']}", str(p.get("why"))] for p in status.get("passed_over") or []]
    if saved:
        writing = f"stall {saved['stall_s']:.3f} s, writing {saved['write_s']:.3f} s"
        rows.append(["newest checkpoint", f"step {saved['step']}, {saved['bytes']:,} bytes, {writing}"])
    rows += [[f"metric {name}", text] for name, text in _metrics(status)]
    if status.get("training_seconds") is not None:
        billable = status.get("billable_seconds") or 0.0
        rows.append(["seconds", f"{status['training_seconds']:.1f} training, {billable:.1f} billable"])
    goodput = status.get("goodput")
    if goodput:
        rows.append(["goodput", f"{100 * goodput['goodput']:.1f} % of {goodput['wall_s']:.1f} s"])
        rows += [[f"  {text}", f"{goodput[key]:.1f} s"] for key, text in PARTS]
    if status.get("cost"):
        cost = status["cost"]
        rows.append(["cost", f"{cost['spot']:.6g} ({cost['on_demand']:.6g} on demand: {100 * cost['saved']:.1f} % saved)"])
    return rows


def _metrics(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    best = status.get("best") or {}
    found = []
    for name, value in (status.get("metrics") or {}).items():
        said = "not finite" if value is None else f"{value:.6g}"
        if name in best and best[name]["value"] != value:
            said += f" (best {best[name]['value']:.6g} at step {best[name]['step']})"
        found.append((name, said))
    return found
