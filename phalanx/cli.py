"""The `phalanx` command: parse, call, print.

Exit codes: 0; 2 for what the user can mend; 1 when the algorithm failed; 75 when the platform did; 130 and 143 after SIGINT and
SIGTERM. A traceback is shown with --debug only.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_tune
from .errors import EXIT_ALGORITHM, EXIT_SIGINT, EXIT_USER, PhalanxError, UserError, to_record

if TYPE_CHECKING:
    from .data.channel import Channel
    from .job import TrainingJob
    from .spot import Spot

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
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
TrainOption = Annotated[list[str] | None, typer.Option("--train", help="Path or URL of the train channel; may be repeated.")]
ValidationOption = Annotated[str | None, typer.Option("--validation", help="Path or URL of the validation channel.")]
TestOption = Annotated[str | None, typer.Option("--test", help="Path or URL of the test channel.")]
ContentTypeOption = Annotated[
    str | None,
    typer.Option(
        "--content-type", help="Of the three channels above, as 'text/csv;label_size=0'. Default: by the file's name."
    ),
]
ChannelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--channel", help="Any channel: 'NAME=URL,content_type=…,spread=shard|replicate,mode=file|stream'; may be repeated."
    ),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A hyperparameter, NAME=VALUE; may be repeated.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads-per-worker", help="Default: cores // workers.")]
MaxRuntimeOption = Annotated[str | None, typer.Option("--max-runtime", help="Stop the job after so long: 90s, 30m, 1h, 2d.")]
EnvOption = Annotated[list[str] | None, typer.Option("--env", help="A variable for the workers, KEY=VALUE; may be repeated.")]
CheckpointsOption = Annotated[str | None, typer.Option(help="Where checkpoints go. Default: OUTPUT/NAME/checkpoints.")]
EveryOption = Annotated[str, typer.Option(help="When to save: 100 (steps), 60s, 5m, auto, or never.")]
KeepOption = Annotated[int, typer.Option(help="Newest checkpoints that stay.")]
SpotOption = Annotated[bool, typer.Option("--spot", help="The platform may take workers: interruptions are no failures.")]
InterruptionsOption = Annotated[int, typer.Option(help="With --spot: interruptions after which the job goes on.")]
WaitOption = Annotated[str | None, typer.Option(help="With --spot: stop after so long, waiting included: 2h.")]
NoticeOption = Annotated[
    list[str] | None,
    typer.Option(help="With --spot: aws, gcp, azure or file:PATH says that this machine is taken; repeatable."),
]
ElasticOption = Annotated[
    str | None, typer.Option(help="exact: the same bits whatever the number of workers, also when it changes on the way.")
]
MicroBatchesOption = Annotated[
    int, typer.Option(help="Pieces of every global batch of a script with --elastic exact: a multiple of --workers.")
]
HangOption = Annotated[
    str, typer.Option(help="A worker that gives no sign of life, or keeps others waiting, so long has failed: 30s, 5m, never.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the job --name.")]


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
def train(
    algorithm: Annotated[str, typer.Argument(help="Name of an algorithm; `phalanx algorithms` lists them.")],
    train: TrainOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    content_type: ContentTypeOption = None,
    channel: ChannelOption = None,
    settings: SetOption = None,
    workers: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    output: Annotated[str, typer.Option(help="Folder or URL under which the job's folder is made.")] = "runs",
    name: Annotated[str | None, typer.Option(help="The job's name. Default: the algorithm and the time.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    threads_per_worker: ThreadsOption = None,
    launcher: Annotated[str, typer.Option(help="Who starts the workers: local.")] = "local",
    max_restarts: Annotated[int, typer.Option(help="How often a failed worker group is started again.")] = 0,
    max_runtime: MaxRuntimeOption = None,
    env: EnvOption = None,
    checkpoints: CheckpointsOption = None,
    checkpoint_every: EveryOption = "auto",
    keep: KeepOption = 3,
    spot: SpotOption = False,
    max_interruptions: InterruptionsOption = 10,
    max_wait: WaitOption = None,
    notice: NoticeOption = None,
    resume: ResumeOption = False,
    hang_timeout: HangOption = "30s",
    elastic: ElasticOption = None,
    micro_batches: MicroBatchesOption = 12,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an algorithm on data: workers are launched, data is spread, model.tar.gz is published."""
    from .job import TrainingJob

    _debug(debug)
    job = TrainingJob(
        algorithm=algorithm,
        inputs=_inputs(train, validation, test, content_type, channel),
        hyperparameters=_pairs("--set", settings),
        workers=workers,
        output=output,
        name=name,
        seed=seed,
        threads_per_worker=threads_per_worker,
        launcher=launcher,
        max_restarts=max_restarts,
        max_runtime_s=None if max_runtime is None else _duration("--max-runtime", max_runtime),
        environment=_pairs("--env", env),
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        keep=keep,
        spot=_spot(spot, max_interruptions, max_wait, notice),
        resume=resume,
        hang_timeout_s=None if hang_timeout == "never" else _duration("--hang-timeout", hang_timeout),
        elastic=elastic,
        micro_batches=micro_batches,
    )
    _run(job, as_json)


