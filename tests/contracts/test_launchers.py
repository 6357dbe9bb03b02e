"""The local launcher under the launcher suite, and what only it promises: orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from phalanx.launch.local import LocalLauncher
from phalanx.launch.warm import close_servers
from phalanx.testing.launcher_checks import LauncherChecks, run_to_end, spec, until


class TestForked(LauncherChecks):
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


class TestSpawned(LauncherChecks):
    @pytest.fixture
    def launcher(self) -> LocalLauncher:
        return LocalLauncher("spawn")


_PARENT = """
import sys, pathlib
from phalanx.launch.local import LocalLauncher
from phalanx.testing.launcher_checks import spec, until
group = LocalLauncher().start(spec(pathlib.Path(sys.argv[1]), "ignore_stop"))
until(group, "ready", 2)
print(*[m.pid for m in group.members], flush=True)
import signal; signal.pause()
"""


def test_killing_the_parent_ends_everything(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        family = psutil.Process(parent.pid).children(recursive=True)
        assert {w.pid for w in workers} < {p.pid for p in family}
        parent.kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
