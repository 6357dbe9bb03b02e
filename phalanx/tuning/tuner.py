"""`phalanx.Tuner`: a sweep as a user asks for it, checked before anything starts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, final

from .. import storage
from ..contracts import Json
from ..data.channel import Channel
from ..errors import EXIT_SIGTERM, AlgorithmError, UserError, nearest
from ..job import TrainingJob
from ..launch.stopping import StopRequest
from . import declared
from .claim import claimed
from .declared import Objective
from .ledger import Ledger
from .options import Completion, WarmStart
from .placing import room_for
from .plan import Plan, check_same, read
from .ranges import Range, Values, checked, from_json, grid, size
from .search import Strategy
from .stopping import Halving, MedianRule, Never, Rule
from .sweep import Sweep
from .table import best_of, counters, dataframe, front_of, objectives_of, records, trials_of
from .trial import Trial
from .view import SilentView, View, view_for
from .warm_start import Inheritance, inherit

STRATEGIES = ("auto", "bayesian", "random", "grid", "hyperband")
EARLY_STOPPING = ("auto", "off", "median", "asha")
DEFAULT_JOBS = 20
LAG = 8  # of deterministic sweeps
MOST_POINTS = 100_000  # of a grid
_NAME = re.compile(r"[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,31}")


@final
@dataclass(frozen=True, slots=True)
class Best:
    """The best trial of a sweep."""

    job: str  # its name
    number: int
    hyperparameters: Mapping[str, Any]  # those searched, and those all trials share
    objective: float  # final value of the (first) objective
    metrics: Mapping[str, float | None]
    folder: str  # URL of its job's folder
    artifact: str | None  # URL of model.tar.gz


@final
class Tuner:
    """A hyperparameter sweep: many jobs, each proposed from what the earlier ones came to.

    Args:
        job: what every trial runs; its `name`, `output` and `resume` are the sweep's business.
        name: of the sweep, at most 32 letters, digits and single hyphens.
        output: folder or URL under which the sweep's folder `output/name` is made.
        objective: the metric to judge by, as "validation:auc"; several make a multi-objective sweep. Default: the algorithm's.
        direction: "minimize" or "maximize", one for each objective; default: as the algorithm declares it for the metric.
        ranges: hyperparameter -> `Continuous`, `Integer` or `Categorical`. Default: those the algorithm declares, without the
            ones the job sets.
        strategy: "bayesian", "random", "grid", "hyperband" (bayesian proposals, successive halving in brackets), or "auto".
        max_jobs: trials in all; default: 20, or all points of a grid.
        max_parallel_jobs: trials that run at once, as far as the machine has cores (and memory) for them.
        early_stopping: "off"; "median"; "asha" (successive halving, stopped trials may be promoted); "auto": asha for one
            objective, off for several.
        min_steps: steps of the first rung of halving; default: a share of a whole trial.
        max_steps: steps of a whole trial; default: as the trials themselves say.
        seed: of the proposals.
        deterministic: the same proposals for any `max_parallel_jobs`: each knows the results of trials at least 8 older.
        warm_start: earlier sweeps to learn from.
        completion: when to end before `max_jobs`.
        constraints: metric -> (smallest, largest), either may be None; violated ones make a trial a bad one.
        max_retries: how often a trial whose workers were lost is gone on with without coming any further.
        memory_per_job_gb: GiB that a trial needs; fewer run at once where there is no room.
        gpus_per_job: GPUs of this machine that a trial has for itself: its workers see these and no others; fewer trials run at
            once where there are not enough. 0: trials see what the driver sees.
        storage: URL of a database that Optuna can use, as sqlite:///study.db; default: a journal file in the sweep's folder.
        resume: go on with the sweep of this name.

    Raises:
        UserError: whatever of it cannot work.
    """

    def __init__(
        self,
        job: TrainingJob,
        *,
        name: str,
        output: str = "runs",
        objective: str | Sequence[str] | None = None,
        direction: str | Sequence[str] | None = None,
        ranges: Mapping[str, Range] | None = None,
        strategy: str = "auto",
        max_jobs: int | None = None,
        max_parallel_jobs: int = 1,
        early_stopping: str = "auto",
        min_steps: int | None = None,
        max_steps: int | None = None,
        seed: int = 0,
        deterministic: bool = False,
        warm_start: WarmStart | None = None,
        completion: Completion | None = None,
        constraints: Mapping[str, tuple[float | None, float | None]] | None = None,
        max_retries: int = 3,
        memory_per_job_gb: float | None = None,
        gpus_per_job: int = 0,
        storage: str | None = None,
        resume: bool = False,
    ) -> None:
        if not isinstance(job, TrainingJob):
            raise UserError(f"a sweep needs a phalanx.TrainingJob, not {type(job).__name__}")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"the sweep's name '{name}' is not allowed: 1 to 32 letters and digits, with single - between them")
        _whole("max_parallel_jobs", max_parallel_jobs, 1)
        _whole("seed", seed, 0)
        _whole("max_retries", max_retries, 0)
        _whole("gpus_per_job", gpus_per_job, 0)
        _truth("deterministic", deterministic)
        _truth("resume", resume)
        for what, optional in (("max_jobs", max_jobs), ("min_steps", min_steps), ("max_steps", max_steps)):
            if optional is not None:
                _whole(what, optional, 1)
        if min_steps is not None and max_steps is not None and min_steps > max_steps:
            raise UserError(f"min_steps={min_steps} is not allowed: it must be at most max_steps={max_steps}")
        for what, text in (("output", output), ("strategy", strategy), ("storage", "-" if storage is None else storage)):
            if not isinstance(text, str) or not text:
                raise UserError(f"{what}={text!r} is not allowed: it must be a text")
        if not isinstance(ranges, (Mapping, type(None))) or not all(isinstance(each, str) for each in ranges or {}):
            raise UserError(f"ranges={ranges!r} is not allowed: give a mapping, as {{'eta': phalanx.Continuous(0.01, 0.5)}}")
        for what, value, kind in (("warm_start", warm_start, WarmStart), ("completion", completion, Completion)):
            if not isinstance(value, (kind, type(None))):
                raise UserError(f"{what}={value!r} is not allowed: give a phalanx.{kind.__name__}")
        self._job = job
        self.name = name
        self.folder = _join(output, name)
        self._resume = resume
        self._stop = StopRequest()
        self._sweep: Sweep | None = None
        inputs = {n: Channel(url=c) if isinstance(c, str) else c for n, c in job.inputs.items()}
        given = {n: from_json(n, r) for n, r in (ranges or {}).items()}
        objectives = _names("objective", objective)
        space, static, goals = _space(job, given, objectives, _names("direction", direction), inputs)
        data = {} if not inputs else _fingerprints(inputs)
        begun = read(self.folder) if resume and strategy == "auto" else None
        chosen, why = (
            _strategy(strategy, space, max_jobs, max_parallel_jobs)
            if begun is None
            else _strategy(str(begun["strategy"]), space, max_jobs, max_parallel_jobs, asked="as the sweep was begun")
        )
        jobs = _jobs(chosen, space, max_jobs)
        room = room_for(
            job,
            min(max_parallel_jobs, LAG if deterministic else jobs),
            memory_gb=memory_per_job_gb,
            gpus=gpus_per_job,
            deterministic=deterministic,
        )
        rule, stopping = _rule(early_stopping, chosen, len(goals), min_steps, max_steps, deterministic)
        legacy = (
            Inheritance()
            if warm_start is None
            else inherit(
                warm_start,
                algorithm=str(job.algorithm or job.script),
                objectives=goals,
                ranges=space,
                static=static,
                data=data,
                max_jobs=jobs,
            )
        )
        first: list[Values] = list(legacy.first)
        if job.algorithm is not None and chosen in ("bayesian", "hyperband"):
            point = declared.defaults_point(job.algorithm, static, space)
            first += [point] if point not in first else []
        self._plan = Plan(
            name=name,
            folder=self.folder,
            job=job,
            static=static,
            ranges=space,
            objectives=goals,
            constraints=_constraints(constraints or {}),
            strategy=chosen,
            why=f"{why}; {room.why}",
            max_jobs=jobs,
            room=room,
            rule=rule,
            stopping=stopping,
            seed=seed,
            lag=LAG if deterministic else None,
            completion=completion or Completion(),
            storage=storage,
            max_retries=max_retries,
            first=first,
            observed=legacy.observed,
            parents=[] if warm_start is None else [str(parent) for parent in warm_start.parents],
            data=data,
            overall=legacy.overall,
        )

    def run(self, *, progress: View | bool = True) -> Best:
        """Run the sweep; return its best trial.

        Args:
            progress: True: a live table on a terminal, a line for every trial elsewhere; False: nothing; or an object to tell.

        Raises:
            UserError, AlgorithmError, PlatformError: no trial succeeded, or none can.
            Stopped: it was stopped before its end, and can be resumed.
        """
        view = view_for() if progress is True else SilentView() if progress is False else progress
        plan = self._plan
        with claimed(self.folder, resume=self._resume) as earlier:
            if earlier is not None:
                check_same(plan, earlier)
            ledger = Ledger(
                self.folder,
                name=plan.name,
                url=plan.storage,
                ranges=plan.ranges,
                directions=[o.direction for o in plan.objectives],
                resume=self._resume,
            )
            with closing(ledger):
                self._sweep = Sweep(plan, ledger, view, self._stop, earlier)
                self._sweep.run()
        return self.best()

    def stop(self) -> None:
        """Ask the running sweep to stop in order, from any thread; `run()` then raises `Stopped`."""
        self._stop.request("stopped by Tuner.stop()", EXIT_SIGTERM)

    def trials(self) -> list[Trial]:
        """Return the trials so far, in order."""
        if self._sweep is not None:
            return list(self._sweep.trials)
        found = read(self.folder)
        return [] if found is None else trials_of(found)

    def best(self) -> Best:
        """Return the best completed trial by the first objective.

        Raises:
            AlgorithmError: none has completed.
        """
        trial = best_of(self.trials(), self._plan.objectives)
        if trial is None:
            first = next((t.failure for t in self.trials() if t.failure), None)
            raise AlgorithmError(f"no trial of the sweep '{self.name}' has completed" + (f"; {first}" if first else ""))
        return self._best(trial)

    def best_trials(self) -> list[Best]:
        """Return the trials that no other beats in every objective, the best by the first one first."""
        return [self._best(trial) for trial in front_of(self.trials(), self._plan.objectives)]

    def dataframe(self) -> Any:
        """Return the trials as a pandas data frame, with the columns of managed tuning's analytics.

        Raises:
            UserError: pandas is not installed.
        """
        return dataframe(records(self.trials(), list(self._plan.ranges), self._plan.objectives))

    def describe(self) -> dict[str, Json]:
        """Return sweep.json without its trials, and counters of jobs and objectives.

        Raises:
            UserError: the sweep has not begun.
        """
        return describe(self.folder)

    def _best(self, trial: Trial) -> Best:
        return Best(
            job=trial.job,
            number=trial.number,
            hyperparameters={**self._plan.static, **trial.values},
            objective=(trial.objective or [float("nan")])[0],
            metrics=trial.metrics,
            folder=_join(self.folder, trial.job),
            artifact=trial.artifact or _join(self.folder, trial.job, "model.tar.gz"),
        )


def describe(folder: str) -> dict[str, Json]:
    """Return sweep.json of a folder without its trials, counters, and the best trial.

    Raises:
        UserError: there is no sweep.
    """
    found = read(folder)
    if found is None:
        raise UserError(f"there is no sweep at {storage.redact(folder)}")
    trials = trials_of(found)
    best = best_of(trials, objectives_of(found))
    head = {key: value for key, value in found.items() if key != "trials"}
    return {**head, **counters(trials), "best": None if best is None else best.to_json()}


def _space(
    job: TrainingJob, given: dict[str, Range], objectives: list[str], directions: list[str], inputs: Mapping[str, Channel]
) -> tuple[dict[str, Range], dict[str, Any], list[Objective]]:
    """Return ranges, shared hyperparameters and objectives, the algorithm's own where nothing was given."""
    if directions and objectives and len(directions) != len(objectives):
        raise UserError(f"{len(objectives)} objectives and {len(directions)} directions were given: give one for each")
    if job.algorithm is None:
        if not given:
            raise UserError("a script declares no ranges: give ranges, as {'lr': phalanx.Continuous(1e-4, 1e-1)}")
        if not objectives:
            raise UserError("a script declares no objective: give objective and direction")
        twice = [name for name in given if name in job.hyperparameters]
        if twice:
            raise UserError(f"{twice[0]} has both a value and a range: leave one of them out")
        goals = [declared.resolved(m, d, {}) for m, d in _paired(objectives, directions)]
        return checked(given), dict(job.hyperparameters), goals
    algorithm = job.algorithm
    static = declared.static_values(algorithm, job.hyperparameters, objectives[0] if objectives else None)
    if given:
        space = checked(given)
        declared.check_ranges(algorithm, static, space)
    else:
        space = checked(declared.default_ranges(algorithm, static))
    sample = declared.sample_values(static, space)
    if objectives:
        known = declared.objectives_of(algorithm, sample)
        return space, static, [declared.resolved(m, d, known) for m, d in _paired(objectives, directions)]
    goal = declared.default_objective(algorithm, sample, inputs)
    if directions:
        goal = declared.resolved(goal.metric, directions[0], {})
    return space, static, [goal]


