"""The driver of a sweep: keeps its slots full of trials, learns from those that end, stops poor ones, survives being killed.

take_up    what an earlier driver left: finished trials are learnt from, interrupted ones go on from their checkpoints
fill       an interrupted trial | a stopped one that has earned to go on | a new proposal
handle     the rule has stopped a trial (judged in the thread of its job) | a job has ended | somebody asked to stop
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from .. import storage
from ..contracts import Json
from ..errors import PhalanxError, PlatformError, Stopped, UserError, error_of_kind
from ..launch.stopping import StopRequest, stopping_on_signals
from .ending import completed, violations_of
from .ledger import Ledger, Remembered
from .plan import Plan, described, write
from .recall import fill_in, never_reported, recorded_error
from .search import Known, Search
from .sharing import sharing_launcher
from .stopping import Curve
from .trial import Computed, Ended, Judged, Message, Running, Trial, Wake, curve_of, job_name, job_of, metrics_of
from .view import View

_TICK_SECONDS = 1.0
_HOPELESS = 3  # first trials that all fail: the fault is not their hyperparameters'


@final
class Sweep:
    """One pass of the driver over a sweep.

    Args:
        plan: what is to be done.
        ledger: the study on disk; holds the trials of earlier passes.
        view: is told what happens.
        stop: asks the driver to stop, from any thread.
        earlier: sweep.json of the pass before, where there was one.
    """

    def __init__(self, plan: Plan, ledger: Ledger, view: View, stop: StopRequest, earlier: Mapping[str, Any] | None) -> None:
        self._plan = plan
        self._ledger = ledger
        self._view = view
        self._stop = stop
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.trials: list[Trial] = []
        self._running: dict[int, Running] = {}
        self._computed: set[int] = set()  # of them those whose workers have ended
        self._waiting: list[int] = []  # interrupted or failed trials that are to be run again
        self._paused: set[int] = set()  # stopped by a rule that may promote them
        self._final: dict[int, Known] = {}
        self._learnt = 0  # deterministic: trials below this number have been learnt from
        self._exhausted = False
        self._changed = False  # since sweep.json was written
        self._ending: str | None = None  # why no more trials are begun
        self._error: PhalanxError | None = None
        self._curves: dict[int, Curve] = {}
        self._head = described(plan)
        self._sharing = sharing_launcher(plan)
        earlier = earlier or {}
        self._earlier = {int(t["number"]): t for t in earlier.get("trials", [])}
        self._created = float(earlier.get("created", time.time()))
        self._spent_before = float(earlier.get("spent_s", 0.0))
        self._begun = time.monotonic()
        self._search = Search(
            plan.ranges,
            strategy=plan.strategy,
            directions=[o.direction for o in plan.objectives],
            seed=plan.seed,
            first=plan.first,
            observed=plan.observed,
        )

    def run(self) -> str:
        """Run to the end; return why it ended.

        Raises:
            UserError, AlgorithmError: no trial can succeed, so that it makes no sense to go on.
            Stopped: somebody asked for it; the sweep can be resumed.
        """
        self._view.started(self._plan)
        reason = "Stopped"
        try:
            with stopping_on_signals(self._stop, lambda: self._messages.put(Wake())):
                self._take_up()
                if self._sharing is not None and self._may_begin():
                    self._sharing.begin()
                self._write("InProgress", "")
                self._loop()
            reason = self._reason()
        finally:
            self._wait_for_all()
            if self._sharing is not None:
                self._sharing.dismiss()
            failed = self._error is not None and not isinstance(self._error, Stopped)
            self._write("Failed" if failed else "Stopped" if self._interrupted() else "Completed", reason)
            if self._sharing is not None:
                self._sharing.close()
            self._view.ended(self.trials, reason)
        if self._error is not None:
            raise self._error
        return reason

    # what an earlier driver left

    def _take_up(self) -> None:
        for remembered in self._ledger.trials():
            trial = self._recalled(remembered)
            self.trials.append(trial)
            self._curves[trial.number] = trial.curve
            self._search.took(trial.number, trial.values)
            if remembered.known is not None:
                self._final[trial.number] = remembered.known
                self._learn(trial.number)
        for trial in self.trials:
            if trial.number not in self._final:
                self._take_up_running(trial)

    def _recalled(self, remembered: Remembered) -> Trial:
        """Return a trial from what the study, sweep.json and its folder say of it; the study is right where they differ."""
        known = remembered.known
        job = job_name(self._plan.name, remembered.number, remembered.values)
        trial = Trial(remembered.number, str(remembered.notes.get("job", job)), remembered.values)
        told = self._earlier.get(remembered.number)
        if told is not None and told["job"] == trial.job:
            trial = Trial.from_json({**told, "values": remembered.values})
        trial.curve = curve_of(storage.join(self._plan.folder, trial.job), self._plan.objectives[0])
        stopped_at = remembered.notes.get("stopped_at")
        trial.stopped_at = None if stopped_at is None else int(stopped_at)
        if known is None:
            trial.status = "InProgress"
        else:
            status = self._status_of(trial)
            if status is not None:
                fill_in(trial, status)
            trial.status = known.state
            trial.objective = list(known.values) or None
            trial.feasible = all(value <= 0 for value in (known.constraints or {}).values())
        return trial

    def _take_up_running(self, trial: Trial) -> None:
        status = self._status_of(trial)
        state = None if status is None else status["status"]
        if status is not None:
            fill_in(trial, status)
        if state == "Completed":
            self._finish(trial)
        elif trial.stopped_at is not None:
            self._stopped_early(trial)
        elif state == "Failed" and status is not None:
            self._failed(trial, recorded_error(self._plan.folder, trial, status))
        elif self._plan.lag is not None and (step := self._missed_judgement(trial)) is not None:
            trial.stopped_at = step
            self._ledger.note(trial.number, "stopped_at", step)
            self._stopped_early(trial)
        else:
            self._waiting.append(trial.number)

    def _missed_judgement(self, trial: Trial) -> int | None:
        """Return the first step at which the rule stops a trial that was killed before it could be told so."""
        rule = self._plan.rule
        for step in trial.curve.steps:
            if rule.due(trial.number, step, trial.curve.of) and rule.stops(trial.number, step, self._seen_by(trial)):
                return step
        return None

    def _status_of(self, trial: Trial) -> dict[str, Any] | None:
        found = storage.read_json(storage.join(self._plan.folder, trial.job, "status.json"))
        return found if isinstance(found, dict) else None

    # the loop

    def _loop(self) -> None:
        while True:
            if self._ending is None:
                self._fill()
            if self._changed:  # once the slots are full: what is lost in a kill before, the study and the trials' folders know
                self._write("InProgress", "")
            self._ledger.sync()
            if not self._running and (self._ending is not None or not self._may_begin()):
                return
            try:
                message = self._messages.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                message = Wake()
            self._handle(message)
            self._check_time()
            self._view.changed(self.trials, self._running.keys())

    def _may_begin(self) -> bool:
        return bool(self._waiting) or (not self._exhausted and len(self.trials) < self._plan.max_jobs)

    def _fill(self) -> None:
        while len(self._running) - len(self._computed) < self._plan.room.slots and not self._stop.requested():
            trial = self._next()
            if trial is None:
                return
            self._start(trial)

    def _next(self) -> Trial | None:
        """Return the trial to run now, None where there is none or it must wait."""
        if self._waiting:
            return self.trials[self._waiting.pop(0)]
        promoted = self._plan.rule.promoted(sorted(self._paused), self._curves) if self._paused else None
        if promoted is not None:
            self._paused.discard(promoted)
            trial = self.trials[promoted]
            trial.stopped_at = None
            self._ledger.note(promoted, "stopped_at", None)
            return trial
        number = len(self.trials)
        if number >= self._plan.max_jobs or self._exhausted or not self._knows_enough(number):
            return None
        values = self._search.propose(number)
        if values is None:
            self._exhausted = True
            return None
        trial = Trial(number, job_name(self._plan.name, number, values), values)
        self._ledger.begin(number, values, {"job": trial.job})
        self.trials.append(trial)
        self._curves[number] = trial.curve
        return trial

    def _knows_enough(self, number: int) -> bool:
        """Learn what a proposal of this number is to know; return False where that is not there yet (deterministic sweeps)."""
        lag = self._plan.lag
        if lag is None:
            return True
        while self._learnt <= number - lag:
            if self._learnt not in self._final:
                return False
            self._search.learn(self._learnt, self._final[self._learnt])
            self._learnt += 1
        return True

    def _start(self, trial: Trial) -> None:
        plan = self._plan
        trial.status, trial.failure, trial.ended = "InProgress", None, None
        trial.started = trial.started or time.time()
        taken = {running.devices for number, running in self._running.items() if number not in self._computed}
        devices = plan.room.free(taken)
        job = job_of(plan.job, trial, static=plan.static, folder=plan.folder, threads=plan.room.threads, devices=devices)
        job = job if self._sharing is None else replace(job, launcher=self._sharing)
        running = Running(trial, job, plan.objectives[0], self._judge, self._messages.put, devices)
        self._running[trial.number] = running
        running.start()
        self._changed = self._changed or not self._computed  # else it is written in a moment, with a trial's end

    def _handle(self, message: Message) -> None:
        if isinstance(message, Judged):
            self._ledger.note(message.number, "stopped_at", message.step)
        elif isinstance(message, Computed):
            self._take_computed(message)
        elif isinstance(message, Ended):
            self._take_ended(message)
        if self._stop.requested() and self._ending is None:
            self._end("Stopped", Stopped(self._stop.reason or "the sweep was asked to stop", self._stop.exit_code))
        elif self._stop.urgent:
            for running in self._running.values():
                running.stop()

    def _judge(self, trial: Trial, step: int) -> bool:
        """Return whether the rule stops a trial at a step that it has come to; called from the thread of its job."""
        rule = self._plan.rule
        if trial.stopped_at is not None or self._ending is not None or not rule.due(trial.number, step, trial.curve.of):
            return False
        if not rule.stops(trial.number, step, self._seen_by(trial)):
            return False
        trial.stopped_at = step
        self._messages.put(Judged(trial.number, step))
        return True

    def _seen_by(self, trial: Trial) -> dict[int, Curve]:
        """Return the curves that a trial is compared with: in deterministic sweeps of trials that ended before it began."""
        curves = self._curves.copy()  # the driver may add to it meanwhile
        if self._plan.lag is None:
            return curves
        last = trial.number - self._plan.lag
        return {number: curve for number, curve in curves.items() if number <= last or number == trial.number}

    def _take_computed(self, message: Computed) -> None:
        """Give a trial's slot away while its model is published; what it came to is learnt now, for the next proposal.

        Not where how a trial ends decides whether there is a next one.
        """
        number, trial = message.number, self.trials[message.number]
        values = [message.metrics.get(o.metric) for o in self._plan.objectives]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        completion = self._plan.completion
        decides = completion.target is not None or completion.not_improving is not None or completion.on_convergence
        if decides or self._ending is not None or trial.stopped_at is not None or len(finite) < len(values):
            return
        self._computed.add(number)
        if self._plan.lag is None:
            violations = violations_of(self._plan, message.metrics)
            self._search.learn(number, Known("Completed", tuple(finite), message.step, violations or None))

    def _take_ended(self, message: Ended) -> None:
        running = self._running.pop(message.number)
        self._computed.discard(message.number)
        running.join()
        trial, error, result = running.trial, message.error, message.result
        trial.ended = time.time()
        if result is not None:
            trial.metrics, trial.artifact = dict(result.metrics), result.artifact
            trial.seconds, trial.step = result.training_seconds, max(trial.step, result.step)
        if error is None:
            self._finish(trial)
        elif isinstance(error, Stopped):
            own_limit = result is not None and result.secondary_status == "MaxRuntimeExceeded"
            if trial.stopped_at is not None or own_limit or (self._ending is not None and not self._interrupted()):
                self._stopped_early(trial)
            elif self._ending is None:
                self._end("Stopped", error)  # its workers were stopped from outside, not by this driver
        else:
            self._failed(trial, error)
        self._check_completion()
        self._changed = True
        self._view.finished(trial, self.trials)

    # how trials end

    def _finish(self, trial: Trial) -> None:
        """Take in a trial whose job has completed."""
        self._complete_metrics(trial)
        if self._plan.lag is not None and trial.stopped_at is not None:
            self._stopped_early(trial)  # the rule had spoken; that the job was quicker than the stop is a matter of chance
            return
        trial.status, trial.stopped_at, trial.curve.ended = "Completed", None, True
        values = [trial.metrics.get(o.metric) for o in self._plan.objectives]
        missing = [o.metric for o in self._plan.objectives if o.metric not in trial.metrics]
        if missing and not any(known.state == "Completed" for known in self._final.values()):
            trial.status, trial.failure = "Failed", f"the objective {missing[0]} was never reported"
            self._settle(trial, Known("Failed"))
            self._end("Failed", UserError(never_reported(missing[0], self._plan, trial)))
            return
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if len(finite) < len(values):
            trial.status = "Failed"
            trial.failure = f"the objective {missing[0]} was never reported" if missing else "the objective is not finite"
            self._settle(trial, Known("Failed"))
            return
        trial.objective = finite
        violations = violations_of(self._plan, trial.metrics)
        trial.feasible = all(value <= 0 for value in violations.values())
        self._settle(trial, Known("Completed", tuple(finite), trial.step, violations or None))

    def _complete_metrics(self, trial: Trial) -> None:
        """Add metrics that only an attempt before the last one reported, as of a job that was killed after its last step."""
        if any(trial.metrics.get(o.metric) is None for o in self._plan.objectives):
            trial.metrics = {**metrics_of(storage.join(self._plan.folder, trial.job)), **trial.metrics}

    def _stopped_early(self, trial: Trial) -> None:
        """Take in a trial that was stopped, and what it came to until then; a rule may promote it later."""
        trial.status = "Stopped"
        value = trial.curve.value_at(trial.stopped_at or trial.step) if trial.curve.steps else None
        values = () if value is None or len(self._plan.objectives) > 1 else (self._plan.objectives[0].sign * value,)
        trial.objective = list(values) or None
        known = Known("Stopped", values, trial.stopped_at or trial.step)
        if self._plan.rule.promotes and trial.stopped_at is not None and self._ending is None:
            self._paused.add(trial.number)  # it teaches what it came to until now, and more if it goes on
            self._ledger.report(trial.number, known)
            self._search.learn(trial.number, known)
            return
        self._settle(trial, known)

    def _failed(self, trial: Trial, error: PhalanxError) -> None:
        trial.stuck = trial.stuck + 1 if trial.step <= trial.failed_at else 1
        trial.failed_at = max(trial.failed_at, trial.step)
        if isinstance(error, PlatformError) and trial.stuck <= self._plan.max_retries and self._ending is None:
            trial.retries += 1
            self._waiting.append(trial.number)
            return
        trial.status, trial.failure = "Failed", f"{error.kind}: {storage.redact(error.message)}"
        trial.retryable = isinstance(error, PlatformError)
        if self._ending is not None and trial.retryable and self._interrupted():
            return  # the machine goes down: the trial goes on when the sweep is resumed
        self._settle(trial, Known("Failed"))
        known = self._final.values()
        if (
            self._ending is None
            and not self._paused
            and all(k.state == "Failed" for k in known)
            and len(known) >= min(_HOPELESS, self._plan.max_jobs)
        ):
            first = next((t for t in self.trials if t.failure), trial)
            kind, _, text = (first.failure or "").partition(": ")
            what = "the first trial" if len(known) == 1 else f"the first {len(known)} trials"
            self._end("Failed", error_of_kind(kind, f"{what} of the sweep failed: {text}"))

    def _settle(self, trial: Trial, known: Known) -> None:
        self._final[trial.number] = known
        self._ledger.finish(trial.number, known)
        self._learn(trial.number)

    def _learn(self, number: int) -> None:
        if self._plan.lag is None:
            self._search.learn(number, self._final[number])

    # how the sweep ends

    def _check_completion(self) -> None:
        if self._ending is None and (reason := completed(self._plan, self._final, self.trials)) is not None:
            self._end(reason, None)

    def _check_time(self) -> None:
        limit = self._plan.completion.max_runtime_s
        if limit is not None and self._ending is None and self._spent() >= limit:
            self._end("MaxRuntimeExceeded", None)

    def _end(self, reason: str, error: PhalanxError | None) -> None:
        """Begin no more trials, and stop those that run."""
        self._ending, self._error = reason, error
        for running in self._running.values():
            running.stop()

    def _interrupted(self) -> bool:
        return isinstance(self._error, Stopped) or (self._ending is None and (bool(self._running) or self._may_begin()))

    def _reason(self) -> str:
        if self._ending is None:
            self._ending = "SpaceExhausted" if self._exhausted else "MaxJobs"
        if not self._interrupted():
            for number in sorted(self._paused):
                trial = self.trials[number]
                self._settle(trial, Known("Stopped", tuple(trial.objective or ()), trial.stopped_at or trial.step))
            self._paused.clear()
        return self._ending

    def _wait_for_all(self) -> None:
        """No thread outlives the driver, whatever ended it."""
        for running in self._running.values():
            running.stop()
        for running in list(self._running.values()):
            running.join()
        self._running.clear()

    def _spent(self) -> float:
        return self._spent_before + time.monotonic() - self._begun

    def _write(self, status: str, reason: str) -> None:
        self._changed = False
        state: dict[str, Json] = {
            "status": status,
            "reason": reason,
            "failure": None if self._error is None else storage.redact(str(self._error)),
            "created": self._created,
            "spent_s": round(self._spent(), 3),
            "overall": None if self._plan.overall is None else dict(self._plan.overall),
        }
        write(self._plan, self._head, self.trials, state)
