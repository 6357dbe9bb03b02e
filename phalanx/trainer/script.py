"""`phalanx.session()`: the seam of a user's own script, under `phalanx run`, under torchrun, and alone.

    session = phalanx.session()
    for step, batch in enumerate(session.channels["train"].batches(256), 1):
        ...
        session.report(step, {"train:loss": loss})

All that it knows comes from the environment, so that the same script runs in all three ways.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, final

from .. import environment, observing, pulse
from ..contracts import Collective, Json, Shard, Stateful
from ..data.channel import Channel
from ..data.shard import open_shard
from ..errors import Stopped, UserError, nearest, to_record
from ..heartbeat import Heartbeat
from ..parallel.collective import Solo
from ..scratch import Scratch
from .measuring import Measuring
from .saving import Saver
from .session import WorkerSession

if TYPE_CHECKING:
    import torch

_SHARDED = ("train", "training")  # every row to one rank, unless the job says otherwise; other channels are replicated
_SOON_SECONDS = 0.5  # within which a signal to a process group has reached all of it
_GPU = Path("/dev/nvidiactl")
# that take long to load, and may be loaded in a process from which others are forked
_LIBRARIES = ("numpy", "pandas", "phalanx", "pyarrow", "safetensors", "scipy", "sklearn", "torch", "xgboost")
_NOT_BEFORE_A_FORK = ("torch._inductor",)  # starts processes


@final
class ScriptSession:
    """`contracts.Session` of a script, and what else a job has for it. Made by `session()`.

    Attributes:
        world: the ranks that run the script.
        channels: name -> `contracts.Shard`; one is opened when it is first asked for, by all ranks.
        hyperparameters: name -> value, decoded.
        seed: the job's; 0 without one.
        threads: that this rank may use.
        device: torch's name of the device to compute on.
        model_dir: what is saved here becomes the artifact; `model` without a job.
        output_data: what is put here is published beside the artifact; `output` without a job.
        checkpoints: a folder that stays over restarts of the job; `checkpoints` without one.
        strategy: of `phalanx run --strategy`, None where it was not given.
    """

    def __init__(self, world: Collective, device: str, stop: threading.Event) -> None:
        given = json.loads(environment.get("SM_HPS") or "{}")
        self.world = world
        self.hyperparameters: dict[str, Json] = given if isinstance(given, dict) else {}
        self.seed = int(environment.get(environment.SEED) or 0)
        self.threads = int(environment.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        self.device = device
        self.model_dir = Path(environment.get("SM_MODEL_DIR") or "model")
        self.output_data = Path(environment.get("SM_OUTPUT_DATA_DIR") or "output")
        self.checkpoints = Path(environment.get(environment.CHECKPOINTS) or "checkpoints")
        self.strategy = environment.get(environment.STRATEGY)
        self._told = False  # which libraries are loaded
        self._watched: set[str] = set()
        self._folders = _channel_folders()
        self.channels: Mapping[str, Shard] = _Channels(_channels(self._folders), world, self.seed, self.threads)
        self._inner = WorkerSession(
            world=world,
            channels=self.channels,
            seed=self.seed,
            threads=self.threads,
            device=device,
            output_data=self.output_data,
            send=environment.send_event,
            stop_requested=stop.is_set,
            saver=_saver(world),
            measuring=_measuring(world),
            keeps_state=True,
        )

    def channel_folder(self, name: str) -> Path:
        """Return the folder with this rank's files of a channel, as SM_CHANNEL_NAME has it.

        Raises:
            UserError: there is no such channel.
        """
        if name.upper() not in self._folders:
            raise _no_channel(name, [known.lower() for known in self._folders])
        return Path(self._folders[name.upper()])

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Collective. See `contracts.Session.restore`."""
        return self._inner.restore(parts)

    def watch(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, *, loss: object = None, name: str = "") -> None:
        """Have the job's rules see the tensors of a training loop of your own, as they see those of a `Trainer`.

        Call it on every rank before the first step: gradients, weights and activations are looked at around
        `optimizer.step()`, at steps whose turn it is. Without rules it does nothing.

        Args:
            module: what is trained.
            optimizer: that trains it.
            loss: a `torch.nn.Module` that is called with (output, target): for the rules on classes.
            name: that goes before the names of its tensors; each of several needs one of its own.

        Raises:
            UserError: something of this name is watched already.
        """
        if name in self._watched:
            known = f"a module of the name '{name}'" if name else "a module"
            raise UserError(f"session.watch: {known} is watched already; give each a name= of its own")
        self._watched.add(name)
        if observing.now.wants("tensors") or observing.now.wants("labels"):
            from .watched import watch

            watch(module, optimizer, loss=loss, name=name)

    def report(self, step: int, metrics: Mapping[str, float], *, rows: int = 0, of: int | None = None) -> None:
        """Collective. See `contracts.Session.report`."""
        self._inner.report(step, metrics, rows=rows, of=of)
        if not self._told and self.world.rank == 0:
            environment.send_event({"at": time.time(), "kind": "loaded", "modules": _loaded()})
        self._told = True


_current: list[ScriptSession] = []


