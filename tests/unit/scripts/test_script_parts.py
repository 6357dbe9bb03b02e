"""The parts of a script's job that need no workers: arguments, variables, source, failures, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx.data.channel import Channel
from phalanx.environment import masked_hyperparameters
from phalanx.errors import AlgorithmError, PlatformError, UserError
from phalanx.scripts import artifact, channels, failure, source
from phalanx.scripts.metrics import Scraper, definitions
from phalanx.scripts.plan import Folders, Plan
from phalanx.scripts.variables import decoded, host_names, to_arguments, variables


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "job": "job",
        "script": "train.py",
        "arguments": ["--last"],
        "hyperparameters": {},
        "channels": {},
        "workers": 2,
        "threads": 3,
        "seed": 0,
        "strategy": None,
        "variables": [],
        "requirements": None,
        "checkpoints": "kept",
        **changes,
    }
    return Plan(**fields)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("3", "3"),
        ("1.10", "1.10"),
        ("1e-5", "1e-5"),
        (1e-5, "1e-05"),
        (True, "True"),
        ("true", "True"),
        (None, ""),
        ("null", ""),
        ("text", "text"),
        ('"quoted"', "quoted"),
        ("a b", "a b"),
        ([1, 2], "[1, 2]"),
        ("[1,2]", "[1, 2]"),
        ({"b": 1, "a": "x"}, "a=x,b=1"),
        ("", ""),
    ],
)
def test_a_hyperparameter_as_an_argument(value: Any, text: str) -> None:
    assert to_arguments({"name": value}) == ["--name", text]


def test_arguments_are_sorted_and_short_names_have_one_dash() -> None:
    assert to_arguments({"lr": 1, "b": 2, "a": 3}) == ["-a", "3", "-b", "2", "--lr", "1"]


@given(st.dictionaries(st.text("abc-_", min_size=1), st.one_of(st.integers(), st.booleans(), st.text(), st.none())))
def test_arguments_are_always_pairs_of_text(values: dict[str, Any]) -> None:
    line = to_arguments(values)
    assert len(line) == 2 * len(values)
    assert all(isinstance(part, str) for part in line)


@given(st.recursive(st.one_of(st.integers(), st.booleans(), st.none()), lambda x: st.lists(x)))
def test_values_survive_their_json(value: Any) -> None:
    assert decoded(json.dumps(value)) == value


def test_variables_of_a_rank(tmp_path: Path) -> None:
    asked = plan(
        hyperparameters={"batch-size": "32"},
        channels={"all": Channel(url="x"), "my-part": Channel(url="x", spread="shard"), "far": Channel(url="x", mode="stream")},
    )
    found = variables(asked, Folders(tmp_path, 1), 1, {"batch-size": 32}, 0)
    assert found["SM_CHANNEL_ALL"] == str(tmp_path / "input" / "data" / "all")
    assert found["SM_CHANNEL_MY-PART"] == found["SM_CHANNEL_MY_PART"] == str(tmp_path / "input" / "shard-1" / "my-part")
    assert "SM_CHANNEL_FAR" not in found
    assert json.loads(found["SM_CHANNELS"]) == ["all", "my-part"]
    assert found["SM_HP_BATCH-SIZE"] == found["SM_HP_BATCH_SIZE"] == "32"
    assert found["SM_MODEL_DIR"] == str(tmp_path / "attempt-1" / "model")
    assert json.loads(found["SM_USER_ARGS"]) == ["--batch-size", "32", "--last"]
    training = json.loads(found["SM_TRAINING_ENV"])
    assert training["current_host"] == training["hosts"][1]
    assert training["master_hostname"] == training["hosts"][0] == "127.0.0.1"
    assert not training["is_master"]


def test_credentials_among_hyperparameters_are_masked() -> None:
    shown = masked_hyperparameters({"hf-token": "hf_abcdef", "max_tokens": "1000000", "pad_token": "[P]", "password": 3})
    assert shown == {"hf-token": "***", "max_tokens": "1000000", "pad_token": "[P]", "password": 3}


def test_hosts_differ() -> None:
    names = host_names(600)
    assert len(set(names)) == 600
    assert all(0 <= int(part) <= 255 for name in names for part in name.split("."))


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    asked = plan(channels={"train": Channel(url=["a", "b"], spread="shard")}, hyperparameters={"x": [1]})
    asked.write(tmp_path / "plan.json")
    again = Plan.read(tmp_path / "plan.json")
    assert again.channels["train"].urls == ["a", "b"]
    assert again.hyperparameters == {"x": [1]}
    assert (tmp_path / "plan.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("url", "file", "name"),
    [
        ("s3://b/data", "s3://b/data/x/a.csv", "x/a.csv"),
        ("s3://b/data/", "s3://b/data/a.csv", "a.csv"),
        ("s3://b/data/a.csv", "s3://b/data/a.csv", "a.csv"),
        ("s3://b/data/*.csv", "s3://b/data/a.csv", "a.csv"),
        ("memory://data", "memory:///data/a.csv", "a.csv"),
        ("https://h/a.csv?sig=1", "https://h/a.csv?sig=1", "a.csv"),
    ],
)
def test_names_in_a_channels_folder(url: str, file: str, name: str) -> None:
    assert channels.relative_name(url, file) == name


def test_a_channel_keeps_its_tree_and_its_files_of_one_name(tmp_path: Path) -> None:
    for name in ("one/a.csv", "one/deep/b.csv", "two/a.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    folders = Folders(tmp_path / "scratch", 0)
    both = Channel(url=[str(tmp_path / "one"), str(tmp_path / "two")], spread="shard")
    channels.lay_out(plan(channels={"train": both}), folders)
    folder = folders.channel("train")
    assert (folder / "a.csv").read_text() == "one/a.csv"
    assert (folder / "deep" / "b.csv").read_text() == "one/deep/b.csv"
    assert (folder / "1-a.csv").read_text() == "two/a.csv"
    parts = [[p.name for p in folders.shard("train", rank).rglob("*") if p.is_file()] for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == ["1-a.csv", "a.csv", "b.csv"]


def test_a_source_folder_is_copied_as_far_as_it_is_code(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    texts = {
        "train.py": "x = 1\n",
        "config.json": "{}",
        "package/__init__.py": "",
        "package/deep/part.py": "",
        "images/1.txt": "no code",
        ".git/HEAD": "",
        "__pycache__/train.pyc": "",
        "venv/pyvenv.cfg": "",
        "runs/job/job.py": "",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "large.bin").write_bytes(b"0" * (source.MAX_COPIED + 1))
    found = source.find(str(folder / "train.py"), None)
    names = source.copy(found, tmp_path / "code", leave_out=folder / "runs")
    assert sorted(names) == ["config.json", "package/__init__.py", "package/deep/part.py", "train.py"]
    assert sorted(p.name for p in (tmp_path / "code").iterdir()) == [
        "config.json",
        "images",
        "large.bin",
        "package",
        "train.py",
    ]
    assert (tmp_path / "code" / "images").is_symlink()
    assert (tmp_path / "code" / "images" / "1.txt").read_text() == "no code"


def test_a_script_below_its_source_folder(tmp_path: Path) -> None:
    (tmp_path / "src" / "jobs").mkdir(parents=True)
    (tmp_path / "src" / "jobs" / "train.py").write_text("")
    (tmp_path / "src" / "requirements.txt").write_text("")
    assert source.find("jobs/train.py", str(tmp_path / "src")).script == "jobs/train.py"
    assert source.find(str(tmp_path / "src" / "jobs" / "train.py"), str(tmp_path / "src")).requirements == "requirements.txt"
    (tmp_path / "other.py").write_text("")
    with pytest.raises(UserError, match="does not lie in the source folder"):
        source.find(str(tmp_path / "other.py"), str(tmp_path / "src"))


def test_too_much_to_be_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILES", 2)
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_text("")
    with pytest.raises(UserError, match=r"more than 2 files.*--source-dir"):
        source.copy(source.find(str(tmp_path / "source" / "a.py"), None), tmp_path / "code", leave_out=None)


def test_sealing_keeps_code_that_the_script_put_there(tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "train.py").write_text("its own")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("copied")
    (tmp_path / "code" / "helper.py").write_text("copied")
    artifact.seal(tmp_path / "model", tmp_path / "code", ["train.py", "helper.py"], card="card.json", head={"format": 1})
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert sorted(card["files"]) == ["code/helper.py", "code/train.py"]
    assert (tmp_path / "model" / "code" / "train.py").read_text() == "its own"


TRACE = """some output
Traceback (most recent call last):
  File "train.py", line 3, in f
    int("x")
