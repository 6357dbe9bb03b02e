"""`phalanx tune`, and what `show` and `report` say of sweeps."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PhalanxError, UserError
from .job import cluster_fields
from .shared import (
    ChannelOption,
    ContentTypeOption,
    Debug,
    Json,
    SetOption,
    TestOption,
    TrainOption,
    ValidationOption,
    duration_of,
    inputs_of,
    pairs_of,
    print_json,
    print_table,
    show_tracebacks,
)

if TYPE_CHECKING:
    from ..tuning.tuner import Best, Tuner

_MOST_COLUMNS = 6  # of hyperparameters, in the table of trials
_WIDTH = 120  # characters


def tune(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A sweep as YAML, or the name of an algorithm.")],
    train: TrainOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    content_type: ContentTypeOption = None,
    channel: ChannelOption = None,
    settings: SetOption = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", help="NAME=LOW:HIGH[:linear|log|reverse-log] or NAME=A,B,C; default: the algorithm's own."),
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="The metric to judge by, as validation:auc; several: multi-objective.")
    ] = None,
    direction: Annotated[list[str] | None, typer.Option(help="minimize or maximize, one for each objective.")] = None,
    strategy: Annotated[str | None, typer.Option(help="auto, bayesian, random, grid, hyperband.")] = None,
    early_stopping: Annotated[str | None, typer.Option(help="auto, off, median, asha.")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Trials in all. Default: 20, or all points of a grid.")] = None,
    max_parallel: Annotated[int | None, typer.Option(help="Trials at once, as far as there are cores. Default: 1.")] = None,
    memory_per_job: Annotated[float | None, typer.Option(help="GiB that a trial needs; fewer run at once without.")] = None,
    gpus_per_job: Annotated[int | None, typer.Option(help="GPUs of this machine that each trial has for itself.")] = None,
    max_runtime: Annotated[str | None, typer.Option(help="End the sweep after so long: 90s, 30m, 1h, 2d.")] = None,
    goal: Annotated[float | None, typer.Option("--target", help="End once the objective is as good as this.")] = None,
    not_improving: Annotated[int | None, typer.Option(help="End after so many trials without a better one.")] = None,
    warm_start: Annotated[list[str] | None, typer.Option(help="Folder of an earlier sweep; may be repeated.")] = None,
    warm_start_kind: Annotated[str | None, typer.Option(help="identical_data_and_algorithm or transfer_learning.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the proposals. Default: 0.")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="The same proposals for any --max-parallel.")] = False,
    storage: Annotated[
        str | None, typer.Option(help="A database's URL as Optuna takes it. Default: a file in the sweep's folder.")
    ] = None,
    workers: Annotated[str, typer.Option(help="Processes that train a trial together; or a range as 2:4.")] = "1",
    launcher: Annotated[str, typer.Option(help="Who starts the trials' workers: local, ray.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="With --launcher ray: see `phalanx train --help`.")] = None,
    worker_cpus: Annotated[float | None, typer.Option(help="With --launcher ray: CPUs of each worker.")] = None,
    worker_gpus: Annotated[float | None, typer.Option(help="With --launcher ray: GPUs of each worker.")] = None,
    worker_memory: Annotated[str | None, typer.Option(help="With --launcher ray: memory of each worker, as 4GiB.")] = None,
    threads_per_worker: Annotated[int | None, typer.Option(help="Default: the cores, shared by what runs at once.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder or URL under which the sweep's folder is made.")] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name. Default: the file's, or tune-ALGORITHM.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep of this name.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search hyperparameters: many jobs, each proposed from what the earlier ones came to."""
    from ..tuning import sweepfile
    from ..tuning.options import Completion, WarmStart
    from ..tuning.ranges import from_text
    from ..tuning.tuner import Tuner

    show_tracebacks(debug)
    changes: dict[str, Any] = {
        "name": name,
        "output": output,
        "objective": objective or None,
        "direction": direction or None,
        "strategy": strategy,
        "early_stopping": early_stopping,
        "max_jobs": max_jobs,
        "max_parallel_jobs": max_parallel,
        "memory_per_job_gb": memory_per_job,
        "gpus_per_job": gpus_per_job,
        "seed": seed,
        "deterministic": deterministic or None,
        "storage": storage,
        "ranges": {key: from_text(key, text) for key, text in pairs_of("--range", ranges).items()} or None,
    }
    if goal is not None or not_improving is not None or max_runtime is not None:
        limit = None if max_runtime is None else duration_of("--max-runtime", max_runtime)
        changes["completion"] = Completion(target=goal, not_improving=not_improving, max_runtime_s=limit)
    if warm_start:
        kind: Any = warm_start_kind or "identical_data_and_algorithm"
        changes["warm_start"] = WarmStart(warm_start, kind)
    changes = {key: value for key, value in changes.items() if value is not None} | {"resume": resume}
    if target.lower().endswith((".yaml", ".yml")):
        _refuse_job_options(context)
        tuner = sweepfile.read(Path(target), changes)
    else:
        from ..job import TrainingJob

        job = TrainingJob(
            algorithm=target,
            inputs=inputs_of(train, validation, test, content_type, channel),
            hyperparameters=pairs_of("--set", settings),
            workers=workers,
            threads_per_worker=threads_per_worker,
            launcher=launcher,
            **cluster_fields(
                launcher=launcher,
                ray_address=ray_address,
                worker_cpus=worker_cpus,
                worker_gpus=worker_gpus,
                worker_memory=worker_memory,
            ),
        )
        changes.setdefault("name", f"tune-{target.replace('_', '-')}"[:32])
        tuner = Tuner(job, **changes)
    _run(tuner, as_json)