def session() -> ScriptSession:
    """Collective at its first call. Return this process's session: its world, channels, `restore` and `report`.

    All ranks call it. It joins the group that torchrun, Slurm or Phalanx started, through torch's default process group, which
    it makes unless the script has. From then on SIGTERM is noted and taken up at the next `report`, and an exception that
    nobody catches is declared to the job before the process ends.
    """
    if not _current:
        stop = threading.Event()
        _listen(stop)
        _declare_failures()
        if (every_s := environment.heartbeat_seconds()) is not None:
            atexit.register(Heartbeat(environment.send_event, every_s).close)
        world, device = _world()
        pulse.now.alone = world.size == 1
        _current.append(ScriptSession(world, device, stop))
    return _current[0]


def _loaded() -> list[str]:
    """Return the packages, of some libraries, that are loaded, in their order."""
    return [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in _LIBRARIES and not name.startswith(_NOT_BEFORE_A_FORK) and "__path__" in vars(module)
    ]


def _saver(world: Collective) -> Saver | None:
    """Collective. Return what takes the job's checkpoints; None outside a job."""
    given, attempt = environment.checkpointing()
    return None if given is None else Saver(given, world=world, attempt=attempt, send=environment.send_event)


def _measuring(world: Collective) -> Measuring | None:
    """Return what measures this rank for the job's rules or its profile; None where it has none."""
    wanted = environment.observe()
    if not wanted:
        return None
    observer = observing.start(wanted, rank=world.rank, size=world.size, send=environment.send_event)
    found = Measuring(observer)
    atexit.register(found.close)
    return found


def _world() -> tuple[Collective, str]:
    """Collective. Return the world and the device; torch is loaded only where there are other ranks or something to find."""
    place = environment.placement()
    if (place is None or place.size == 1) and "torch" not in sys.modules and not _GPU.exists():
        return Solo(), "cpu"
    from ..parallel.process_group import default_device, world_of_environment

    return world_of_environment(), str(default_device())


def _channel_folders() -> dict[str, str]:
    """Return every folder of SM_CHANNEL_*, by the name's capitals."""
    prefix = "SM_CHANNEL_"
    return {name.removeprefix(prefix): value for name, value in environment.snapshot().items() if name.startswith(prefix)}


def _channels(folders: Mapping[str, str]) -> dict[str, Channel]:
    """Return the channels that the job says, or else those that have a folder."""
    config = environment.get("SM_INPUT_CONFIG_DIR")
    path = Path(config) / "channels.json" if config else None
    if path is not None and path.is_file():
        given = json.loads(path.read_text(encoding="utf-8"))
        found = {name: Channel(**values) for name, values in given.items()}
    else:
        found = {name.lower(): Channel(url=folder) for name, folder in folders.items()}
    return {
        name: Channel(**{**c.to_json(), "spread": "shard"}) if c.spread is None and name in _SHARDED else c
        for name, c in found.items()
    }


@final
class _Channels(Mapping[str, Shard]):
    """Opens a channel when it is first asked for."""

    def __init__(self, channels: Mapping[str, Channel], world: Collective, seed: int, threads: int) -> None:
        self._channels = channels
        self._world = world
        self._seed = seed
        self._threads = threads
        self._open: dict[str, Shard] = {}
        self._scratch: Scratch | None = None

    def __getitem__(self, name: str) -> Shard:
        """Collective at the first time for each name.

        Raises:
            UserError: there is no such channel, or it cannot be read; on every rank.
        """
        if name not in self._channels:
            raise _no_channel(name, self._channels)
        if name not in self._open:
            self._open[name] = self._opened(name)
        return self._open[name]

    def __contains__(self, name: object) -> bool:
        return name in self._channels

    def __iter__(self) -> Iterator[str]:
        return iter(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    def _opened(self, name: str) -> Shard:
        if self._scratch is None:
            self._scratch = Scratch("session")
        return open_shard(
            name,
            self._channels[name],
            rank=self._world.rank,
            size=self._world.size,
            seed=self._seed,
            gather=self._world.all_gather,
            scratch=self._scratch.path,
            columns=None,
            index_base=1,
            threads=self._threads,
        )


def _no_channel(name: str, known: Mapping[str, object] | list[str]) -> UserError:
    there = nearest(name, list(known)) if known else "there is none"
    return UserError(
        f"there is no channel '{name}': give it as `phalanx run … --channel {name}=URL`, or its folder as the variable "
        f"SM_CHANNEL_{name.upper()}; {there}"
    )


def _listen(stop: threading.Event) -> None:
    """Note SIGTERM, and stop at the next report; a script's own handler is left in place."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    owner, told = os.getpid(), mmap.mmap(-1, 1)  # shared with what is forked from here
    spared: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            told[0] = 1
            stop.set()
        elif not spared and _soon(lambda: told[0] == 1):
            spared.append(
                number
            )  # a data loader's process: the stop is the group's, and this one is needed until the next step
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, note)


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SOON_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(_SOON_SECONDS / 20)
    return condition()


def _declare_failures() -> None:
    """Tell the job of an exception that ends this process, before the group closes and its peers fail for that."""
    before, owner = sys.excepthook, os.getpid()

    def declare(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and os.getpid() == owner:
            environment.send_event({"at": time.time(), "kind": "failure", "error": to_record(error)})
        if isinstance(error, Stopped):
            sys.stderr.write(f"{error}\n")
        else:
            before(kind, error, trace)

    sys.excepthook = declare
