"""What the commands share: their options, how these are read, and how answers are printed."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UserError

if TYPE_CHECKING:
    from .cluster import Cluster
    from .data.channel import Channel

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
PricesOption = Annotated[
    str | None, typer.Option("--spot-prices", help="With --spot: of a worker an hour, spot:on-demand, as 0.12:0.40.")
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
RuleOption = Annotated[
    list[str] | None,
    typer.Option("--rule", help="Watches the run: overfit, overfit:patience=3,action=stop, or all; repeatable."),
]
SinkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sink", help="Where metrics also go: tensorboard, mlflow:uri=URL,experiment=NAME, wandb:project=NAME; repeatable."
    ),
]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Write a trace of every rank and a summary into the job's folder, under profile.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the job --name.")]


WorkersOption = Annotated[
    str, typer.Option("--workers", help="Processes that train together; or a range as 2:4: as many as there is room for.")
]
LauncherOption = Annotated[
    str, typer.Option("--launcher", help="Who starts the workers: local, ray; attach: torchrun, srun or mpirun has done so.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="auto, host:port or ray://host:port. Default: RAY_ADDRESS, `phalanx cluster up`, or a private one.",
    ),
]
NodesOption = Annotated[
    str | None,
    typer.Option("--nodes", help="Nodes of the Ray cluster for the workers, in place of --workers; or a range as 1:2."),
]
PerNodeOption = Annotated[int | None, typer.Option("--workers-per-node", help="With --nodes: workers on each. Default: 1.")]
CpusOption = Annotated[float | None, typer.Option("--worker-cpus", help="CPUs of each worker. Default: its threads.")]
GpusOption = Annotated[float | None, typer.Option("--worker-gpus", help="GPUs of each worker.")]
MemoryOption = Annotated[str | None, typer.Option("--worker-memory", help="Memory of each worker, as 4GiB.")]
ResourceOption = Annotated[
    list[str] | None, typer.Option("--worker-resource", help="A custom resource of each worker, NAME=AMOUNT; may be repeated.")
]
PlacementOption = Annotated[
    str | None, typer.Option("--placement", help="How workers are spread over nodes: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD.")
]
ShipOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ship", help="A folder that the nodes get: a package, or the working directory; 'phalanx': this one; repeatable."
    ),
]
RoomOption = Annotated[
    str | None, typer.Option("--start-timeout", help="How long to wait for room on the cluster. Default: 5m.")
]


_tracebacks = False


def show_tracebacks(on: bool) -> None:
    """Say whether errors of this run of the command show where they arose."""
    global _tracebacks
    _tracebacks = on


def tracebacks_shown() -> bool:
    """Return what `show_tracebacks` was told last."""
    return _tracebacks


def inputs_of(
    train: list[str] | None, validation: str | None, test: str | None, content_type: str | None, channels: list[str] | None
) -> dict[str, Channel | str]:
    """Return the channels that the options name.

    Raises:
        UserError: one was given twice, or cannot be read.
    """
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


def cluster_of(
    launcher: str,
    address: str | None,
    nodes: str | None,
    workers_per_node: int | None,
    cpus: float | None,
    gpus: float | None,
    memory: str | None,
    resources: list[str] | None,
    placement: str | None,
    ship: list[str] | None,
    start_timeout: str | None,
) -> Cluster | None:
    """Return what the options say of the Ray cluster, None where they say nothing.

    Raises:
        UserError: a value is not allowed, or the launcher is another one.
    """
    from .cluster import Cluster

    amounts: dict[str, float] = {}
    for name, text in pairs_of("--worker-resource", resources).items():
        try:
            amounts[name] = float(text)
        except ValueError:
            raise UserError(f"--worker-resource takes NAME=AMOUNT with a number, not '{name}={text}'") from None
    said = {
        "address": address,
        "nodes": nodes,
        "workers_per_node": workers_per_node,
        "cpus": cpus,
        "gpus": gpus,
        "memory": memory,
        "resources": amounts or None,
        "placement": placement,
        "ship": ship,
        "start_timeout_s": None if start_timeout is None else duration_of("--start-timeout", start_timeout),
    }
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if given and launcher != "ray":
        raise UserError(f"{', '.join(sorted(given))}: these say where on a Ray cluster the workers run; add --launcher ray")
    return Cluster(**given) if given else None


def pairs_of(option: str, given: list[str] | None) -> dict[str, str]:
    """Return name -> value of an option that takes NAME=VALUE, repeated.

    Raises:
        UserError: one is no pair, or was given twice.
    """
    pairs: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} takes NAME=VALUE, not '{text}'")
        if name.strip() in pairs:
            raise UserError(f"{option} {name.strip()} was given twice")
        pairs[name.strip()] = value
    return pairs


def duration_of(option: str, text: str) -> float:
    """Return the seconds that an option says.

    Raises:
        UserError: it is no duration above 0.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"{option} takes a duration above 0 as 90s, 30m, 1h or 2d, not '{text}'")
    return float(found[1]) * _SECONDS[found[2]]


def print_json(value: Any) -> None:
    """Print for programs."""
    typer.echo(json.dumps(value, indent=2))


def print_table(headers: list[str], rows: list[list[str]]) -> None:
    """Print for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=box.SIMPLE, show_header=any(headers))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as they are: brackets are no markup
    Console(width=None if sys.stdout.isatty() else 160).print(table)
