"""What is drawn of a job, for its report and for `phalanx ui`: Plotly's traces and layout, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..observing import PHASES
from .curves import Curve
from .reading import TrackedJob
from .summary import PARTS

_POINTS = 2000  # of a curve, at most
_FEW = 50  # points are marked up to so many
_SCALES = 30.0  # curves whose largest values differ by more are not drawn together at first
_STRETCHES = 400  # of a rank's timeline, at most
_USES = (
    ("cores", "cores in use", 1.0),
    ("memory", "memory, MiB", 2.0**20),
    ("read", "read, MiB/s", 2.0**20),
    ("written", "written, MiB/s", 2.0**20),
    ("gpu", "GPU in use, %", 1.0),
    ("gpu_memory", "GPU memory in use, %", 1.0),
)
_COLOURS = {"compute": "#2ca02c", "data": "#d62728", "loading": "#ff7f0e", "communication": "#1f77b4", "stall": "#9467bd"}


def figures_of(job: TrackedJob) -> list[dict[str, Any]]:
    """Return the figures of a job, each {"heading", "data", "layout"}; what there is nothing of is left out."""
    curves = job.curves()
    begun = _begun(job)
    figures = [
        _curves({name: curve for name, curve in curves.items() if not name.startswith("train:seconds")}),
        _ranks(job.windows(), begun),
        _phases({name.removeprefix("train:seconds_"): c for name, c in curves.items() if name.startswith("train:seconds_")}),
        *_resources(job.resources(), begun),
        _transitions(job.status.get("transitions") or []),
        _goodput(job.status.get("goodput") or {}),
    ]
    return [figure for figure in figures if figure["data"]]


def _figure(heading: str, data: Sequence[Mapping[str, Any]], height: int, **layout: Any) -> dict[str, Any]:
    return {"heading": heading, "data": list(data), "layout": {"height": height, "margin": {"t": 20}, **layout}}


def _title(text: str) -> dict[str, Any]:
    return {"title": {"text": text}}


def _begun(job: TrackedJob) -> float:
    transitions = job.status.get("transitions") or []
    return float(transitions[0]["start"]) if transitions else float(job.status.get("created") or 0.0)


def _curves(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Return one figure of all; what the first curve's scale would hide, and single points, wait in the legend."""
    data: list[dict[str, Any]] = []
    longest = max((len(curve.steps) for curve in curves.values()), default=0)
    scale = 0.0
    for name, curve in curves.items():
        thin = curve.thinned(_POINTS)
        values = [None if value != value else float(value) for value in thin.values]
        most = max((abs(value) for value in values if value is not None), default=0.0)
        alike = not (scale and most) or scale / _SCALES <= most <= scale * _SCALES
        shown = alike and (len(curve.steps) > 1 or longest == 1)
        scale = scale or (most if shown else 0.0)
        mode = "lines+markers" if len(values) < _FEW else "lines"
        line = {"type": "scatter", "x": thin.steps.tolist(), "y": values, "name": name, "mode": mode}
        data.append(line if shown else {**line, "visible": "legendonly"})
    return _figure("Curves", data, 480, xaxis=_title("step"), showlegend=True)


def _phases(phases: Mapping[str, Curve]) -> dict[str, Any]:
    data = []
    for name, curve in phases.items():
        thin = curve.thinned(_POINTS)
        data.append({"type": "bar", "x": thin.steps.tolist(), "y": [float(value) for value in thin.values], "name": name})
    layout = {"barmode": "stack", "xaxis": _title("step"), "yaxis": _title("seconds")}
    return _figure("Where rank 0's steps spend their time", data, 360, **layout)


