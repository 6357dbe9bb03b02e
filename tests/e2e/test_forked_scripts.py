"""Scripts that start again: in a process that is like a fresh one but for the time it takes, or else in a fresh one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import phalanx
from phalanx.errors import AlgorithmError
from phalanx.scripts.forked import may_fork
from phalanx.scripts.watching import WatchingLauncher

SCRIPT = """
import atexit, json, os, random, signal, sys, threading
from pathlib import Path
import numpy
import phalanx

session = phalanx.session()
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


class Mine:
    pass


facts = {
    "argv": sys.argv,
    "name": __name__,
    "file": __file__,
    "class": Mine.__module__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "path": sys.path,
    "folder": os.getcwd(),
    "given": os.environ.get("GIVEN"),
    "threads": os.environ["OMP_NUM_THREADS"],
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "terminate": callable(signal.getsignal(signal.SIGTERM)),
    "fresh": "train.py" in sys.orig_argv,
    "drawn": [random.random(), numpy.random.random()],
}
Path(os.environ["FACTS"], f"{attempt}.json").write_text(json.dumps(facts))


def leave(name):
    Path(os.environ["FACTS"], f"{name}-{attempt}").touch()


atexit.register(leave, "exit")
release = threading.Event()
threading.Thread(target=lambda: (release.wait(), leave("thread"))).start()
atexit.register(lambda: leave("order") if Path(os.environ["FACTS"], f"thread-{attempt}").exists() else None)
step = session.restore({})
session.report(step + 1, {"loss": 1.0})
if attempt == 0:
    session.report(step + 2, {"loss": 1.0})
    os.kill(os.getpid(), signal.SIGKILL)
release.set()
END
"""

OWN_SECRETS = """
import os, random

MINE = True
randbits = random.SystemRandom().getrandbits


def token_hex(size=32):
    return os.urandom(size).hex()
"""


def run(folder: Path, end: str = "", *, variables: dict[str, str] | None = None, restarts: int = 1) -> list[dict[str, Any]]:
    code, facts = folder / "code", folder / "facts"
    code.mkdir(exist_ok=True)
    facts.mkdir(exist_ok=True)
    (code / "train.py").write_text(SCRIPT.replace("END", end))
    phalanx.TrainingJob(
        script="train.py",
        source_dir=str(code),
        arguments=["--lr", "0.1"],
        environment={"FACTS": str(facts), "GIVEN": "yes", **(variables or {})},
        output=str(folder / "runs"),
        name="job",
        max_restarts=restarts,
    ).run(progress=False)
    return [json.loads((facts / f"{attempt}.json").read_text()) for attempt in (0, 1)]


def test_a_forked_attempt_finds_what_a_fresh_one_finds(tmp_path: Path) -> None:
    first, second = run(tmp_path)
    assert first.pop("fresh")
    assert not second.pop("fresh")
    assert first.pop("drawn") != second.pop("drawn")
    assert second == first
    assert first["argv"] == ["train.py", "--lr", "0.1"]
    assert first["interrupt"]
    assert sorted(path.name for path in (tmp_path / "facts").glob("*-1")) == ["exit-1", "order-1", "thread-1"]


def test_a_module_that_has_the_name_of_a_loaded_one_needs_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "secrets.py").write_text(OWN_SECRETS)
    _, second = run(tmp_path, "import secrets\nassert secrets.MINE")
    assert second["fresh"]


def test_variables_that_are_read_at_the_start_need_a_fresh_process(tmp_path: Path) -> None:
    _, second = run(tmp_path, variables={"PYTHONHASHSEED": "1"})
    assert second["fresh"]


@pytest.mark.parametrize(
    ("variables", "requirements", "expected"),
    [([], None, True), (["MY_PATH"], None, True), ([], "requirements.txt", False), (["OMP_PROC_BIND"], None, False)],
)
def test_who_may_be_forked(variables: list[str], requirements: str | None, expected: bool) -> None:
    assert may_fork(variables, requirements) is expected


def test_an_error_of_a_forked_attempt_reads_as_any_other(tmp_path: Path) -> None:
    with pytest.raises(AlgorithmError, match=r"^ValueError: no such thing \(worker 0\)$") as caught:
        run(tmp_path, "raise ValueError('no such thing')")
    assert "train.py" in caught.value.details
    assert "forked.py" not in caught.value.details


def test_an_exit_code_of_a_forked_attempt_counts(tmp_path: Path) -> None:
    with pytest.raises(AlgorithmError, match="worker 0 ended with exit code 7"):
        run(tmp_path, "sys.exit(7)")


def test_only_a_job_that_may_start_again_prepares_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[Sequence[str]] = []
    monkeypatch.setattr(WatchingLauncher, "expect_restarts", lambda self, loaded: expected.append(loaded))
    with pytest.raises(phalanx.PhalanxError, match="SIGKILL"):
        run(tmp_path, restarts=0)
    assert not (tmp_path / "facts" / "1.json").exists()
    assert not expected
    (tmp_path / "again").mkdir()
    run(tmp_path / "again")
    assert "numpy" in expected[0]
