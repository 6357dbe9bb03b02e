"""`Trainer` in one process; what several ranks add is in tests/contracts/test_trainer_ranks.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import phalanx
from phalanx.errors import AlgorithmError, Stopped, UserError
from phalanx.testing.sessions import MemorySession, Snapshot

torch.manual_seed(0)
X = torch.randn(120, 6)
Y = (X @ torch.randn(6, 3)).argmax(1)
TRAIN, HELD = (X[:90], Y[:90]), (X[90:], Y[90:])
cross_entropy = nn.functional.cross_entropy


def net(seed: int = 1, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02)


def trainer(tmp_path: Path, module: nn.Module | None = None, **how: Any) -> tuple[phalanx.Trainer, MemorySession]:
    session = how.pop("session", None) or MemorySession({}, tmp_path, seed=how.pop("session_seed", 7))
    given = {"loss": cross_entropy, "optimizer": adam, **how}
    return phalanx.Trainer(net() if module is None else module, session=session, **given), session


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


def test_it_learns_and_reports(tmp_path: Path) -> None:
    made, session = trainer(tmp_path, metrics={"accuracy": accuracy})
    history = made.fit(TRAIN, validation=HELD, epochs=6, batch_size=20)
    assert made.step == len(history.losses) == 6 * 5
    assert history.losses[-1] < history.losses[0] / 2
    assert [record["epoch"] for record in history.evaluations] == [1, 2, 3, 4, 5, 6]
    assert [r.step for r in session.reports] == list(range(1, 31))
    assert {r.of for r in session.reports} == {30}
    assert [r.rows for r in session.reports[:5]] == [20, 20, 20, 20, 10]
    last = session.reports[-1].metrics
    assert last["validation:accuracy"] > 0.8
    assert last["train:samples_per_second"] > 0
    assert {"train:loss", "validation:loss", "train:seconds_step", "train:seconds_data_wait"} <= set(last)
    assert history.best == min(history.evaluations, key=lambda record: record["validation:loss"])


def test_the_loop_is_torchs(tmp_path: Path) -> None:
    """The same batches by hand, with clipping, accumulation and a schedule, give the same weights."""
    module, twin = net(), net()
    made, _ = trainer(
        tmp_path,
        module,
        clip_norm=0.5,
        accumulate=2,
        schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    )
    history = made.fit(TRAIN, epochs=2, batch_size=30, shuffle=False)
    optimizer = adam(twin.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    losses = []
    for _ in range(2):
        for start in range(0, 90, 30):
            loss = cross_entropy(twin(X[start : start + 30]), Y[start : start + 30])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    np.testing.assert_allclose(history.losses, losses, atol=1e-5)
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=1e-5)
    assert history.evaluations[-1]["train:learning_rate"] == pytest.approx(0.02 * 0.9**6)


def test_evaluation_and_prediction_see_every_row_in_order(tmp_path: Path) -> None:
    module = net(dropout=0.5)
    made, _ = trainer(tmp_path, module, metrics={"accuracy": accuracy})
    made.fit(TRAIN, epochs=1, batch_size=32)
    module.eval()
    with torch.no_grad():
        output = module(X)
    found = made.evaluate((X, Y), batch_size=50)
    assert found["loss"] == pytest.approx(float(cross_entropy(output, Y)), abs=1e-5)
    assert found["accuracy"] == pytest.approx(float(accuracy(output, Y)))
    for data in (X, (X, Y), TensorDataset(X), DataLoader(TensorDataset(X, Y), batch_size=7)):
        np.testing.assert_allclose(made.predict(data, batch_size=11), output, atol=1e-6)


def test_export_is_the_bare_module(tmp_path: Path) -> None:
    module = net()
    made, _ = trainer(tmp_path, module)
    made.fit(TRAIN, epochs=1, batch_size=30)
    path = made.export(tmp_path / "model")
    assert path == tmp_path / "model" / "model.safetensors"
    other = net(seed=9)
    other.load_state_dict(load_file(path), strict=True)
    assert torch.equal(other(X), module(X))


@pytest.mark.parametrize("stopped_at", [1, 3, 4, 7, 8])
def test_a_resume_in_mid_epoch_is_exact(tmp_path: Path, stopped_at: int) -> None:
    """Weights, optimizer, schedule, average, position, history: as if nothing had happened, with dropout and augmentation."""

    def run(session: MemorySession) -> tuple[phalanx.Trainer, Any]:
        made, _ = trainer(
            tmp_path,
            net(dropout=0.3),
            session=session,
            ema=0.8,
            schedule=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8),
        )
        return made, made.fit(Noisy(), validation=HELD, epochs=2, batch_size=25)

    whole, history = run(MemorySession({}, tmp_path, seed=3))
    session = MemorySession({}, tmp_path, seed=3, stop_at=stopped_at, snapshot_at=stopped_at)
    with pytest.raises(Stopped):
        run(session)
    assert isinstance(session.snapshot, Snapshot)
    torch.manual_seed(99)
    resumed, again = run(MemorySession({}, tmp_path, seed=3, resumed=session.snapshot))
    assert again.losses == history.losses
    a, b = whole.state_dict(), resumed.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        if name == "progress":
            continue  # holds measured times
        assert np.array_equal(np.asarray(a[name].value), np.asarray(b[name].value)), name


class Noisy(Dataset[Any]):
    """Samples that are augmented at random."""

    def __len__(self) -> int:
        return 90

    def __getitem__(self, row: int) -> Any:
        return X[row] + 0.1 * torch.randn(6), Y[row]


def test_early_stopping_and_the_best_model(tmp_path: Path) -> None:
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7, 0.1])
    weights: list[torch.Tensor] = []
    module = net()

    def watched(output: torch.Tensor, target: torch.Tensor) -> float:
        weights.append(module[0].weight.detach().clone())  # type: ignore[union-attr, operator]
        return next(values)

    made, session = trainer(tmp_path, module, metrics={"watched": watched})
    rule = phalanx.EarlyStopping("validation:watched", patience=3)
    history = made.fit(TRAIN, validation=HELD, epochs=20, batch_size=90, early_stopping=rule, keep_best=True)
    assert history.stopped_early
    assert len(session.reports) == 5
    assert history.best is not None
    assert history.best["step"] == 2
    assert torch.equal(module[0].weight, weights[1])  # type: ignore[arg-type]


def test_the_average_is_what_is_evaluated_and_exported(tmp_path: Path) -> None:
    module = net()
    made, _ = trainer(tmp_path, module, ema=0.5)
    seen: list[list[torch.Tensor]] = [[p.detach().clone() for p in module.parameters()]]
    for _ in range(3):
        made.fit(TRAIN, steps=1, batch_size=90)
        seen.append([p.detach().clone() for p in module.parameters()])
    average = seen[0]
    for weights in seen[1:]:
        average = [0.5 * a + 0.5 * w for a, w in zip(average, weights, strict=True)]
    path = made.export(tmp_path / "model")
    assert path is not None
    for exported, expected in zip(load_file(path).values(), _by_name(module, average).values(), strict=True):
        np.testing.assert_allclose(exported, expected, atol=1e-6)
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), seen[-1], strict=True))


def _by_name(module: nn.Module, values: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [name for name, _ in module.named_parameters()]
    return dict(sorted(zip(names, values, strict=True)))


def test_modules_that_return_their_loss(tmp_path: Path) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(inputs)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    def as_mapping(samples: list[Any]) -> dict[str, torch.Tensor]:
        return {"inputs": torch.stack([s[0] for s in samples]), "labels": torch.stack([s[1] for s in samples])}

    pairs, _ = trainer(tmp_path, WithLoss(), loss=None)
    mappings, _ = trainer(tmp_path, WithLoss(), loss=None)
    losses = pairs.fit(TRAIN, epochs=2, batch_size=30).losses
    assert losses == mappings.fit(TensorDataset(*TRAIN), epochs=2, batch_size=30, collate=as_mapping).losses
    assert losses[-1] < losses[0]
    assert pairs.evaluate(HELD)["loss"] > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns(tmp_path: Path, precision: str) -> None:
    made, _ = trainer(tmp_path, precision=precision)
    history = made.fit(TRAIN, epochs=6, batch_size=30)
    assert history.losses[-1] < history.losses[0] / 1.5
    assert {p.dtype for p in made.module.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_compiled_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)  # no processes that outlive the test
    eager, _ = trainer(tmp_path)
    compiled, _ = trainer(tmp_path, compile=True)
    losses = [made.fit(TRAIN, steps=2, batch_size=90).losses for made in (eager, compiled)]
    np.testing.assert_allclose(*losses, atol=1e-5)


def test_channels_last_reaches_the_module(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            found: torch.Tensor = self.convolution(x).mean((2, 3))
            return found

    made, _ = trainer(tmp_path, Images(), channels_last=True)
    made.fit((torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))), epochs=1, batch_size=4)
    assert seen == [True, True]


def test_batch_norm_in_evaluation_mode(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    made, _ = trainer(tmp_path, module)
    made.fit(TRAIN, epochs=2, batch_size=30)
    before = module[1].running_mean.clone()  # type: ignore[union-attr, operator]
    made.evaluate(HELD)
    assert torch.equal(before, module[1].running_mean)  # type: ignore[arg-type]
    assert module.training


def test_a_loss_that_is_no_number_names_its_step(tmp_path: Path) -> None:
    inputs = X.clone()
    inputs[35] = math.nan
    made, session = trainer(tmp_path)
    with pytest.raises(AlgorithmError, match="step 2: the loss is nan"):
        made.fit((inputs, Y), epochs=1, batch_size=30, shuffle=False)
    assert len(session.reports) == 1
    assert all(torch.isfinite(p).all() for p in made.module.parameters()), "the weights before the step are kept"


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    made, session = trainer(tmp_path)
    first = made.fit(TRAIN, steps=4, batch_size=30)
    second = made.fit(TRAIN, steps=4, batch_size=30)
    assert (len(first.losses), len(second.losses), made.step) == (4, 4, 8)
    assert [r.step for r in session.reports] == list(range(1, 9))
    assert second.losses[-1] < first.losses[0]


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: trainer(p, precision="int8"), "precision='int8' is not allowed; allowed: fp32, bf16, fp16"),
    (lambda p: trainer(p, accumulate=0), "accumulate=0 is not allowed"),
    (lambda p: trainer(p, clip_norm=-1), "clip_norm=-1 is not allowed"),
    (lambda p: trainer(p, strategy="dpp"), "no strategy 'dpp'; did you mean 'ddp'"),
    (lambda p: trainer(p, ema=2.0)[0].fit(TRAIN, batch_size=9), "ema=2.0 is not allowed"),
    (lambda p: trainer(p, optimizer=adam(net().parameters())), "optimizer must be a function of the parameters"),
    (lambda p: trainer(p, optimizer=lambda params: 3)[0].fit(TRAIN, batch_size=9), "returned int, no torch optimizer"),
    (lambda p: phalanx.Trainer("model", optimizer=adam), "module must be a torch.nn.Module"),  # type: ignore[arg-type]
    (lambda p: trainer(p)[0].fit(TRAIN), "batch_size=None is not allowed"),
    (lambda p: trainer(p)[0].fit(TRAIN, epochs=1, steps=3, batch_size=9), "epochs or steps, not both"),
    (lambda p: trainer(p)[0].fit(TRAIN, batch_size=9, keep_best=True), "need validation data"),
    (lambda p: trainer(p)[0].fit(X, batch_size=9), r"a batch must be \(inputs, target\)"),
    (lambda p: trainer(p, loss=None)[0].fit(X, batch_size=9), "the module returned no loss but a tensor"),
    (lambda p: trainer(p, loss=lambda o, t: 3)[0].fit(TRAIN, batch_size=9), "the loss function returned no loss"),
    (lambda p: trainer(p, loss=None, metrics={"a": accuracy}), "they need a loss function"),
    (lambda p: trainer(p, loss=nn.Linear(2, 2)), "the loss has parameters of its own"),
    (
        lambda p: trainer(p)[0].fit(TRAIN, validation=HELD, batch_size=9, early_stopping=phalanx.EarlyStopping("auc")),
        "early stopping watches 'auc', which is not reported",
    ),
]


@pytest.mark.parametrize(("action", "message"), WRONG)
def test_mistakes_are_told(action: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        action(tmp_path)


def test_a_frozen_module_has_nothing_to_train(tmp_path: Path) -> None:
    module = net()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    made, _ = trainer(tmp_path, module)
    with pytest.raises(UserError, match="no parameters to train"):
        made.fit(TRAIN, batch_size=9)
