"""Every protocol and value type that the rooms share, on one page (numpy and the standard library only).

Legend of shapes: N rows, D columns (features), R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy.typing as npt

if TYPE_CHECKING:  # this page loads numpy only
    import torch

Array = npt.NDArray[Any]
Json = Any  # a value that json.dumps takes: None, bool, int, float, str, list, dict with str keys
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Csr:
    """Sparse rows, compressed: row i holds `values[indptr[i]:indptr[i+1]]` at columns `indices[…]` (0-based, ascending)."""

    indptr: Array  # (N + 1,) int64
    indices: Array  # (nnz,) int64 or int32
    values: Array  # (nnz,) float32
    columns: int

    def __len__(self) -> int:
        return len(self.indptr) - 1


@dataclass(frozen=True, slots=True)
class Records:
    """Rows that are no numbers: text lines (str) or decoded JSON objects."""

    items: Sequence[Json]

    def __len__(self) -> int:
        return len(self.items)


Features = Array | Csr | Records


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch; may hold no rows.

    Its rows are whole blocks, one after another in the order of the epoch: see `Shard.batches`.
    """

    first_row: int  # position of its first row in the order of the epoch (= the global row number unless shuffled)
    features: Features  # dense (N, D) float32, sparse, or records
    label: Array | None = None  # (N,) float32
    weight: Array | None = None  # (N,) float32
    group: Array | None = None  # (N,) int64, query id; a group's rows are neighbours

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a state, with the scope that says how it is saved and restored on another number of ranks.

    global: the same on every rank, saved once. rank: each rank's own (RNG); a rank that is new starts afresh.
    sharded: a part at `offset` of a value of `shape`; restoring cuts it anew.
    """

    value: Array | Json
    scope: Literal["global", "rank", "sharded"] = "global"
    shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None


State = Mapping[str, Entry]


class Stateful(Protocol):
    """What can be saved in a checkpoint and put back."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


