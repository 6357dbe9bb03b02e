"""Users' own scripts as jobs: their environment, what they leave, what they print, how they fail."""

from __future__ import annotations

import importlib.util
import json
import tarfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest

import phalanx

SCRIPTS = Path(__file__).parent.parent / "scripts"


def script(folder: Path, text: str, name: str = "train.py") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(text))
    return str(folder / name)


def job(path: str, output: Path, **changes: Any) -> phalanx.TrainingJob:
    return phalanx.TrainingJob(**{"script": path, "output": str(output / "runs"), "name": "job", **changes})


def run(path: str, output: Path, **changes: Any) -> phalanx.JobResult:
    return job(path, output, **changes).run(progress=False)


def metrics_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "runs" / "job" / "metrics.jsonl").read_text().splitlines()]


def logs(output: Path, rank: int = 0) -> str:
    return (output / "runs" / "job" / "logs" / f"rank-{rank}.log").read_text()


@final
class AtLine:
    """A progress that calls `action` once, at the first line that holds `text`."""

    def __init__(self, text: str, action: Callable[[], None]) -> None:
        self._text = text
        self._action = action
        self._done = False

    def started(self, name: str, headline: str) -> None: ...
    def status(self, secondary: str, message: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None: ...
    def ended(self) -> None: ...
    def log(self, rank: int, line: str) -> None:
        if self._text in line and not self._done:
            self._done = True
            self._action()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two files of a label and four features."""
    rows = np.random.default_rng(0).normal(size=(40, 4))
    table = np.column_stack([(rows.sum(axis=1) > 0).astype(float), rows])
    folder = tmp_path / "data"
    folder.mkdir()
    np.savetxt(folder / "a.csv", table[:20], delimiter=",")
    np.savetxt(folder / "b.csv", table[20:], delimiter=",")
    return folder


@pytest.mark.slow
def test_an_unmodified_torch_script_trains_on_two_workers_and_answers(tmp_path: Path, data: Path) -> None:
    result = run(
        str(SCRIPTS / "ddp_sagemaker.py"),
        tmp_path,
        workers=2,
        inputs={"training": str(data)},
        hyperparameters={"epochs": "5", "hidden-width": 16, "lr": 0.1},
        metric_definitions=[{"Name": "train:loss", "Regex": r"Loss: ([0-9.]+)"}],
    )
    assert result.status == "Completed"
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["train:loss"] < lines[0]["train:loss"]
    assert (tmp_path / "runs" / "job" / "output" / "history.txt").read_text() == "done"
    with tarfile.open(str(result.artifact)) as tar:
        names = tar.getnames()
    assert {"model.pth", "width.json", "phalanx.json", "code/ddp_sagemaker.py"} <= set(names)
    with phalanx.load(str(result.artifact)) as model:
        features = np.loadtxt(data / "a.csv", delimiter=",", dtype=np.float32)[:, 1:]
        answer = model.predict(features)["prediction"]
        requests = tmp_path / "requests.csv"
        np.savetxt(requests, features, delimiter=",")
        from phalanx.model import predict_file

        predict_file(model, str(requests), str(tmp_path / "answers.json"), content_type=None, accept="application/json")
    assert answer.shape == (20, 1)
    np.testing.assert_allclose(json.loads((tmp_path / "answers.json").read_text()), answer, rtol=1e-5)


def test_an_unmodified_scikit_learn_script(tmp_path: Path, data: Path) -> None:
    result = run(
        str(SCRIPTS / "forest_sagemaker.py"),
        tmp_path,
        inputs={"train": str(data)},
        hyperparameters={"max_leaf_nodes": 30},
        metric_definitions=[{"name": "train:accuracy", "regex": "train:accuracy=(.*?);"}],
    )
    assert result.metrics == {"train:accuracy": 1.0}
    rows = np.loadtxt(data / "a.csv", delimiter=",", dtype=np.float32)
    with phalanx.load(str(result.artifact)) as model:
        np.testing.assert_array_equal(model.predict(rows[:, 1:])["prediction"], rows[:, 0])


@pytest.mark.slow
def test_an_unmodified_xgboost_script_answers_with_its_own_functions(tmp_path: Path, data: Path) -> None:
    if importlib.util.find_spec("xgboost") is None:  # loading it here would leave variables behind
        pytest.skip("xgboost is not installed")
    result = run(
        str(SCRIPTS / "boost_sagemaker.py"),
        tmp_path,
        inputs={"train": str(data), "validation": str(data / "b.csv")},
        hyperparameters={"max_depth": "3", "eta": "0.3", "objective": "binary:logistic", "num_round": "4"},
        metric_definitions=[{"name": "validation:logloss", "regex": r"validation-logloss:(\S+)"}],
    )
    assert len(metrics_of(tmp_path)) == 4
    from phalanx.model import predict_file

    np.savetxt(tmp_path / "requests.csv", np.loadtxt(data / "a.csv", delimiter=",")[:, 1:], delimiter=",")
    with phalanx.load(str(result.artifact)) as model:
        predict_file(model, str(tmp_path / "requests.csv"), str(tmp_path / "out"), content_type=None, accept="application/json")
        with pytest.raises(phalanx.AlgorithmError, match=r"Content type image/png is not supported"):
            predict_file(model, str(tmp_path / "out"), str(tmp_path / "x"), content_type="image/png", accept="application/json")
    answers = json.loads((tmp_path / "out").read_text())
    assert len(answers) == 20
    assert all(0 < answer < 1 for answer in answers)


def test_what_a_script_finds(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths are the caller's
    source = tmp_path / "source"
    script(source / "parts", "NUMBER = 42\n", "__init__.py")
    script(source, "x = 1\n", "json.py")  # beside the script it wins over the standard library's: but not before it runs
    path = script(
        source,
        """
        import os, sys
        import parts
        given = ["--flag", "True", "--layers", "[1, 2]", "-n", "1.10", "--opts", "a=1,b=x", "--lr", "0.1", "it's"]
        assert sys.argv[1:] == given, sys.argv
        assert parts.NUMBER == 42
        hps = os.environ["SM_HPS"]
        assert hps == '{"flag":true,"layers":[1,2],"n":1.1,"opts":{"a":1,"b":"x"}}', hps
        assert os.environ["SM_HP_FLAG"] == "true"
        rank = os.environ["RANK"]
        assert os.environ["WORLD_SIZE"] == "2"
        assert sorted(os.listdir(os.environ["SM_CHANNEL_ALL"])) == ["a.csv", "b.csv"]
        assert os.listdir(os.environ["SM_CHANNEL_PART"]) == (["a.csv"] if rank == "0" else ["b.csv"])
        assert os.environ["SM_CHANNELS"] == '["all","part"]'
        assert os.environ["SM_CURRENT_HOST"] == eval(os.environ["SM_HOSTS"])[int(rank)]
        assert os.environ["MINE"] == "yes" and os.environ["SM_LOG_LEVEL"] == "10"
        assert os.getcwd() == os.environ["SM_MODULE_DIR"]
        assert os.path.exists(os.path.join(os.environ["SM_INPUT_CONFIG_DIR"], "hyperparameters.json"))
        for name in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR", "SM_OUTPUT_DIR", "SM_INPUT_DIR", "SM_OUTPUT_INTERMEDIATE_DIR"):
            assert os.path.isdir(os.environ[name]), name
        open("left-here", "w").close()
        """,
    )
    before = sorted(p.name for p in source.rglob("*"))
    result = run(
        path,
        tmp_path,
        workers=2,
        inputs={"all": "data", "part": phalanx.Channel(url=str(data), spread="shard")},
        hyperparameters={"flag": True, "layers": [1, 2], "n": "1.10", "opts": {"b": "x", "a": 1}},
        arguments=["--lr", "0.1", "it's"],
        environment={"MINE": "yes", "SM_LOG_LEVEL": "10"},
    )
    assert result.artifact is None  # it saved no model
    assert sorted(p.name for p in source.rglob("*")) == before
    described = json.loads((tmp_path / "runs" / "job" / "job.json").read_text())
    assert described["arguments"] == ["--lr", "0.1", "it's"]
    assert described["hyperparameters"]["n"] == "1.10"


@pytest.mark.parametrize(
    ("text", "kind", "pattern"),
    [
        (
            "import nothing_of_that_name\n",
            phalanx.AlgorithmError,
            "ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("import sys\nprint('last words')\nsys.exit(3)\n", phalanx.AlgorithmError, "exit code 3: last words"),
        ("import sys\nsys.exit('told so')\n", phalanx.AlgorithmError, "exit code 1: told so"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', type=float)\np.parse_args(['--lr', 'x'])\n",
            phalanx.UserError,
            "does not take its arguments: train.py: error: argument --lr: invalid float value: 'x'",
        ),
        (
            "import os\nos.environ['SM_CHANNEL_TRAINING']\n",
            phalanx.UserError,
            "wants a channel 'training'.*give it as --channel training=URL",
        ),
        ("def f():\n    raise ValueError('two\\nlines')\nf()\n", phalanx.AlgorithmError, "ValueError: two"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", phalanx.PlatformError, "killed by SIGKILL"),
        (
            "import os\nopen(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('my own reason')\nos._exit(4)\n",
            phalanx.AlgorithmError,
            "exit code 4: my own reason",
        ),
    ],
    ids=["module", "exit code", "exit text", "argparse", "channel", "raises", "killed", "failure file"],
)
def test_a_script_that_fails_says_why(tmp_path: Path, text: str, kind: type[phalanx.PhalanxError], pattern: str) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        run(script(tmp_path / "source", text), tmp_path)
    folder = tmp_path / "runs" / "job"
    assert caught.value.result.status == "Failed"
    assert (folder / "failure").read_text().startswith(f"{kind.kind}: ")
    assert not (folder / "model.tar.gz").exists()
    if "raise ValueError" in text:
        assert "in f\n    raise ValueError" in (folder / "failure").read_text()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"script": "nowhere.py"}, "no script at nowhere.py"),
        ({"script": "train.sh"}, "must be the path of a Python file"),
        ({"algorithm": "kmeans"}, "both were given: kmeans and"),
        ({"script": None}, "an algorithm or a script; neither was given"),
        ({"strategy": "zero4"}, "no strategy 'zero4'; did you mean"),
        ({"metric_definitions": [{"name": "a", "regex": "("}]}, "the regex of the metric 'a' is wrong"),
        ({"metric_definitions": [{"name": "a", "regex": "a=[0-9]"}]}, "needs a group in brackets"),
        ({"metric_definitions": [{"nam": "a", "regex": "a=([0-9])"}]}, "no field 'nam'; did you mean 'name'"),
        ({"arguments": "--lr 0.1"}, "must be a list of texts"),
        ({"hyperparameters": {"x": object()}}, "must be a JSON value"),
        ({"source_dir": "nowhere"}, "source_dir=nowhere is not a folder"),
        ({"inputs": {"train": "nowhere.csv"}}, "no file at nowhere.csv"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_request_starts_nothing(tmp_path: Path, changes: dict[str, Any], pattern: str) -> None:
    path = script(tmp_path / "source", "pass\n")
    with pytest.raises(phalanx.UserError, match=pattern):
        run(path, tmp_path, **changes)
    assert not (tmp_path / "runs").exists()


def test_a_syntax_error_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(phalanx.UserError, match=r"train.py line 2 is no Python: .*: if True"):
        run(script(tmp_path / "source", "x = 1\nif True\n"), tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_one_rank_that_raises_is_the_cause_not_those_that_lose_it(tmp_path: Path) -> None:
    path = script(
        tmp_path / "source",
        """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            raise ValueError("bad row on rank 1")
        dist.all_reduce(torch.ones(1))
        """,
    )
    with pytest.raises(phalanx.AlgorithmError, match=r"ValueError: bad row on rank 1 \(worker 1\)"):
        run(path, tmp_path, workers=2)


def test_a_session_has_what_the_job_has(tmp_path: Path, data: Path) -> None:
    path = script(
        tmp_path / "source",
        """
        import phalanx
        s = phalanx.session()
        assert s.world.size == 2 and s.seed == 7 and s.strategy == "ddp" and s.hyperparameters == {"epochs": 2}
        train = s.channels["train"]
        assert train.rows == 40 and set(s.channels) == {"train", "test"} and "other" not in s.channels
        for step, batch in enumerate(train.batches(10), 1):
            assert len(batch) <= 10
            print(f"loss={step}")
            s.report(step, {"loss": float(step)})
        assert len(next(iter(s.channels["test"].batches(10)))) == 10
        assert s.channel_folder("test").name == "test" and s.checkpoints.is_dir()
        try:
            s.channels["other"]
        except phalanx.UserError as error:
            assert "no channel 'other'" in str(error)
        if s.world.rank == 0:
            (s.model_dir / "m").write_text("x")
            (s.output_data / "o").write_text("y")
        """,
    )
    result = run(
        path,
        tmp_path,
        workers=2,
        seed=7,
        strategy="ddp",
        inputs={
            "train": phalanx.Channel(url=str(data), content_type="text/csv;label_size=1"),
            "test": phalanx.Channel(url=str(data / "a.csv"), content_type="text/csv;label_size=1"),
        },
        hyperparameters={"epochs": 2},
        metric_definitions=[{"name": "loss", "regex": "loss=([0-9]+)"}],
    )
    assert [(line["step"], line["loss"]) for line in metrics_of(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert result.artifact is not None
    assert (tmp_path / "runs" / "job" / "output" / "o").read_text() == "y"


def test_a_session_declares_what_nobody_catches_with_its_kind(tmp_path: Path) -> None:
    path = script(
        tmp_path / "source",
        """
        import phalanx
        s = phalanx.session()
        if s.world.rank == 1:
            raise phalanx.UserError("the table has no column 'age'")
        s.world.barrier(60)
        """,
    )
    with pytest.raises(phalanx.UserError, match="no column 'age'"):
        run(path, tmp_path, workers=2)


def test_a_stop_reaches_a_session_at_the_same_step_on_all_ranks(tmp_path: Path) -> None:
    path = script(
        tmp_path / "source",
        """
        import itertools, phalanx
        s = phalanx.session()
        if s.world.rank == 0:
            (s.model_dir / "m").write_text("x")
        step = 0
        try:
            for step in itertools.count(1):
                s.report(step, {"x": 1.0})
                if step == 1:
                    print("running", flush=True)
        except phalanx.Stopped:
            print(f"stopped after {step}", flush=True)
            raise
        """,
    )
    asked = job(path, tmp_path, workers=2)
    with pytest.raises(phalanx.Stopped) as caught:
        asked.run(progress=AtLine("running", asked.stop))
    stopped = [next(line for line in logs(tmp_path, rank).splitlines() if "stopped after" in line) for rank in (0, 1)]
    assert stopped[0] == stopped[1]
    assert caught.value.result.artifact is not None  # what it had saved is kept


def test_a_stop_spares_a_sessions_helpers_until_it_ends_them(tmp_path: Path) -> None:
    path = script(
        tmp_path / "source",
        """
        import itertools, multiprocessing, signal, phalanx
        s = phalanx.session()

        def help_for_ever():
            while True:
                signal.pause()

        helper = multiprocessing.get_context("fork").Process(target=help_for_ever, daemon=True)
        helper.start()
        try:
            for step in itertools.count(1):
                s.report(step, {"x": 1.0})
                if step == 1:
                    print("running", flush=True)
        except phalanx.Stopped:
            helper.join(1)
            print("alive", helper.is_alive(), flush=True)
            helper.terminate()
            helper.join()
            print("ended by", helper.exitcode, flush=True)
        """,
    )
    asked = job(path, tmp_path)
    with pytest.raises(phalanx.Stopped):
        asked.run(progress=AtLine("running", asked.stop))
    assert "alive True" in logs(tmp_path)
    assert "ended by -15" in logs(tmp_path)


def test_a_stop_ends_a_script_that_knows_nothing_of_it(tmp_path: Path) -> None:
    path = script(tmp_path / "source", "import signal\nprint('running', flush=True)\nsignal.pause()\n")
    asked = job(path, tmp_path, workers=2)
    with pytest.raises(phalanx.Stopped) as caught:
        asked.run(progress=AtLine("running", asked.stop))
    assert caught.value.result.status == "Stopped"


def test_a_restart_finds_checkpoints_and_an_empty_model_folder(tmp_path: Path) -> None:
    path = script(
        tmp_path / "source",
        """
        import os, phalanx
        s = phalanx.session()
        done = s.checkpoints / "done"
        assert not os.listdir(s.model_dir)
        (s.model_dir / "model").write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if not done.exists():
            done.touch()
            os._exit(9)
        """,
    )
    result = run(path, tmp_path, max_restarts=1)
    assert result.restarts == 1
    with tarfile.open(str(result.artifact)) as tar:
        member = tar.extractfile("model")
        assert member is not None
        assert member.read() == b"1"


def test_requirements_are_installed_beside_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    wheel(source / "wheels", "phalanx_greeting", "1.0", "TEXT = 'hello'\n")
    (source / "requirements.txt").write_text("--no-index\n--find-links ./wheels\nphalanx_greeting==1.0\nnumpy\n")
    path = script(
        source,
        """
        import os, phalanx_greeting
        if __name__ == "__main__":
            print(phalanx_greeting.TEXT, phalanx_greeting.__file__)
            open(os.environ["SM_MODEL_DIR"] + "/m", "w").close()
        def model_fn(folder):
            return lambda data: data * 2 + len(phalanx_greeting.TEXT)
        """,
    )
    result = run(path, tmp_path, workers=2)
    assert "hello" in logs(tmp_path, 0)
    assert str(tmp_path / "cache") in logs(tmp_path, 1)
    with phalanx.load(str(result.artifact)) as model:
        assert model.predict([[1.0, 2.0]])["prediction"].tolist() == [[7.0, 9.0]]
    with pytest.raises(ImportError):
        __import__("phalanx_greeting")


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [("phalanx_no_such_package==1.0", "No matching distribution|from versions: none"), ("numpy==1.0", "numpy")],
)
def test_requirements_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, pattern: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = script(tmp_path / "source", "pass\n")
    (tmp_path / "source" / "requirements.txt").write_text(f"--no-index\n{wanted}\n")
    with pytest.raises(phalanx.UserError, match=pattern):
        run(path, tmp_path, workers=2)


def wheel(folder: Path, name: str, version: str, text: str) -> None:
    """Write a wheel of one module, as pip takes it."""
    import zipfile

    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", text)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_helpers_of_sagemakers_containers_have_stand_ins(tmp_path: Path, data: Path) -> None:
    if importlib.util.find_spec("xgboost") is None:
        pytest.skip("xgboost is not installed")
    path = script(
        tmp_path / "source",
        """
        import json, os
        import xgboost
        from sagemaker_containers import entry_point
        from sagemaker_training import environment
        from sagemaker_xgboost_container import distributed, encoder
        from sagemaker_xgboost_container.data_utils import get_dmatrix, get_size


        def boost(train, evals, is_master):
            booster = xgboost.train({"max_depth": 2, "nthread": 1}, train, num_boost_round=3, evals=evals)
            if is_master:
                booster.save_model(os.path.join(os.environ["SM_MODEL_DIR"], "model.ubj"))


        def model_fn(folder):
            return xgboost.Booster(model_file=os.path.join(folder, "model.ubj"))


        def input_fn(body, content_type):
            return encoder.csv_to_dmatrix(body)


        if __name__ == "__main__":
            env = environment.Environment()
            folder = env.channel_input_dirs["train"]
            assert get_size(folder) > 0 and get_size(None) == 0 and get_dmatrix(None, "csv") is None
            train = get_dmatrix(folder, "text/csv")
            assert (train.num_row(), train.num_col()) == (20, 4), (train.num_row(), train.num_col())
            entry_point._wait_hostname_resolution()
            distributed.rabit_run(
                exec_fun=boost,
                args={"train": train, "evals": [(train, "train")]},
                include_in_training=True,
                hosts=json.loads(os.environ["SM_HOSTS"]),
                current_host=env.current_host,
                update_rabit_args=True,
            )
        """,
    )
    inputs = {"train": phalanx.Channel(url=str(data), spread="shard")}
    result = run(path, tmp_path, workers=2, inputs=inputs, metric_definitions=[{"name": "rmse", "regex": r"train-rmse:(\S+)"}])
    assert [line["step"] for line in metrics_of(tmp_path)] == [1, 2, 3]
    features = np.loadtxt(data / "a.csv", delimiter=",")[:, 1:]
    with phalanx.load(str(result.artifact)) as model:
        from phalanx.model import predict_file

        np.savetxt(tmp_path / "requests.csv", features, delimiter=",")
        predict_file(model, str(tmp_path / "requests.csv"), str(tmp_path / "out"), content_type=None, accept="text/csv")
        answers = model.predict(features.astype(np.float32))["prediction"]
    np.testing.assert_allclose(np.loadtxt(tmp_path / "out"), answers, rtol=1e-5)
