"""What the ranks of the strategy suite run: each action trains a case with a strategy and sends what came of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from ..contracts import Collective, Entry, Recipe, Replica, State, WorkerContext
from ..errors import PhalanxError, UserError, to_record
from ..parallel import connections
from ..parallel.collective import Solo
from ..parallel.failure import shared_failure
from ..parallel.process_group import leave_default_group
from ..parallel.strategies import strategy_of
from ..trainer.trainer import Trainer
from .sessions import MemorySession
from .strategy_models import CLASSES, FEATURES, OPTIMIZERS, Case, batch, build, micro_batches

Result = Mapping[str, Any]


def main(context: WorkerContext) -> None:
    """Run the action of the payload and send its result, or the error it ended with."""
    asked = context.payload
    case = Case(**{**asked["case"], "batches": tuple(asked["case"]["batches"])})
    world = _open(context)
    try:
        with shared_failure(world):
            result = _ACTIONS[asked["action"]](case, asked["strategy"], asked["options"], world)
        context.send({"kind": "result", "result": result})
    except Exception as error:
        context.send({"kind": "result", "error": to_record(error), "ours": isinstance(error, PhalanxError)})
    finally:
        with contextlib.suppress(RuntimeError):
            leave_default_group()
        world.close()


def prepared(case: Case, name: str, options: Mapping[str, Any], world: Collective, module: nn.Module | None = None) -> Replica:
    """Collective. Return the case's replica."""
    recipe = Recipe(
        module=build(case) if module is None else module,
        loss=nn.functional.cross_entropy,
        make_optimizer=OPTIMIZERS[case.optimizer],
        device=torch.device("cpu"),
        precision=case.precision,  # type: ignore[arg-type]
        accumulate=case.accumulate,
        clip_norm=case.clip_norm,
        activation_checkpointing=case.activation_checkpointing,
        seed=case.seed,
    )
    with connections.groups.noted():
        return strategy_of(name, options).prepare(recipe, world)


def train(case: Case, name: str, options: Mapping[str, Any], world: Collective) -> Result:
    """Train; return losses, norms, the exported weights (rank 0), and what the trained module makes of the first batch."""
    replica = prepared(case, name, options, world)
    outputs = _train(case, replica, 1, len(case.batches))
    evaluated = replica.evaluate_step(micro_batches(case, 1, replica.data_rank, replica.data_size))
    inputs, _ = batch(case, 1)
    predicted = replica.predict_step(inputs)
    weights = replica.export()
    replica.close()
    return {
        "losses": [o.loss for o in outputs],
        "norms": [o.grad_norm for o in outputs],
        "weights": None
        if weights is None
        else {n: [str(t.dtype), list(t.shape), t.flatten().tolist()] for n, t in weights.items()},
        "evaluated": evaluated,
        "predicted": predicted.float().tolist(),
        "data": [replica.data_rank, replica.data_size],
    }


def resume(case: Case, name: str, options: Mapping[str, Any], world: Collective) -> Result:
    """Train in one go, and in two with the state put into a fresh replica in between; return both trainings' weights."""
    half, steps = len(case.batches) // 2, len(case.batches)
    straight = prepared(case, name, options, world)
    first = _train(case, straight, 1, half)
    state = _copied(straight.state_dict())
    second = _train(case, straight, half + 1, steps)
    whole = straight.export()
    straight.close()
    other = Case(**{**_fields(case), "seed": case.seed + 1})
    resumed = prepared(case, name, options, world, module=build(other))
    resumed.load_state_dict(state)
    again = _train(case, resumed, half + 1, steps)
    later = resumed.export()
    resumed.close()
    same = whole is None or (later is not None and all(torch.equal(whole[n], later[n]) for n in whole))
    return {
        "same": same,
        "losses": [o.loss for o in first + second],
        "again": [o.loss for o in again],
        "scopes": sorted({entry.scope for entry in state.values()}),
    }


def wrong_shape_on_one_rank(case: Case, name: str, options: Mapping[str, Any], world: Collective) -> Result:
    """Give one rank inputs of another width in the second step: the last, or the first where ranks share their rows."""
    replica = prepared(case, name, options, world)
    _train(case, replica, 1, 1)
    micro = micro_batches(case, 2, replica.data_rank, replica.data_size)
    if world.rank == (world.size - 1 if replica.data_size == world.size else 0):
        for item in micro:
            item.inputs.resize_(len(item.inputs), 5)
    replica.train_step(micro)
    return {}


