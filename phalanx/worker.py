"""One rank of a job, put together top to bottom: world, channels, algorithm, fit, artifact.

`main` is the target that a launcher runs in every process of the worker group. Its payload:

    job        what job.json holds (resolved: algorithm, hyperparameters, inputs, seed, …)
    scratch    folder on this machine; rank 0 leaves the model in scratch/attempt-N/model
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, final

from . import environment, hyperparameters, observing, pulse, registry, shared, storage
from .contracts import Algorithm, Collective, Json, WorkerContext
from .data.channel import Channel, parse_content_type
from .data.shard import FileShard, open_shard
from .errors import Stopped, UserError, from_record, to_record
from .parallel.collective import Solo, together
from .trainer.counting import count_learnt
from .trainer.measuring import Measuring
from .trainer.saving import Saver
from .trainer.session import WorkerSession

MODEL_CARD = "phalanx.json"
MODEL_FORMAT = 1
COLLECTIVE_SECONDS = 1800.0  # a peer that died is noticed at once; this ends the wait for one that hangs


@dataclass(frozen=True, slots=True)
class Request:
    """What this rank is asked to do, read from its payload."""

    algorithm: str
    hyperparameters: Mapping[str, Any]
    inputs: Mapping[str, Channel]
    seed: int
    scratch: Path
    checkpoints: Mapping[str, Json] | None  # see `trainer.saving.Saver`; None: none are taken

    @classmethod
    def of(cls, payload: Json, attempt: int) -> Request:
        """Read a payload; every attempt has a scratch folder of its own."""
        job = payload["job"]
        inputs = {name: Channel(**channel) for name, channel in job["inputs"].items()}
        scratch = Path(payload["scratch"]) / f"attempt-{attempt}"
        return cls(job["algorithm"], job["hyperparameters"], inputs, job["seed"], scratch, job.get("checkpoints"))


@final
class StopFlag:
    """SIGTERM: before training it ends the worker at once, while training it is taken up at the next report."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def install(self) -> None:
        """Listen to SIGTERM; SIGINT is the launcher's business."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within: a signal is only noted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Stopped("stopped before training began")


def main(context: WorkerContext) -> None:
    """Run one rank to its end; a failure is declared before the group closes, so that peers are not taken for the cause."""
    stop = StopFlag()
    stop.install()
    world: Collective | None = None
    code = 0
    try:
        world = open_world(context)
        train(Request.of(context.payload, context.attempt), world, context, stop)
    except Exception as error:
        record = to_record(error)
        record["message"], record["details"] = storage.redact(record["message"]), storage.redact(record["details"])
        context.send({"kind": "failure", "error": record})
        if not isinstance(error, (UserError, Stopped)):
            sys.stderr.write(record["details"])
        code = from_record(record).exit_code
    finally:
        if world is not None:
            with stop.deferred():
                world.close()
    if code:
        sys.exit(code)


def open_world(context: WorkerContext) -> Collective:
    """Collective. Join the group's other ranks."""
    if context.size == 1:
        return Solo()
    from .parallel import joining  # torch is loaded where there is somebody to talk to

    place = environment.placement()
    if place is None:
        raise UserError("RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not set: a worker is started by a launcher")
    return joining.open_world(
        place.rank, place.size, place.master_addr, place.master_port, store_fd=context.store_fd, timeout_s=COLLECTIVE_SECONDS
    )


def train(request: Request, world: Collective, context: WorkerContext, stop: StopFlag) -> None:
    """Collective. Open the channels, fit, leave the model in the scratch folder of rank 0."""
    cls = registry.load(request.algorithm)
    settings = hyperparameters.parse(cls.Hyperparameters, request.hyperparameters, owner=request.algorithm)
    algorithm: Algorithm = cls(settings)
    context.send({"kind": "phase", "phase": "Downloading"})
    channels = open_channels(request, world, context, getattr(settings, "feature_dim", None))
    output_data = request.scratch / "output"
    output_data.mkdir(parents=True, exist_ok=True)
    context.send({"kind": "phase", "phase": "Training"})
    saver = open_saver(request.checkpoints, world, context)
    pulse.now.alone = world.size == 1
    observer = observing.start(environment.observe(), rank=world.rank, size=world.size, send=context.send)
    measuring = Measuring(observer)
    session = WorkerSession(
        world=world,
        channels=channels,
        seed=request.seed,
        threads=context.threads,
        device="cpu",
        output_data=output_data,
        send=context.send,
        stop_requested=lambda: stop.requested,
        saver=saver,
        measuring=measuring,
    )
    with contextlib.ExitStack() as ending:
        ending.enter_context(stop.deferred())
        for shard in channels.values():
            ending.callback(shard.close)
        if saver is not None:
            ending.callback(saver.close)
        ending.callback(measuring.close)
        try:
            algorithm.fit(session)
            pulse.now.phase = "Saving"
            if world.rank == 0 and observer.wants("labels"):
                counted = count_learnt(algorithm, session, hyperparameters.to_json(settings))
                if counted is not None:
                    observer.tell("labels", {"step": pulse.now.step, **counted, "final": True})
            if saver is not None:
                saver.finish()
        except Stopped:
            if getattr(settings, "save_model_on_termination", False):
                save(request, algorithm, settings, world.rank)
            raise
        together(world, "saving the model", lambda: save(request, algorithm, settings, world.rank))


def open_saver(given: Mapping[str, Json] | None, world: Collective, context: WorkerContext) -> Saver | None:
    """Collective. Return what takes the job's checkpoints, None where there are to be none."""
    return None if given is None else Saver(given, world=world, attempt=context.attempt, send=context.send)


def open_channels(
    request: Request, world: Collective, context: WorkerContext, columns: int | str | None
) -> dict[str, FileShard]:
    """Collective. Open every channel, `train` first: the others take its width."""
    kept = shared.channels_of(request.inputs, algorithm=request.algorithm, seed=request.seed, columns=columns)
    if kept is not None and world.size == 1:
        return kept
    index_base = registry.entry(request.algorithm).index_base
    width = columns if isinstance(columns, int) else None
    channels: dict[str, FileShard] = {}
    for name in sorted(request.inputs, key=lambda name: (name != "train", name)):
        channels[name] = shard = open_shard(
            name,
            request.inputs[name],
            rank=world.rank,
            size=world.size,
            seed=request.seed,
            gather=world.all_gather,
            scratch=request.scratch / "data",
            columns=width,
            index_base=index_base,
            threads=context.threads,
            fetches=context.local_rank == 0,
        )
        width = shard.columns if width is None else width
    return channels


def save(request: Request, algorithm: Algorithm, settings: Any, rank: int) -> None:
    """Write the model's files and its card on rank 0; the card comes last."""
    if rank != 0:
        return
    folder = request.scratch / "model"
    folder.mkdir(parents=True, exist_ok=True)
    algorithm.save(folder)
    card = {
        "format": MODEL_FORMAT,
        "algorithm": request.algorithm,
        "hyperparameters": hyperparameters.to_json(settings),
        "seed": request.seed,
        "files": storage.hashes(folder),
        **_index_base(request),
    }
    (folder / MODEL_CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _index_base(request: Request) -> dict[str, Json]:
    """Return where libsvm rows of channel `train` begin to count, if that is not where they do for this algorithm anyway."""
    said = request.inputs["train"].content_type
    base = parse_content_type(said).index_base if said else None
    return {} if base in (None, registry.entry(request.algorithm).index_base) else {"index_base": base}
