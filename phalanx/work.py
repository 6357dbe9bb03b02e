"""What a job's workers do: an algorithm of the registry, or a user's script. The road around them is the same (`job.py`)."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, final

from . import environment, hyperparameters, registry, storage
from .contracts import Event, Json, Launcher, WorkerSpec
from .data.channel import Channel, says
from .data.formats import LIGHT_MODULES
from .errors import UserError
from .parallel.strategies import STRATEGIES, parsed
from .provenance import code_version
from .scripts import artifact, source
from .scripts.forked import may_fork
from .scripts.kept import KeptFiles, kept_url
from .scripts.metrics import Keep, Scraper, definitions
from .scripts.plan import Folders, Plan
from .scripts.variables import decoded
from .scripts.watching import WatchingLauncher
from .worker import MODEL_CARD, MODEL_FORMAT

MAX_HYPERPARAMETERS = 100  # of a script; names and values as long as SageMaker allows
MAX_KEY, MAX_VALUE = 256, 2500


class Work(Protocol):
    """One kind of work; made and checked before anything of the job exists."""

    @property
    def label(self) -> str:
        """What status.json calls it."""
        ...

    @property
    def slug(self) -> str:
        """What the job's default name begins with."""
        ...

    @property
    def preload(self) -> Sequence[str]:
        """Modules for the warm server."""
        ...

    @property
    def goals(self) -> Mapping[str, str]:
        """Metric, without its channel -> "minimize" or "maximize", as far as that is declared."""
        ...

    def check_inputs(self, inputs: Mapping[str, Channel]) -> None:
        """Raise UserError where a channel that is needed is missing."""
        ...

    def described(self) -> dict[str, Json]:
        """Return what job.json says of it."""
        ...

    def code(self) -> dict[str, Json]:
        """Return the version of the user's code, {} where it is none of theirs."""
        ...

    def begin(self, spec: WorkerSpec, job: Mapping[str, Json], scratch: Path, output: Path | None, keep: Keep) -> WorkerSpec:
        """Make everything ready in the job's scratch folder; return the group to start.

        Args:
            spec: all of the group but what its workers run.
            job: name, inputs, seed, checkpoints, and whether its group may be started again.
            scratch: the job's folder on this machine.
            output: where jobs go, if that is on this machine.
            keep: is given each metric that a worker prints.
        """
        ...

    def group(self, spec: WorkerSpec, job: Mapping[str, Json], scratch: Path) -> WorkerSpec:
        """Return the group to start, where everything is ready in the job's scratch folder; see `begin`."""
        ...

    def launcher(self, inner: Launcher) -> Launcher:
        """Return who starts the group."""
        ...

    def on_event(self, event: Event) -> None:
        """Take note of what a worker said."""
        ...

    def on_line(self, rank: int, line: str) -> None:
        """Take note of what a worker printed; called from the thread that tails the logs."""
        ...

    def keep(self, *, last: bool = False) -> None:
        """Bring what must outlive this machine to where it is kept; called every few seconds from another thread, and last."""
        ...

    def ended(self) -> None:
        """All events and lines have come."""
        ...

    def model(self, attempt: int, *, stopped: bool) -> Path | None:
        """Return the folder that becomes the artifact, its card in it; None where there is no model."""
        ...

    def output(self, attempt: int) -> Path:
        """Return the folder of files to publish beside the artifact."""
        ...