class Collective(Protocol):
    """The ranks of a world talking to each other. All ranks make the same calls in the same order.

    A peer that is lost, or silent beyond the time limit, is a `PlatformError` on every rank that waits for it.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def all_reduce(self, x: Array, op: Literal["sum", "min", "max"] = "sum") -> Array:
        """Collective. Return the elementwise `op` over ranks (dtype and shape of `x` kept); `x` is not changed."""
        ...

    def all_gather(self, value: T) -> list[T]:
        """Collective. Return every rank's value in rank order. Arrays (any shape per rank) or JSON values; never pickle."""
        ...

    def all_to_all(self, parts: Sequence[Array]) -> list[Array]:
        """Collective. `parts[r]` goes to rank r; return what each rank sent here. 1-d arrays of one dtype."""
        ...

    def sparse_sum(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Collective. Sum rows `values` (n, …) with equal int64 `keys` (n,) over ranks; keys come back sorted."""
        ...

    def broadcast(self, value: T, root: int = 0) -> T:
        """Collective. Return the value of rank `root` (an array or a JSON value)."""
        ...

    def vote(self, flag: int) -> int:
        """Collective. Cast `flag` and return the maximum over ranks of the *previous* vote (0 at first).

        The exchange runs behind the caller's back until the next vote, so that agreeing costs no round trip.
        """
        ...

    def barrier(self, timeout_s: float) -> None:
        """Collective. Wait until all ranks are here."""
        ...

    def close(self) -> None: ...


class Shard(Stateful, Protocol):
    """One channel as this rank sees it."""

    @property
    def rows(self) -> int:
        """Rows of the whole channel."""
        ...

    @property
    def columns(self) -> int | None:
        """Columns of the whole channel; None for records."""
        ...

    @property
    def parts(self) -> int:
        """Ranks that share its rows; 1: every rank reads all of them."""
        ...

    @property
    def streaming(self) -> bool:
        """Whether its rows must not all be held in memory."""
        ...

    def where(self, position: int, *, epoch: int = 0, shuffle: bool = False) -> str:
        """Return how a person finds a row: "train.csv line 17".

        `position` counts in the order of `batches(…, epoch=epoch, shuffle=shuffle)`, as `Batch.first_row` does; unless that is
        shuffled it is the row's global number.
        """
        ...

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """Yield this rank's part of every global batch of `rows` rows; the order is a function of (seed, epoch) alone.

        A global batch is cut into fixed blocks (`phalanx.data.order.blocks`); a rank yields its run of them, also when it is
        empty, so that all ranks see the same number of batches. A replicated channel yields whole batches on every rank.
        """
        ...


class Session(Protocol):
    """All that `fit` may touch of the world around it."""

    world: Collective
    channels: Mapping[str, Shard]
    seed: int
    threads: int  # that this rank may use
    device: str
    output_data: Path  # files a user wants beside the artifact

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Collective. Put back the newest checkpoint; return its step, 0 where there is none."""
        ...

    def report(self, step: int, metrics: Mapping[str, float], *, rows: int = 0, of: int | None = None) -> None:
        """Collective. Step `step` is done: log it, save a checkpoint if one is due.

        Args:
            step: counted from 1 over the job's whole life.
            metrics: flat keys as `train:msd`; rank 0's are the job's.
            rows: rows this step consumed over all ranks, for the readout of rows/s.
            of: steps that the whole job will take, where that is known, for the time left.

        Raises:
            Stopped: on every rank at the same step, once the job has been asked to stop.
        """
        ...


class Algorithm(Stateful, Protocol):
    """A built-in. `__init__` takes its hyperparameters and only stores them; `fit` learns."""

    Hyperparameters: ClassVar[type]

    def fit(self, session: Session) -> None: ...
    def predict(self, requests: Features) -> dict[str, Array]:
        """Local. Return one array per column of the response, a row per request."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model's files into `folder` (rank 0 only); deterministic bytes, no pickle."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a strategy is given to make a replica of: a module, its loss and optimizer, and how a step is computed."""

    module: torch.nn.Module
    loss: Callable[[Any, Any], torch.Tensor] | None  # None: the module takes the whole batch and returns its loss
    make_optimizer: Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]
    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1  # micro-batches that a rank computes for one step
    clip_norm: float | None = None  # largest 2-norm of the global gradient
    compile: bool = False
    activation_checkpointing: bool = False  # of the module's repeated blocks
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that are computed at once.

    The gradient of a step is the sum over all micro-batches of all ranks of `weight` times the gradient of their mean loss.
    """

    inputs: Any  # tensors on the device, alone or in tuples, lists and mappings; the whole batch where the loss is None
    target: Any
    weight: float  # its rows / rows of the global batch; 0 for rows that only stand in where a rank has none
    seed: int  # of torch's generators while it is computed


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step came to, the same on all ranks."""

    loss: float  # weighted mean over the global batch, before the update; not finite where it is so on any rank
    grad_norm: float | None  # 2-norm of the global gradient before clipping; None where it was not asked for
    applied: bool = True  # False: fp16 gradients overflowed, the update was left out and the scale lowered


