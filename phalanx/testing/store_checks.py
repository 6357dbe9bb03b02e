"""Conformance suite of checkpoint stores: inherit `StoreChecks`, say where, get all checks.

class TestMine(StoreChecks):
    @pytest.fixture
    def url(self) -> str: ...   # a place that is empty
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, final

import numpy as np
import pytest

from ..checkpoint.arrays import BFLOAT16, FLOAT8_E4M3
from ..checkpoint.place import Place, StoragePlace
from ..checkpoint.policy import Retention
from ..checkpoint.store import CheckpointStore
from ..contracts import Array, Collective, Entry, State
from ..errors import AlgorithmError, UserError
from ..parallel.threads import run_threads

T = TypeVar("T")
_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
_SHAPE = (13, 5)


@final
class Part:
    """A part whose state is what it is told to be."""

    def __init__(self, state: State | None = None) -> None:
        self.state: State = state or {}
        self.loads = 0

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = state
        self.loads += 1


def whole_array(step: int) -> Array:
    """Return the sharded value of a step, whole."""
    return (np.arange(np.prod(_SHAPE), dtype=np.float32) + 1000 * step).reshape(_SHAPE)


def cut(step: int, rank: int, size: int, axis: int = 0, *, zeros: bool = False) -> Entry:
    """Return rank `rank`'s piece of the sharded value."""
    length = _SHAPE[axis]
    start, end = rank * length // size, (rank + 1) * length // size
    piece = np.take(whole_array(step), np.arange(start, end), axis=axis)
    offset = tuple(start if a == axis else 0 for a in range(len(_SHAPE)))
    return Entry(np.zeros_like(piece) if zeros else piece, "sharded", _SHAPE, offset)


def example_state(step: int, rank: int, size: int) -> dict[str, Entry]:
    """Return a state with every kind and scope, different for every step and rank."""
    return {
        "weights": Entry(np.arange(6, dtype=np.float64).reshape(2, 3) * step),
        "half": Entry(np.arange(4, dtype=np.uint16).view(BFLOAT16)),
        "history": Entry({"loss": [1 / step, None, "x"], "step": step}),
        "booster": Entry(bytes([step % 256]) * 7),
        "rng": Entry([step, rank], "rank"),
        "noise": Entry(np.full(3, 10 * step + rank, dtype=np.int64), "rank"),
        "shard": cut(step, rank, size),
    }


def wanting(rank: int, size: int) -> dict[str, Entry]:
    """Return the state of a part before its restore: only says which slice it wants."""
    return {"shard": cut(0, rank, size, zeros=True)}


def equal(a: State, b: State) -> bool:
    """Return whether two states are the same, bit for bit."""
    return set(a) == set(b) and all(_equal(a[name], b[name]) for name in a)


def _equal(a: Entry, b: Entry) -> bool:
    if (a.scope, a.shape, a.offset) != (b.scope, b.shape, b.offset) or type(a.value) is not type(b.value):
        return False
    if isinstance(a.value, np.ndarray):
        return a.value.dtype == b.value.dtype and a.value.shape == b.value.shape and a.value.tobytes() == b.value.tobytes()
    return bool(a.value == b.value)


def right_state(step: int, rank: int, size: int, saved_by: int) -> dict[str, Entry]:
    """Return what rank `rank` of `size` must get back of `example_state(step, …)` that `saved_by` ranks saved."""
    state = example_state(step, rank, size)
    return {name: entry for name, entry in state.items() if entry.scope != "rank" or rank < saved_by}


def save_steps(place: Place, world: Collective, steps: range, *, keep: Retention | None = None, attempt: int = 0) -> None:
    """Collective. Save the example state of `steps` and wait for the last."""
    store = CheckpointStore("", world=world, job_id="job", attempt=attempt, keep=keep, place=place)
    try:
        for step in steps:
            part = Part(example_state(step, world.rank, world.size))
            store.save(step, {"part": part}, metrics={"loss": 1 / step})
        store.wait()
    finally:
        store.close()


def restored_step(place: Place, world: Collective, saved_by: int) -> int:
    """Collective. Restore; check that what came back is exactly what was saved at the step that is returned."""
    part = Part(wanting(world.rank, world.size))
    store = CheckpointStore("", world=world, job_id="job", place=place)
    step = store.restore({"part": part})
    if step:
        expected = right_state(step, world.rank, world.size, saved_by)
        assert equal(part.state, expected), f"a wrong state of step {step} on rank {world.rank}"
    else:
        assert part.loads == 0, "nothing was restored, but a part was touched"
    return step


