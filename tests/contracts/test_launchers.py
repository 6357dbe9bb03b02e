"""The local and the attaching launcher under the launcher suite, and what only the local one promises: orphans."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from phalanx.launch.local import LocalLauncher
from phalanx.launch.warm import close_servers
from phalanx.testing.attaching import RehearsedLauncher
from phalanx.testing.launcher_checks import LauncherChecks, run_to_end, spec, until


class TestForked(LauncherChecks):
    arguments: ClassVar[list[str]] = ["fork"]

    @pytest.fixture
    def launcher(self) -> LocalLauncher:
        return LocalLauncher("fork")

    def test_killing_the_server_ends_its_workers(self, launcher: LocalLauncher, tmp_path: Path) -> None:
        group = launcher.start(spec(tmp_path, "ignore_stop"))
        until(group, "ready", 2)
        workers = [psutil.Process(m.pid) for m in group.members]
        os.kill(workers[0].ppid(), signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=5)
        _, exits = run_to_end(group)
        assert not alive
        assert [e.code for e in exits] == [-9, -9]

    def test_a_killed_server_is_replaced(self, launcher: LocalLauncher, tmp_path: Path) -> None:
        events, _ = run_to_end(launcher.start(spec(tmp_path, "report", 1)))
        server = next(c for c in psutil.Process().children() if "forkserver" in " ".join(c.cmdline()))
        server.kill()
        server.wait(5)
        events, exits = run_to_end(launcher.start(spec(tmp_path, "report", 1)))
        assert events
        assert [e.code for e in exits] == [0]

    def test_a_server_that_lacks_a_module_is_replaced_by_one_that_has_all(
        self, launcher: LocalLauncher, tmp_path: Path
    ) -> None:
        run_to_end(launcher.start(spec(tmp_path, "report", 1)))
        run_to_end(launcher.start(spec(tmp_path, "report", 1, preload=("numpy", "wave"))))
        servers = [c for c in psutil.Process().children() if "forkserver" in " ".join(c.cmdline())]
        assert len([s for s in servers if s.status() != psutil.STATUS_ZOMBIE]) == 1
        close_servers()

    def test_a_kernel_is_compiled_in_a_worker(self, launcher: LocalLauncher, tmp_path: Path) -> None:
        events, exits = run_to_end(launcher.start(spec(tmp_path, "compile_kernel", 2, preload=("numba",))))
        close_servers()
        assert [e.code for e in exits] == [0, 0]
        assert [(e.body["total"], e.body["threads"]) for e in events] == [(499500, 1)] * 2

    @pytest.mark.slow
    def test_threads_of_torch_and_numba_are_limited(self, launcher: LocalLauncher, tmp_path: Path) -> None:
        names = ["numpy", "torch", "numba"]
        for threads in (1, 2):
            given = spec(tmp_path, "threads", 1, preload=names, payload=names, threads=threads)
            events, _ = run_to_end(launcher.start(given))
            found = events[0].body["threads"]
            assert {"torch", "numba"} < set(found)
            assert set(found.values()) == {threads}
        close_servers()


class TestSpawned(LauncherChecks):
    arguments: ClassVar[list[str]] = ["spawn"]
    groups_in_a_row: ClassVar[int] = 5  # fresh interpreters take their time

    @pytest.fixture
    def launcher(self) -> LocalLauncher:
        return LocalLauncher("spawn")


class TestAttached(LauncherChecks):
    """The attaching launcher, whose groups are started by the rehearsal: each rank but the first is a thread that joins."""

    groups_in_a_row: ClassVar[int] = 5

    @pytest.fixture
    def launcher(self) -> RehearsedLauncher:
        return RehearsedLauncher()