def _ranks(windows: Sequence[Mapping[str, Any]], begun: float) -> dict[str, Any]:
    """Return a row a rank: what it did in every stretch of its time, as the profile's windows tell."""
    found = [w for w in windows if all(isinstance(w.get(key), (int, float)) for key in ("time", "rank", "slot", *PHASES))]
    if not found:
        return _figure("What every rank did", [], 0)
    first, window_s = min(found, key=lambda w: w["slot"]), _window_seconds(found)
    slots = np.array([int(w["slot"] - first["slot"]) for w in found])
    ranks = np.array([int(w["rank"]) for w in found])
    shares = np.array([[float(w[phase]) for phase in PHASES] for w in found])
    span = -(-int(slots.max() + 1) // _STRETCHES)  # windows that are drawn as one
    bars: dict[str, dict[str, list[Any]]] = {phase: {"x": [], "base": [], "y": []} for phase in PHASES}
    for rank in np.unique(ranks):
        own = ranks == rank
        stretches, where = np.unique(slots[own] // span, return_inverse=True)
        sums = np.stack([np.bincount(where, shares[own, n]) for n in range(len(PHASES))], axis=1)
        lengths = sums / np.bincount(where)[:, None] * span * window_s
        begins = float(first["time"]) - begun - window_s + stretches * span * window_s
        for n, phase in enumerate(PHASES):
            bars[phase]["x"] += lengths[:, n].tolist()
            bars[phase]["base"] += (begins + lengths[:, :n].sum(axis=1)).tolist()
            bars[phase]["y"] += [f"rank {rank}"] * len(stretches)
    data = [
        {"type": "bar", "orientation": "h", "name": phase, "marker": {"color": _COLOURS[phase], "line": {"width": 0}}, **bar}
        for phase, bar in bars.items()
    ]
    layout = {"barmode": "overlay", "xaxis": _title("seconds since the start"), "yaxis": {"autorange": "reversed"}}
    return _figure("What every rank did", data, 140 + 40 * len(np.unique(ranks)), **layout)


def _window_seconds(windows: Sequence[Mapping[str, Any]]) -> float:
    """Return how long a window is, as its number and time tell; a quarter of a second where there is one only."""
    low, high = min(windows, key=lambda w: w["slot"]), max(windows, key=lambda w: w["slot"])
    apart = high["slot"] - low["slot"]
    return float((high["time"] - low["time"]) / apart) if apart and high["time"] > low["time"] else 0.25


def _resources(lines: Sequence[Mapping[str, Any]], begun: float) -> list[dict[str, Any]]:
    figures = []
    for key, heading, unit in _USES:
        data = []
        known = [
            line for line in lines if isinstance(line.get(key), (int, float)) and isinstance(line.get("time"), (int, float))
        ]
        if not any(line[key] for line in known):
            continue
        for rank in sorted({int(line["rank"]) for line in known}):
            own = [line for line in known if line["rank"] == rank]
            times = np.array([line["time"] - begun for line in own])
            values = np.array([line[key] / unit for line in own])
            thin = Curve(np.arange(len(own)), times, values).thinned(_POINTS)
            trace = {"type": "scatter", "x": thin.times.tolist(), "y": thin.values.tolist(), "name": f"rank {rank}"}
            data.append({**trace, "mode": "lines+markers" if len(own) < _FEW else "lines"})
        layout = {"xaxis": _title("seconds since the start"), "yaxis": {**_title(heading), "rangemode": "tozero"}}
        figures.append(_figure(f"Resources: {heading}", data, 300, showlegend=True, **layout))
    return figures


def _transitions(transitions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    data = []
    for entry in transitions:
        length = max(0.0, (entry.get("end") or entry["start"]) - entry["start"])
        bar = {
            "type": "bar",
            "orientation": "h",
            "x": [length],
            "base": [entry["start"] - transitions[0]["start"]],
            "y": ["job"],
        }
        data.append({**bar, "name": entry["status"], "hovertext": [entry.get("message") or entry["status"]]})
    return _figure("Statuses", data, 220, barmode="overlay", xaxis=_title("seconds since the start"))


def _goodput(goodput: Mapping[str, float]) -> dict[str, Any]:
    parts = [(text, goodput[key]) for key, text in PARTS if key in goodput]
    bar = {"type": "bar", "orientation": "h", "x": [value for _, value in parts], "y": [text for text, _ in parts]}
    layout = {"xaxis": _title("seconds"), "yaxis": {"automargin": True}}
    return _figure("Goodput", [bar] if parts else [], 260, **layout)
