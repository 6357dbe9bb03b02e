"""What is drawn of a job, for its report and for `phalanx ui`: Plotly's traces and layout, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..phases import PHASES
from . import sound
from .curves import Curve
from .forecasts import forecasts_figure
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
_MEANINGS = {
    "compute": "computes",
    "data": "waits for data",
    "loading": "prepares data",
    "communication": "waits for other ranks",
    "stall": "saves",
}
_AXIS = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.5)", "linecolor": "rgba(128,128,128,.5)"}
TEMPLATE: Mapping[str, Any] = {  # reads well on light and on dark pages
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "color": "#808080"},
        "colorway": ["#3584e4", "#e66100", "#2ea043", "#d6336c", "#9467bd", "#b58900", "#17a2b8", "#8c8c8c"],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"bgcolor": "rgba(0,0,0,0)"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#808080", "activecolor": "#3584e4"},
    }
}
_COLOURS = {"compute": "#2ca02c", "data": "#d62728", "loading": "#ff7f0e", "communication": "#1f77b4", "stall": "#9467bd"}


def figures_of(job: TrackedJob) -> list[dict[str, Any]]:
    """Return the figures of a job, each {"heading", "data", "layout"}; what there is nothing of is left out."""
    curves = job.curves()
    begun, resources = _begun(job), job.resources()
    figures = [
        _curves({name: curve for name, curve in curves.items() if not name.startswith("train:seconds")}),
        _forecasts(job.forecasts()),
        _ranks(job.windows(), resources, begun),
        _phases({name.removeprefix("train:seconds_"): c for name, c in curves.items() if name.startswith("train:seconds_")}),
        *_resources(resources, begun),
        _transitions(job.status.get("transitions") or []),
        _goodput(job.status.get("goodput") or {}),
    ]
    return [{**figure, "layout": {"template": TEMPLATE, **figure["layout"]}} for figure in figures if figure["data"]]


def _figure(heading: str, data: Sequence[Mapping[str, Any]], height: int, **layout: Any) -> dict[str, Any]:
    return {"heading": heading, "data": list(data), "layout": {"height": height, "margin": {"t": 20}, **layout}}


def _forecasts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    data, layout = forecasts_figure(records)
    return {"heading": "Forecasts of channel test", "data": data, "layout": layout}


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


def _ranks(windows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], begun: float) -> dict[str, Any]:
    """Return a row a rank: what it did in every stretch of its time, as the profile's windows tell, or else its heartbeats."""
    found = _of_windows(windows) or [
        (int(line["rank"]), line["time"] - line["seconds"], line["seconds"], [line[phase] for phase in PHASES])
        for line in lines
        if all(sound.number(line.get(key)) is not None for key in ("seconds", *PHASES))
    ]
    if not found:
        return _figure("What every rank did", [], 0)
    bars: dict[str, dict[str, list[Any]]] = {phase: {"x": [], "base": [], "y": []} for phase in PHASES}
    ranks = sorted({rank for rank, *_ in found})
    for rank in ranks:
        own = sorted(entry[1:] for entry in found if entry[0] == rank)
        span = -(-len(own) // _STRETCHES)  # that are drawn as one
        for place in range(0, len(own), span):
            together = own[place : place + span]
            lengths = [sum(length * shares[n] for _, length, shares in together) for n in range(len(PHASES))]
            base = together[0][0] - begun
            for phase, length in zip(PHASES, lengths, strict=True):
                bars[phase]["x"].append(round(length, 4))
                bars[phase]["base"].append(round(base, 4))
                bars[phase]["y"].append(f"rank {rank}")
                base += length
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": _MEANINGS[phase],
            **bar,
            "marker": {"color": _COLOURS[phase], "line": {"width": 0}},
            "hovertemplate": "%{x:.3g} s, %{y}",
        }
        for phase, bar in bars.items()
    ]
    layout = {
        "barmode": "overlay",
        "bargap": 0.3,
        "xaxis": _title("seconds since the start"),
        "yaxis": {"autorange": "reversed"},
    }
    return _figure("What every rank did", data, 140 + 40 * len(ranks), **layout)


def _of_windows(windows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float, list[float]]]:
    """Return (rank, begin, seconds, shares of phases) of a profile's windows, whose numbers tell when they were."""
    if not windows:
        return []
    first, length = min(windows, key=lambda w: w["slot"]), _window_seconds(windows)
    begin = first["time"] - length
    return [(int(w["rank"]), begin + (w["slot"] - first["slot"]) * length, length, [w[p] for p in PHASES]) for w in windows]


def _window_seconds(windows: Sequence[Mapping[str, Any]]) -> float:
    """Return how long a window is, as its number and time tell; a quarter of a second where there is one only."""
    low, high = min(windows, key=lambda w: w["slot"]), max(windows, key=lambda w: w["slot"])
    apart = high["slot"] - low["slot"]
    return float((high["time"] - low["time"]) / apart) if apart and high["time"] > low["time"] else 0.25


def _resources(lines: Sequence[Mapping[str, Any]], begun: float) -> list[dict[str, Any]]:
    figures = []
    for key, heading, unit in _USES:
        data = []
        known = [line for line in lines if sound.number(line.get(key)) is not None]
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
