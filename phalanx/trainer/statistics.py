"""Statistics of what is trained, for the rules that look at tensors: gradients, weights, their change, activations, classes.

They are taken around the optimizer's step, through its hooks, so that they are the same for every strategy: what a strategy's
optimizer holds is what is looked at. Ranks that hold the same replica leave it to rank 0. Sharded ones each look at their own
part; the flat parts of ZeRO have no names of layers (and ZeRO 3 keeps them to itself: only activations are seen), and a
pipeline's ranks see their own layers, without classes. Nothing is exchanged between ranks for it. Tensors are looked at in
some 4,096 entries, evenly spaced over rows and columns, and as a whole for what is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import torch

from .. import observing
from ..contracts import MicroBatch, StepOutput
from .activity import Activity
from .counting import confusion

_ENTRIES = 4096  # of a tensor
_SORTED = 1024
_APART = 10  # steps between what is compared, to see whether a weight changes
_EARLY = 10  # steps in which weights are those of the start
_REPLICATED = ("single", "ddp", "exact", "horovod")
_NO_CLASSES = ("pipeline",)


@dataclass(frozen=True, slots=True)
class _Named:
    """A parameter of the optimizer."""

    name: str
    axes: int
    embeds: bool  # rows of a table: its scale is its own


@final
class Statistics:
    """Takes them at steps whose turn it is.

    Args:
        module: what is trained.
        optimizer: that trains it.
        strategy: how; see `phalanx.parallel.auto`.
        compiled: whether `torch.compile` hides what the module calls.
        name: that goes before the names of its tensors, where there are others.
    """

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, *, strategy: str, compiled: bool, name: str = ""
    ) -> None:
        self._module, self._name = module, name
        self._observer = observing.now
        self._named = _names(module, f"{name}." if name else "")
        mine = self._observer.rank == 0 or strategy not in _REPLICATED
        self._tensors = mine and self._observer.wants("tensors")
        self._labels = self._observer.rank == 0 and self._observer.wants("labels") and strategy not in _NO_CLASSES
        sees = self._tensors and not compiled
        self._activity = Activity(module, self._observer.measure, name) if sees else None
        self._before: dict[str, tuple[int, torch.Tensor]] = {}  # step and entries of a look before
        self._usual: float | None = None  # seconds of a step without a look
        self.sees_idle = not strategy.startswith("zero")  # a parameter without a gradient is none of ZeRO's hidden ones
        self._begun = 0.0
        self.look: Look | None = None  # under way
        if self._tensors:
            optimizer.register_step_pre_hook(self._before_update)
            optimizer.register_step_post_hook(self._after_update)
        if self._tensors and compiled and self._observer.rank == 0:
            print("note: torch.compile hides activations from rules: dead_relu and saturated_activation see none", flush=True)
        if self._tensors and strategy.startswith("zero") and self._observer.rank == 0:
            hidden = (
                "do not see those of zero3" if strategy == "zero3" else "see ZeRO's flat parts, which have no layers' names"
            )
            print(f"note: rules on weights and gradients {hidden}", flush=True)

    def step(
        self, step: int, micro_batches: Sequence[MicroBatch], train_step: Callable[[Sequence[MicroBatch]], StepOutput]
    ) -> StepOutput:
        """Do the step with this number; look at it if its turn has come."""
        outputs: list[torch.Tensor] = []
        look = self.begin(step)
        keeping = self._module.register_forward_hook(_keeping(outputs)) if look is not None and look.labels else None
        try:
            output = train_step(micro_batches)
        except BaseException:
            self.drop()
            raise
        finally:
            if keeping is not None:
                keeping.remove()
        self.end(outputs, [micro.target for micro in micro_batches])
        return output

    def begin(self, step: int) -> Look | None:
        """Begin a step; return the look at it, None where it is not its turn."""
        self._begun = time.perf_counter()
        tensors = self._tensors and self._observer.due("tensors", step, self._name)
        labels = self._labels and self._observer.due("labels", step, self._name)
        self.look = Look(self, step, tensors=tensors, labels=labels) if tensors or labels else None
        if tensors and self._activity is not None:
            self._activity.__enter__()
        return self.look

    def end(self, outputs: Sequence[torch.Tensor], targets: Sequence[Any]) -> None:
        """End the step: tell what was seen, and note what it cost."""
        look, self.look = self.look, None
        if look is None:
            took = time.perf_counter() - self._begun
            self._usual = took if self._usual is None else 0.9 * self._usual + 0.1 * took
            return
        if look.tensors:
            if self._activity is not None:
                self._activity.__exit__()
            self._observer.tell("tensors", look.read(self._observer.rank, self._activity))
        found = confusion(outputs, targets) if look.labels else None
        if found is not None:
            self._observer.tell("labels", {"step": look.step, **found})
        took = time.perf_counter() - self._begun
        spent = max(0.0, took - (took if self._usual is None else self._usual))
        for kind, done in (("tensors", look.tensors), ("labels", look.labels)):
            if done:
                self._observer.cost(kind, look.step, spent, self._name)
                spent = 0.0  # of both, where both were looked at

    def within(self, module: torch.nn.Module) -> None:
        """Say that the step began while this module was being called already."""
        if self.look is not None and self.look.tensors and self._activity is not None:
            self._activity.within(module)

    def drop(self) -> None:
        """Forget a look at a step that came to nothing."""
        if self.look is not None and self.look.tensors and self._activity is not None:
            self._activity.__exit__()
        self.look = None

    def named(self, number: int, parameter: torch.Tensor) -> _Named:
        """Return what is known of a parameter of the optimizer."""
        return self._named.get(id(parameter)) or _Named(f"{self._name}part {number}", max(2, parameter.ndim), True)

    def same(self, name: str, step: int, entries: torch.Tensor) -> bool | None:
        """Return whether a weight is as it was some steps ago, None where there was no look then; keep it for later ones."""
        then, before = self._before.get(name, (0, None))
        if before is not None and before.shape == entries.shape and step - then < _APART:
            return None
        self._before[name] = step, entries
        if before is None or before.shape != entries.shape:
            return None
        rtol, atol = self._observer.measure.get("unchanged", (1e-5, 1e-8))
        return bool(torch.allclose(entries, before, rtol=rtol, atol=atol))

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.look is not None and self.look.tensors:
            self.look.before(optimizer)

    def _after_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.look is not None and self.look.tensors:
            self.look.after(optimizer)


@final
class Look:
    """One look at a step.

    Args:
        statistics: whose.
        step: its number.
        tensors: whether gradients, weights and activations are looked at.
        labels: whether classes are counted.
    """

    def __init__(self, statistics: Statistics, step: int, *, tensors: bool, labels: bool) -> None:
        self._statistics = statistics
        self.step, self.tensors, self.labels = step, tensors, labels
        self._gradients: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, dict[str, Any]] = {}
        self._entries: dict[str, torch.Tensor] = {}

    def before(self, optimizer: Any) -> None:
        """Just before the update: gradients are complete, weights are those they belong to."""
        with torch.no_grad():
            for named, parameter in self._parameters(optimizer):
                weight = _local(parameter)
                if parameter.grad is None and not (self._statistics.sees_idle and parameter.requires_grad and weight.numel()):
                    continue
                entries, missed = _entries(weight), False
                if parameter.grad is not None:
                    found, missed = _of_gradient(_local(parameter.grad), early=self.step <= _EARLY)
                    missed |= parameter.grad.is_sparse  # whose rows are others than those that are looked at
                    self._gradients[named.name] = {"axes": named.axes, **found}
                    if not missed:
                        self._entries[named.name] = entries
                found = _of_weight(weight, entries)
                fan_in = weight.numel() / max(1, weight.shape[0]) if weight.ndim >= 2 and not named.embeds else 0.0
                early = self.step <= _EARLY and weight.ndim >= 2 and not named.embeds
                found |= {
                    "axes": named.axes,
                    "scale": found["std"] ** 2 * fan_in,
                    "alike": early and _alike(weight),
                    "change": None,
                    "same": None if missed else self._statistics.same(named.name, self.step, entries),
                }
                self._weights[named.name] = found

    def after(self, optimizer: Any) -> None:
        """Just after the update."""
        with torch.no_grad():
            for named, parameter in self._parameters(optimizer):
                before = self._entries.get(named.name)
                if before is not None:
                    self._weights[named.name]["change"] = float((_entries(_local(parameter)) - before).norm())

    def read(self, rank: int, activity: Activity | None) -> dict[str, Any]:
        """Return what was seen, as `Tensors` has it."""
        seen = {
            "gradients": self._gradients,
            "weights": self._weights,
            "activations": {} if activity is None else activity.read(),
        }
        return {"step": self.step, "rank": rank, **_plain(seen)}

    def _parameters(self, optimizer: Any) -> list[tuple[_Named, torch.Tensor]]:
        groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return [(self._statistics.named(number, parameter), parameter) for number, parameter in enumerate(groups)]


def _names(module: torch.nn.Module, prefix: str) -> dict[int, _Named]:
    tables = {id(part.weight) for part in module.modules() if isinstance(part, (torch.nn.Embedding, torch.nn.EmbeddingBag))}
    return {id(p): _Named(prefix + name, p.ndim, id(p) in tables) for name, p in module.named_parameters()}


def _keeping(outputs: list[torch.Tensor]) -> Callable[..., None]:
    def keep(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs.append(output.detach())

    return keep


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor, dense."""
    to_local: Callable[[], torch.Tensor] | None = getattr(tensor, "to_local", None)
    found = (tensor if to_local is None else to_local()).detach()
    return found.coalesce().values() if found.is_sparse else found


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of evenly spaced entries, (n,) float32."""
    flat = tensor.reshape(-1)
    return flat[:: _stride(flat.numel() // _ENTRIES, flat.numel())].to(torch.float32, copy=True)


@lru_cache
def _stride(least: int, count: int) -> int:
    """Return a distance between entries of so many: prime to every axis, so that all columns of a matrix have their turn."""
    stride = max(1, least)
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


def _of_gradient(gradient: torch.Tensor, *, early: bool) -> tuple[dict[str, Any], bool]:
    """Return what is told of a gradient, and whether only entries that are not looked at have one (of a table few rows may)."""
    nan, inf = _not_finite(gradient)
    entries = _entries(gradient)
    if not entries.numel():
        return {"mean_abs": 0.0, "zero": 0.0, "spread": 0.0 if early else None, "nan": nan, "inf": inf}, False
    used = int(torch.count_nonzero(entries))
    if nan or inf:
        entries = torch.nan_to_num(entries, nan=0.0, posinf=0.0, neginf=0.0)
    zero = _zero_share(gradient, used, len(entries))
    missed = not used and zero < 1
    seen = gradient[gradient != 0].float() if missed else entries
    return {
        "mean_abs": float(seen.abs().sum()) / max(1, used or seen.numel()),
        "zero": zero,
        "spread": _spread(entries, gradient.numel()) if early else None,
        "nan": nan,
        "inf": inf,
    }, missed


def _spread(entries: torch.Tensor, count: int) -> float:
    """Return the distance of the 5th and the 95th percentile of a tensor of `count` entries."""
    ordered = entries[:: _stride(len(entries) // _SORTED, count)].sort().values
    low, high = int(0.05 * (len(ordered) - 1)), int(0.95 * (len(ordered) - 1))
    return float(ordered[high] - ordered[low])


def _of_weight(weight: torch.Tensor, entries: torch.Tensor) -> dict[str, Any]:
    nan, inf = _not_finite(weight)
    sound = torch.nan_to_num(entries, nan=0.0, posinf=0.0, neginf=0.0) if nan or inf else entries
    used = int(torch.count_nonzero(entries))
    return {
        "zero": _zero_share(weight, used, len(sound)),
        "nan": nan,
        "inf": inf,
        "std": float(sound.std(unbiased=False)) if len(sound) else 0.0,
        "norm": float(sound.norm()),
    }


def _zero_share(tensor: torch.Tensor, used: int, looked_at: int) -> float:
    """Return the share of entries that are 0; where none of those looked at is another, all are counted."""
    if used == 0 and looked_at < tensor.numel():
        used, looked_at = int(torch.count_nonzero(tensor)), tensor.numel()
    return 1 - used / max(1, looked_at)


def _not_finite(tensor: torch.Tensor) -> tuple[int, int]:
    """Return how many entries are nan and infinite; their sum tells whether there may be any."""
    if math.isfinite(float(tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32))):
        return 0, 0
    return int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())


def _alike(weight: torch.Tensor) -> bool:
    rows = weight.reshape(weight.shape[0], -1)
    return weight.shape[0] > 1 and bool((rows == rows[:1]).all())


def _plain(value: Any) -> Any:
    """Return JSON values: numbers that are not finite as None would break rules, so they are large ones."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float) and not -1e300 < value < 1e300:
        return 1e300 if value > 0 else -1e300
    return value
