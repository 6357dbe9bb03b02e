"""A sweep as one html page that needs nothing else: its course, what mattered, how trials went."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from .. import storage
from ..contracts import Json
from ..errors import UserError
from ..tracking.figures import TEMPLATE
from ..tracking.page import CONFIG, document
from .declared import Objective
from .ranges import Range, from_json
from .search import coded, coded_name, distribution
from .table import best_of, number_text, objectives_of, terminal_rows, trials_of
from .trial import Trial, curve_of

_MOST_POINTS = 400  # of a trial's curve
_STATES = {"Completed": TrialState.COMPLETE, "Stopped": TrialState.PRUNED, "Failed": TrialState.FAIL}


def page(folder: str, sweep: Mapping[str, Json]) -> str:
    """Return the page of a sweep.

    Args:
        folder: URL of the sweep's folder.
        sweep: its sweep.json.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise UserError("a report needs plotly: pip install 'phalanx-train[tune]'") from None
    objectives, trials = objectives_of(sweep), trials_of(sweep)
    ranges = {name: from_json(name, found) for name, found in sweep["ranges"].items()}
    study = rebuilt(folder, trials, ranges, objectives)
    parts = [f"<h1>{html.escape(str(sweep['name']))}</h1>", _summary(sweep, trials, objectives)]
    script = True  # plotly's own, once in the page
    for heading, plot in _plots(study, objectives):
        try:
            figure = plot()
        except (ValueError, RuntimeError, ImportError, ZeroDivisionError):  # too few trials to say anything
            continue
        figure.update_layout(title=None, margin={"t": 20}, template=TEMPLATE)
        drawn = figure.to_html(full_html=False, include_plotlyjs=script, config=CONFIG)
        parts.append(f'<h2>{html.escape(heading)}</h2><div class="wide">{drawn}</div>')
        script = False
    parts += ["<h2>Trials</h2>", f'<div class="wide">{_table(sweep)}</div>']
    return document(str(sweep["name"]), parts)


def rebuilt(folder: str, trials: Sequence[Trial], ranges: Mapping[str, Range], objectives: Sequence[Objective]) -> optuna.Study:
    """Return a study in memory with all trials that have ended, and their curves."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[o.direction for o in objectives])
    for trial in trials:
        state = _STATES.get(trial.status)
        if state is None:
            continue
        present = {name: found for name, found in ranges.items() if name in trial.values}
        study.add_trial(
            create_trial(
                state=state,
                values=trial.objective if state is TrialState.COMPLETE else None,
                params={coded_name(name, found): coded(found, trial.values[name]) for name, found in present.items()},
                distributions={coded_name(name, found): distribution(name, found) for name, found in present.items()},
                intermediate_values=_points(folder, trial, objectives[0]) if len(objectives) == 1 else None,
            )
        )
    return study


def _points(folder: str, trial: Trial, objective: Objective) -> dict[int, float]:
    curve = curve_of(storage.join(folder, trial.job), objective)
    every = max(1, len(curve.steps) // _MOST_POINTS)
    kept = list(zip(curve.steps, curve.values, strict=True))
    return {step: objective.sign * value for step, value in [*kept[::every], *kept[-1:]]}


def _plots(study: optuna.Study, objectives: Sequence[Objective]) -> list[tuple[str, Callable[[], Any]]]:
    draw = optuna.visualization
    plots: list[tuple[str, Callable[[], Any]]] = []
    if len(objectives) in (2, 3):
        names = [o.metric for o in objectives]
        plots.append(("Pareto front", lambda: draw.plot_pareto_front(study, target_names=names)))
    for place, objective in enumerate(objectives):
        target = _target(place) if len(objectives) > 1 else None
        for heading, plot in (
            ("Course of", draw.plot_optimization_history),
            ("Parallel coordinates of", draw.plot_parallel_coordinate),
            ("Importance for", draw.plot_param_importances),
            ("Slices of", draw.plot_slice),
        ):
            drawn = partial(plot, study, target=target, target_name=objective.metric)
            plots.append((f"{heading} {objective.metric}", drawn))
    if len(objectives) == 1:
        plots.append(("Curves of trials", lambda: draw.plot_intermediate_values(study)))
    return plots


def _target(place: int) -> Callable[[optuna.trial.FrozenTrial], float]:
    return lambda trial: float(trial.values[place])


def _summary(sweep: Mapping[str, Json], trials: Sequence[Trial], objectives: Sequence[Objective]) -> str:
    best = best_of(trials, objectives)
    seconds = sum(trial.seconds for trial in trials)
    said = [
        f"{sweep['algorithm']}: {', '.join(f'{o.direction} {o.metric}' for o in objectives)}",
        f"{sweep['status']} ({sweep['reason']}): {len(trials)} trials, {seconds:.1f} s of training in {sweep['spent_s']:.1f} s",
        str(sweep["why"]),
    ]
    if best is not None and best.objective:
        values = ", ".join(f"{name}={value}" for name, value in best.values.items())
        said.append(f"best: {number_text(best.objective[0])}, trial {best.number} ({best.job}): {values}")
    return "".join(f"<p>{html.escape(line)}</p>" for line in said)


def _table(sweep: Mapping[str, Json]) -> str:
    headers, rows = terminal_rows(sweep)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headers)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{' class=best' if place == 0 else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
