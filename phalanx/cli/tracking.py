"""Commands that look at jobs: `jobs`, `logs`, `stop`, `compare`, `report`, `ui`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .shared import Debug, Json, print_json, print_table, show_tracebacks

if TYPE_CHECKING:
    from ..tracking.reading import TrackedJob


def jobs(
    url: Annotated[str, typer.Argument(help="Folder or URL that holds jobs.")] = "runs",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List jobs: what each trains, how it stands, its best metric, time, billable seconds, and interruptions."""
    from ..tracking.listing import HEADERS, cells, row_of
    from ..tracking.reading import jobs as found_at

    show_tracebacks(debug)
    rows = [row_of(job) for job in found_at(url)]
    if as_json:
        print_json(rows)
        return
    print_table(list(HEADERS), cells(rows))


def logs(
    job: Annotated[str, typer.Argument(help="A job's folder or URL.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank's. Default: all.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print what the workers of a job wrote; lines of more than one begin with the rank, and the node where it was last."""
    from ..tracking.reading import load_job, poll_seconds

    show_tracebacks(debug)
    found = load_job(job)
    known = found.ranks()
    if rank is not None and rank not in known and not (follow and not found.ended):
        raise UserError(f"the job '{found.name}' has no log of rank {rank}; there are {', '.join(map(str, known)) or 'none'}")
    offsets: dict[int, int] = {}
    while True:
        found = load_job(job)
        ended = found.ended  # asked before reading: what was written until the end is then all there
        _print_logs(found, [rank] if rank is not None else found.ranks(), offsets, last=ended or not follow, as_json=as_json)
        if ended or not follow:
            return
        time.sleep(poll_seconds(job))


def stop(
    job: Annotated[str, typer.Argument(help="A running job's folder or URL.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a running job to stop in order: it saves a checkpoint and ends as Stopped."""
    from ..tracking import stop_file

    show_tracebacks(debug)
    stop_file.ask(job)
    if as_json:
        print_json({"asked": job})
    else:
        typer.echo(f"asked {job} to stop; phalanx show {job} tells when it has")


def compare(
    jobs: Annotated[list[str], typer.Argument(help="Two or more jobs' folders or URLs.")],
    metric: Annotated[str | None, typer.Option(help="Show this metric's curves too.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where jobs differ: hyperparameters and metrics side by side."""
    from ..tracking.comparing import compared
    from ..tracking.listing import text
    from ..tracking.reading import load_job

    show_tracebacks(debug)
    told = compared([load_job(job) for job in jobs], metric)
    if as_json:
        print_json(told)
        return
    print_table(["hyperparameter", *told["jobs"]], [[name, *map(text, values)] for name, values in told["differing"].items()])
    shown = told["metrics"] if metric is None else {metric: told["metrics"][metric]}
    rows = [
        [f"{name} ({key})", *("" if ends is None else text(ends[key]) for ends in found)]
        for name, found in shown.items()
        for key in (("last",) if metric is None else ("last", "min", "max"))
    ]
    print_table(["metric", *told["jobs"]], rows)
    for name, points in zip(told["jobs"], told["curves"], strict=False):
        typer.echo(f"{name}  {_spark([value for _, value in points])}")


def report(
    folder: Annotated[str, typer.Argument(help="A job's or a sweep's folder or URL.")],
    output: Annotated[Path | None, typer.Option(help="The page. Default: report.html in the folder.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a job or a sweep as one html page that needs nothing else."""
    from .. import storage

    show_tracebacks(debug)
    written = _page(folder)
    place = str(output) if output is not None else storage.join(folder, "report.html")
    storage.put_bytes(place, written.encode())
    if as_json:
        print_json({"report": place})
    else:
        typer.echo(place)


def ui(
    url: Annotated[str, typer.Argument(help="Folder or URL that holds jobs and sweeps.")] = "runs",
    host: Annotated[str, typer.Option(help="Address to listen on. Whoever reaches it can read the jobs.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8765,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a page that lists jobs and sweeps live and shows each: curves, findings, where time went. It changes nothing."""
    from ..tracking.server import Server

    show_tracebacks(debug)
    with Server(url, host, port) as server:
        if as_json:
            print_json({"url": server.url, "jobs": url})
        else:
            typer.echo(f"{server.url} shows the jobs of {url}; Ctrl-C ends it")
        sys.stdout.flush()
        server.serve()


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (jobs, logs, stop, compare, report, ui):
        app.command()(command)


def _page(folder: str) -> str:
    from ..tracking.page import page
    from ..tracking.reading import load_job
    from ..tuning.plan import read

    sweep = read(folder)
    if sweep is not None:
        from ..tuning.report import page as sweep_page

        return sweep_page(folder, sweep)
    return page(load_job(folder))


def _print_logs(job: TrackedJob, ranks: list[int], offsets: dict[int, int], *, last: bool, as_json: bool) -> None:
    from ..tracking.console import prefix_of

    nodes = job.nodes
    for rank in ranks:
        data = job.log(rank, offsets.get(rank, 0))
        whole = data if last else data[: data.rfind(b"\n") + 1]
        offsets[rank] = offsets.get(rank, 0) + len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            if as_json:
                typer.echo(json.dumps({"rank": rank, "line": line}))  # one a line, for who follows
            else:
                typer.echo(line if len(ranks) == 1 else f"{prefix_of(nodes, rank)} {line}")
    sys.stdout.flush()


def _spark(values: list[float | None]) -> str:
    finite = [value for value in values if value is not None][:: max(1, len(values) // 60)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low or 1.0))] for value in finite)
