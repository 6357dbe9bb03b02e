"""The forecasts of a test in a job's report."""

from __future__ import annotations

from typing import Any

from phalanx.tracking.forecasts import forecasts_figure


def record(number: int, error: float, window: int = 1) -> dict[str, Any]:
    return {
        "series": number,
        "window": window,
        "begin": 10,
        "history": [1.0, None, 3.0],
        "actual": [4.0, None],
        "mean": [4.0, 4.0],
        "quantiles": {"0.1": [3.0, 3.0], "0.5": [4.0 + error, 4.0], "0.9": [6.0, 6.0]},
    }


def test_panels_lie_between_the_best_and_the_worst_forecast() -> None:
    records = [record(number, error=number / 10) for number in range(20)] + [record(99, 5.0, window=0)]
    data, layout = forecasts_figure(records)
    titles = [note["text"] for note in layout["annotations"]]
    assert len(titles) == 6
    assert titles[0] == "series 0: error of the median 0.0 %"
    assert titles[-1] == "series 19: error of the median 47.5 %"
    assert {trace["xaxis"] for trace in data} == {"x", "x2", "x3", "x4", "x5", "x6"}


def test_a_panel_has_a_band_history_what_came_and_the_median() -> None:
    data, _ = forecasts_figure([record(0, 0.5)])
    found = {trace["name"]: trace for trace in data}
    assert list(found) == ["0.1 to 0.9", "history", "actual", "median"]
    assert found["0.1 to 0.9"]["y"] == [6.0, 6.0, 3.0, 3.0]
    assert found["history"]["x"] == [7, 8, 9]
    assert found["actual"]["y"] == [3.0, 4.0, None]
    assert found["median"]["y"] == [4.5, 4.0]


def test_without_forecasts_there_is_nothing_to_draw() -> None:
    assert forecasts_figure([])[0] == []


def test_lines_that_hold_no_forecast_are_passed_over() -> None:
    whole = record(0, 0.5)
    broken = [{}, {**whole, "begin": "soon"}, {**whole, "quantiles": {"0.5": [1.0]}}, {**whole, "actual": ["a", 1.0]}]
    broken += [{**whole, "quantiles": {"half": [1.0, 2.0]}}, {**whole, "history": None}, {**whole, "actual": []}]
    data, layout = forecasts_figure([*broken, whole])
    assert len(layout["annotations"]) == 1
    assert len(data) == 4