@app.command()
def run(
    context: typer.Context,
    job: Annotated[
        Path | None, typer.Argument(help="A Python script, or a job as YAML whose fields are TrainingJob's.")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Of the script, after `--`, as they are.")] = None,
    train: TrainOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    content_type: ContentTypeOption = None,
    channel: ChannelOption = None,
    settings: SetOption = None,
    source_dir: Annotated[str | None, typer.Option(help="Folder that the script needs. Default: its own.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Of phalanx.Trainer in the script: ddp, zero2, fsdp, …")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REGEX: a metric that the script prints, its value in brackets; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that run the script.")] = 1,
    output: Annotated[str, typer.Option(help="Folder or URL under which the job's folder is made.")] = "runs",
    name: Annotated[str | None, typer.Option(help="The job's name. Default: the script and the time.")] = None,
    seed: Annotated[int, typer.Option(help="What phalanx.session().seed is.")] = 0,
    threads_per_worker: ThreadsOption = None,
    launcher: Annotated[str, typer.Option(help="Who starts the workers: local.")] = "local",
    max_restarts: Annotated[int, typer.Option(help="How often a failed worker group is started again.")] = 0,
    max_runtime: MaxRuntimeOption = None,
    env: EnvOption = None,
    checkpoints: CheckpointsOption = None,
    checkpoint_every: EveryOption = "auto",
    keep: KeepOption = 3,
    spot: SpotOption = False,
    max_interruptions: InterruptionsOption = 10,
    max_wait: WaitOption = None,
    notice: NoticeOption = None,
    resume: ResumeOption = False,
    hang_timeout: HangOption = "30s",
    elastic: ElasticOption = None,
    micro_batches: MicroBatchesOption = 12,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a job file.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a script in every worker, or a job that stands in a file."""
    from . import jobfile

    _debug(debug)
    if schema:
        _print_json(jobfile.schema())
        return
    if job is None:
        raise UserError(
            "give a script, as `phalanx run train.py`, or a job file, as `phalanx run job.yaml`; `phalanx run --schema` shows "
            "what may stand in one"
        )
    if job.suffix.lower() != ".py":
        _refuse_options(context)
        found = jobfile.read(job)
        found.resume = found.resume or resume
        _run(found, as_json)
        return
    from .job import TrainingJob

    script = TrainingJob(
        script=str(job),
        source_dir=source_dir,
        arguments=arguments or [],
        inputs=_inputs(train, validation, test, content_type, channel),
        hyperparameters=_pairs("--set", settings),
        strategy=strategy,
        metric_definitions=[{"name": key, "regex": regex} for key, regex in _pairs("--metric", metric).items()],
        workers=workers,
        output=output,
        name=name,
        seed=seed,
        threads_per_worker=threads_per_worker,
        launcher=launcher,
        max_restarts=max_restarts,
        max_runtime_s=None if max_runtime is None else _duration("--max-runtime", max_runtime),
        environment=_pairs("--env", env),
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        keep=keep,
        spot=_spot(spot, max_interruptions, max_wait, notice),
        resume=resume,
        hang_timeout_s=None if hang_timeout == "never" else _duration("--hang-timeout", hang_timeout),
        elastic=elastic,
        micro_batches=micro_batches,
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
    debug: Debug = False,
) -> None:
    """Ask a model, over inputs of any size."""
    from .model import load, predict_file

    _debug(debug)
    with load(artifact) as model:
        rows = predict_file(model, input, output, content_type=content_type, accept=accept)
    if output != "-":
        typer.echo(f"{rows} answers in {output}", err=True)


@app.command()
def checkpoints(
    url: Annotated[str, typer.Argument(help="Folder or URL of checkpoints, or a job's folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List checkpoints: step, time, size, and whether each is whole; every file is read."""
    from . import storage
    from .checkpoint.store import checkpoints_at

    _debug(debug)
    found = checkpoints_at(url) or checkpoints_at(storage.join(url, "checkpoints"))
    if as_json:
        _print_json([asdict(info) for info in found])
        return
    if not found:
        raise UserError(f"there are no checkpoints at {url}")
    rows = []
    for info in found:
        when = "" if info.time is None else datetime.fromtimestamp(info.time).isoformat(" ", "seconds")
        rows.append([str(info.step), when, f"{info.bytes:,}", str(info.world or ""), "yes" if info.verified else info.why])
    _table(["step", "time", "bytes", "workers", "verified"], rows)


@app.command()
def show(
    job: Annotated[str, typer.Argument(help="A job's or a sweep's folder or URL.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a job goes or went: status, steps, restarts, and where its time went; or the trials of a sweep."""
    from . import storage
    from .tracking.summary import rows_of

    _debug(debug)
    status = storage.read_json(storage.join(job, "status.json"))
    if status is None and cli_tune.show_sweep(job, as_json=as_json):
        return
    if status is None:
        raise UserError(f"there is no job at {job}: its folder must hold status.json")
    if as_json:
        _print_json(status)
        return
    _table(["", ""], rows_of(status))


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(help="Show this one's hyperparameters.")] = None,
    as_json: Json = False,
) -> None:
    """List the algorithms, or one with every hyperparameter: type, default, range, meaning."""
    from . import hyperparameters, registry

    if name is None:
        known = registry.algorithms()
        if as_json:
            _print_json([{"name": n, "help": e.help, "extra": e.extra} for n, e in known.items()])
        else:
            _table(["algorithm", "what it is"], [[n, e.help] for n, e in known.items()])
        return
    described = hyperparameters.describe(registry.hyperparameters_of(name))
    if as_json:
        _print_json({"name": name, "hyperparameters": [asdict(h) for h in described]})
        return
    rows = [[h.name, h.type, "required" if h.required else _default_text(h.default), h.range, h.help] for h in described]
    _table(["hyperparameter", "type", "default", "range", "meaning"], rows)


@app.command(name="sample-data")
def sample_data(
    name: Annotated[str, typer.Argument(help="iris, wine, breast_cancer, digits, diabetes.")],
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
) -> None:
    """Write a real data set that ships with scikit-learn as csv, libsvm and recordio-protobuf."""
    from .data.samples import write_sample

    for path, what in write_sample(name, folder):
        typer.echo(f"{path}  {what}")


@app.command()
def env(as_json: Json = False) -> None:
    """Show versions, devices, which extras are there, and how to get what is missing."""
    from . import installation

    report = installation.report()
    if as_json:
        _print_json(report)
        return
    _table(["", ""], [[key, str(value)] for key, value in report["machine"].items()])
    _table(["package", "version"], [[key, str(value)] for key, value in report["versions"].items()])
    rows = [[e["name"], "yes" if e["installed"] else "no", "" if e["installed"] else e["get"]] for e in report["extras"]]
    _table(["extra", "there", "how to get it"], rows)


def _run(job: TrainingJob, as_json: bool) -> None:
    try:
        result = job.run(progress=not as_json)
    except PhalanxError as error:
        if as_json:
            ended = None if error.result is None else asdict(error.result)
            _print_json({"error": {"kind": error.kind, "message": str(error)}, "result": ended})
        raise
    if as_json:
        _print_json({"error": None, "result": asdict(result)})
        return
    from .tracking.console import metrics_text

    typer.echo(f"{result.status}  {metrics_text(result.metrics)}")
    typer.echo(f"artifact  {result.artifact or 'none: nothing was saved as a model (SM_MODEL_DIR)'}")
    typer.echo(f"seconds   {result.training_seconds:.2f} training, {result.billable_seconds:.2f} billable")


def _spot(on: bool, max_interruptions: int, max_wait: str | None, notices: list[str] | None) -> Spot | None:
    from .spot import Spot

    if not on:
        if notices:
            raise UserError("--notice is for jobs with --spot: add it")
        return None
    limit = None if max_wait is None else _duration("--max-wait", max_wait)
    return Spot(max_restarts=max_interruptions, max_wait_s=limit, notices=tuple(notices or ()))


def _inputs(
    train: list[str] | None, validation: str | None, test: str | None, content_type: str | None, channels: list[str] | None
) -> dict[str, Channel | str]:
    from .data.channel import Channel, parse_channel

    inputs: dict[str, Channel | str] = {}
    for text in channels or []:
        name, channel = parse_channel(text)
        if name in inputs:
            raise UserError(f"the channel '{name}' was given twice")
        inputs[name] = channel
    for name, urls in (
        ("train", train),
        ("validation", [validation] if validation else None),
        ("test", [test] if test else None),
    ):
        if urls and name in inputs:
            raise UserError(f"the channel '{name}' was given twice, with --{name} and with --channel")
        if urls:
            inputs[name] = Channel(url=urls, content_type=content_type)
    if content_type is not None:
        inputs = {
            n: replace(c, content_type=content_type) if isinstance(c, Channel) and c.content_type is None else c
            for n, c in inputs.items()
        }
    return inputs


def _refuse_options(context: typer.Context) -> None:
    """A job file says all of its job: what the command line says besides would be left out of account."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in ("job", "as_json", "debug", "resume") and source is not None and source.name == "COMMANDLINE":
            raise UserError(
                f"{parameter.opts[0]} does not go with a job file: put it into the file (`phalanx run --schema` shows its "
                "fields), or give a script"
            )


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} takes NAME=VALUE, not '{text}'")
        if name.strip() in pairs:
            raise UserError(f"{option} {name.strip()} was given twice")
        pairs[name.strip()] = value
    return pairs


def _duration(option: str, text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"{option} takes a duration above 0 as 90s, 30m, 1h or 2d, not '{text}'")
    return float(found[1]) * _SECONDS[found[2]]


_debugging = False


def _debug(on: bool) -> None:
    global _debugging
    _debugging = on


def _show_error(error: PhalanxError) -> None:
    from .storage import redact

    word = "stopped" if error.kind == "Stopped" else "error"
    typer.secho(f"{word}: {redact(str(error))}", err=True, fg=None if error.kind == "Stopped" else typer.colors.RED)
    if error.result is not None and error.kind != "Stopped":
        typer.echo(f"the job's record: {redact(error.result.folder)}", err=True)
    if _debugging:
        typer.echo(redact(error.details or to_record(error)["details"]), err=True)
    elif error.exit_code == EXIT_ALGORITHM:
        typer.echo("--debug shows the traceback", err=True)


def _default_text(default: Any) -> str:
    return "none" if default is None else ",".join(map(str, default)) if isinstance(default, list) else str(default)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _table(headers: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=box.SIMPLE, show_header=any(headers))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as they are: brackets are no markup
    Console(width=None if sys.stdout.isatty() else 160).print(table)


cli_tune.add_to(app)

if __name__ == "__main__":
    main()