@final
class AlgorithmWork:
    """Trains an algorithm.

    Args:
        algorithm: its name.
        given: hyperparameters, typed or as text.
        workers: of the group.
        inputs: the channels.
        prepare: is told what to preload, before the rest is looked at.

    Raises:
        UserError: no such algorithm, or a hyperparameter that is not allowed.
    """

    def __init__(
        self,
        algorithm: str,
        given: Mapping[str, Any],
        *,
        workers: int,
        inputs: Mapping[str, Channel],
        prepare: Callable[[Sequence[str]], None],
    ) -> None:
        entry = registry.entry(algorithm)
        self.label = self.slug = algorithm
        preload = ["phalanx.worker", "phalanx.data.kernels", *entry.needs, *entry.preload, *LIGHT_MODULES]
        if any(isinstance(channel, Channel) and says(channel, "recordio") for channel in inputs.values()):
            preload += ["phalanx.data.formats.recordio", "phalanx.data.recordio_kernels"]
        if workers > 1:
            preload += ["torch", "torch.distributed", "phalanx.parallel.torch_collective"]
        self.preload: Sequence[str] = tuple(preload)
        prepare(self.preload)
        self._settings: Any = hyperparameters.parse(registry.hyperparameters_of(algorithm), given, owner=algorithm)
        told: Callable[[], Mapping[str, str]] | None = getattr(self._settings, "objectives", None)
        self.goals: Mapping[str, str] = {} if told is None else told()
        self._scratch = Path()

    def check_inputs(self, inputs: Mapping[str, Channel]) -> None:
        """See `Work`."""
        if "train" not in inputs:
            raise UserError(f"{self.label} needs a channel 'train'; channels given: {', '.join(inputs) or 'none'}")

    def described(self) -> dict[str, Json]:
        """See `Work`."""
        return {"algorithm": self.label, "hyperparameters": hyperparameters.to_json(self._settings)}

    def code(self) -> dict[str, Json]:
        """See `Work`."""
        return {}

    def begin(self, spec: WorkerSpec, job: Mapping[str, Json], scratch: Path, output: Path | None, keep: Keep) -> WorkerSpec:
        """See `Work`."""
        self._scratch = scratch
        return self.group(spec, job, scratch)

    def group(self, spec: WorkerSpec, job: Mapping[str, Json], scratch: Path) -> WorkerSpec:
        """See `Work`."""
        payload = {"job": {**self.described(), **job}, "scratch": str(scratch)}
        brings = ("attempt-{attempt}/model", "attempt-{attempt}/output")
        lasts = self.label if registry.entry(self.label).lasts else None
        return replace(spec, target="phalanx.worker:main", payload=payload, preload=self.preload, brings=brings, lasts=lasts)

    def launcher(self, inner: Launcher) -> Launcher:
        """See `Work`."""
        return inner

    def on_event(self, event: Event) -> None:
        """See `Work`."""

    def on_line(self, rank: int, line: str) -> None:
        """See `Work`."""

    def keep(self, *, last: bool = False) -> None:
        """See `Work`. Workers save what an algorithm needs."""

    def ended(self) -> None:
        """See `Work`."""

    def model(self, attempt: int, *, stopped: bool) -> Path | None:
        """See `Work`. A stopped algorithm saves its model only where it was asked to."""
        folder = self._scratch / f"attempt-{attempt}" / "model"
        return None if stopped and not (folder / MODEL_CARD).exists() else folder

    def output(self, attempt: int) -> Path:
        """See `Work`."""
        return self._scratch / f"attempt-{attempt}" / "output"


