"""Every interruption source against a server on loopback that speaks its paths; what the watch does when one fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from phalanx.errors import UserError
from phalanx.launch import interruptions
from phalanx.launch.interruptions import Notice, Watch, source_of

AWS, REBALANCE = "/latest/meta-data/spot/instance-action", "/latest/meta-data/events/recommendations/rebalance"
GCP = "/computeMetadata/v1/instance/"
AZURE = "/metadata/scheduledevents?api-version=2020-07-01"
EVENT = {"EventType": "Preempt", "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}


class Service:
    """Answers as the three clouds do: refuses who leaves their header out, 404 for what is not there."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.tokens = 0
        self.broken = False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                there = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                service.tokens += 1
                self._answer(200 if there else 400, f"token-{service.tokens}")

            def do_GET(self) -> None:
                if service.broken:
                    self._answer(503, "")
                elif self.path.startswith("/latest/") and self.headers["X-aws-ec2-metadata-token"] != f"token-{service.tokens}":
                    self._answer(401, "")
                elif (self.path.startswith("/computeMetadata/") and self.headers["Metadata-Flavor"] != "Google") or (
                    self.path.startswith("/metadata/") and self.headers["Metadata"] != "true"
                ):
                    self._answer(403, "")
                else:
                    found = service.answers.get(self.path)
                    self._answer(404 if found is None else 200, found or "")

            def _answer(self, code: int, text: str) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.mark.parametrize(
    ("cloud", "answers", "expected"),
    [
        ("aws", {}, None),
        (
            "aws",
            {AWS: '{"action": "terminate", "time": "2017-09-18T08:22:00Z"}'},
            Notice("EC2 is going to terminate this spot instance", 1505722920.0),
        ),
        (
            "aws",
            {REBALANCE: '{"noticeTime": "2020-10-26T12:00:00Z"}'},
            Notice("EC2 recommends to leave this spot instance: it is likely to be interrupted"),
        ),
        ("gcp", {GCP + "preempted": "FALSE", GCP + "maintenance-event": "NONE"}, None),
        ("gcp", {}, None),
        ("gcp", {GCP + "maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE"}, None),
        ("gcp", {GCP + "preempted": "TRUE\n"}, Notice("Compute Engine preempts this machine")),
        (
            "gcp",
            {GCP + "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"},
            Notice("Compute Engine ends this machine for maintenance (TERMINATE_ON_HOST_MAINTENANCE)"),
        ),
        ("azure", {AZURE: json.dumps({"DocumentIncarnation": 1, "Events": []})}, None),
        ("azure", {AZURE: json.dumps({"Events": [{"EventType": "Freeze"}]})}, None),
        ("azure", {AZURE: json.dumps({"Events": [EVENT]})}, Notice("Azure preempts this machine", 1474309787.0)),
        ("azure", {AZURE: json.dumps({"Events": [{**EVENT, "NotBefore": ""}]})}, Notice("Azure preempts this machine")),
    ],
)
def test_clouds(service: Service, cloud: str, answers: dict[str, str], expected: Notice | None) -> None:
    service.answers = answers
    assert source_of(f"{cloud}={service.url}/").check() == expected


def test_a_token_is_kept_and_renewed_when_it_is_refused(service: Service) -> None:
    source = source_of(f"aws={service.url}")
    assert [source.check(), source.check(), service.tokens] == [None, None, 1]
    service.tokens = 7  # the one that was given is not valid any more
    service.answers[AWS] = "{}"
    assert source.check() == Notice("EC2 is going to take this spot instance")
    assert service.tokens == 8


def test_a_file(tmp_path: Path) -> None:
    source = source_of(f"file:{tmp_path}/notice")
    assert source.check() is None
    (tmp_path / "notice").touch()
    assert source.check() == Notice(f"the file {tmp_path}/notice appeared")
    (tmp_path / "notice").write_text("moving house\nat noon\n")
    assert source.check() == Notice("moving house")


@pytest.mark.parametrize("text", ["", "file:", "amazon", "aws=", "aws=169.254.169.254", "gcp=ftp://x", "file=/x"])
def test_what_names_no_source(text: str) -> None:
    with pytest.raises(UserError, match=r"is not allowed; allowed: file:PATH, aws, gcp, azure"):
        source_of(text)


def test_a_service_that_fails_is_told_once_and_asked_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruptions, "_MOST_S", 0.01)
    monkeypatch.setattr(interruptions.GcpSource, "every_s", 0.01)
    service.broken = True
    told: list[str] = []
    first, found = threading.Event(), threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        first.set()

    with Watch([source_of(f"gcp={service.url}")], tell) as watch:
        assert first.wait(60)
        assert watch.notice() is None
        service.answers[GCP + "preempted"] = "TRUE"
        service.broken = False
        while watch.notice() is None:
            assert not found.wait(0.01)
        assert watch.notice() == Notice("Compute Engine preempts this machine")
    assert len(told) == 1
    assert "503" in told[0]
