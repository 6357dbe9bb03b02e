"""What a rule's finding sets off beside the warning: a POST to a webhook, a command. Neither can hold up or break a job."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, final

from .. import storage
from .rules import Actions

WEBHOOK_SECONDS = 10.0
COMMAND_SECONDS = 60.0


@final
class Performer:
    """Performs actions, each in a thread of its own.

    Args:
        warn: told, in a sentence, of an action that failed.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._threads: list[threading.Thread] = []

    def perform(self, actions: Actions, finding: Mapping[str, Any]) -> None:
        """Begin what is to be done about a finding; returns at once."""
        text = json.dumps(finding).encode()
        if actions.webhook is not None:
            self._begin(_post, actions.webhook, text)
        if actions.command is not None:
            self._begin(_run, actions.command, text)

    def close(self) -> None:
        """Wait until all is done; each action has a time limit."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _begin(self, act: Callable[[str, bytes], str | None], target: str, text: bytes) -> None:
        def done() -> None:
            problem = act(target, text)
            if problem is not None:
                self._warn(problem)

        thread = threading.Thread(target=done, name="phalanx-action", daemon=True)
        self._threads.append(thread)
        thread.start()


def _post(url: str, text: bytes) -> str | None:
    request = urllib.request.Request(url, data=text, headers={"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
            return None
    except (OSError, ValueError, urllib.error.HTTPError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return f"the webhook {storage.redact(url)} was not reached: {error}"


def _run(command: str, text: bytes) -> str | None:
    try:
        done = subprocess.run(shlex.split(command), input=text, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"the command '{command}' could not be run: {error}"
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return f"the command '{command}' ended with {done.returncode}: {' '.join(last)}".rstrip(": ")
    return None