@final
class ScriptWork:
    """Runs a user's script.

    Args:
        script: path of a Python file.
        source_dir: folder that it needs; default: its own.
        given: hyperparameters, typed or as text.
        arguments: the end of its command line.
        strategy: for the Trainer in it.
        metric_definitions: mappings with name and regex.
        inputs: the channels.
        variables: names of the variables that the user sets.

    Raises:
        UserError: whatever of it cannot work.
    """

    def __init__(
        self,
        script: str,
        *,
        source_dir: str | None,
        given: Mapping[str, Any],
        arguments: Sequence[str],
        strategy: str | None,
        metric_definitions: Sequence[Mapping[str, str]],
        inputs: Mapping[str, Channel],
        variables: Sequence[str],
    ) -> None:
        self._source = source.find(script, source_dir)
        self._hyperparameters = _hyperparameters(given)
        if isinstance(arguments, str) or not all(isinstance(argument, str) for argument in arguments):
            raise UserError(f"arguments={arguments!r} is not allowed: it must be a list of texts, as ['--lr', '0.1']")
        self._arguments = list(arguments)
        self._strategy = _strategy(strategy)
        self._wanted = definitions(metric_definitions)
        self._scraper = Scraper((), lambda name, step, when, value: None)
        self._kept: KeptFiles | None = None
        self._inputs = {name: _anywhere(channel) for name, channel in inputs.items()}
        self._variables = list(variables)
        self._scratch = Path()
        self._launcher: WatchingLauncher | None = None
        self._may_fork = False
        self._code: list[str] = []
        self._seed = 0
        self.label = self._source.script
        self.slug = slug_of(self._source.script)
        self.preload: Sequence[str] = ()
        self.goals: Mapping[str, str] = {}

    def check_inputs(self, inputs: Mapping[str, Channel]) -> None:
        """See `Work`. A script may do without channels."""

    def described(self) -> dict[str, Json]:
        """See `Work`."""
        return {
            "script": self._source.script,
            "source_dir": str(self._source.folder),
            "arguments": self._arguments,
            "hyperparameters": environment.masked_hyperparameters(self._hyperparameters),
            "strategy": self._strategy,
            "metric_definitions": [{"name": d.name, "regex": d.regex.pattern} for d in self._wanted],
        }

    def code(self) -> dict[str, Json]:
        """See `Work`."""
        return code_version(self._source.folder, self._source.script)

    def begin(self, spec: WorkerSpec, job: Mapping[str, Json], scratch: Path, output: Path | None, keep: Keep) -> WorkerSpec:
        """See `Work`."""
        self._scratch = scratch
        self._seed = int(job["seed"])
        self._scraper = Scraper(self._wanted, keep)
        folders = Folders(scratch, 0)
        if job["checkpoints"] is not None:
            self._kept = KeptFiles(folders.checkpoints, kept_url(job["checkpoints"]["url"], job["name"]))
            self._kept.begin()
        self._code = source.copy(self._source, folders.code, leave_out=output)
        Plan(
            job=job["name"],
            script=self._source.script,
            arguments=self._arguments,
            hyperparameters=self._hyperparameters,
            channels=self._inputs,
            workers=spec.workers,
            threads=spec.threads,
            seed=self._seed,
            strategy=self._strategy,
            variables=self._variables,
            requirements=self._source.requirements,
            checkpoints=str(self._kept.folder if self._kept is not None else folders.checkpoints),
        ).write(folders.plan)
        self._may_fork = bool(job["restarts"]) and may_fork(self._variables, self._source.requirements)
        return self.group(spec, job, scratch)

    def group(self, spec: WorkerSpec, job: Mapping[str, Json], scratch: Path) -> WorkerSpec:
        """See `Work`."""
        command = [sys.executable, "-P", "-m", "phalanx.scripts.start", str(scratch)]
        folders = Folders(scratch, 0)
        brings = ("attempt-{attempt}/model", "attempt-{attempt}/output", folders.checkpoints.name)
        return replace(spec, command=command, folder=folders.code, brings=brings)

    def launcher(self, inner: Launcher) -> Launcher:
        """See `Work`."""
        self._launcher = WatchingLauncher(inner, self._scratch, list(self._inputs))
        return self._launcher

    def on_event(self, event: Event) -> None:
        """See `Work`."""
        if event.body["kind"] == "step":
            self._scraper.reported(list(event.body["metrics"]))
        elif event.body["kind"] == "loaded" and self._may_fork and self._launcher is not None:
            self._launcher.expect_restarts(event.body["modules"])

    def on_line(self, rank: int, line: str) -> None:
        """See `Work`."""
        self._scraper.line(rank, line)

    def keep(self, *, last: bool = False) -> None:
        """See `Work`."""
        if self._kept is not None:
            (self._kept.end if last else self._kept.keep)()

    def ended(self) -> None:
        """See `Work`."""
        self._scraper.flush()

    def model(self, attempt: int, *, stopped: bool) -> Path | None:
        """See `Work`. What a script saved before it was stopped is kept."""
        folder = Folders(self._scratch, attempt).model
        if not artifact.has_model(folder):
            return None
        head = {
            "format": MODEL_FORMAT,
            "script": self._source.script,
            "requirements": self._source.requirements,
            "hyperparameters": {n: decoded(v) for n, v in environment.masked_hyperparameters(self._hyperparameters).items()},
            "seed": self._seed,
        }
        artifact.seal(folder, Folders(self._scratch, attempt).code, self._code, card=MODEL_CARD, head=head)
        return folder

    def output(self, attempt: int) -> Path:
        """See `Work`."""
        return Folders(self._scratch, attempt).output_data


def _hyperparameters(given: Mapping[str, Any]) -> dict[str, Json]:
    if not isinstance(given, Mapping):
        raise UserError(f"hyperparameters must be a mapping of names to values, not {type(given).__name__}")
    if len(given) > MAX_HYPERPARAMETERS:
        raise UserError(f"{len(given)} hyperparameters are not allowed: a script may have {MAX_HYPERPARAMETERS}")
    for name, value in given.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_KEY or "\0" in name or "=" in name:
            raise UserError(f"the hyperparameter name {name!r} is not allowed: it must be a text of 1 to {MAX_KEY} characters")
        try:
            text = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError):
            raise UserError(f"the hyperparameter {name}={value!r} is not allowed: it must be a JSON value") from None
        if len(text) > MAX_VALUE or "\0" in text:
            raise UserError(f"the hyperparameter {name} is not allowed: it is longer than {MAX_VALUE} characters")
    return dict(given)


def _anywhere(channel: Channel) -> Channel:
    """Return a channel whose paths hold from any working directory."""
    urls = [str(storage.local_path(url).absolute()) if storage.is_local(url) else url for url in channel.urls]
    return replace(channel, url=urls)


def _strategy(name: str | None) -> str | None:
    if name is None:
        return None
    home = STRATEGIES[parsed(name)[0]]
    missing = [module for module in home.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"strategy '{name}' needs {', '.join(missing)}: {home.how}")
    return name


def slug_of(script: str) -> str:
    """Return a script's name as the beginning of a job's name."""
    stem = Path(script).stem
    kept = "-".join(part for part in "".join(c if c.isascii() and c.isalnum() else " " for c in stem).split())
    return kept[:40].rstrip("-") or "script"