class StoreChecks:
    """Every check gets a place of its own."""

    sizes: tuple[int, ...] = (1, 2, 3)

    @pytest.fixture
    def url(self) -> str:
        """Return a place that is empty."""
        raise NotImplementedError

    def run(self, size: int, function: Callable[[Collective], T]) -> list[T]:
        """Run `function(world)` on `size` ranks; return the results in rank order."""
        return run_threads(size, function)

    def store(self, url: str, world: Collective, job_id: str = "job", attempt: int = 0) -> CheckpointStore:
        """Return a store at `url`."""
        return CheckpointStore(url, world=world, job_id=job_id, attempt=attempt)

    def save(self, url: str, size: int, state: Callable[[int, int], State], step: int = 1, job_id: str = "job") -> None:
        """Save `state(rank, size)` on `size` ranks and commit it."""

        def on_rank(world: Collective) -> None:
            store = self.store(url, world, job_id)
            store.save(step, {"part": Part(state(world.rank, world.size))}, metrics={"loss": 1 / step})
            assert store.wait()

        self.run(size, on_rank)

    def restore(self, url: str, size: int, target: Callable[[int, int], State] = lambda r, n: {}) -> list[tuple[int, State]]:
        """Restore on `size` ranks; return every rank's step and state."""

        def on_rank(world: Collective) -> tuple[int, State]:
            part = Part(target(world.rank, world.size))
            return self.store(url, world).restore({"part": part}), part.state

        return self.run(size, on_rank)

    def test_an_empty_place_restores_nothing(self, url: str) -> None:
        def on_rank(world: Collective) -> tuple[int, int, int]:
            part = Part()
            store = self.store(url, world)
            return store.restore({"part": part}), part.loads, len(store.list())

        assert self.run(2, on_rank) == [(0, 0, 0)] * 2

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_what_was_saved_comes_back(self, url: str, size: int) -> None:
        self.save(url, size, lambda r, n: example_state(7, r, n), step=7)
        for rank, (step, state) in enumerate(self.restore(url, size, wanting)):
            assert step == 7
            assert equal(state, right_state(7, rank, size, size))

    @pytest.mark.parametrize(("saved_by", "size"), [(1, 3), (2, 1), (3, 2), (2, 3)])
    def test_another_number_of_ranks(self, url: str, saved_by: int, size: int) -> None:
        self.save(url, saved_by, lambda r, n: example_state(3, r, n), step=3)
        for rank, (step, state) in enumerate(self.restore(url, size, wanting)):
            assert step == 3
            assert equal(state, right_state(3, rank, size, saved_by))

    def test_pieces_are_cut_along_another_axis(self, url: str) -> None:
        self.save(url, 3, lambda r, n: {"x": cut(1, r, n, axis=0)})
        for rank, (_, state) in enumerate(self.restore(url, 2, lambda r, n: {"x": cut(0, r, n, axis=1, zeros=True)})):
            assert equal(state, {"x": cut(1, rank, 2, axis=1)})

    def test_a_sharded_value_becomes_whole_and_a_whole_one_sharded(self, url: str) -> None:
        self.save(url, 2, lambda r, n: {"x": cut(1, r, n), "y": Entry(whole_array(2))})

        def target(rank: int, size: int) -> State:
            return {"x": Entry(np.zeros(_SHAPE)), "y": cut(0, rank, size, zeros=True)}

        for rank, (_, state) in enumerate(self.restore(url, 3, target)):
            assert equal(state, {"x": Entry(whole_array(1)), "y": cut(2, rank, 3)})

    def test_replicas_of_a_piece_are_one(self, url: str) -> None:
        self.save(url, 3, lambda r, n: {"x": cut(1, min(r, 1), 2)})
        for rank, (_, state) in enumerate(self.restore(url, 2, lambda r, n: {"x": cut(0, r, n, zeros=True)})):
            assert equal(state, {"x": cut(1, rank, 2)})

    def test_every_dtype_and_odd_shape(self, url: str) -> None:
        rng = np.random.default_rng(0)
        state = {name: Entry((rng.random((2, 3)) * 2).astype(name)) for name in _DTYPES}
        state |= {
            "bfloat16": Entry(np.arange(5, dtype=np.uint16).view(BFLOAT16)),
            "float8": Entry(np.arange(3, dtype=np.uint8).view(FLOAT8_E4M3)),
            "scalar": Entry(np.array(2.5)),
            "empty": Entry(np.zeros((0, 4), dtype=np.float32)),
            "special": Entry(np.array([np.nan, np.inf, -0.0, 5e-324])),
            "complex64": Entry(np.array([1 + 2j], dtype=np.complex64)),
        }
        layouts = {"transposed": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "swapped": np.arange(4, dtype=">i4")[::2]}
        self.save(url, 1, lambda r, n: state | {name: Entry(value) for name, value in layouts.items()})
        restored = self.restore(url, 1)[0][1]
        assert equal({name: restored[name] for name in state}, state)
        for name, value in layouts.items():
            np.testing.assert_array_equal(restored[name].value, value)
        assert all(found.value.flags.writeable for found in restored.values())

    def test_json_comes_back_as_it_is(self, url: str) -> None:
        value = {"big": 2**80, "float": 0.1 + 0.2, "text": "Grüße\n🌍", "deep": [[], {}, None, True], "inf": float("inf")}
        self.save(url, 1, lambda r, n: {"x": Entry(value), "empty": Entry(b"")})
        assert self.restore(url, 1)[0][1]["x"].value == value
        assert self.restore(url, 1)[0][1]["empty"].value == b""

    @pytest.mark.parametrize(
        ("state", "match"),
        [
            ({"x": Entry({1: 2})}, r"'part/x' has the key 1: keys of JSON values are text"),
            ({"x": Entry(object())}, r"'part/x' holds a object"),
            ({"x": Entry(np.array(["text"]))}, r"'part/x' is an array of <U4"),
            ({"x": Entry(np.zeros(3), "sharded")}, r"'part/x' is sharded: it needs the whole shape and an offset"),
            ({"x": Entry(np.zeros(3), "sharded", (4,), (2,))}, r"a piece of \(3,\) at \(2,\) does not lie in \(4,\)"),
            ({"x": Entry([1], "sharded")}, r"'part/x' is sharded but no array"),
        ],
    )
    def test_what_no_checkpoint_holds_is_refused(self, url: str, state: State, match: str) -> None:
        with pytest.raises(AlgorithmError, match=match):
            self.save(url, 2, lambda r, n: state)

    def test_a_state_that_changes_after_save_is_saved_as_it_was(self, url: str) -> None:
        value = np.zeros(100_000)

        def on_rank(world: Collective) -> None:
            store = self.store(url, world)
            store.save(1, {"part": Part({"x": Entry(value)})})
            value[:] = 1
            store.wait()

        self.run(1, on_rank)
        assert not self.restore(url, 1)[0][1]["x"].value.any()

    def test_the_newest_step_wins_whoever_saved_it_last(self, url: str) -> None:
        for step in (10, 9, 11, 2):
            self.save(url, 2, lambda r, n, s=step: example_state(s, r, n), step=step)  # type: ignore[misc]
        assert [step for step, _ in self.restore(url, 2, wanting)] == [11, 11]

    def test_saving_a_step_again_replaces_it_whole(self, url: str) -> None:
        self.save(url, 2, lambda r, n: {"x": Entry(1), "y": Entry(r, "rank")}, step=5)
        self.save(url, 2, lambda r, n: {"x": Entry(2), "y": Entry(10 + r, "rank")}, step=5)
        restored = self.restore(url, 2)
        assert [(state["x"].value, state["y"].value) for _, state in restored] == [(2, 10), (2, 11)]

    def test_the_list_names_what_is_there(self, url: str) -> None:
        for step in (1, 2):
            self.save(url, 2, lambda r, n, s=step: example_state(s, r, n), step=step)  # type: ignore[misc]
        place = StoragePlace(url)
        name = next(name for name in place.sizes("2") if name.endswith("rank-1.safetensors"))
        data = place.read(name, place.sizes("2")[name])
        data[-1] ^= 1
        place.put(name, data.tobytes())
        listed = self.run(1, lambda world: self.store(url, world).list())[0]
        assert [(info.step, info.verified, info.world, info.metrics) for info in listed] == [
            (2, False, 2, {"loss": 0.5}),
            (1, True, 2, {"loss": 1.0}),
        ]
        assert "rank-1.safetensors is damaged" in listed[0].why
        assert listed[1].bytes > 0
        assert listed[1].time is not None

        def on_rank(world: Collective) -> tuple[int, Mapping[int, str]]:
            store = self.store(url, world)
            step = store.restore({"part": Part(wanting(world.rank, world.size))})
            return step, {passed.step: passed.why for passed in store.restored.passed_over}

        for step, passed_over in self.run(2, on_rank):
            assert step == 1
            assert "rank-1.safetensors is damaged" in passed_over[2]

    def test_pruning_keeps_last_best_and_every_kth(self, url: str) -> None:
        losses = {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.6, 5: 0.7, 6: 0.8}

        def on_rank(world: Collective) -> list[int]:
            store = self.store(url, world)
            for step, loss in losses.items():
                store.save(step, {"part": Part(example_state(step, world.rank, world.size))}, metrics={"loss": loss})
            store.wait()
            return list(store.prune(Retention(last=1, best="loss", every=4)))

        assert self.run(2, on_rank) == [[5, 3, 1], []]
        place = StoragePlace(url)
        assert {name.split("/")[0] for name in place.sizes()} == {"2", "4", "6"}
        assert [step for step, _ in self.restore(url, 2, wanting)] == [6, 6]

    def test_the_newest_that_verifies_is_never_deleted(self, url: str) -> None:
        for step in (1, 2, 3):
            self.save(url, 1, lambda r, n, s=step: example_state(s, r, n), step=step)  # type: ignore[misc]
        place = StoragePlace(url)
        name = next(name for name in place.sizes("3") if name.endswith(".safetensors"))
        place.put(name, b"x" * place.sizes("3")[name])
        assert self.run(1, lambda world: list(self.store(url, world).prune(Retention(last=1))))[0] == [1]
        assert [info.step for info in self.run(1, lambda world: self.store(url, world).list())[0] if info.verified] == [2]
        assert self.restore(url, 1, wanting)[0][0] == 2

    def test_checkpoints_of_another_job_are_passed_over(self, url: str) -> None:
        self.save(url, 1, lambda r, n: example_state(1, r, n), step=1)
        self.save(url, 1, lambda r, n: example_state(9, r, n), step=9, job_id="other")
        assert self.restore(url, 1, wanting)[0][0] == 1
        assert self.run(1, lambda world: list(self.store(url, world).prune(Retention(last=1))))[0] == []

    def test_a_checkpoint_of_another_kind_of_job_is_the_users_error(self, url: str) -> None:
        self.save(url, 2, lambda r, n: {"x": cut(1, r, n)})
        with pytest.raises(UserError, match=r"'part/x' of shape \(13, 5\), this job has \(4,\)"):
            self.restore(url, 2, lambda r, n: {"x": Entry(np.zeros(2), "sharded", (4,), (2 * r,))})
        with pytest.raises(UserError, match=r"holds part/x, for which this job has no place"):
            self.restore(url, 2)
        with pytest.raises(UserError, match=r"does not hold 'part/new'"):
            self.restore(url, 2, lambda r, n: {"x": cut(0, r, n), "new": cut(0, r, n)})
        with pytest.raises(UserError, match=r"holds part, but not else"):
            self.run(2, lambda world: self.store(url, world).restore({"else": Part()}))

    def test_stages_hold_different_values(self, url: str) -> None:
        self.save(url, 2, lambda r, n: {f"stage{r}": Entry(whole_array(r), "sharded", _SHAPE, (0, 0))})
        for rank, (_, state) in enumerate(
            self.restore(url, 2, lambda r, n: {f"stage{r}": Entry(np.zeros(_SHAPE), "sharded", _SHAPE, (0, 0))})
        ):
            assert equal(state, {f"stage{rank}": Entry(whole_array(rank), "sharded", _SHAPE, (0, 0))})

    def test_a_report_tells_stall_and_writing(self, url: str) -> None:
        def on_rank(world: Collective) -> list[tuple[int, bool]]:
            store = self.store(url, world)
            stalls = [store.save(step, {"part": Part(example_state(step, world.rank, world.size))}) for step in (1, 2)]
            store.wait()
            reports = store.take_reports()
            assert [report.stall_s for report in reports] == stalls
            assert store.take_reports() == []
            return [(report.step, report.bytes > 0 and report.write_s > 0) for report in reports]

        assert self.run(2, on_rank) == [[(1, True), (2, True)]] * 2
