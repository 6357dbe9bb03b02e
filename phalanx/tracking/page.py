"""A job as one html page that needs nothing else: how it went, its curves, where its time went, findings, lineage."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from . import sound
from .figures import figures_of
from .reading import TrackedJob
from .summary import rows_of

_FILES = 1000  # that are listed, at most
_STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --line: #ddd; --block: #f6f6f6; --best: #eef7ee }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --page: #16181c; --line: #383c43; --block: #22252b; --best: #1d3324 }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
body { color: var(--text); background: var(--page) }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .8em; text-align: left }
td, th { border-bottom: 1px solid var(--line) }
h2 { margin-top: 2em } .wide { overflow-x: auto } .best td { font-weight: bold; background: var(--best) }
pre { background: var(--block); padding: 1em; overflow: auto; font-size: 12px }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 2em } .whole { grid-column: 1 / -1 }
@media (max-width: 50em) { body { margin: .8em auto } .half { grid-column: 1 / -1 } td, th { padding: .2em .4em } }
"""
CONFIG: Mapping[str, Any] = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}


def page(job: TrackedJob) -> str:
    """Return the page of a job.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise UserError("a report needs plotly: pip install 'phalanx-train[tune]'") from None
    parts = [f"<h1>{html.escape(job.name)}</h1>", _table(rows_of(job)), "<h2>Findings of rules</h2>", _findings(job.findings())]
    script = True  # plotly's own, once in the page
    parts.append('<div class="figures">')
    for figure in figures_of(job):
        drawn = go.Figure(data=figure["data"], layout=figure["layout"])
        plot = drawn.to_html(full_html=False, include_plotlyjs=script, config=CONFIG)
        kind = "half" if figure["heading"].startswith("Resources") else "whole"
        parts.append(f'<section class="{kind}"><h2>{figure["heading"]}</h2>{plot}</section>')
        script = False
    parts.append("</div>")
    parts += [f"<h2>{heading}</h2>" + text for heading, text in _lineage(job)]
    return document(job.name, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Return a page of these parts, in html."""
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    head = f"{view}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return "<p>none</p>"
    rows = [[str(f.get("step", "")), str(f.get("rule", "")), str(f.get("message", ""))] for f in findings]
    return _table(rows, ["step", "rule", "what it found"])


def _lineage(job: TrackedJob) -> list[tuple[str, str]]:
    request = dict(job.request)
    provenance = request.pop("provenance", {}) or {}
    data = sound.mapping(provenance.get("data"))
    rows = [[name, str(d.get("files")), f"{d.get('bytes', 0):,}", str(d.get("fingerprint"))] for name, d in data.items()]
    files = [
        [str(f.get("channel")), str(f.get("file")), f"{f.get('bytes', 0):,}", str(f.get("xxh3_128") or "")] for f in job.data()
    ]
    if len(files) > _FILES:
        files = [*files[:_FILES], ["", f"{len(files) - _FILES:,} more in data.jsonl", "", ""]]
    origin = {key: value for key, value in provenance.items() if key != "data"}
    return [
        ("Data", _table(rows, ["channel", "files", "bytes", "fingerprint"]) if rows else "<p>none</p>"),
        ("Files", _table(files, ["channel", "file", "bytes", "XXH3, 128 bits"]) if files else "<p>none</p>"),
        ("Code and versions", _json(origin)),
        ("Request", _json(request)),
    ]


def _json(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headers)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{lines}</table>"
