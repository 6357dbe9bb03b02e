"""Why a script ended badly, read from what it left: its last traceback, argparse's complaint, output/failure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import EXIT_USER, AlgorithmError, PhalanxError, PlatformError, UserError, nearest

MAX_REASON = 1024  # characters, as FailureReason has
_SHOWN = 500
_OUT_OF_MEMORY = 137
_BEGIN = "Traceback (most recent call last):"
_LAST = re.compile(r"^(?:[A-Za-z_][\w.]*)(?:: .*)?$")
_ARGPARSE = re.compile(r"^\S+: error: .+")
_RANK = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)  # torch puts it before the lines of a traceback
_CHANNEL = re.compile(r"KeyError: ['\"]SM_CHANNEL_([^'\"]+)['\"]")
_LOST = (  # what a rank says that lost a peer, not its own mistake
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "failed to connect",
    "Timed out waiting",
    "wait timeout",
    "Socket Timeout",
    "recvValue failed",
    "sendBytes failed",
    "NCCL communicator was aborted",
    "Application timeout caused pair closure",
)
_LOST_FROM = ("DistBackendError", "DistNetworkError", "DistStoreError", "RuntimeError")


def last_traceback(log: str) -> str | None:
    """Return the last traceback in a log with the line that ends it, None where there is none."""
    start = log.rfind(_BEGIN)
    if start < 0:
        return None
    lines = log[start:].splitlines()
    for number, line in enumerate(lines[1:], 1):
        if not line.startswith((" ", "\t")) and line.strip():
            end = number + 1
            while end < len(lines) and lines[end].strip() and not _LAST.match(lines[end]) and end - number < 20:
                end += 1  # a message may have several lines
            return _with_causes(log, start) + "\n".join(lines[:end])
    return "\n".join(lines)


def _with_causes(log: str, start: int) -> str:
    """Return the tracebacks right before the last that say what it came from."""
    chained = ("The above exception was the direct cause", "During handling of the above exception")
    before = log[:start].rstrip()
    found = ""
    while before.splitlines() and before.splitlines()[-1].startswith(chained):
        earlier = before.rfind(_BEGIN)
        if earlier < 0:
            break
        found = log[earlier:start]
        before = log[:earlier].rstrip()
    return found


def of_exit(rank: int, code: int, log: str, *, channels: Iterable[str], written: Path | None = None) -> PhalanxError:
    """Return the error that a script's exit code and its log mean.

    Args:
        rank: whose it is.
        code: its exit code, above 0.
        log: the end of what it printed.
        channels: names of the job's channels, for the hint about one that is missing.
        written: where the script may have put a reason of its own, as output/failure.
    """
    reason = _reason(written)
    log = _RANK.sub("", log)
    trace = last_traceback(log)
    if reason:
        error: PhalanxError = AlgorithmError(f"worker {rank} ended with exit code {code}: {reason}")
        error.details = trace or log
        return error
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    complaint = next((line for line in reversed(lines[-5:]) if _ARGPARSE.match(line)), None)
    if code == EXIT_USER and complaint is not None:
        error = UserError(f"the script does not take its arguments: {complaint[:_SHOWN]}")
        error.details = "\n".join(lines[-10:])
        return error
    if trace is None:
        last = lines[-1][:_SHOWN] if lines else "its log is empty"
        hint = " (137 means killed: perhaps the machine ran out of memory)" if code == _OUT_OF_MEMORY else ""
        error = AlgorithmError(f"worker {rank} ended with exit code {code}{hint}: {last}")
        error.details = log
        return error
    error = of_traceback(rank, trace, channels=channels, code=code)
    error.details = trace
    return error


def of_traceback(rank: int, trace: str, *, channels: Iterable[str], code: int = 1) -> PhalanxError:
    """Return the error that a traceback means."""
    last = _last_line(trace)
    wanted = _CHANNEL.search(last)
    if wanted is not None:
        name = wanted[1].lower()
        known = nearest(name, channels) if list(channels) else "none was given"
        return UserError(
            f"the script wants a channel '{name}' ({last}), which the job does not have: give it as --channel {name}=URL; "
            f"{known}"
        )
    if is_lost_peer(trace):
        return PlatformError(f"worker {rank} lost contact with another worker: {last}")
    text = last if code in (0, 1) else f"{last} (exit code {code})"
    return AlgorithmError(f"{text} (worker {rank})")


def is_lost_peer(trace: str) -> bool:
    """Return whether a traceback says that another rank went away."""
    last = _last_line(trace)
    name = last.split(":")[0].rsplit(".", 1)[-1]
    return name in _LOST_FROM and any(word in trace[trace.rfind(last[:40]) :] for word in _LOST)


def _last_line(trace: str) -> str:
    """Return the line with the exception's type and the first line of its message."""
    after = trace[trace.rfind(_BEGIN) :].splitlines()
    for line in after[1:]:
        if line.strip() and not line.startswith((" ", "\t")):
            return line.strip()[:_SHOWN]
    return after[-1].strip()[:_SHOWN]


def _reason(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8", errors="replace")[:MAX_REASON].strip()
    except OSError:
        return ""
