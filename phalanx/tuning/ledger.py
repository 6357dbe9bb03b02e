"""The sweep's memory: an Optuna study on disk (a journal file, or a database's URL) that outlives the driver.

A trial is added as RUNNING, with its point, before its job begins, in one record. What is RUNNING when a sweep is resumed was
interrupted: its job's folder says how far it came.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from .. import storage
from ..contracts import Json
from ..errors import UserError
from ..scratch import Scratch
from .ranges import Range, Values
from .search import Directions, Known, coded, coded_name, decoded, distribution

JOURNAL = "optuna.journal"
_STATES: dict[TrialState, Literal["Completed", "Stopped", "Failed"]] = {
    TrialState.COMPLETE: "Completed",
    TrialState.PRUNED: "Stopped",
    TrialState.FAIL: "Failed",
}


@dataclass(frozen=True, slots=True)
class Remembered:
    """A trial as the study holds it."""

    number: int
    values: Values
    known: Known | None  # None: it was running
    notes: Mapping[str, Json]


@final
class Ledger:
    """The study of one sweep on disk.

    Args:
        folder: URL of the sweep's folder.
        name: of the study.
        url: of a database, as Optuna takes it; None: a journal file in the folder.
        ranges: the space.
        directions: one for each objective.
        resume: the study is there already, or may be.

    Raises:
        UserError: there is a study of this name already, or the database cannot be used.
    """

    def __init__(
        self, folder: str, *, name: str, url: str | None, ranges: Mapping[str, Range], directions: Directions, resume: bool
    ) -> None:
        self._ranges = ranges
        self._scratch: Scratch | None = None
        self._journal_file: _Journal | None = None
        self._sent: tuple[Path, str] | None = None  # a journal that is copied to a remote folder after every change
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self._storage = self._journal(folder) if url is None else _database(url)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, directions=list(directions), load_if_exists=resume
            )
        except optuna.exceptions.DuplicatedStudyError:
            raise UserError(
                f"{storage.redact(url or folder)} holds a study '{name}' already: give the sweep another name, or --resume"
            ) from None
        self._ids = [trial._trial_id for trial in self._study.get_trials(deepcopy=False)]

    def trials(self) -> list[Remembered]:
        """Return all trials by number."""
        return [self._remembered(trial) for trial in self._study.get_trials(deepcopy=False)]

    def begin(self, number: int, values: Values, notes: Mapping[str, Json]) -> None:
        """Add trial `number` as running."""
        present = {name: found for name, found in self._ranges.items() if name in values}
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params={coded_name(name, found): coded(found, values[name]) for name, found in present.items()},
                distributions={coded_name(name, found): distribution(name, found) for name, found in present.items()},
                user_attrs={**notes, "values": values},
            )
        )
        trial = self._study.get_trials(deepcopy=False)[-1]
        if trial.number != number:
            raise UserError(f"the study '{self._study.study_name}' is written by somebody else: trial {number} is not its next")
        self._ids.append(trial._trial_id)
        self._send()

    def note(self, number: int, key: str, value: Json) -> None:
        """Keep something about a trial."""
        self._storage.set_trial_user_attr(self._ids[number], key, value)
        self._send()

    def report(self, number: int, known: Known) -> None:
        """Keep what a trial came to that is stopped and may go on: it stays a running one."""
        if len(known.values) == 1:
            self._storage.set_trial_intermediate_value(self._ids[number], known.step, known.values[0])
            self._send()

    def finish(self, number: int, known: Known) -> None:
        """Say what a trial came to."""
        trial_id = self._ids[number]
        for name, value in (known.constraints or {}).items():
            self._storage.set_trial_system_attr(trial_id, f"constraints:{name}", value)
        if known.state == "Completed":
            self._study.tell(number, list(known.values))
        elif known.state == "Stopped":
            if len(known.values) == 1:
                self._storage.set_trial_intermediate_value(trial_id, known.step, known.values[0])
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, state=TrialState.FAIL)
        self._send()

    def sync(self) -> None:
        """Bring what was written to the disk: until then it outlives this process, but not the machine."""
        if self._journal_file is not None:
            self._journal_file.sync()

    def close(self) -> None:
        """Let go of files and connections."""
        self.sync()
        with contextlib.suppress(AttributeError):
            self._storage.remove_session()
        if self._scratch is not None:
            self._scratch.close()

    def _remembered(self, trial: FrozenTrial) -> Remembered:
        values = trial.user_attrs.get("values")
        if values is None:  # somebody else's tool added it
            values = {
                name: decoded(found, trial.params[coded_name(name, found)])
                for name, found in self._ranges.items()
                if coded_name(name, found) in trial.params
            }
        known = None
        if trial.state in _STATES:
            state = _STATES[trial.state]
            results: Sequence[float] = trial.values or ()
            step = trial.last_step or 0
            if state == "Stopped" and trial.intermediate_values:
                results = (trial.intermediate_values[step],)
            known = Known(state, tuple(results), step, trial.constraints or None)
        return Remembered(trial.number, dict(values), known, dict(trial.user_attrs))

    def _journal(self, folder: str) -> BaseStorage:
        url = storage.join(folder, JOURNAL)
        if storage.is_local(url):
            path = storage.local_path(url)
        else:
            self._scratch = Scratch("sweep")
            path = self._scratch.path / JOURNAL
            storage.fetch_file(url, path)
            self._sent = (path, url)
        mend(path)
        self._journal_file = _Journal(str(path))
        return JournalStorage(self._journal_file)

    def _send(self) -> None:
        if self._sent is not None:
            storage.put_file(*self._sent)


@final
class _Journal(JournalFileBackend):  # type: ignore[misc, unused-ignore]
    """A journal file that is brought to the disk when that is asked for, not at every line: a trial's start waits for none."""

    def __init__(self, path: str) -> None:
        self._path, self._guard = path, JournalFileSymlinkLock(path)
        super().__init__(path, lock_obj=self._guard)
        self._written = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, as the class below does."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._guard.acquire()
        try:
            with open(self._path, "ab") as file:
                file.write(text.encode())
        finally:
            self._guard.release()
        self._written = True

    def sync(self) -> None:
        """Bring it to the disk."""
        if self._written:
            self._written = False
            with open(self._path, "ab") as file:
                os.fsync(file.fileno())


def mend(path: Path) -> None:
    """Take away what a killed writer left of a journal: half a line at its end, which would spoil the next, and its lock."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _database(url: str) -> BaseStorage:
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # sqlalchemy's own, and ImportError of a driver
        raise UserError(f"the storage {storage.redact(url)} cannot be used: {error}") from None
