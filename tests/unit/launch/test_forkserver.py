"""The warm server: its wire, its life, and what happens when things around it are killed."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from phalanx.errors import PlatformError, UserError
from phalanx.launch.asking import SpawnFds, receive_request, send_request
from phalanx.launch.local import LocalLauncher
from phalanx.launch.stopping import StopRequest
from phalanx.launch.supervise import Budget, supervise
from phalanx.launch.warm import acquire_server, close_servers
from phalanx.testing.launcher_checks import of_kind, run_to_end, spec, until, wait_until_gone


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for modules to preload."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def fresh() -> Iterator[None]:
    """No server before or after."""
    close_servers()
    yield
    close_servers()


def pipes(count: int) -> tuple[list[int], list[int]]:
    """Return the read ends and the write ends."""
    made = [os.pipe() for _ in range(count)]
    return [r for r, _ in made], [w for _, w in made]


def close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@pytest.mark.parametrize("store", [False, True])
def test_a_request_and_its_files_cross_the_socket(wire: tuple[socket.socket, socket.socket], size: int, store: bool) -> None:
    ours, theirs = wire
    request = {"rank": 3, "text": "ü" * size}
    readers, writers = pipes(4)
    fds = SpawnFds(writers[0], writers[1], writers[2], writers[3] if store else None)
    sending = threading.Thread(target=send_request, args=(ours, request, fds))
    sending.start()
    received = receive_request(theirs)
    sending.join()
    assert received is not None
    body, got = received
    assert body == request
    assert got is not None
    assert (got.store is not None) == store
    for fd, reader in zip(got.given(), readers, strict=False):
        assert not os.get_inheritable(fd)
        os.write(fd, b"x")
        assert os.read(reader, 1) == b"x"
    close(*readers, *writers, *got.given())


def test_the_end_of_the_wire(wire: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = wire
    ours.close()
    assert receive_request(theirs) is None


def test_a_request_that_breaks_off(wire: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = wire
    ours.sendall((1000).to_bytes(8, "little") + b"{")
    ours.close()
    with pytest.raises(EOFError):
        receive_request(theirs)


def test_a_request_whose_files_find_no_room_is_passed_over(wire: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = wire
    readers, writers = pipes(3)
    send_request(ours, {"rank": 0}, SpawnFds(writers[0], writers[1], writers[2], None))
    close(*writers)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/dev/fd"))
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # no free number below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 2, hard))
    try:
        received = receive_request(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close(*spare)
    assert received == ({"rank": 0}, None)
    assert [os.read(reader, 1) for reader in readers] == [b"", b"", b""]  # whoever asked learns it
    close(*readers)


_NO_FORK = """
import errno, json, os, socket, sys
from phalanx.launch.forkserver import ForkServer
def refuse():
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
os.fork = refuse
ForkServer(socket.socket(fileno=int(sys.argv[1])), fork=True, parent_fd=None).serve()
print("ended in order")
"""


def test_a_refused_fork_is_told(wire: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = wire
    readers, writers = pipes(3)
    send_request(ours, {"rank": 5}, SpawnFds(writers[0], writers[1], writers[2], None))
    close(*writers)
    ours.shutdown(socket.SHUT_WR)
    command = [sys.executable, "-c", _NO_FORK, str(theirs.fileno())]
    ran = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=True)
    assert ran.stdout == "ended in order\n"
    assert b"no process for rank 5: Resource temporarily unavailable" in os.read(readers[2], 4096)
    close(*readers)


@pytest.mark.usefixtures("fresh")
def test_signals_do_not_end_the_server(tmp_path: Path) -> None:
    server = acquire_server(("numpy",), fork=True)
    run_to_end(LocalLauncher("fork").start(spec(tmp_path, "report", 1, preload=("numpy",))))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(server.pid, number)
    _, exits = run_to_end(LocalLauncher("fork").start(spec(tmp_path, "report", 1, preload=("numpy",))))
    assert [e.code for e in exits] == [0]
    assert server.alive()
    server.release()


@pytest.mark.usefixtures("fresh")
def test_a_replaced_server_lives_until_its_last_group_has_ended(tmp_path: Path) -> None:
    launcher = LocalLauncher("fork")
    group = launcher.start(spec(tmp_path, "ignore_stop", 1, preload=()))
    until(group, "ready", 1)
    old = psutil.Process(psutil.Process(group.members[0].pid).ppid())
    _, exits = run_to_end(launcher.start(spec(tmp_path, "report", 1, preload=("wave",))))
    assert [e.code for e in exits] == [0]
    assert old.is_running()
    assert psutil.pid_exists(group.members[0].pid)
    group.close()
    assert not old.is_running()


@pytest.mark.usefixtures("fresh")
def test_a_module_that_kills_the_server_is_told_with_its_last_words(tmp_path: Path, modules: Path) -> None:
    (modules / "phalanx_deadly.py").write_text(
        "import os, sys\nsys.stderr.write('out of luck\\n')\nsys.stderr.flush()\nos._exit(3)\n"
    )
    with pytest.raises(PlatformError, match="warm server") as caught:
        LocalLauncher("fork").start(spec(tmp_path, "report", 1, preload=("phalanx_deadly",)))
    assert "out of luck" in caught.value.details


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("text", ["raise ValueError('not today')", "import sys; sys.exit(4)", "import no_such_module"])
def test_a_module_that_cannot_be_loaded_is_the_workers_to_tell(tmp_path: Path, modules: Path, text: str) -> None:
    (modules / "phalanx_broken.py").write_text(text)
    outcome = supervise(
        LocalLauncher("fork"),
        spec(tmp_path, "report", 1, preload=("phalanx_broken",)),
        budget=Budget(),
        stop=StopRequest(),
        max_runtime_s=None,
        grace_s=1.0,
        on_event=lambda event: None,
        on_group=lambda members, attempt: None,
    )
    assert outcome.error is None  # this target does not need it


@pytest.mark.usefixtures("fresh")
def test_what_a_module_prints_is_in_no_workers_log(tmp_path: Path, modules: Path) -> None:
    (modules / "phalanx_chatty.py").write_text("print('look at me')")
    run_to_end(LocalLauncher("fork").start(spec(tmp_path, "report", 1, preload=("phalanx_chatty",))))
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "hello from 0\n"


@pytest.mark.usefixtures("fresh")
def test_warm_up_runs_once_in_the_server(tmp_path: Path, modules: Path) -> None:
    (modules / "phalanx_warm.py").write_text(
        "import os\ndone = []\ndef warm_up(): done.append(os.getpid())\n"
        "def tell(context): context.send({'kind': 'warm', 'done': done, 'parent': os.getppid()})\n"
    )
    events, _ = run_to_end(
        LocalLauncher("fork").start(replace(spec(tmp_path, "", preload=("phalanx_warm",)), target="phalanx_warm:tell"))
    )
    assert len(events) == 2
    for event in events:
        assert event.body["done"] == [event.body["parent"]]


@pytest.mark.usefixtures("fresh")
def test_a_forked_copy_of_the_launchers_process_has_a_server_of_its_own(tmp_path: Path) -> None:
    launcher = LocalLauncher("fork")
    group = launcher.start(spec(tmp_path, "ignore_stop", 1, preload=()))
    until(group, "ready", 1)
    copy = os.fork()
    if copy == 0:
        try:
            _, exits = run_to_end(LocalLauncher("fork").start(spec(tmp_path / "copy", "report", 1, preload=())))
            close_servers()
            os._exit(10 + exits[0].code)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 10
    assert psutil.pid_exists(group.members[0].pid)
    group.stop(0)
    _, exits = run_to_end(group)
    assert [e.code for e in exits] == [-9]


def test_exactly_one_of_target_and_command(tmp_path: Path) -> None:
    for target, command in ((None, None), ("report", ["true"])):
        with pytest.raises(UserError, match="a target or a command"):
            LocalLauncher("fork").start(spec(tmp_path, target, command=command))


_SLOW = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from phalanx.launch.local import LocalLauncher
LocalLauncher("fork").prepare(["phalanx_slow"])
sys.stdin.read()
"""


