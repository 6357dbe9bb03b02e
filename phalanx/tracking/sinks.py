"""Sinks: a job's metrics also in TensorBoard, MLflow or Weights & Biases. A sink that is broken or slow never holds up the job.

A thread of the job's process follows metrics.jsonl, so every point that is recorded arrives, once, in order. What a sink must
know to go on with the same run after `--resume` stands in sinks.json in the job's folder.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final
from urllib.parse import urlsplit

from .. import environment, storage
from ..errors import UserError, nearest
from .reading import TrackedJob

STATE = "sinks.json"
CLOSE_SECONDS = 30.0  # that the end of a job waits for its sinks
_POLL_SECONDS = 0.5
_BATCH = 1000  # metrics that MLflow takes at once
_LONGEST = 500  # characters of a parameter that MLflow's older servers take


class Sink(Protocol):
    """Somewhere that metrics go; used by one thread. Whatever it raises ends it, with a warning."""

    def begin(self, job: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open or go on with a run.

        Args:
            job: what job.json holds.
            state: what an earlier `begin` of the same job returned, {} at first.
        """
        ...

    def write(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Take points: step, seconds since 1970, metrics."""
        ...

    def end(self, status: str) -> None:
        """Close the run: Completed, Failed or Stopped."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A sink that can be named.

    Attributes:
        make: called with the options, the job's local folder and its output URL.
        needs: module that must be installed.
        extra: of the package, that installs it.
        options: that it takes, with the values that are allowed; None: any.
    """

    make: Callable[[Mapping[str, str], Path, str], Sink]
    needs: str
    extra: str
    options: Mapping[str, Sequence[str] | None]


@final
class TensorBoard:
    """Event files, in `tensorboard` in the job's folder unless `folder` is given."""

    def __init__(self, options: Mapping[str, str], folder: Path, output: str) -> None:
        self._folder = folder / "tensorboard"
        if "folder" in options:
            self._folder = Path(options["folder"]) / folder.name
        self._writer: Any = None

    def begin(self, job: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Sink`."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder))
        return {}

    def write(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """See `Sink`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, when, metrics in points:
            values = [Summary.Value(tag=name.replace(":", "/"), simple_value=value) for name, value in metrics.items()]
            self._writer.add_event(Event(wall_time=when, step=step, summary=Summary(value=values)))
        self._writer.flush()

    def end(self, status: str) -> None:
        """See `Sink`."""
        self._writer.close()


@final
class MLflow:
    """A run in an MLflow experiment; without `uri` and MLFLOW_TRACKING_URI in `mlflow.db` beside the jobs."""

    def __init__(self, options: Mapping[str, str], folder: Path, output: str) -> None:
        self._uri, self._output = options.get("uri"), output
        self._experiment = options.get("experiment", "phalanx")
        self._client: Any = None
        self._run = ""

    def begin(self, job: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Sink`."""
        import mlflow
        from mlflow.entities import Param, RunTag

        if self._uri is None and not environment.get("MLFLOW_TRACKING_URI"):
            if not storage.is_local(self._output):
                raise UserError("mlflow needs its server where the output is no local folder: mlflow:uri=URL")
            self._uri = f"sqlite:///{storage.local_path(self._output).absolute() / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        if state.get("run"):
            self._run = str(state["run"])
            self._client.update_run(self._run, status="RUNNING")
            return state
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self._run = self._client.create_run(experiment, run_name=str(job.get("name"))).info.run_id
        given = dict(job.get("hyperparameters") or {}) | {key: job[key] for key in ("workers", "seed") if key in job}
        params = [Param(name, str(value)[:_LONGEST]) for name, value in given.items()]
        what = job.get("algorithm") or job.get("script")
        for begin in range(0, len(params), 100):  # that MLflow takes at once
            self._client.log_batch(self._run, params=params[begin : begin + 100])
        self._client.log_batch(self._run, tags=[RunTag("phalanx.trains", str(what))])
        return {"run": self._run}

    def write(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """See `Sink`."""
        from mlflow.entities import Metric

        found = [Metric(name, value, int(1000 * when), step) for step, when, values in points for name, value in values.items()]
        for begin in range(0, len(found), _BATCH):
            self._client.log_batch(self._run, metrics=found[begin : begin + _BATCH])

    def end(self, status: str) -> None:
        """See `Sink`."""
        self._client.set_terminated(self._run, {"Completed": "FINISHED", "Stopped": "KILLED"}.get(status, "FAILED"))


@final
class WandB:
    """A run of Weights & Biases, kept in `wandb` in the job's folder for `wandb sync` unless `mode=online` is given."""

    def __init__(self, options: Mapping[str, str], folder: Path, output: str) -> None:
        self._folder = Path(options.get("folder", folder))
        self._project = options.get("project", "phalanx")
        self._mode = options.get("mode", "offline")
        self._feed: subprocess.Popen[str] | None = None

    def begin(self, job: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Sink`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        offline = {"WANDB_ERROR_REPORTING": "false"} if self._mode == "offline" else {}
        self._feed = subprocess.Popen(
            [sys.executable, "-m", "phalanx.tracking.wandb_feed"], env={**environment.snapshot(), **offline}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        resume = "allow" if state.get("run") and self._mode == "online" else None
        init = {"project": self._project, "name": job.get("name"), "id": state.get("run"), "dir": str(self._folder)}
        self._say({"init": {**init, "config": dict(job), "mode": self._mode, "resume": resume}})
        answer = self._feed.stdout.readline() if self._feed.stdout is not None else ""
        if not answer:
            raise RuntimeError(self._why())
        return dict(json.loads(answer))

    def write(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """See `Sink`."""
        for step, when, metrics in points:
            self._say({"step": step, "values": {**metrics, "_timestamp": when}})

    def end(self, status: str) -> None:
        """See `Sink`."""
        self._say({"exit": 0 if status == "Completed" else 1})
        why = self._why()
        if self._feed is not None and self._feed.returncode and status == "Completed":
            raise RuntimeError(why)

    def _say(self, what: Mapping[str, Any]) -> None:
        if self._feed is None or self._feed.stdin is None:
            return
        try:
            self._feed.stdin.write(json.dumps(what) + "\n")
            self._feed.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._why()) from None

    def _why(self) -> str:
        """Wait for the feed's end; return the last line that it wrote."""
        if self._feed is None:
            return ""
        lines = self._feed.communicate()[1].strip().splitlines()
        return lines[-1] if lines else f"wandb ended with {self._feed.returncode}"


SINKS: Mapping[str, Kind] = {
    "mlflow": Kind(MLflow, "mlflow", "tracking", {"uri": None, "experiment": None}),
    "tensorboard": Kind(TensorBoard, "tensorboard", "tracking", {"folder": None}),
    "wandb": Kind(WandB, "wandb", "wandb", {"project": None, "mode": ("offline", "online"), "folder": None}),
}


def parsed(text: str) -> tuple[str, dict[str, str]]:
    """Return name and options of a sink as a user writes it: "mlflow:uri=http://host:5000,experiment=digits".

    Raises:
        UserError: no such sink or option, or what it needs is not installed.
    """
    name, _, rest = text.partition(":")
    if name not in SINKS:
        raise UserError(f"there is no sink '{name}'; {nearest(name, SINKS)}")
    kind, options = SINKS[name], {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in kind.options or not equals or not value:
            raise UserError(
                f"the sink '{name}' does not take '{storage.redact(part)}'; "
                f"options: {', '.join(f'{option}=…' for option in kind.options)}"
            )
        allowed = kind.options[key]
        if allowed is not None and value not in allowed:
            raise UserError(f"the sink '{name}' has no {key} '{value}'; there are {', '.join(allowed)}")
        options[key] = value
    if importlib.util.find_spec(kind.needs) is None:
        raise UserError(f"the sink '{name}' needs {kind.needs}: pip install 'phalanx-train[{kind.extra}]'")
    if name == "mlflow" and "uri" in options and urlsplit(options["uri"]).scheme in ("", "file"):
        raise UserError(
            "the sink 'mlflow' takes no folder: MLflow wants a server or a database, as uri=sqlite:///runs/mlflow.db"
        )
    return name, options


@final
class Sinks:
    """Feeds a job's sinks from `start` to `close`.

    Args:
        given: as `TrainingJob.sinks` has them.
        url: the job's folder.
        folder: where its record grows on this machine.
        output: URL in which jobs stand.
        warn: told, in a sentence, of a sink that failed.
    """

    def __init__(self, given: Sequence[str], url: str, folder: Path, output: str, warn: Callable[[str], None]) -> None:
        self._given = [parsed(text) for text in given]
        self._url, self._folder, self._output, self._warn = url, folder, output, warn
        self._status = ""
        self._over = threading.Event()
        self._threads: list[tuple[str, threading.Thread]] = []
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to follow the record, whose job.json is written; returns at once."""
        if not self._given:
            return
        found = storage.read_json(storage.join(self._url, STATE))
        self._state = found if isinstance(found, dict) else {}
        path = self._folder / "metrics.jsonl"
        start = path.stat().st_size if path.exists() else 0  # what stands there an earlier run has sent
        for name, options in self._given:
            thread = threading.Thread(
                target=self._feed, args=(name, options, start), name=f"phalanx-sink-{name}", daemon=True
            )  # one each: none waits for another
            self._threads.append((name, thread))
            thread.start()

    def close(self, status: str) -> None:
        """Have the sinks take the rest and end their runs with this status; waits for at most 30 seconds."""
        self._status = status
        self._over.set()
        limit = time.monotonic() + CLOSE_SECONDS
        for name, thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
            if thread.is_alive():
                self._warn(f"the sink {name} did not end in {CLOSE_SECONDS:.0f} s; it may lack the last metrics")

    def _feed(self, name: str, options: Mapping[str, str], start: int) -> None:
        try:
            sink = SINKS[name].make(options, self._folder, self._output)
            job = TrackedJob(str(self._folder), {}, {})
            self._keep(name, sink.begin(self._job(), self._state.get(name) or {}))
            while True:
                over = self._over.wait(_POLL_SECONDS)
                start += self._pass_on(job, sink, start)
                if over:
                    sink.end(self._status)
                    return
        except (Exception, SystemExit) as error:  # whatever a library does: the job goes on
            self._warn(f"the sink {name} has failed and gets no more: {type(error).__name__}: {storage.redact(str(error))}")

    def _job(self) -> Mapping[str, Any]:
        found = storage.read_json(str(self._folder / "job.json"))
        return found if isinstance(found, dict) else {}

    def _pass_on(self, job: TrackedJob, sink: Sink, start: int) -> int:
        """Give a sink what is new from byte `start` on; return how many bytes that was."""
        lines, count = job.points(start)
        points = []
        for line in lines:
            step, when = int(line.pop("step")), float(line.pop("time"))
            values = {name: float(value) for name, value in line.items() if isinstance(value, (int, float))}
            if values:
                points.append((step, when, values))
        if points:
            sink.write(points)
        return count

    def _keep(self, name: str, state: Mapping[str, Any]) -> None:
        with self._lock:
            self._state[name] = dict(state)
            (self._folder / STATE).write_text(json.dumps(self._state) + "\n", encoding="utf-8")
