"""The police: a test that leaves an environment variable, a thread or a process behind fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

from phalanx.launch.lasting import IDLE_NAME

settings.register_profile("phalanx", deadline=None)  # a busy machine is no failure: nothing here asserts a time
settings.load_profile("phalanx")

_SERVER = "phalanx.launch.forkserver"  # the warm server outlives a job on purpose; its workers must not, but for idle ones


def _threads() -> set[threading.Thread]:
    """Return what runs; threads that a library started without Python, and which once called it, are the library's."""
    return {t for t in threading.enumerate() if t.is_alive() and not isinstance(t, threading._DummyThread)}


def _is_server(process: psutil.Process) -> bool:
    try:
        return any(_SERVER in part for part in process.cmdline())
    except psutil.Error:
        return False


_SET_BY_LIBRARIES = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}


def _children() -> set[psutil.Process]:
    """Descendants of this process but for warm servers themselves (a forked worker has its server's command line)."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            is_server = _is_server(child) and child.ppid() == os.getpid()
            if not is_server and child.name() != IDLE_NAME and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child)
        except psutil.Error:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Compare environment, threads and processes before and after every test."""
    environment, threads, children = dict(os.environ), _threads(), _children()
    yield
    left = _threads() - threads
    for thread in left:
        thread.join(5)  # a thread that is about to end may do so
    assert not {t.name for t in left if t.is_alive() and not t.name.startswith(("asyncio", "fsspec"))}, "threads left behind"
    gone, alive = psutil.wait_procs(list(_children() - children), timeout=5)
    assert not alive, f"processes left behind: {alive} (ended late: {gone})"
    changed = {k for k in {*environment, *os.environ} - _SET_BY_LIBRARIES if environment.get(k) != os.environ.get(k)}
    assert not changed, f"environment variables left changed: {changed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many cases the fault matrix ran, over all processes of the test run."""
    reports = [report for kind in ("", "error") for report in terminalreporter.getreports(kind)]  # "": of setup and teardown
    properties = [found for report in reports if report.when == "teardown" for found in report.user_properties]
    cases = [int(str(value)) for name, value in properties if name == "fault_cases"]
    if cases:
        terminalreporter.write_line(f"fault matrix: {sum(cases)} cases in {len(cases)} tests")
