"""The page of `phalanx ui`: a small read-only server of one folder's jobs and sweeps, for the browser on this machine.

GET /                      the page (ui.html)
GET /plotly.js             the installed plotly's script
GET /api/jobs              {"url", "jobs": [row of `listing.row_of`], "sweeps": [row]}
GET /api/job?url=URL       one listed job: summary, figures of `figures.figures_of`, findings, request, ranks
GET /api/log?url=URL&rank  the end of what a rank wrote
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, final
from urllib.parse import parse_qs, urlsplit

from .. import storage
from ..errors import PhalanxError, UserError
from .figures import figures_of
from .listing import row_of
from .reading import TrackedJob, jobs, load_job, places
from .summary import rows_of

_LOG_BYTES = 200_000  # of the end of a log
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@final
class Server:
    """Serves the jobs of a folder; a context manager that holds the port.

    Args:
        url: folder or URL of jobs and sweeps.
        host: address to listen on.
        port: 0 for a free one.

    Raises:
        UserError: no such folder, no plotly, or the port is taken.
    """

    def __init__(self, url: str, host: str = "127.0.0.1", port: int = 0) -> None:
        jobs(url)  # raises where there is no such folder
        _plotly()
        try:
            self._server = ThreadingHTTPServer(
                (host, port), type("Handler", (_Handler,), {"pages": _Pages(url), "bound": host})
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {error.strerror}; give another --port, or --port 0 for a free one"
            ) from None
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def serve(self) -> None:
        """Answer until `stop` is called or the user interrupts."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.shutdown()


@final
class _Pages:
    """What the page asks for; only jobs that were listed are shown."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._listed: set[str] = set()

    def listed(self) -> dict[str, Any]:
        """Return the rows of jobs and sweeps."""
        found = jobs(self._url)
        with self._lock:
            self._listed = {job.url for job in found}
        return {"url": storage.redact(self._url), "jobs": [row_of(job) for job in found], "sweeps": _sweeps(self._url, found)}

    def job(self, url: str) -> dict[str, Any]:
        """Return all that the page shows of a job."""
        job = self._of(url)
        return {
            "name": job.name,
            "status": job.state,
            "ended": job.ended,
            "summary": rows_of(job),
            "figures": figures_of(job),
            "findings": job.findings(),
            "request": job.request,
            "ranks": job.ranks(),
        }

    def log(self, url: str, rank: int) -> dict[str, Any]:
        """Return the end of a rank's log."""
        data, cut = self._of(url).log_end(rank, _LOG_BYTES)
        return {"text": data.decode("utf-8", "replace"), "cut": cut}

    def _of(self, url: str) -> TrackedJob:
        with self._lock:
            known = url in self._listed
        if not known and url not in places(self._url):
            raise UserError(f"there is no job {storage.redact(url)} below {storage.redact(self._url)}")
        return load_job(url)


def _sweeps(url: str, found: Sequence[TrackedJob]) -> list[dict[str, Any]]:
    """Return a row for every folder below `url` that is a sweep: those whose trials were found, and local ones without any."""
    folders = {job.url.rstrip("/").rsplit("/", 1)[0] for job in found} - {url.rstrip("/")}
    if storage.is_local(url):
        root = storage.local_path(url)
        folders = {str(path.parent) for path in [*root.glob("*/sweep.json"), *root.glob("sweep.json")]}
    rows = []
    for folder in sorted(folders):
        sweep = storage.read_json(storage.join(folder, "sweep.json"))
        if isinstance(sweep, dict) and isinstance(sweep.get("trials"), list):
            rows.append(_sweep_row(folder, sweep))
    return rows


def _sweep_row(folder: str, sweep: Mapping[str, Any]) -> dict[str, Any]:
    first = (sweep.get("objectives") or [{}])[0]
    trials = [trial for trial in sweep["trials"] if isinstance(trial, dict)]
    done = [t["objective"][0] for t in trials if t.get("status") == "Completed" and t.get("objective")]
    best = (max if first.get("direction") == "maximize" else min)(done, default=None)
    return {
        "name": str(sweep.get("name") or folder.rsplit("/", 1)[-1]),
        "algorithm": str(sweep.get("algorithm") or ""),
        "status": str(sweep.get("status") or "Unknown"),
        "objective": str(first.get("metric") or ""),
        "best": best,
        "trials": len(trials),
        "max_jobs": sweep.get("max_jobs"),
        "url": folder,
    }


@cache
def _plotly() -> bytes:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("the page needs plotly: pip install 'phalanx-train[tune]'") from None
    return str(get_plotlyjs()).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET only; on loopback only to names of this machine, so that no page from elsewhere can rebind to it."""

    pages: _Pages
    bound: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if self.bound in (*_LOOPBACK, "::1") and host not in _LOOPBACK:
            self._answer(403, b"this server answers requests to localhost only", "text/plain")
            return
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        try:
            self._route(asked.path, query)
        except PhalanxError as error:
            self._json(404, {"error": storage.redact(error.message)})
        except (BrokenPipeError, ConnectionResetError):  # the browser has gone
            self.close_connection = True
        except Exception as error:  # a folder that nobody thought of must not end the page
            self._json(500, {"error": f"{type(error).__name__}: {error}"})

    def _route(self, path: str, query: Mapping[str, str]) -> None:
        if path == "/":
            self._answer(200, Path(__file__).with_name("ui.html").read_bytes(), "text/html; charset=utf-8")
        elif path == "/plotly.js":
            self._answer(200, _plotly(), "text/javascript; charset=utf-8", "max-age=86400")
        elif path == "/api/jobs":
            self._json(200, self.pages.listed())
        elif path == "/api/job":
            self._json(200, self.pages.job(query.get("url", "")))
        elif path == "/api/log":
            rank = query.get("rank", "0")
            self._json(200, self.pages.log(query.get("url", ""), int(rank) if rank.isdigit() else 0))
        else:
            self._json(404, {"error": f"there is no {path}"})

    def _json(self, code: int, value: Any) -> None:
        self._answer(code, json.dumps(_finite(value)).encode(), "application/json")

    def _answer(self, code: int, body: bytes, kind: str, caching: str = "no-store") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", caching)
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page asks every few seconds."""


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