def show_sweep(folder: str, *, as_json: bool) -> bool:
    """Show the sweep in a folder; return False where there is none."""
    from .. import storage

    found = storage.read_json(storage.join(folder, "sweep.json"))
    if found is None:
        return False
    from ..tuning.table import terminal_rows
    from ..tuning.tuner import describe

    told = describe(folder)
    if as_json:
        print_json({**told, "trials": found["trials"]})
        return True
    jobs = ", ".join(f"{count} {state}" for state, count in told["TrainingJobStatusCounters"].items() if count)
    goal = ", ".join(f"{o['direction']} {o['metric']}" for o in told["objectives"])
    rows = [
        ["sweep", told["name"]],
        ["trains", told["algorithm"]],
        ["objective", goal],
        ["status", f"{told['status']} {told['reason']}".strip()],
        ["trials", f"{jobs or 'none yet'}, of {told['max_jobs']}"],
        ["how", told["why"]],
        ["seconds", f"{told['spent_s']:.1f}"],
    ]
    if told["best"] is not None:
        rows.append(["best", f"{told['best']['objective'][0]:.6g}  {told['best']['job']}"])
    if told["failure"]:
        rows.append(["failure", told["failure"]])
    print_table(["", ""], rows)
    print_table(*terminal_rows(found, most_columns=_MOST_COLUMNS))
    return True


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(tune)


def _run(tuner: Tuner, as_json: bool) -> None:
    try:
        best = tuner.run(progress=not as_json)
    except PhalanxError as error:
        if as_json:
            print_json({"error": {"kind": error.kind, "message": str(error)}, "best": None})
        elif error.kind == "Stopped":
            typer.echo(f"go on with --resume; so far: phalanx show {tuner.folder}", err=True)
        raise
    if as_json:
        print_json({"error": None, "best": asdict(best), "folder": tuner.folder})
        return
    _tell(best, tuner.folder)


def _tell(best: Best, folder: str) -> None:
    typer.echo(f"best      {best.objective:.6g}  trial {best.number}, {best.job}")
    values = best.hyperparameters.items()
    told = "  ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in values)
    margin = " " * 10
    typer.echo(textwrap.fill(told, _WIDTH, initial_indent=margin, subsequent_indent=margin, break_long_words=False))
    typer.echo(f"artifact  {best.artifact}")
    typer.echo(f"more      phalanx show {folder}; phalanx report {folder}")
    sys.stdout.flush()


def _refuse_job_options(context: typer.Context) -> None:
    """What belongs to the job stands in the file."""
    job_options = (
        *("train", "validation", "test", "content_type", "channel", "settings", "workers", "threads_per_worker"),
        *("launcher", "ray_address", "worker_cpus", "worker_gpus", "worker_memory"),
    )
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in job_options and source is not None and source.name == "COMMANDLINE":
            raise UserError(f"{parameter.opts[0]} does not go with a sweep file: put it into its job")
