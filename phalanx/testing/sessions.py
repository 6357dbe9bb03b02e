"""Training without a job around it: `MemorySession` is what `fit` is given, `train_in_threads` makes a world of threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..contracts import Algorithm, Array, Batch, Collective, Features, Shard, State, Stateful
from ..data.memory import array_shard
from ..errors import AlgorithmError, Stopped, UserError
from ..parallel.collective import Solo
from ..parallel.threads import run_threads


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a channel in memory."""

    features: Features
    label: Array | None = None
    weight: Array | None = None
    group: Array | None = None

    def shard(self, *, rank: int = 0, size: int = 1, seed: int = 0, replicate: bool = False) -> Shard:
        """Return the channel as rank `rank` of `size` sees it."""
        return array_shard(
            self.features, self.label, self.weight, self.group, rank=rank, size=size, seed=seed, replicate=replicate
        )


@dataclass(frozen=True, slots=True)
class Reported:
    """One report of a step."""

    step: int
    metrics: dict[str, float]
    rows: int
    of: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint would hold: a step, and the state of every part after it."""

    step: int
    states: Mapping[str, State]


@final
class MemorySession:
    """`contracts.Session` that keeps what is reported.

    Args:
        channels: by name.
        output_data: folder for files beside the artifact.
        world: the ranks; one where none is given.
        seed: of the job.
        threads: that this rank may use.
        stop_at: the step whose report raises `Stopped`.
        snapshot_at: the step after whose report the parts' states are taken.
        resumed: what `restore` puts back.
        on_report: called with every step before it is kept.

    Attributes:
        reports: in order.
        snapshot: taken at step `snapshot_at`.
    """

    def __init__(
        self,
        channels: Mapping[str, Shard],
        output_data: Path,
        *,
        world: Collective | None = None,
        seed: int = 0,
        threads: int = 1,
        stop_at: int | None = None,
        snapshot_at: int | None = None,
        resumed: Snapshot | None = None,
        on_report: Callable[[int], None] | None = None,
    ) -> None:
        self.world: Collective = Solo() if world is None else world
        self.channels = channels
        self.seed = seed
        self.threads = threads
        self.device = "cpu"
        self.output_data = output_data
        self.reports: list[Reported] = []
        self.snapshot: Snapshot | None = None
        self._stop_at = stop_at
        self._snapshot_at = snapshot_at
        self._resumed = resumed
        self._on_report = on_report
        self._parts: Mapping[str, Stateful] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of every metric."""
        return {name: value for report in self.reports for name, value in report.metrics.items()}

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Put the resumed states back into `parts`; return their step, 0 where there are none."""
        if self._parts is not None or self.reports:
            raise AlgorithmError("restore is called once, before the first report")
        self._parts = dict(parts)
        if self._resumed is None:
            return 0
        if set(parts) != set(self._resumed.states):
            raise AlgorithmError(f"the parts {sorted(parts)} are restored, {sorted(self._resumed.states)} were saved")
        for name, state in self._resumed.states.items():
            parts[name].load_state_dict(state)
        return self._resumed.step

    def report(self, step: int, metrics: Mapping[str, float], *, rows: int = 0, of: int | None = None) -> None:
        """Keep the report; see `contracts.Session.report`."""
        if self._on_report is not None:
            self._on_report(step)
        due = len(self.reports) + 1 + (self._resumed.step if self._resumed else 0)
        if step != due:
            raise AlgorithmError(f"step {step} was reported where step {due} was due; steps are reported once each, in order")
        if of is not None and step > of:
            raise AlgorithmError(f"step {step} of {of} was reported: there cannot be more steps than in all")
        self.reports.append(Reported(step, {name: float(value) for name, value in metrics.items()}, rows, of))
        if step == self._snapshot_at:
            states = {name: copy.deepcopy(dict(part.state_dict())) for name, part in (self._parts or {}).items()}
            self.snapshot = Snapshot(step, states)
        if step == self._stop_at:
            raise Stopped(f"stopped in order after step {step}")


@final
class BrokenShard:
    """A shard whose rows cannot be read to the end: its last batch is a `UserError`."""

    MESSAGE = "channel 'train', broken.csv line 7: 'abc' is not a number"

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    @property
    def rows(self) -> int:
        return self._shard.rows

    @property
    def parts(self) -> int:
        return self._shard.parts

    @property
    def columns(self) -> int | None:
        return self._shard.columns

    @property
    def streaming(self) -> bool:
        return self._shard.streaming

    def where(self, position: int, *, epoch: int = 0, shuffle: bool = False) -> str:
        return self._shard.where(position, epoch=epoch, shuffle=shuffle)

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """Yield all batches but the last, then raise."""
        ahead: Batch | None = None
        for batch in self._shard.batches(rows, epoch=epoch, shuffle=shuffle):
            if ahead is not None:
                yield ahead
            ahead = batch
        raise UserError(self.MESSAGE)

    def state_dict(self) -> State:
        return self._shard.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._shard.load_state_dict(state)


@dataclass(frozen=True, slots=True)
class Trained:
    """How training went on one rank."""

    algorithm: Algorithm
    session: MemorySession
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What may differ between two runs of the same training."""

    size: int = 1
    threads: int = 1
    seed: int = 0
    stop_at: int | None = None
    snapshot_at: int | None = None
    resumed: tuple[Snapshot, ...] | None = None  # one a rank
    broken_rank: int | None = None  # that cannot read channel `train` to its end


def attempt_in_threads(
    make_algorithm: Callable[[], Algorithm], channels: Mapping[str, Rows], folder: Path, how: Circumstances
) -> list[Trained]:
    """Train on `how.size` ranks, each a thread; return how it went on each rank, errors included.

    Args:
        make_algorithm: called once a rank.
        channels: `train` is spread over the ranks, the others are replicated.
        folder: for files that algorithms leave beside the artifact.
        how: see `Circumstances`.
    """

    def shard(name: str, rows: Rows, rank: int) -> Shard:
        whole = rows.shard(rank=rank, size=how.size, seed=how.seed, replicate=name != "train")
        return BrokenShard(whole) if name == "train" and rank == how.broken_rank else whole

    def rank_main(world: Collective) -> Trained:
        algorithm = make_algorithm()
        session = MemorySession(
            {name: shard(name, rows, world.rank) for name, rows in channels.items()},
            folder,
            world=world,
            seed=how.seed,
            threads=how.threads,
            stop_at=how.stop_at,
            snapshot_at=how.snapshot_at,
            resumed=None if how.resumed is None else how.resumed[min(world.rank, len(how.resumed) - 1)],
        )
        try:
            algorithm.fit(session)
        except Exception as error:
            return Trained(algorithm, session, error)
        return Trained(algorithm, session, None)

    return run_threads(how.size, rank_main)


def train_in_threads(
    make_algorithm: Callable[[], Algorithm], channels: Mapping[str, Rows], folder: Path, how: Circumstances
) -> list[Trained]:
    """Train as `attempt_in_threads` does; raise the first rank's error where there is one."""
    trained = attempt_in_threads(make_algorithm, channels, folder, how)
    for rank in trained:
        if rank.error is not None:
            raise rank.error
    return trained