def _paired(objectives: list[str], directions: list[str]) -> list[tuple[str, str | None]]:
    given: list[str | None] = [*directions] or [None for _ in objectives]
    return list(zip(objectives, given, strict=True))


def _strategy(
    given: str, space: Mapping[str, Range], max_jobs: int | None, parallel: int, asked: str = "as asked"
) -> tuple[Strategy, str]:
    if given not in STRATEGIES:
        raise UserError(f"there is no strategy '{given}'; {nearest(given, STRATEGIES)}")
    if given != "auto":
        strategy: Strategy = "bayesian" if given == "bayesian" else "random" if given == "random" else "hyperband"
        return ("grid" if given == "grid" else strategy), f"strategy {given}, {asked}"
    points, jobs = size(space), max_jobs or DEFAULT_JOBS
    if points is not None and points <= jobs:
        return "grid", f"strategy grid: the space has {points} points, and {jobs} trials try them all"
    if parallel * 2 > jobs:
        return (
            "random",
            f"strategy random: with {parallel} of {jobs} trials at once there is little to learn from before the last",
        )
    return "bayesian", f"strategy bayesian: {jobs} trials, {parallel} at once, over {len(space)} hyperparameters"


def _jobs(strategy: Strategy, space: Mapping[str, Range], max_jobs: int | None) -> int:
    if strategy != "grid":
        return max_jobs or DEFAULT_JOBS
    count = size(space)
    if count is not None and count > MOST_POINTS:
        raise UserError(f"strategy grid: the space has {count} points, at most {MOST_POINTS} can be tried: use random")
    points = len(grid(space))
    return points if max_jobs is None else min(points, max_jobs)