def test_a_server_that_is_still_loading_ends_with_its_parent(tmp_path: Path, modules: Path) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    (modules / "phalanx_slow.py").write_text(
        f"import os, time\nwith open({str(told)!r}, 'w') as f: f.write(str(os.getpid()))\nwhile True: time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", _SLOW, str(modules)], stdin=subprocess.PIPE) as parent:
        server = int(told.read_text())
        parent.kill()
    wait_until_gone([server])


_COPIED = """
import os, subprocess, sys, pathlib
from phalanx.launch.local import LocalLauncher
from phalanx.testing.launcher_checks import spec, until
group = LocalLauncher("fork").start(spec(pathlib.Path(sys.argv[1]), "ignore_stop", 1, preload=()))
until(group, "ready", 1)
for fd in os.listdir("/dev/fd"):
    try:
        os.set_inheritable(int(fd), True)
    except OSError:
        continue
keeper = subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=True)
print(keeper.pid, group.members[0].pid, os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux's")
def test_a_copied_socket_does_not_keep_a_server_alive(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _COPIED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        keeper, worker, _ = map(int, parent.stdout.readline().split())
        server = psutil.Process(worker).ppid()
        parent.kill()
        wait_until_gone([worker, server])
        os.kill(keeper, signal.SIGKILL)
        wait_until_gone([keeper])


_WATCHED = """
import os, subprocess, sys
script = '''
import os, signal
from phalanx.launch.child import end_with_parent
end_with_parent(os.getppid())
print(os.getpid(), flush=True)
signal.pause()
'''
subprocess.Popen([sys.executable, "-c", script], start_new_session=True).wait()
"""


def test_a_worker_can_see_by_itself_that_its_parent_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", _WATCHED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        wait_until_gone([worker])


@pytest.mark.usefixtures("fresh")
def test_servers_give_everything_back(tmp_path: Path) -> None:
    me = psutil.Process()
    before = (me.num_fds(), me.num_threads(), {c.pid for c in me.children()})
    for _ in range(3):
        events, _ = run_to_end(LocalLauncher("fork").start(spec(tmp_path, "report", 1, preload=())))
        assert of_kind(events, "hello")
        close_servers()
    assert (me.num_fds(), me.num_threads(), {c.pid for c in me.children()}) == before
