"""The options of a job, which `train` and `run` have in common, in the parts that their help shows, and the job they make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .shared import (
    ChannelOption,
    ContentTypeOption,
    SetOption,
    TestOption,
    TrainOption,
    ValidationOption,
    duration_of,
    inputs_of,
    pairs_of,
)

if TYPE_CHECKING:
    from ..job import TrainingJob
    from ..spot import Spot

_WORKERS = "Workers"
_CLUSTER = "With --launcher ray"
_LASTING = "Checkpoints and interruptions"
_WATCHING = "Watching"

JobOf = Callable[..., Any]  # fields that a command gives beside the options -> the TrainingJob

LauncherOption = Annotated[
    str,
    typer.Option(
        "--launcher",
        help="Who starts the workers: local, ray; attach: torchrun, srun or mpirun has done so.",
        rich_help_panel=_WORKERS,
    ),
]


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a job, in place of its parameter `job_of`.

    What it is handed there makes the `TrainingJob` of them, and of the fields that it is given besides; a value that is not
    allowed is a UserError then.
    """
    own = inspect.signature(command, eval_str=True).parameters
    parts = {
        part: inspect.signature(part, eval_str=True).parameters
        for part in (_job, _workers, cluster_fields, _lasting, _watching)
    }

    @functools.wraps(command)
    def call(**given: Any) -> None:
        def job_of(**fields: Any) -> TrainingJob:
            from ..job import TrainingJob

            for part, names in parts.items():
                fields |= part(**{name: given[name] for name in names})
            return TrainingJob(**fields)

        command(**{name: value for name, value in given.items() if name in own}, job_of=job_of)

    options: dict[str, inspect.Parameter] = {}
    for name, parameter in own.items():
        if name == "job_of":
            options |= {n: p for names in parts.values() for n, p in names.items()}
        else:
            options[name] = parameter
    found = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in options.values()]
    del call.__wrapped__  # else typer reads the signature of the command itself
    call.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in found}
    return call


def _job(
    train: TrainOption = None,
    validation: ValidationOption = None,
    test: TestOption = None,
    content_type: ContentTypeOption = None,
    channel: ChannelOption = None,
    settings: SetOption = None,
    name: Annotated[str | None, typer.Option(help="The job's name. Default: algorithm or script, and the time.")] = None,
    output: Annotated[str, typer.Option(help="Folder or URL under which the job's folder is made.")] = "runs",
    seed: Annotated[int, typer.Option(help="Of everything random; a script finds it as phalanx.session().seed.")] = 0,
) -> dict[str, Any]:
    return {
        "inputs": inputs_of(train, validation, test, content_type, channel),
        "hyperparameters": pairs_of("--set", settings),
        "name": name,
        "output": output,
        "seed": seed,
    }


def _workers(
    workers: Annotated[
        str,
        typer.Option(
            help="Processes that train together; or a range as 2:4: as many as there is room for.", rich_help_panel=_WORKERS
        ),
    ] = "1",
    threads_per_worker: Annotated[int | None, typer.Option(help="Default: cores // workers.", rich_help_panel=_WORKERS)] = None,
    launcher: LauncherOption = "local",
    env: Annotated[
        list[str] | None,
        typer.Option(help="A variable for the workers, KEY=VALUE; may be repeated.", rich_help_panel=_WORKERS),
    ] = None,
    elastic: Annotated[
        str | None,
        typer.Option(
            help="exact: the same bits whatever the number of workers, also when it changes on the way.",
            rich_help_panel=_WORKERS,
        ),
    ] = None,
    micro_batches: Annotated[
        int,
        typer.Option(
            help="Pieces of every global batch of a script with --elastic exact: a multiple of --workers.",
            rich_help_panel=_WORKERS,
        ),
    ] = 12,
) -> dict[str, Any]:
    return {
        "workers": workers,
        "threads_per_worker": threads_per_worker,
        "launcher": launcher,
        "environment": pairs_of("--env", env),
        "elastic": elastic,
        "micro_batches": micro_batches,
    }


def cluster_fields(
    launcher: LauncherOption = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="auto, host:port or ray://host:port. Default: RAY_ADDRESS, `phalanx cluster up`, or a private one.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            help="Nodes of the Ray cluster for the workers, in place of --workers; or a range as 1:2.", rich_help_panel=_CLUSTER
        ),
    ] = None,
    workers_per_node: Annotated[
        int | None, typer.Option(help="With --nodes: workers on each. Default: 1.", rich_help_panel=_CLUSTER)
    ] = None,
    worker_cpus: Annotated[
        float | None, typer.Option(help="CPUs of each worker. Default: its threads.", rich_help_panel=_CLUSTER)
    ] = None,
    worker_gpus: Annotated[float | None, typer.Option(help="GPUs of each worker.", rich_help_panel=_CLUSTER)] = None,
    worker_memory: Annotated[str | None, typer.Option(help="Memory of each worker, as 4GiB.", rich_help_panel=_CLUSTER)] = None,
    worker_resource: Annotated[
        list[str] | None,
        typer.Option(help="A custom resource of each worker, NAME=AMOUNT; may be repeated.", rich_help_panel=_CLUSTER),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            help="How workers are spread over nodes: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD.", rich_help_panel=_CLUSTER
        ),
    ] = None,
    ship: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder that the nodes get: a package, or the working directory; 'phalanx': this one; repeatable.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    start_timeout: Annotated[
        str | None, typer.Option(help="How long to wait for room on the cluster. Default: 5m.", rich_help_panel=_CLUSTER)
    ] = None,
) -> dict[str, Any]:
    """Return the field of a job that says where on a Ray cluster it runs."""
    from ..cluster import Cluster

    amounts: dict[str, float] = {}
    for name, text in pairs_of("--worker-resource", worker_resource).items():
        try:
            amounts[name] = float(text)
        except ValueError:
            raise UserError(f"--worker-resource takes NAME=AMOUNT with a number, not '{name}={text}'") from None
    said: dict[str, tuple[str, Any]] = {
        "--ray-address": ("address", ray_address),
        "--nodes": ("nodes", nodes),
        "--workers-per-node": ("workers_per_node", workers_per_node),
        "--worker-cpus": ("cpus", worker_cpus),
        "--worker-gpus": ("gpus", worker_gpus),
        "--worker-memory": ("memory", worker_memory),
        "--worker-resource": ("resources", amounts or None),
        "--placement": ("placement", placement),
        "--ship": ("ship", ship),
        "--start-timeout": (
            "start_timeout_s",
            None if start_timeout is None else duration_of("--start-timeout", start_timeout),
        ),
    }
    given = {option: field for option, field in said.items() if field[1] is not None}
    if given and launcher != "ray":
        raise UserError(f"{', '.join(given)}: these say where on a Ray cluster the workers run; add --launcher ray")
    return {"cluster": Cluster(**dict(given.values())) if given else None}


