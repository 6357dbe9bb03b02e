"""What the commands share: their options, how these are read, and how answers are printed."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ..data.channel import Channel

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
    from ..data.channel import Channel, parse_channel

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