def _rule(
    given: str, strategy: Strategy, goals: int, least: int | None, most: int | None, deterministic: bool
) -> tuple[Rule, str]:
    if given not in EARLY_STOPPING:
        raise UserError(f"early_stopping='{given}' is not allowed; {nearest(str(given), EARLY_STOPPING)}")
    if goals > 1 and given in ("median", "asha"):
        raise UserError(f"early_stopping={given} needs one objective, and {goals} were given: use off")
    if goals > 1 and strategy == "hyperband":
        raise UserError(f"strategy hyperband needs one objective, and {goals} were given: use bayesian")
    if strategy == "hyperband":
        if given == "median":
            raise UserError("strategy hyperband stops trials its own way: leave early_stopping out")
        return Halving(least=least, most=most, brackets=2, promotes=not deterministic), "hyperband"
    if goals > 1 or given == "off":
        return Never(), "off"
    if given == "median":
        return MedianRule(), "median"
    return Halving(least=least, most=most, promotes=not deterministic), "asha"


def _constraints(given: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    if not isinstance(given, Mapping):
        raise UserError(f"constraints={given!r} is not allowed: give a mapping of metrics to (smallest, largest)")
    found = {}
    for name, ends in given.items():
        if (
            not isinstance(ends, (list, tuple))
            or len(ends) != 2
            or all(end is None for end in ends)
            or not all(end is None or _is_number(end) for end in ends)
        ):
            raise UserError(f"constraints.{name}={ends!r} is not allowed: give (smallest, largest), one of which may be None")
        low, high = (None if end is None else float(end) for end in ends)
        if low is not None and high is not None and low > high:
            raise UserError(f"constraints.{name}={ends!r} is not allowed: nothing is at least {low:g} and at most {high:g}")
        found[name] = (low, high)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _fingerprints(inputs: Mapping[str, Channel]) -> dict[str, str]:
    return {
        name: storage.fingerprint([file for url in channel.urls for file in storage.list_files(url)])
        for name, channel in inputs.items()
    }


def _names(what: str, given: str | Sequence[str] | None) -> list[str]:
    found = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    if given is not None and not found:
        raise UserError(f"{what}={given!r} is not allowed: it must be a text, or a list of texts")
    for name in found:
        if not isinstance(name, str) or not name:
            raise UserError(f"{what}={given!r} is not allowed: it must be a text, or a list of texts")
    if len(set(found)) < len(found) and what == "objective":
        raise UserError(f"objective={given!r} names a metric twice")
    return found


def _truth(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name}={value!r} is not allowed: it must be true or false")


def _whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name}={value!r} is not allowed: it must be a whole number of at least {low}")


_join: Callable[..., str] = storage.join  # `storage` is also an argument