def _lasting(
    checkpoints: Annotated[
        str | None,
        typer.Option(help="Where checkpoints go. Default: OUTPUT/NAME/checkpoints.", rich_help_panel=_LASTING),
    ] = None,
    checkpoint_every: Annotated[
        str, typer.Option(help="When to save: 100 (steps), 60s, 5m, auto, or never.", rich_help_panel=_LASTING)
    ] = "auto",
    keep: Annotated[int, typer.Option(help="Newest checkpoints that stay.", rich_help_panel=_LASTING)] = 3,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the newest checkpoint of the job --name.", rich_help_panel=_LASTING),
    ] = False,
    max_restarts: Annotated[
        int, typer.Option(help="How often a failed worker group is started again.", rich_help_panel=_LASTING)
    ] = 0,
    max_runtime: Annotated[
        str | None, typer.Option(help="Stop the job after so long: 90s, 30m, 1h, 2d.", rich_help_panel=_LASTING)
    ] = None,
    hang_timeout: Annotated[
        str,
        typer.Option(
            help="A worker that gives no sign of life, or keeps others waiting, so long has failed: 30s, 5m, never.",
            rich_help_panel=_LASTING,
        ),
    ] = "30s",
    spot: Annotated[
        bool,
        typer.Option("--spot", help="The platform may take workers: interruptions are no failures.", rich_help_panel=_LASTING),
    ] = False,
    max_interruptions: Annotated[
        int, typer.Option(help="With --spot: interruptions after which the job goes on.", rich_help_panel=_LASTING)
    ] = 10,
    max_wait: Annotated[
        str | None, typer.Option(help="With --spot: stop after so long, waiting included: 2h.", rich_help_panel=_LASTING)
    ] = None,
    notice: Annotated[
        list[str] | None,
        typer.Option(
            help="With --spot: aws, gcp, azure or file:PATH says that this machine is taken; repeatable.",
            rich_help_panel=_LASTING,
        ),
    ] = None,
    spot_prices: Annotated[
        str | None,
        typer.Option(help="With --spot: of a worker an hour, spot:on-demand, as 0.12:0.40.", rich_help_panel=_LASTING),
    ] = None,
) -> dict[str, Any]:
    return {
        "checkpoints": checkpoints,
        "checkpoint_every": checkpoint_every,
        "keep": keep,
        "resume": resume,
        "max_restarts": max_restarts,
        "max_runtime_s": None if max_runtime is None else duration_of("--max-runtime", max_runtime),
        "hang_timeout_s": None if hang_timeout == "never" else duration_of("--hang-timeout", hang_timeout),
        "spot": _spot(spot, max_interruptions, max_wait, notice, spot_prices),
    }


def _watching(
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="Watches the run: overfit, overfit:patience=3,action=stop, or all; repeatable.", rich_help_panel=_WATCHING
        ),
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            help="Where metrics also go: tensorboard, mlflow:uri=URL,experiment=NAME, wandb:project=NAME; repeatable.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Write a trace of every rank and a summary into the job's folder, under profile.",
            rich_help_panel=_WATCHING,
        ),
    ] = False,
) -> dict[str, Any]:
    return {"rules": rule or (), "sinks": sink or (), "profile": profile}


def _spot(on: bool, max_interruptions: int, max_wait: str | None, notices: list[str] | None, prices: str | None) -> Spot | None:
    from ..spot import Spot

    if not on:
        for option, given in (("--notice", notices), ("--spot-prices", prices)):
            if given:
                raise UserError(f"{option} is for jobs with --spot: add it")
        return None
    pair: tuple[float, float] | None = None
    if prices is not None:
        try:
            spot, on_demand = map(float, prices.split(":"))
        except ValueError:
            raise UserError(f"--spot-prices takes two numbers as 0.12:0.40, spot and on demand, not '{prices}'") from None
        pair = spot, on_demand
    limit = None if max_wait is None else duration_of("--max-wait", max_wait)
    return Spot(max_restarts=max_interruptions, max_wait_s=limit, notices=tuple(notices or ()), prices=pair)
