"""How long `phalanx ui` and reports take with many jobs and long curves, in headless Chromium.

    python benchmarks/tracking_ui.py [--jobs 1000] [--points 1000000] [--rounds 5]

From asking for the page until its rows stand there, or its curves are drawn, as a browser sees it whose cache is empty. The
report is written before it is opened. Needs selenium, Chromium and its driver. The limits of the project: 1,000 jobs in under
1 s, a job of 10^6 points in under 2 s.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # a file here has the name of the xgboost library

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from common import machine, seconds, table, versions
from phalanx.tracking import load_job
from phalanx.tracking.page import page
from phalanx.tracking.record import JobRecord
from phalanx.tracking.server import Server

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LISTED = "return document.querySelectorAll('#jobs tbody tr').length === arguments[0]"
DRAWN = "return document.querySelectorAll('.js-line').length >= arguments[0]"


def written(root: Path, jobs: int, points: int) -> None:
    """Write jobs of three steps, and one of `points` points in four metrics."""
    for number in range(jobs - 1):
        record = JobRecord(str(folder := root / f"job-{number:05d}"), name=folder.name, algorithm="kmeans")
        record.write_job({"name": folder.name, "algorithm": "kmeans"})
        record.enter("Training")
        for step in range(1, 4):
            record.step(step, 100.0 + step, {"train:msd": 10.0 / step})
        record.end("Completed", "Completed")
        record.close()
    record = JobRecord(str(root / "long"), name="long", algorithm="train.py")
    record.write_job({"name": "long"})
    record.enter("Training")
    draw = random.Random(0)
    with (root / "long" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in range(1, points // 4 + 1):
            values = {f"train:loss_{n}": math.exp(-4 * n * step / points) + 0.1 * draw.random() for n in range(4)}
            file.write(json.dumps({"step": step, "time": 100 + 0.01 * step, **values}) + "\n")
    record.end("Completed", "Completed")
    record.close()


def shown(address: str, condition: str, count: int) -> float:
    """Return the seconds from asking a new browser for a page until a condition holds in it."""
    options = webdriver.ChromeOptions()
    options.page_load_strategy = "none"
    for flag in FLAGS:
        options.add_argument(flag)
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as browser:
        browser.get("about:blank")
        begun = time.perf_counter()
        browser.get(address)
        while not browser.execute_script(condition, count):  # type: ignore[no-untyped-call]
            if time.perf_counter() - begun > 60:
                raise SystemExit(f"{address} shows nothing after a minute")
        return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        written(root, options.jobs, options.points)
        report = root / "long" / "report.html"
        writing = seconds(lambda: report.write_text(page(load_job(str(report.parent))), encoding="utf-8"))
        with Server(str(root)) as server:
            thread = threading.Thread(target=server.serve)
            thread.start()
            try:
                one = f"{server.url}/#job={quote(str(root / 'long'), safe='')}"
                lists = [shown(server.url, LISTED, options.jobs) for _ in range(options.rounds)]
                long = [shown(one, DRAWN, 4) for _ in range(options.rounds)]
                reports = [shown(report.as_uri(), DRAWN, 4) for _ in range(options.rounds)]
            finally:
                server.stop()
                thread.join()
    rows = [
        (f"ui: {options.jobs:,} jobs listed", lists),
        (f"ui: a job of {options.points:,} points", long),
        (f"report of it (written in {writing:.2f} s)", reports),
    ]
    print(f"{machine()}; {versions('plotly', 'selenium')}\n")
    print(table(["page", "median s", "worst s"], [[name, statistics.median(found), max(found)] for name, found in rows]))


if __name__ == "__main__":
    main()
