"""`phalanx ui`: what its server answers, and its page in a headless browser where one is installed."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from phalanx.errors import UserError
from phalanx.tracking.record import JobRecord
from phalanx.tracking.server import Server

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=alert(1)>"


def _job(folder: Path, *, points: int = 5, message: str = "") -> None:
    folder.mkdir(parents=True)
    record = JobRecord(str(folder), name=folder.name, algorithm="kmeans")
    record.write_job({"name": folder.name, "algorithm": "kmeans", "hyperparameters": {"note": HOSTILE}})
    record.enter("Training", message)
    for step in range(1, points + 1):
        record.step(step, 100.0 + step, {"train:msd": 10.0 / step, "train:seconds_compute": 0.1})
    record.logs.mkdir(exist_ok=True)
    (record.logs / "rank-0.log").write_text(f"first line\n{HOSTILE}\n")
    (record.folder / "findings.jsonl").write_text(json.dumps({"step": 3, "rule": "overfit", "message": "it rises"}) + "\n")
    record.end("Completed", "Completed")
    record.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    _job(tmp_path / "one")
    _job(tmp_path / "two", message=HOSTILE)
    _job(tmp_path / "sweep" / "sweep-0001")
    trial = {"number": 0, "job": "sweep-0001", "status": "Completed", "objective": [0.25]}
    head = {"name": "sweep", "algorithm": "kmeans", "status": "Completed", "max_jobs": 8}
    objectives = [{"metric": "test:msd", "direction": "minimize"}]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({**head, "objectives": objectives, "trials": [trial]}))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "status.json").write_text('{"name": "ha')
    return tmp_path


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    with Server(str(runs)) as found:
        thread = threading.Thread(target=found.serve)
        thread.start()
        try:
            yield found
        finally:
            found.stop()
            thread.join()


def _get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if "json" in answer.headers["Content-Type"] else body
    finally:
        connection.close()


def _shown(server: Server, tmp_path: Path, hash: str = "") -> tuple[str, str]:
    """Return the page after its scripts have run, and what its console said."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    flags += ["--no-first-run", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr", "--v=0"]
    command = [BROWSER, *flags, "--virtual-time-budget=8000", "--dump-dom", f"{server.url}/{hash}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_jobs_and_sweeps(server: Server, runs: Path) -> None:
    code, found = _get(server, "/api/jobs")
    assert code == 200
    assert sorted(job["name"] for job in found["jobs"]) == ["half", "one", "sweep-0001", "two"]
    sweep = {name: found["sweeps"][0][name] for name in ("name", "status", "objective", "best", "trials", "max_jobs")}
    wanted = {"name": "sweep", "status": "Completed", "objective": "test:msd", "best": 0.25, "trials": 1, "max_jobs": 8}
    assert sweep == wanted


def test_one_job(server: Server, runs: Path) -> None:
    code, found = _get(server, f"/api/job?url={quote(str(runs / 'one'))}")
    assert code == 200
    figures = {figure["heading"]: figure["data"] for figure in found["figures"]}
    (curve,) = figures["Curves"]
    assert (curve["name"], curve["x"], curve["y"]) == ("train:msd", [1, 2, 3, 4, 5], [10, 5, 10 / 3, 2.5, 2])
    assert [figures["Where rank 0's steps spend their time"][0][key] for key in ("name", "y")] == ["compute", [0.1] * 5]
    assert [finding["rule"] for finding in found["findings"]] == ["overfit"]
    assert ["status", "Completed"] in found["summary"]
    code, log = _get(server, f"/api/log?url={quote(str(runs / 'one'))}&rank=0")
    assert (code, log["text"]) == (200, f"first line\n{HOSTILE}\n")


def test_the_end_of_a_long_log(server: Server, runs: Path) -> None:
    (runs / "one" / "logs" / "rank-0.log").write_text("begin\n" + "x" * 300_000 + "\nend\n")
    code, log = _get(server, f"/api/log?url={quote(str(runs / 'one'))}&rank=0")
    assert (code, log["cut"], len(log["text"])) == (200, True, 200_000)
    assert log["text"].endswith("\nend\n")


def test_a_broken_job_does_not_break_the_page(server: Server, runs: Path) -> None:
    code, found = _get(server, f"/api/job?url={quote(str(runs / 'half'))}")
    assert code in (200, 404)
    assert "figures" in found or "no job" in found["error"]


def test_only_what_is_listed_is_shown(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
    _job(elsewhere)
    for path in (str(elsewhere), "/etc/passwd", "../", ""):
        code, found = _get(server, f"/api/job?url={quote(path)}")
        assert code == 404
        assert "there is no job" in found["error"]
    assert _get(server, "/ui.html")[0] == 404
    assert _get(server, "/../setup.py")[0] == 404


def test_other_names_and_methods_are_refused(server: Server) -> None:
    assert _get(server, "/api/jobs", Host="evil.example")[0] == 403
    assert _get(server, "/api/jobs", "POST")[0] == 501
    assert _get(server, "/api/jobs", "DELETE")[0] == 501


def test_bad_arguments(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        Server(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="give another --port"):
        Server(str(tmp_path), port=int(server.url.rsplit(":", 1)[1]))


def test_the_list_in_a_browser(server: Server, tmp_path: Path) -> None:
    page, console = _shown(server, tmp_path)
    assert console == ""
    assert "4 of 4 jobs" in page
    assert len(re.findall(r'<tr class="link"', page)) == 4
    assert "test:msd" in page
    assert 'role="alert"></div>' in page


def test_a_job_in_a_browser(server: Server, runs: Path, tmp_path: Path) -> None:
    page, console = _shown(server, tmp_path, "#job=" + quote(str(runs / "two"), safe=""))
    assert console == ""
    assert "<h1>two</h1>" in page
    curves = page[page.index(">Curves<") : page.index(">Statuses<")]
    assert re.search(r'class="js-line"[^>]* d="M[^"]*L', curves)  # a line is drawn
    assert "it rises" in page
    assert "first line" in page
    assert "<img" not in page  # texts of a job stay texts
    assert "&lt;img src=x" in page


def test_a_job_that_is_gone_in_a_browser(server: Server, tmp_path: Path) -> None:
    page, _ = _shown(server, tmp_path, "#job=nowhere")
    assert "The job cannot be shown: there is no job nowhere" in page