def other_module_on_one_rank(case: Case, name: str, options: Mapping[str, Any], world: Collective) -> Result:
    """Build a wider last layer on the last rank."""
    module = build(case)
    if world.rank == world.size - 1:
        module.append(nn.Linear(6, 9))  # type: ignore[operator]
    prepared(case, name, options, world, module=module)
    return {}


def fit(case: Case, name: str, options: Mapping[str, Any], world: Collective) -> Result:
    """Train, evaluate, predict and export through `Trainer`."""
    rows = 61
    generator = torch.Generator().manual_seed(case.seed)
    inputs = torch.randn(rows, FEATURES, generator=generator)
    target = torch.randint(0, CLASSES, (rows,), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        session = MemorySession({}, Path(folder), world=world, seed=case.seed)
        trainer = Trainer(
            build(case),
            nn.functional.cross_entropy,
            optimizer=OPTIMIZERS[case.optimizer],
            strategy=strategy_of(name, options),
            accumulate=case.accumulate,
            clip_norm=case.clip_norm,
            schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
            metrics={"accuracy": lambda output, wanted: (output.argmax(1) == wanted).float().mean()},
            session=session,
        )
        held = (inputs[40:], target[40:])
        history = trainer.fit((inputs[:40], target[:40]), validation=held, epochs=3, batch_size=16)
        path = trainer.export(Path(folder) / "model")
        exported = None if path is None else {n: t.flatten().tolist() for n, t in load_file(path).items()}
        predicted = trainer.predict(inputs, batch_size=20)
        trainer.close()
    return {
        "losses": history.losses,
        "validation": [[r["validation:loss"], r["validation:accuracy"]] for r in history.evaluations],
        "rates": [r["train:learning_rate"] for r in history.evaluations],
        "predicted": predicted.float().tolist(),
        "exported": exported,
        "reported": [r.step for r in session.reports],
    }


def fit_until_broken(case: Case, name: str, options: Mapping[str, Any], world: Collective) -> Result:
    """Train with a sample of the last rank's part that cannot be read, in the second step."""
    data = _Broken(world.rank == world.size - 1)
    with tempfile.TemporaryDirectory() as folder:
        session = MemorySession({}, Path(folder), world=world, seed=case.seed)
        trainer = Trainer(
            build(case),
            nn.functional.cross_entropy,
            optimizer=OPTIMIZERS[case.optimizer],
            strategy=strategy_of(name, options),
            session=session,
        )
        trainer.fit(data, epochs=1, batch_size=16, shuffle=False)
    return {}


class _Broken(Dataset[Any]):
    """Rows of which the last quarter cannot be read on one rank."""

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> Any:
        if self._broken and row >= 24:
            raise UserError(f"sample {row}.png is no image")
        return torch.full((FEATURES,), row / 64), row % CLASSES


_ACTIONS: dict[str, Callable[[Case, str, Mapping[str, Any], Collective], Result]] = {
    f.__name__: f for f in (train, resume, wrong_shape_on_one_rank, other_module_on_one_rank, fit, fit_until_broken)
}


def _train(case: Case, replica: Replica, first: int, last: int) -> list[Any]:
    return [
        replica.train_step(micro_batches(case, step, replica.data_rank, replica.data_size)) for step in range(first, last + 1)
    ]


def _copied(state: State) -> dict[str, Entry]:
    """Return the state with arrays of its own: training on must not reach into what was taken."""
    return {
        n: Entry(e.value.copy() if hasattr(e.value, "copy") else e.value, e.scope, e.shape, e.offset) for n, e in state.items()
    }


def _fields(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in case.__slots__}


def _open(context: WorkerContext) -> Collective:
    if context.size == 1:
        return Solo()
    from .. import environment
    from ..parallel import joining

    place = environment.placement()
    assert place is not None
    return joining.open_world(
        place.rank, place.size, place.master_addr, place.master_port, store_fd=context.store_fd, timeout_s=60
    )
