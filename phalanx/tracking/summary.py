"""A job's status as lines that people read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

PARTS = (
    ("training_s", "training that counts"),
    ("stall_s", "waiting for saves"),
    ("lost_work_s", "work lost and done again"),
    ("restart_s", "starting and restarting"),
)


def rows_of(status: Mapping[str, Any]) -> list[list[str]]:
    """Return (what, value) of a status.json."""
    seconds, billable = float(status["training_seconds"]), float(status["billable_seconds"])
    rows = [
        ["job", str(status["name"])],
        ["trains", str(status["algorithm"])],
        ["status", f"{status['status']} ({status['secondary_status']})"],
        ["created", datetime.fromtimestamp(status["created"]).isoformat(" ", "seconds")],
        ["step", str(max(status["step"], (status.get("checkpoint") or {}).get("step", 0)))],
        ["restarts", str(status["restarts"])],
    ]
    if status.get("resumed_from_step"):
        rows.append(["resumed from step", str(status["resumed_from_step"])])
    rows += [[f"passed over step {p['step']}", str(p["why"])] for p in status.get("passed_over") or []]
    if status.get("checkpoint"):
        saved = status["checkpoint"]
        what = (
            f"step {saved['step']}, {saved['bytes']:,} bytes, stall {saved['stall_s']:.3f} s, writing {saved['write_s']:.3f} s"
        )
        rows.append(["newest checkpoint", what])
    rows += [[f"metric {name}", "null" if value is None else f"{value:.6g}"] for name, value in status["metrics"].items()]
    rows.append(["seconds", f"{seconds:.1f} training, {billable:.1f} billable"])
    goodput = status.get("goodput")
    if goodput:
        rows.append(["goodput", f"{100 * goodput['goodput']:.1f} % of {goodput['wall_s']:.1f} s"])
        rows += [[f"  {text}", f"{goodput[key]:.1f} s"] for key, text in PARTS]
    if status.get("cost"):
        cost = status["cost"]
        rows.append(["cost", f"{cost['spot']:.6g} ({cost['on_demand']:.6g} on demand: {100 * cost['saved']:.1f} % saved)"])
    if status.get("failure"):
        rows.append(["failure", str(status["failure"])])
    return rows
