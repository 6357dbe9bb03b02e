"""The forecasts of a test drawn: for some series what was known, what came, the median, and bands between quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import sound

_PANELS = 6
_COLUMNS = 2
_BLUE = "31, 119, 180"


def forecasts_figure(records: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return Plotly's traces and layout, a panel a series.

    Of the last window of a test those series are drawn that lie evenly between the best and the worst forecast, by the error of
    the median relative to the values.

    Args:
        records: lines of `forecasts.jsonl`: series, window, begin, history, actual, mean and quantiles.
    """
    whole = [r for r in records if _is_whole(r)]
    last = max((int(r.get("window", 1)) for r in whole), default=1)
    ranked = sorted((r for r in whole if int(r.get("window", 1)) == last), key=lambda r: (_error(r), r.get("series", 0)))
    count = min(_PANELS, len(ranked))
    chosen = [ranked[round(i * (len(ranked) - 1) / max(count - 1, 1))] for i in range(count)]
    data = [trace for panel, record in enumerate(chosen) for trace in _panel(record, panel)]
    rows = -(-count // _COLUMNS)
    notes = [
        {
            "text": f"series {record.get('series')}: error of the median {100 * _error(record):.1f} %",
            "xref": f"x{_axis(panel)} domain",
            "yref": f"y{_axis(panel)} domain",
            "x": 0,
            "y": 1,
            "yanchor": "bottom",
            "showarrow": False,
        }
        for panel, record in enumerate(chosen)
    ]
    layout = {
        "grid": {"rows": rows, "columns": min(count, _COLUMNS), "pattern": "independent", "ygap": 0.25},
        "height": 120 + 230 * rows,
        "annotations": notes,
        "margin": {"t": 40},
        "legend": {"orientation": "h", "y": -0.08},
    }
    return data, layout


def _panel(record: Mapping[str, Any], panel: int) -> list[dict[str, Any]]:
    begin, history, actual = int(record.get("begin", 0)), list(record.get("history") or []), list(record["actual"])
    quantiles = sorted((float(q), list(values)) for q, values in record["quantiles"].items())
    before, after = list(range(begin - len(history), begin)), list(range(begin, begin + len(actual)))
    axes = {"xaxis": f"x{_axis(panel)}", "yaxis": f"y{_axis(panel)}", "showlegend": panel == 0, "mode": "lines"}
    found = []
    bands = len(quantiles) // 2
    for number in range(bands):
        (low, lower), (high, upper) = quantiles[number], quantiles[-1 - number]
        name = f"{low:g} to {high:g}"
        found.append(
            {
                **axes,
                "x": after + after[::-1],
                "y": upper + lower[::-1],
                "fill": "toself",
                "fillcolor": f"rgba({_BLUE}, {0.12 + 0.3 * number / max(bands, 1):.2f})",
                "line": {"width": 0},
                "name": name,
                "legendgroup": name,
                "hoverinfo": "skip",
            }
        )
    middle = min(quantiles, key=lambda pair: abs(pair[0] - 0.5))
    lines = [
        ("history", before, history, {"color": "#444", "width": 1}),
        ("actual", [*before[-1:], *after], [*history[-1:], *actual], {"color": "#d62728", "width": 1.5}),
        ("median" if middle[0] == 0.5 else f"quantile {middle[0]:g}", after, middle[1], {"color": f"rgb({_BLUE})", "width": 2}),
    ]
    found += [{**axes, "x": x, "y": y, "name": name, "legendgroup": name, "line": line} for name, x, y, line in lines]
    return found


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Return whether a line holds a forecast: one that was cut or written by something else may not."""
    quantiles, actual, history = record.get("quantiles"), record.get("actual"), record.get("history")
    if not isinstance(quantiles, dict) or not isinstance(actual, list) or not isinstance(history, list) or not actual:
        return False
    places = sound.number(record.get("begin")), sound.number(record.get("window"))
    known = [value for value in (*actual, *history) if value is not None]
    drawn = [values for values in quantiles.values() if isinstance(values, list) and len(values) == len(actual)]
    numbers = all(sound.number(value) is not None for values in (known, *drawn) for value in values)
    levels = all(name.replace(".", "", 1).isdigit() for name in quantiles)
    return None not in places and bool(drawn) and len(drawn) == len(quantiles) and numbers and levels


def _axis(panel: int) -> str:
    return str(panel + 1) if panel else ""


def _error(record: Mapping[str, Any]) -> float:
    median = record["quantiles"][min(record["quantiles"], key=lambda q: abs(float(q) - 0.5))]
    pairs = [(a, m) for a, m in zip(record["actual"], median, strict=False) if a is not None]
    size = sum(abs(a) for a, _ in pairs)
    return float(sum(abs(a - m) for a, m in pairs) / size) if size else 0.0
