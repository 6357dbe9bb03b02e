"""The `phalanx` command: parse, call, print.

Exit codes: 0; 2 for what the user can mend; 1 when the algorithm failed; 75 when the platform did; 130 and 143 after SIGINT and
SIGTERM. A traceback is shown with --debug only.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_ALGORITHM, EXIT_SIGINT, EXIT_USER, PhalanxError, UserError, to_record
from . import cluster, tracking, tune
from .job import JobOf, takes_job
from .shared import Debug, Json, pairs_of, print_json, print_table, show_tracebacks, tracebacks_shown

if TYPE_CHECKING:
    from ..job import TrainingJob

app = typer.Typer(
    name="phalanx",
    help="Managed training as a library: name an algorithm, point at data, ask for workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COMMAND_LINE_ERROR: Any = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)  # typer has its own click


def main() -> None:
    """Run the command line; every error of ours is one sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
    except PhalanxError as error:
        _show_error(error)
        code = error.exit_code
    except typer.Abort:
        code = EXIT_SIGINT
    except _COMMAND_LINE_ERROR as error:
        error.show()
        code = EXIT_USER
    except KeyboardInterrupt:
        code = EXIT_SIGINT
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


@app.command()
@takes_job
def train(
    algorithm: Annotated[str, typer.Argument(help="Name of an algorithm; `phalanx algorithms` lists them.")],
    job_of: JobOf,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an algorithm on data: workers are launched, data is spread, model.tar.gz is published."""
    show_tracebacks(debug)
    _run(job_of(algorithm=algorithm), as_json)


@app.command()
@takes_job
def run(
    context: typer.Context,
    job_of: JobOf,
    job: Annotated[
        Path | None, typer.Argument(help="A Python script, or a job as YAML whose fields are TrainingJob's.")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Of the script, after `--`, as they are.")] = None,
    source_dir: Annotated[str | None, typer.Option(help="Folder that the script needs. Default: its own.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Of phalanx.Trainer in the script: ddp, zero2, fsdp, …")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REGEX: a metric that the script prints, its value in brackets; may be repeated."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a job file.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a script in every worker, or a job that stands in a file."""
    from .. import jobfile

    show_tracebacks(debug)
    if schema:
        print_json(jobfile.schema())
        return
    if job is None:
        raise UserError(
            "give a script, as `phalanx run train.py`, or a job file, as `phalanx run job.yaml`; `phalanx run --schema` shows "
            "what may stand in one"
        )
    if job.suffix.lower() != ".py":
        _refuse_options(context)
        found = jobfile.read(job)
        found.resume = found.resume or bool(context.params["resume"])
        _run(found, as_json)
        return
    metrics = [{"name": name, "regex": regex} for name, regex in pairs_of("--metric", metric).items()]
    script = job_of(
        script=str(job), source_dir=source_dir, arguments=arguments or [], strategy=strategy, metric_definitions=metrics
    )
    _run(script, as_json)


@app.command()
def predict(
    artifact: Annotated[str, typer.Argument(help="Path or URL of a model.tar.gz.")],
    input: Annotated[str, typer.Option("--input", help="Path or URL of the requests.")],
    output: Annotated[str, typer.Option(help="Where the answers go; '-' is standard output.")] = "-",
    content_type: Annotated[str | None, typer.Option(help="Of the requests. Default: by the file's name.")] = None,
    accept: Annotated[
        str, typer.Option(help="Of the answers: application/json, application/jsonlines, text/csv.")
    ] = "application/json",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a model, over inputs of any size."""
    from ..model import load, predict_file

    show_tracebacks(debug)
    if as_json and output == "-":
        raise UserError("--json tells where the answers are: give --output FILE; --accept application/json says how they look")
    with load(artifact) as model:
        rows = predict_file(model, input, output, content_type=content_type, accept=accept)
    if as_json:
        print_json({"output": output, "answers": rows})
    elif output != "-":
        typer.echo(f"{rows} answers in {output}", err=True)


@app.command()
def checkpoints(
    url: Annotated[str, typer.Argument(help="Folder or URL of checkpoints, or a job's folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List checkpoints: step, time, size, and whether each is whole; every file is read."""
    from .. import storage
    from ..checkpoint.store import checkpoints_at

    show_tracebacks(debug)
    found = checkpoints_at(url) or checkpoints_at(storage.join(url, "checkpoints"))
    if as_json:
        print_json([asdict(info) for info in found])
        return
    if not found:
        raise UserError(f"there are no checkpoints at {url}")
    rows = []
    for info in found:
        when = "" if info.time is None else datetime.fromtimestamp(info.time).isoformat(" ", "seconds")
        rows.append([str(info.step), when, f"{info.bytes:,}", str(info.world or ""), "yes" if info.verified else info.why])
    print_table(["step", "time", "bytes", "workers", "verified"], rows)


@app.command()
def show(
    job: Annotated[str, typer.Argument(help="A job's or a sweep's folder or URL.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a job goes or went: status, steps, restarts, and where its time went; or the trials of a sweep."""
    from .. import storage
    from ..tracking.reading import load_job
    from ..tracking.summary import rows_of

    show_tracebacks(debug)
    if storage.read_json(storage.join(job, "status.json")) is None and tune.show_sweep(job, as_json=as_json):
        return
    found = load_job(job)
    if as_json:
        print_json(dict(found.status))
        return
    print_table(["", ""], rows_of(found))


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(help="Show this one's hyperparameters.")] = None,
    as_json: Json = False,
) -> None:
    """List the algorithms, or one with every hyperparameter: type, default, range, meaning."""
    from .. import hyperparameters, registry

    if name is None:
        known = registry.algorithms()
        if as_json:
            print_json([{"name": n, "help": e.help, "extra": e.extra} for n, e in known.items()])
        else:
            print_table(["algorithm", "what it is"], [[n, e.help] for n, e in known.items()])
        return
    described = hyperparameters.describe(registry.hyperparameters_of(name))
    if as_json:
        print_json({"name": name, "hyperparameters": [asdict(h) for h in described]})
        return
    rows = [[h.name, h.type, "required" if h.required else _default_text(h.default), h.range, h.help] for h in described]
    print_table(["hyperparameter", "type", "default", "range", "meaning"], rows)


@app.command(name="sample-data")
def sample_data(
    name: Annotated[str, typer.Argument(help="iris, wine, breast_cancer, digits, diabetes.")],
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    as_json: Json = False,
) -> None:
    """Write a real data set that ships with scikit-learn as csv, libsvm and recordio-protobuf."""
    from ..data.samples import write_sample

    written = write_sample(name, folder)
    if as_json:
        print_json([{"file": str(path), "holds": what} for path, what in written])
        return
    for path, what in written:
        typer.echo(f"{path}  {what}")


@app.command()
def env(as_json: Json = False) -> None:
    """Show versions, devices, which extras are there, and how to get what is missing."""
    from .. import installation

    report = installation.report()
    if as_json:
        print_json(report)
        return
    print_table(["", ""], [[key, str(value)] for key, value in report["machine"].items()])
    print_table(["package", "version"], [[key, str(value)] for key, value in report["versions"].items()])
    rows = [[e["name"], "yes" if e["installed"] else "no", "" if e["installed"] else e["get"]] for e in report["extras"]]
    print_table(["extra", "there", "how to get it"], rows)


def _run(job: TrainingJob, as_json: bool) -> None:
    from ..attached import follows

    try:
        result = job.run(progress=not as_json)
    except PhalanxError as error:
        if as_json and not error.told:
            ended = None if error.result is None else asdict(error.result)
            print_json({"error": {"kind": error.kind, "message": str(error)}, "result": ended})
        raise
    if follows(job):
        return  # rank 0 has printed it
    if as_json:
        print_json({"error": None, "result": asdict(result)})
        return
    from ..tracking.console import metrics_text

    typer.echo(f"{result.status}  {metrics_text(result.metrics)}")
    typer.echo(f"artifact  {result.artifact or 'none: nothing was saved as a model (SM_MODEL_DIR)'}")
    typer.echo(f"seconds   {result.training_seconds:.2f} training, {result.billable_seconds:.2f} billable")


def _refuse_options(context: typer.Context) -> None:
    """A job file says all of its job: what the command line says besides would be left out of account."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in ("job", "as_json", "debug", "resume") and source is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"{parameter.opts[0]} does not go with a job file: put it into the file (`phalanx run --schema` shows its "
                "fields), or give a script"
            )


def _show_error(error: PhalanxError) -> None:
    from ..storage import redact

    if error.told:  # one line a rank is enough
        typer.echo(f"the job has ended: {redact(str(error))}", err=True)
        return
    word = "stopped" if error.kind == "Stopped" else "error"
    typer.secho(f"{word}: {redact(str(error))}", err=True, fg=None if error.kind == "Stopped" else typer.colors.RED)
    if error.result is not None and error.kind != "Stopped":
        typer.echo(f"the job's record: {redact(error.result.folder)}", err=True)
    if tracebacks_shown():
        typer.echo(redact(error.details or to_record(error)["details"]), err=True)
    elif error.exit_code == EXIT_ALGORITHM:
        typer.echo("--debug shows the traceback", err=True)


def _default_text(default: Any) -> str:
    return "none" if default is None else ",".join(map(str, default)) if isinstance(default, list) else str(default)


tune.add_to(app)
tracking.add_to(app)
cluster.add_to(app)