class Replica(Stateful, Protocol):
    """A module being trained by a strategy, as one rank holds it. `state_dict` holds module and optimizer; Collective."""

    @property
    def data_rank(self) -> int:
        """Which part of every global batch this rank reads; ranks that share a model's copy have the same."""
        ...

    @property
    def data_size(self) -> int:
        """Parts of a global batch."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose `param_groups` hold the learning rates in force."""
        ...

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> StepOutput:
        """Collective. One optimizer update from `accumulate` micro-batches."""
        ...

    def evaluate_step(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Collective. Return the weighted mean loss without learning; any number of micro-batches, the same on all ranks."""
        ...

    def predict_step(self, inputs: Any) -> Any:
        """Collective. Return the module's output for this rank's inputs, without learning."""
        ...

    def export(self) -> dict[str, torch.Tensor] | None:
        """Collective. Return the full weights by the bare module's names, on the CPU, on rank 0; None on other ranks."""
        ...

    def close(self) -> None:
        """Give back process groups and hooks. Safe to call twice."""
        ...


class Strategy(Protocol):
    """How one training step of a torch module is spread over ranks; an object of options."""

    @property
    def name(self) -> str: ...
    def prepare(self, recipe: Recipe, world: Collective) -> Replica:
        """Collective. Place the module of rank 0 on all ranks.

        Raises:
            UserError: the module or the world does not fit; on every rank.
        """
        ...


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker group to start: `workers` processes that each run `target` or `command`.

    Exactly one of the two is set. A target is named "package.module:function", takes a `WorkerContext`, and may run in a
    process forked from a warm server; a command gets a fresh interpreter and finds its place in the environment. Where a
    command has a `forked`, named as a target is, a launcher with a warm server may call that instead, in the same environment.
    """

    workers: int
    log_folder: Path  # rank-N.log is appended to
    attempt: int  # 0, then one more for every restart
    target: str | None = None
    command: Sequence[str] | None = None
    forked: str | None = None  # does in a forked process what the command does in a fresh one
    payload: Json = None  # what a target is given
    preload: Sequence[str] = ()  # modules that a target needs; loaded once in the warm server
    environment: Mapping[str, str] | None = None  # added to the launcher's own
    threads: int = 1  # for each worker
    folder: Path | None = None  # working directory of a command
    least_workers: int | None = None  # a launcher without room for `workers` may start fewer, down to so many
    scratch: Path | None = None  # folder that the workers need; one that is not shared is carried to them
    brings: Sequence[str] = ()  # what workers leave below it for the launcher's side; "{attempt}" stands for the attempt
    shared: Sequence[str] = ()  # paths that the workers must see as this process does
    lasts: str | None = None  # a process that has done such a job in order may do another of the same word; None: one job each


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a target is called with, in its own process."""

    rank: int
    size: int
    local_rank: int
    threads: int
    attempt: int
    payload: Json
    send: Callable[[Mapping[str, Json]], None]  # one event to the supervisor; keeps order, never blocks for long
    store_fd: int | None = None  # rank 0 of a local group: the listening socket of MASTER_ADDR:MASTER_PORT


@dataclass(frozen=True, slots=True)
class Event:
    """Something a worker said: {"kind": "phase" | "step" | "failure" | …, …}; a failure holds `errors.to_record` as "error"."""

    rank: int
    time: float
    body: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended: `code` is negative for a signal, as in `subprocess`."""

    rank: int
    code: int
    time: float
    reason: str = ""  # what the launcher knows beyond that, in a sentence: its machine was lost


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of a group: `{rank, pid, host}` of status.json."""

    rank: int
    pid: int
    host: str


class Workers(Protocol):
    """A running worker group."""

    @property
    def members(self) -> Sequence[Member]: ...
    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """Return what happened, in order, waiting at most `timeout_s` for something; an exit comes after its rank's events."""
        ...

    def stop(self, grace_s: float) -> None:
        """Ask all living workers to end (SIGTERM); return. `poll` kills those alive after `grace_s`. 0: kill at once."""
        ...

    def dump(self, rank: int) -> None:
        """Ask one living worker to write the Python stacks of its threads to its log (SIGUSR1 to its process); return at once.

        Asked only of a worker that gave signs of life (`phalanx.pulse` listens to the signal). Nothing where it has ended.
        """
        ...

    def close(self) -> None:
        """Kill what still lives and give back every process, port and file. Safe to call twice."""
        ...


class Launcher(Protocol):
    """Brings worker groups to life; waiting, root cause and restarts are `launch.supervise`'s."""

    def prepare(self, preload: Sequence[str]) -> None:
        """Get ready for groups that will need these modules; returns at once."""
        ...

    def start(self, spec: WorkerSpec) -> Workers: ...
