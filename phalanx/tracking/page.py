"""A job as one html page that needs nothing else: how it went, its curves, where its time went, findings, lineage."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from .curves import Curve
from .reading import TrackedJob
from .summary import PARTS, rows_of

_POINTS = 2000  # of a curve, at most
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .8em; text-align: left }
td, th { border-bottom: 1px solid #ddd }
h2 { margin-top: 2em } pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 12px }
"""


def page(job: TrackedJob) -> str:
    """Return the page of a job.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise UserError("a report needs plotly: pip install 'phalanx-train[tune]'") from None
    curves = job.curves()
    figures = [("Curves", _curves(go, curves))] if curves else []
    if job.status.get("transitions"):
        figures.append(("Timeline", _timeline(go, job.status["transitions"])))
    if job.status.get("goodput"):
        figures.append(("Goodput", _goodput(go, job.status["goodput"])))
    phases = {name.removeprefix("train:seconds_"): curve for name, curve in curves.items() if name.startswith("train:seconds_")}
    if phases:
        figures.append(("Where rank 0's steps spend their time", _phases(go, phases)))
    title = html.escape(job.name)
    parts = [f"<h1>{title}</h1>", _table(rows_or_less(job)), "<h2>Findings of rules</h2>", _findings(job.findings())]
    script = True  # plotly's own, once in the page
    for heading, figure in figures:
        parts += [f"<h2>{heading}</h2>", figure.to_html(full_html=False, include_plotlyjs=script)]
        script = False
    parts += [f"<h2>{heading}</h2>" + text for heading, text in _lineage(job)]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style><link rel="icon" href="data:,">'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def rows_or_less(job: TrackedJob) -> list[list[str]]:
    """Return (what, value) of a job; of a broken status.json as much as there is."""
    try:
        return rows_of(job.status)
    except (KeyError, TypeError, ValueError):  # an older or a broken status.json
        return [["job", job.name], ["trains", job.algorithm], ["status", job.state]]


def _curves(go: Any, curves: Mapping[str, Curve]) -> Any:
    figure = go.Figure()
    for name, curve in curves.items():
        if name.startswith("train:seconds"):
            continue
        thin = curve.thinned(_POINTS)
        values = [None if value != value else float(value) for value in thin.values]
        figure.add_scatter(x=thin.steps.tolist(), y=values, name=name, mode="lines+markers" if len(values) < 50 else "lines")
    figure.update_layout(xaxis_title="step", height=480, margin={"t": 20})
    return figure


def _timeline(go: Any, transitions: Sequence[Mapping[str, Any]]) -> Any:
    begin = transitions[0]["start"]
    figure = go.Figure()
    for entry in transitions:
        length = max(0.0, (entry.get("end") or entry["start"]) - entry["start"])
        figure.add_bar(
            x=[length], base=[entry["start"] - begin], y=["job"], orientation="h", name=entry["status"],
            hovertext=[entry.get("message") or entry["status"]],
        )  # fmt: skip
    figure.update_layout(barmode="overlay", xaxis_title="seconds since the start", height=220, margin={"t": 20})
    return figure


def _goodput(go: Any, goodput: Mapping[str, float]) -> Any:
    figure = go.Figure(go.Bar(x=[goodput[key] for key, _ in PARTS], y=[text for _, text in PARTS], orientation="h"))
    figure.update_layout(xaxis_title="seconds", height=260, margin={"t": 20})
    return figure


def _phases(go: Any, phases: Mapping[str, Curve]) -> Any:
    figure = go.Figure()
    for name, curve in phases.items():
        thin = curve.thinned(_POINTS)
        figure.add_bar(x=thin.steps.tolist(), y=[float(value) for value in thin.values], name=name)
    figure.update_layout(barmode="stack", xaxis_title="step", yaxis_title="seconds", height=360, margin={"t": 20})
    return figure


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return "<p>none</p>"
    rows = [[str(f.get("step", "")), str(f.get("rule", "")), str(f.get("message", ""))] for f in findings]
    return _table(rows, ["step", "rule", "what it found"])


def _lineage(job: TrackedJob) -> list[tuple[str, str]]:
    request = dict(job.request)
    provenance = request.pop("provenance", {}) or {}
    data = provenance.get("data") or {}
    rows = [[name, str(d.get("files")), f"{d.get('bytes', 0):,}", str(d.get("fingerprint"))] for name, d in data.items()]
    origin = {key: value for key, value in provenance.items() if key != "data"}
    return [
        ("Data", _table(rows, ["channel", "files", "bytes", "fingerprint"]) if rows else "<p>none</p>"),
        ("Code and versions", _json(origin)),
        ("Request", _json(request)),
    ]


def _json(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headers)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{lines}</table>"
