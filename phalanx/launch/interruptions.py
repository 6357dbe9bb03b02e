"""Where a platform says beforehand that it takes machines away, and the threads that ask it while a job runs.

A source never ends a job by failing: a metadata service that does not answer is asked less often, and that is told once.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, final
from urllib.parse import urlsplit

from ..errors import UserError

_LINK_LOCAL = "http://169.254.169.254"
_GOOGLE = "http://metadata.google.internal"
_HTTP_SECONDS = 2.0
_TOKEN_SECONDS = 21600
_FILE_EVERY_S, _HTTP_EVERY_S, _MOST_S = 0.2, 5.0, 60.0
_MOST_BYTES = 1 << 20
_JOIN_SECONDS = 2 * _HTTP_SECONDS + 1.0
_NOT_THERE, _UNAUTHORIZED = 404, 401


@dataclass(frozen=True, slots=True)
class Notice:
    """The platform is going to take workers away."""

    what: str  # for people
    deadline: float | None = None  # seconds since the epoch after which they are gone; None: not said


class InterruptionSource(Protocol):
    """Something that can be asked for a notice."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def every_s(self) -> float:
        """Seconds between two questions."""
        ...

    def check(self) -> Notice | None:
        """Ask now; return the notice in force, None where there is none.

        Raises:
            OSError, ValueError: it could not be asked, or its answer not be read.
        """
        ...


@final
class FileSource:
    """A notice as long as a file exists; its first line says what happens."""

    every_s = _FILE_EVERY_S

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = f"file:{path}"

    def check(self) -> Notice | None:
        """See `InterruptionSource`."""
        try:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                said = file.readline(500).strip()
        except FileNotFoundError:
            return None
        return Notice(said or f"the file {self._path} appeared")


@final
class AwsSource:
    """EC2's instance metadata (IMDSv2): the spot notice, two minutes ahead, and the recommendation to rebalance.

    Source: EC2 User Guide, "Spot Instance interruption notices" and "EC2 instance rebalance recommendations".
    """

    name, every_s = "aws", _HTTP_EVERY_S

    def __init__(self, base: str = _LINK_LOCAL) -> None:
        self._base = base
        self._token: str | None = None

    def check(self) -> Notice | None:
        """See `InterruptionSource`."""
        action = self._get("/latest/meta-data/spot/instance-action")
        if action is not None:
            said = _mapping(action)
            return Notice(f"EC2 is going to {said.get('action', 'take')} this spot instance", _iso(said.get("time")))
        if self._get("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Notice("EC2 recommends to leave this spot instance: it is likely to be interrupted")
        return None

    def _get(self, path: str) -> str | None:
        """Return what is there, None for nothing; a token that has expired is renewed once."""
        for last in (False, True):
            if self._token is None:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = _http(self._base + "/latest/api/token", ttl, method="PUT")
            try:
                return _http(self._base + path, {"X-aws-ec2-metadata-token": self._token or ""})
            except urllib.error.HTTPError as error:
                if error.code != _UNAUTHORIZED or last:
                    raise
                self._token = None
        return None


@final
class GcpSource:
    """Google Compute Engine's metadata: `preempted` and `maintenance-event`.

    Source: Compute Engine documentation, "Preemptible VM instances" and "Handle host maintenance events".
    """

    name, every_s = "gcp", _HTTP_EVERY_S

    def __init__(self, base: str = _GOOGLE) -> None:
        self._base = base + "/computeMetadata/v1/instance/"

    def check(self) -> Notice | None:
        """See `InterruptionSource`."""
        header = {"Metadata-Flavor": "Google"}
        if (_http(self._base + "preempted", header) or "").strip().upper() == "TRUE":
            return Notice("Compute Engine preempts this machine")
        event = (_http(self._base + "maintenance-event", header) or "NONE").strip()
        if event.startswith("TERMINATE"):  # a live migration takes nothing away
            return Notice(f"Compute Engine ends this machine for maintenance ({event})")
        return None


@final
class AzureSource:
    """Azure's scheduled events: those of type Preempt.

    Source: Azure documentation, "Scheduled Events for Linux VMs".
    """

    name, every_s = "azure", _HTTP_EVERY_S

    def __init__(self, base: str = _LINK_LOCAL) -> None:
        self._url = base + "/metadata/scheduledevents?api-version=2020-07-01"

    def check(self) -> Notice | None:
        """See `InterruptionSource`."""
        events = _mapping(_http(self._url, {"Metadata": "true"}) or "{}").get("Events")
        for event in events if isinstance(events, list) else []:
            if isinstance(event, dict) and event.get("EventType") == "Preempt":
                return Notice("Azure preempts this machine", _http_date(event.get("NotBefore")))
        return None


_CLOUDS: Mapping[str, Callable[..., InterruptionSource]] = {"aws": AwsSource, "gcp": GcpSource, "azure": AzureSource}


def source_of(text: str) -> InterruptionSource:
    """Return the source that a text names: file:/path, aws, gcp, azure, or a cloud's name with the address to ask: aws=http://….

    Raises:
        UserError: it names none.
    """
    allowed = (
        "allowed: file:PATH, aws, gcp, azure, or one of the three with the address of its service, as aws=http://host:port"
    )
    if not isinstance(text, str):
        raise UserError(f"the notice source {text!r} is not allowed; {allowed}")
    if text.startswith("file:") and len(text) > len("file:"):
        return FileSource(Path(text.removeprefix("file:")).expanduser().absolute())
    name, equals, base = text.partition("=")
    parts = urlsplit(base)
    if name not in _CLOUDS or (equals and (parts.scheme not in ("http", "https") or not parts.hostname)):
        raise UserError(f"the notice source '{text}' is not allowed; {allowed}")
    return _CLOUDS[name](base.rstrip("/")) if equals else _CLOUDS[name]()


@final
class Watch:
    """Asks sources in threads of its own, one a source, so that a slow one delays no other. Use it in `with`.

    Args:
        sources: whom to ask.
        tell: is given a sentence when a source begins to fail; called from another thread.
    """

    def __init__(self, sources: Iterable[InterruptionSource], tell: Callable[[str], None] = lambda text: None) -> None:
        self._sources = tuple(sources)
        self._tell = tell
        self._found: dict[int, Notice | None] = {}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number, source), name=f"phalanx-notice-{source.name}", daemon=True)
            for number, source in enumerate(self._sources)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def notice(self) -> Notice | None:
        """Return a notice that is in force, as far as is known."""
        return next((notice for notice in list(self._found.values()) if notice is not None), None)

    def _ask(self, number: int, source: InterruptionSource) -> None:
        failures = 0
        while not self._over.is_set():
            try:
                self._found[number] = source.check()  # after a failure the last answer stands
                failures = 0
            except (OSError, ValueError) as error:
                failures += 1
                if failures == 1:
                    self._tell(f"interruption source {source.name} does not answer, and is asked again: {error}")
            self._over.wait(min(_MOST_S, source.every_s * 2.0 ** min(failures, 10)))


def _http(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """Return a body, None for 404. No proxy: metadata services are on the machine's own link."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with opener.open(request, timeout=_HTTP_SECONDS) as answer:
            body: bytes = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == _NOT_THERE:
            return None
        raise
    return body.decode("utf-8", "replace")


def _mapping(text: str) -> Mapping[str, object]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _iso(text: object) -> float | None:
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _http_date(text: object) -> float | None:
    try:
        return parsedate_to_datetime(str(text)).timestamp()
    except (TypeError, ValueError):
        return None
