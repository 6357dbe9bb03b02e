"""How another process asks a running job to stop: by a file `stop` in the job's folder."""

from __future__ import annotations

import json
import time

from .. import storage
from ..errors import UserError
from .reading import load_job

NAME = "stop"


def ask(url: str) -> None:
    """Ask the job in a folder to stop in order; a job looks every second, in a remote folder every ten.

    Raises:
        UserError: there is no job, or it has ended.
    """
    job = load_job(url)
    if job.ended:
        raise UserError(f"the job '{job.name}' has ended already: {job.state}")
    storage.put_bytes(storage.join(url, NAME), json.dumps({"time": time.time()}).encode())


def asked(url: str, since: float) -> bool:
    """Return whether somebody asked the job to stop after `since` (seconds since 1970)."""
    found = storage.read_json(storage.join(url, NAME))
    when = found.get("time") if isinstance(found, dict) else None
    return isinstance(when, (int, float)) and when >= since
