"""Whose fault it was: the three error kinds, the stop, and their exit codes.

A `UserError` is mended by the user (data, hyperparameters, names), an `AlgorithmError` by whoever wrote the algorithm or
the script, a `PlatformError` by running again elsewhere. The kind survives the way from a rank to the caller of
`TrainingJob.run()`: it travels as a record (`to_record` / `from_record`), never as a pickle.
"""

from __future__ import annotations

import difflib
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

OK = 0
EXIT_ALGORITHM = 1
EXIT_USER = 2
EXIT_PLATFORM = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_SIGINT = 130
EXIT_SIGTERM = 143
_MANY = 12  # more names than a person reads in an error


class PhalanxError(Exception):
    """Base of all errors that Phalanx raises on purpose; its text is written for the user.

    Attributes:
        result: the `JobResult` of the job that failed, set by `TrainingJob.run()`; `None` elsewhere.
        told: another process of the group tells people of it.
    """

    kind: ClassVar[str] = "PhalanxError"
    exit_code: int = EXIT_ALGORITHM

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.result: Any = None
        self.told = False
        self.details = ""  # traceback of the place it came from, shown with --debug


class UserError(PhalanxError):
    """Something the user gave cannot work: says what was given, what is allowed, what to do next."""

    kind = "UserError"
    exit_code = EXIT_USER


class AlgorithmError(PhalanxError):
    """The algorithm or the user's script failed."""

    kind = "AlgorithmError"
    exit_code = EXIT_ALGORITHM


class PlatformError(PhalanxError):
    """A process, a machine or a storage was lost: the same job may succeed when run again."""

    kind = "PlatformError"
    exit_code = EXIT_PLATFORM


class GroupLost(PlatformError):
    """A process of a group that somebody else started is gone: only they can start the group again."""


class Interruption(PlatformError):
    """The platform took workers away, with notice or with their node: never the user's fault, and has a budget of its own."""


class Stopped(PhalanxError):
    """The job was asked to stop and did so in order.

    Args:
        message: what asked for it.
        exit_code: 130 after SIGINT, 143 after SIGTERM or `TrainingJob.stop()`.
    """

    kind = "Stopped"

    def __init__(self, message: str = "the job was asked to stop", exit_code: int = EXIT_SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_KINDS: dict[str, type[PhalanxError]] = {cls.kind: cls for cls in (UserError, AlgorithmError, PlatformError, Stopped)}


def error_of_kind(kind: str, message: str) -> PhalanxError:
    """Return an error of the named kind; an unknown kind is an `AlgorithmError`."""
    return _KINDS.get(kind, AlgorithmError)(message)


def to_record(error: BaseException) -> dict[str, Any]:
    """Return `error` as JSON values: kind, message, details (traceback) and the time it was made.

    An exception that is none of ours is the algorithm's: its type and text become the message.
    """
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, PhalanxError):
        kind, message, details = error.kind, error.message, error.details or trace
    elif isinstance(error, MemoryError):
        kind, message, details = "PlatformError", f"out of memory: {error}", trace
    else:
        kind, message, details = "AlgorithmError", f"{type(error).__name__}: {error}", trace
    record = {"kind": kind, "message": message, "details": details, "time": time.time()}
    return {**record, "interruption": True} if isinstance(error, Interruption) else record


def from_record(record: Mapping[str, Any]) -> PhalanxError:
    """Return the error that `to_record` wrote."""
    message = str(record["message"])
    error = Interruption(message) if record.get("interruption") else error_of_kind(str(record["kind"]), message)
    error.details = str(record.get("details", ""))
    return error


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return the tail of an error about a wrong name: "did you mean 'x'?" where one is near, then what is allowed."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close and len(names) > _MANY:
        return f"did you mean '{close[0]}'?"
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"