ValueError: invalid literal

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 9, in <module>
    f()
package.errors.TrainingError: cannot go on
because of the data
"""


def test_the_last_traceback_with_what_it_came_from() -> None:
    found = failure.last_traceback(TRACE + "\nsomething printed at exit\n")
    assert found is not None
    assert found.startswith("Traceback")
    assert "ValueError: invalid literal" in found
    assert found.endswith("cannot go on\nbecause of the data")
    assert failure.last_traceback("no trace") is None


@pytest.mark.parametrize(
    ("code", "log", "kind", "text"),
    [
        (1, TRACE, AlgorithmError, "package.errors.TrainingError: cannot go on (worker 1)"),
        (1, "".join(f"[rank1]: {line}\n" for line in TRACE.splitlines()), AlgorithmError, "cannot go on (worker 1)"),
        (5, "one\ntwo\n", AlgorithmError, "exit code 5: two"),
        (137, "", AlgorithmError, "perhaps the machine ran out of memory"),
        (2, "usage: train.py\ntrain.py: error: the following arguments are required: --lr\n", UserError, "are required: --lr"),
        (2, "error: it is no argparse\n", AlgorithmError, "exit code 2: error: it is no argparse"),
        (1, "Traceback (most recent call last):\n  x\nKeyError: 'SM_CHANNEL_TRAIN'\n", UserError, "--channel train=URL"),
        (
            1,
            "Traceback (most recent call last):\n  x\nRuntimeError: [gloo/pair.cc:547] Connection closed by peer [127.0.0.1]\n",
            PlatformError,
            "lost contact",
        ),
        (
            1,
            "Traceback (most recent call last):\n  x\nConnectionError: Connection refused by my database\n",
            AlgorithmError,
            "Connection refused by my database",
        ),
        (1, "Traceback (most recent call last):\n  x\nValueError: Broken pipe in the data\n", AlgorithmError, "Broken pipe"),
    ],
)
def test_what_an_exit_means(code: int, log: str, kind: type[Exception], text: str) -> None:
    error = failure.of_exit(1, code, log, channels=["test"])
    assert type(error) is kind
    assert text in error.message


def test_what_the_script_wrote_comes_first(tmp_path: Path) -> None:
    (tmp_path / "failure").write_text("x" * 5000)
    error = failure.of_exit(0, 1, TRACE, channels=[], written=tmp_path / "failure")
    assert error.message.endswith("x" * 100)
    assert len(error.message) < 1100


def scraped(lines: list[tuple[int, str]], *, reported: tuple[str, ...] = ()) -> list[tuple[str, int, float | None]]:
    kept: list[tuple[str, int, float | None]] = []
    wanted = definitions([{"name": "loss", "regex": r"loss=(\S+)"}, {"name": "acc", "regex": r"acc: ([0-9.]+)%"}])
    scraper = Scraper(wanted, lambda name, step, when, value: kept.append((name, step, value)))
    for rank, line in lines:
        scraper.line(rank, line)
    scraper.reported(list(reported))
    scraper.flush()
    return kept


def test_printed_metrics_count_by_themselves() -> None:
    lines = [(0, "loss=0.5 acc: 10%"), (1, "loss=9"), (0, "loss=0.25 loss=1e-3"), (0, "loss=nan"), (0, "loss=bad")]
    assert scraped(lines) == [("loss", 1, 0.5), ("acc", 1, 10.0), ("loss", 2, 0.25), ("loss", 3, 0.001), ("loss", 4, None)]


def test_a_metric_that_is_reported_is_not_taken_from_the_log() -> None:
    assert scraped([(0, "loss=0.5 acc: 10%")], reported=("loss",)) == [("acc", 1, 10.0)]
