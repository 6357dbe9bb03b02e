"""What ranks do together without knowing more of each other than a way to gather values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..contracts import Json
from ..errors import PhalanxError, from_record, to_record

Gather = Callable[[Any], list[Any]]
_SIGN_OF_LIFE_S = 15.0  # well below the time limit of a collective call


def agree(name: str, gather: Gather, size: int, action: Callable[[], Json]) -> list[Json]:
    """Collective. Return every rank's result of `action`; where it fails on any, one error is raised on all.

    An action may take long (a download, an index): ranks that have done theirs wait for the others for as long as these show
    signs of life.

    Args:
        name: of the channel, for error texts.
        gather: `Collective.all_gather`.
        size: ranks.
        action: what this rank does.

    Raises:
        PhalanxError: that of the first rank that failed, on every rank.
    """
    outcomes = gather(_outcome(name, action)) if size == 1 else gather(_patiently(gather, lambda: _outcome(name, action)))
    failed = [outcome["error"] for outcome in outcomes if outcome["error"] is not None]
    if failed:
        raise from_record(failed[0])
    return [outcome["result"] for outcome in outcomes]


def of_channel(name: str, message: str) -> str:
    """Return an error's text with the channel's name."""
    return printable(f"channel '{name}': {message}")


def printable(text: str) -> str:
    """Return `text` with whatever a terminal might take for a command escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _outcome(name: str, action: Callable[[], Json]) -> dict[str, Json]:
    try:
        return {"error": None, "result": action()}
    except Exception as error:
        if isinstance(error, PhalanxError):
            error.message = of_channel(name, error.message)
        return {"error": to_record(error), "result": None}


def _patiently(gather: Gather, action: Callable[[], Json]) -> Json:
    """Collective. Run `action` in a thread while the ranks tell each other that they are alive; return its result."""
    results: list[Json] = []
    # a daemon, so that a worker that is told to end need not wait for a download
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True, name="channel")
    thread.start()
    while True:
        thread.join(_SIGN_OF_LIFE_S)
        if all(gather(not thread.is_alive())):
            return results[0]
