"""`phalanx cluster`: a Ray cluster of several nodes on this machine, to rehearse on; and what the one that is up has."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .shared import Debug, Json, print_json, print_table, show_tracebacks

if TYPE_CHECKING:
    from types import ModuleType

group = typer.Typer(help="A Ray cluster of several nodes on this machine, for rehearsals.", no_args_is_help=True)


@group.command()
def up(
    local: Annotated[int, typer.Option("--local", min=1, help="Nodes, all of them on this machine.")] = 2,
    cpus: Annotated[float, typer.Option(help="Of each node, as Ray counts them.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="Of each node, as Ray counts them.")] = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a cluster that stays until `phalanx cluster down`; `--launcher ray` finds it."""
    show_tracebacks(debug)
    found = _keeper().up(local, cpus, gpus)
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"{len(found.nodes)} nodes are up at {found.address}, on loopback only")
    typer.echo("phalanx train … --launcher ray --nodes 2 runs there; so does whatever has RAY_ADDRESS=" + found.address)


@group.command()
def down(as_json: Json = False, debug: Debug = False) -> None:
    """End the cluster that `phalanx cluster up` started, and what runs on it."""
    show_tracebacks(debug)
    found = _keeper().down()
    if as_json:
        print_json({"ended": None if found is None else found.address})
    else:
        typer.echo("no cluster was up" if found is None else f"the cluster at {found.address} is down")


@group.command()
def status(as_json: Json = False, debug: Debug = False) -> None:
    """Show the nodes of the cluster that is up, and which of them still live."""
    show_tracebacks(debug)
    keeper = _keeper()
    found = keeper.kept()
    if found is None:
        raise UserError("no cluster is up on this machine: `phalanx cluster up --local 2` starts one")
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        [str(n["name"]), f"{n['cpus']:g}", f"{n['gpus']:g}", str(n["pid"]), "yes" if keeper.lives(n["pid"]) else "no"]
        for n in found.nodes
    ]
    typer.echo(f"{found.address}  held by process {found.pid}")
    print_table(["node", "cpus", "gpus", "raylet", "alive"], rows)


@group.command()
def lose(
    node: Annotated[str, typer.Argument(help="Name of a node, as `phalanx cluster status` shows it.")],
    debug: Debug = False,
) -> None:
    """Kill a node with all that runs on it, to see what a job makes of that."""
    show_tracebacks(debug)
    killed = _keeper().lose(node)
    typer.echo(f"{node} is lost: {killed} processes were killed")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="cluster")


def _keeper() -> ModuleType:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise UserError("a cluster needs Ray: pip install 'phalanx-train[ray]'")
    from ..launch import ray_keeper

    return ray_keeper
