"""Checkpoints of a job: saved behind the step loop, committed by a manifest, restored only if they verify.

    store = CheckpointStore("s3://bucket/run1", world=world, job_id="run1")
    step = store.restore({"algorithm": algorithm, "shard": shard})   # 0: from the start
    ...
    store.save(step, {"algorithm": algorithm, "shard": shard}, metrics={"validation:loss": 0.3})
    ...
    store.wait()
    store.close()

What holds, whatever dies or fails when:

- Only `STEP/manifest.json` makes a checkpoint. It is one put, made last, by rank 0, and holds the hash of every file and its
  own. There is no pointer to the newest one, and nothing is renamed.
- Every save of every saver writes under names of its own, so that two savers never mix: of two manifests of a step either
  is whole.
- The newest checkpoint that verifies is never deleted, nor is a newer one; a manifest is deleted before its files.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import final

from ..contracts import Collective, Stateful
from ..errors import AlgorithmError
from ..parallel.collective import together
from . import reading, restoring
from .background import BackgroundSave, SaveJob, SaveReport
from .fence import Pass
from .patience import settle
from .place import Place, StoragePlace
from .policy import Retention
from .pruning import prune
from .reading import CheckpointInfo
from .restoring import Restored
from .state import Copier, Snapshot, States

_CLOSE_S = 10.0


@final
class CheckpointStore:
    """The checkpoints of one job at one place. Making one is Collective.

    Args:
        url: a local folder or any URL that `phalanx.storage` knows.
        world: the ranks that save and restore together.
        job_id: the same for every attempt of a job, and for whatever may go on from its checkpoints; checkpoints of other
            jobs at the same place are passed over.
        attempt: 0, then one more for every restart.
        keep: what stays after every commit; None: everything.
        commit_timeout_s: how long rank 0's writer waits for what the other ranks write.
        place: instead of the one at `url`, for tests.
        fence: the run whose fence lets this attempt commit; None: there is none.

    Attributes:
        restored: what the last `restore` did: step, and what it passed over and why.
    """

    def __init__(
        self,
        url: str,
        *,
        world: Collective,
        job_id: str,
        attempt: int = 0,
        keep: Retention | None = None,
        commit_timeout_s: float = 600.0,
        place: Place | None = None,
        fence: str | None = None,
    ) -> None:
        self.restored = Restored(0)
        self._place: Place = StoragePlace(url) if place is None else place
        self._world = world
        self._job_id = job_id
        self._attempt = attempt
        self._fence = None if fence is None else Pass(fence, attempt)
        self._keep = keep
        self._commit_timeout_s = commit_timeout_s
        self._nonce = world.broadcast(secrets.token_hex(4))
        self._copier = Copier()
        self._saves = 0
        self._flying: tuple[BackgroundSave, float] | None = None  # and its stall
        self._reports: list[SaveReport] = []

    def save(self, step: int, parts: Mapping[str, Stateful], *, metrics: Mapping[str, float] | None = None) -> float:
        """Collective. Copy the parts' state and start writing it; return the seconds that this took (the stall).

        Waits for the save before, if that is still being written: one is in flight at most.

        Args:
            step: after which the state is.
            parts: what is saved, by names without "/".
            metrics: at this step, for `Retention.best`; rank 0's are kept.

        Raises:
            PhalanxError: the save before failed, on every rank; or the state holds what no checkpoint can. The store can be
                used further: another save may go well.
        """
        begun = time.perf_counter()
        self._finish_flying(None)
        states = {name: part.state_dict() for name, part in parts.items()}
        snapshot = together(self._world, f"copying the state of step {step}", lambda: self._copy(step, states))
        job = SaveJob(
            step=step,
            folder=f"{step}/{self._attempt}-{self._nonce}-{self._saves}",
            snapshot=snapshot,
            rank=self._world.rank,
            world=self._world.size,
            job=self._job_id,
            attempt=self._attempt,
            parts=tuple(parts),
            metrics={name: _finite(value) for name, value in (metrics or {}).items()},
            commit_timeout_s=self._commit_timeout_s,
            fence=self._fence,
        )
        self._saves += 1
        is_pruning = self._keep is not None and self._world.rank == 0
        stall_s = time.perf_counter() - begun
        self._flying = BackgroundSave(self._place, job, self._prune_behind if is_pruning else None), stall_s
        return stall_s

    def wait(self, timeout_s: float | None = None) -> bool:
        """Collective. Wait until the save in flight is committed; return whether it is (True where there is none).

        Args:
            timeout_s: longest to wait; the save goes on then.

        Raises:
            PhalanxError: the save failed; on every rank.
        """
        return self._finish_flying(timeout_s)

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Collective. Put the newest checkpoint back that verifies; return its step, 0 where there is none.

        `restored` says what was passed over. A part's state as it is says which slices of sharded values this rank wants.
        Nothing is touched unless all ranks have read and verified what they need.

        Raises:
            UserError: the newest one that verifies is of another kind of job.
            PlatformError: the storage does not answer, or none of its checkpoints could be read.
        """
        self._finish_flying(None)
        self.restored = restoring.restore(self._place, self._world, self._job_id, parts)
        return self.restored.step

    def list(self, *, content: bool = True) -> Sequence[CheckpointInfo]:
        """Return all checkpoints, newest first; any rank may call.

        Args:
            content: read and hash every file; else names and sizes are checked.
        """
        return reading.list_checkpoints(self._place, content=content)

    def prune(self, retention: Retention) -> Sequence[int]:
        """Delete what `retention` does not keep, on rank 0; return the steps. See `pruning.prune`."""
        return prune(self._place, self._job_id, retention) if self._world.rank == 0 else []

    def take_reports(self) -> Sequence[SaveReport]:
        """Return the reports of saves that were seen to end since the last call, by `save` or `wait`."""
        reports, self._reports = self._reports, []
        return reports

    def close(self) -> None:
        """Give up the save in flight, if there is one; not Collective, and safe to call twice. `wait` first to keep it."""
        if self._flying is not None:
            self._flying[0].cancel()
            self._flying[0].join(_CLOSE_S)
            self._flying = None

    def _copy(self, step: int, states: States) -> Snapshot:
        if step < 1:
            raise AlgorithmError(f"a checkpoint is of a step from 1 on, not of {step}")
        return self._copier.copy(states, self._world.rank)

    def _finish_flying(self, timeout_s: float | None) -> bool:
        if self._flying is None:
            return True
        flying, stall_s = self._flying
        if not settle(self._world, flying.join, timeout_s, failed=flying.failed, cancel=flying.cancel):
            return False
        self._flying = None
        report = together(self._world, "writing behind", lambda: flying.result(stall_s))
        self._reports.append(report)
        return True

    def _prune_behind(self) -> None:
        if self._keep is not None:
            prune(self._place, self._job_id, self._keep)


def checkpoints_at(url: str, *, content: bool = True) -> Sequence[CheckpointInfo]:
    """Return the checkpoints at a place, of whatever job, newest first; none where there is no such place.

    Args:
        url: a local folder or any URL that `phalanx.storage` knows.
        content: read and hash every file; else names and sizes are checked.
    """
    return reading.list_checkpoints(StoragePlace(url), content=content)


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
