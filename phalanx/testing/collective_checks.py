"""Conformance suite of `contracts.Collective`: inherit `CollectiveChecks`, say how ranks are run, get all checks.

class TestMine(CollectiveChecks):
    sizes = (1, 2, 3)

    def run(self, size, function, timeout_s=30): ...   # function(world) on every rank; results in rank order
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from ..contracts import Array, Collective, Json
from ..errors import AlgorithmError, PlatformError, UserError
from ..parallel.collective import together

T = TypeVar("T")
_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
_VALUES: tuple[Json, ...] = (
    None,
    True,
    -(2**60),
    0.1,
    "",
    "Grüße, 世界 🌍\n",
    [],
    {"a": [1, {"b": [None, "x" * 5000]}], "leer": {}},
)


class CollectiveChecks:
    """Every check runs on each of `sizes` ranks."""

    sizes: tuple[int, ...] = (1, 2, 3)

    def run(self, size: int, function: Callable[[Collective], T], timeout_s: float = 30) -> list[T]:
        """Run `function(world)` on `size` ranks that may share memory; return the results in rank order.

        When ranks fail, raise what the first of them raised. Every world is closed when its rank ends.
        """
        raise NotImplementedError

    def many(self) -> list[int]:
        """Return the sizes with more than one rank; skip the check when there are none."""
        sizes = [size for size in self.sizes if size > 1]
        if not sizes:
            pytest.skip("this collective has one rank")
        return sizes

    def test_rank_and_size(self) -> None:
        for size in self.sizes:
            assert self.run(size, lambda world: (world.rank, world.size)) == [(rank, size) for rank in range(size)]

    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_all_reduce_keeps_dtype_and_agrees_with_numpy(self, dtype: str) -> None:
        for size in self.sizes:
            inputs = [_numbers(rank, dtype) for rank in range(size)]
            expected = {
                "sum": np.add.reduce(np.stack(inputs), axis=0, dtype=np.dtype(dtype)),
                "min": np.minimum.reduce(np.stack(inputs)),
                "max": np.maximum.reduce(np.stack(inputs)),
            }

            def reduce_all(world: Collective, inputs: list[Array] = inputs) -> dict[str, Array]:
                return {op: world.all_reduce(inputs[world.rank], op) for op in ("sum", "min", "max")}

            for got in self.run(size, reduce_all):
                for op, wanted in expected.items():
                    assert got[op].dtype == np.dtype(dtype), op
                    np.testing.assert_allclose(got[op], wanted, rtol=1e-3 if dtype == "float16" else 1e-6, err_msg=op)

    def test_all_reduce_of_large_unsigned_numbers(self) -> None:
        for size in self.sizes:

            def extremes(world: Collective) -> list[int]:
                x = np.array([2**64 - 1 - world.rank, world.rank], dtype=np.uint64)
                return [*world.all_reduce(x, "max").tolist(), *world.all_reduce(x, "min").tolist()]

            assert self.run(size, extremes) == [[2**64 - 1, size - 1, 2**64 - size, 0]] * size

    @pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (3, 1, 2), (1000, 7)])
    def test_all_reduce_keeps_the_shape(self, shape: tuple[int, ...]) -> None:
        for size in self.sizes:
            for total in self.run(size, lambda world: world.all_reduce(np.full(shape, 1.5))):
                assert total.shape == shape
                assert (total == 1.5 * size).all()

    def test_all_reduce_leaves_its_input_alone(self) -> None:
        for size in self.sizes:

            def reduce_and_change(world: Collective) -> tuple[Array, Array, Array]:
                backing = np.arange(20.0).reshape(4, 5)
                view = backing[::2, 1:4]  # not contiguous
                total = world.all_reduce(view)
                before = backing.copy()
                total += 1  # the result is the caller's own
                return backing, before, total

            for backing, before, total in self.run(size, reduce_and_change):
                np.testing.assert_array_equal(backing, np.arange(20.0).reshape(4, 5))
                np.testing.assert_array_equal(before, backing)
                np.testing.assert_array_equal(total, backing[::2, 1:4] * size + 1)

    def test_sums_have_the_same_bits_on_all_ranks(self) -> None:
        for size in self.sizes:

            def total(world: Collective) -> list[bytes]:
                generator = np.random.default_rng(world.rank)
                sums = []
                for length in (1, 2, 5, 63, 1024, 100_003):
                    x = generator.normal(size=length) * 10.0 ** generator.integers(-9, 9, size=length)
                    sums.append(world.all_reduce(x).tobytes())
                return sums

            results = self.run(size, total)
            assert all(result == results[0] for result in results)

    @pytest.mark.parametrize("value", _VALUES, ids=lambda value: type(value).__name__)
    def test_json_values_arrive_as_they_were(self, value: Json) -> None:
        for size in self.sizes:

            def exchange(world: Collective) -> tuple[list[Json], Json]:
                return world.all_gather([world.rank, value]), world.broadcast([world.rank, value], root=world.size - 1)

            for gathered, sent in self.run(size, exchange):
                assert gathered == [[rank, value] for rank in range(size)]
                assert sent == [size - 1, value]

    @pytest.mark.parametrize("dtype", [*_DTYPES, "complex64", ">f4"])
    def test_arrays_of_any_shape_are_gathered(self, dtype: str) -> None:
        shapes = [(3, 2), (), (0, 4), (700, 9)]

        def array(rank: int, turn: int) -> Array:
            return _numbers(rank, dtype, shapes[(rank + turn) % len(shapes)])

        def gather(world: Collective) -> list[list[Array]]:
            return [world.all_gather(array(world.rank, turn)) for turn in range(len(shapes))]

        for size in self.sizes:
            for turns in self.run(size, gather):
                for turn, gathered in enumerate(turns):
                    _assert_same(gathered, [array(rank, turn) for rank in range(size)])

    def test_gathered_arrays_can_be_changed(self) -> None:
        for size in self.sizes:

            def change(world: Collective) -> list[float]:
                gathered = world.all_gather(np.array([float(world.rank)]))
                gathered[world.rank] += 10
                world.barrier(20)
                return [float(x[0]) for x in gathered]

            for rank, values in enumerate(self.run(size, change)):
                assert values == [r + 10.0 * (r == rank) for r in range(size)]

    def test_ranks_may_gather_different_kinds(self) -> None:
        for size in self.sizes:
            values: list[Any] = [{"rank": 0}, np.arange(5000), None][:size]
            for gathered in self.run(size, lambda world, values=values: world.all_gather(values[world.rank])):  # type: ignore[misc]
                assert gathered[0] == {"rank": 0}
                if size > 1:
                    np.testing.assert_array_equal(gathered[1], np.arange(5000))

    def test_broadcast_from_every_root(self) -> None:
        for size in self.sizes:

            def broadcast(world: Collective) -> list[Array]:
                own = np.full((world.rank + 1, 300), world.rank, dtype=np.float32)
                return [world.broadcast(own, root=root) for root in range(world.size)]

            for received in self.run(size, broadcast):
                _assert_same(received, [np.full((root + 1, 300), root, dtype=np.float32) for root in range(size)])

    @pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
    def test_all_to_all(self, dtype: str) -> None:
        def part(source: int, target: int) -> Array:
            return np.full((source * 2 + target) % 4, source * 10 + target, dtype=dtype)

        for size in self.sizes:

            def send(world: Collective) -> list[Array]:
                return world.all_to_all([part(world.rank, target) for target in range(world.size)])

            for rank, received in enumerate(self.run(size, send)):
                _assert_same(received, [part(source, rank) for source in range(size)])

    def test_all_to_all_of_nothing(self) -> None:
        nothing = np.empty(0, dtype=np.int32)
        for size in self.sizes:
            for received in self.run(size, lambda world: world.all_to_all([nothing] * world.size)):
                _assert_same(received, [nothing] * size)

    @pytest.mark.parametrize("columns", [None, 3])
    def test_sparse_sum(self, columns: int | None) -> None:
        for size in self.sizes:
            keys = [np.random.default_rng(rank).integers(-5, 40, size=30 * rank) for rank in range(size)]
            shapes = [(len(k),) if columns is None else (len(k), columns) for k in keys]
            values = [np.arange(np.prod(shape), dtype=np.float64).reshape(shape) for shape in shapes]
            dense: dict[int, Array] = {}
            for key, row in zip(np.concatenate(keys).tolist(), np.concatenate(values), strict=True):
                dense[key] = dense.get(key, 0) + row

            def add_up(world: Collective, keys: list[Array] = keys, values: list[Array] = values) -> tuple[Array, Array]:
                return world.sparse_sum(keys[world.rank], values[world.rank])

            for got_keys, got_values in self.run(size, add_up):
                assert got_keys.dtype == np.int64
                assert got_keys.tolist() == sorted(dense)
                assert got_values.shape[1:] == values[0].shape[1:]
                for key, row in zip(got_keys.tolist(), got_values, strict=True):
                    np.testing.assert_array_equal(row, dense[key])

    def test_votes_come_back_one_call_later(self) -> None:
        for size in self.sizes:

            def cast(world: Collective) -> list[int]:
                answers = []
                for turn in range(6):
                    answers.append(world.vote(143 if turn == 2 and world.rank == world.size - 1 else 0))
                    if turn == 3:
                        world.all_reduce(np.ones(3))  # other calls may come between
                return answers

            assert self.run(size, cast) == [[0, 0, 0, 143, 0, 0]] * size

    def test_barrier_waits_for_all(self) -> None:
        for size in self.sizes:
            arrived: list[int] = []

            def arrive(world: Collective, arrived: list[int] = arrived) -> int:
                arrived.append(world.rank)
                world.barrier(20)
                return len(arrived)

            assert self.run(size, arrive) == [size] * size

    def test_barrier_gives_up(self) -> None:
        for size in self.many():
            given_up = threading.Event()

            def arrive(world: Collective, given_up: threading.Event = given_up) -> None:
                if world.rank == 0:
                    assert given_up.wait(20)
                    return
                try:
                    world.barrier(0.2)
                finally:
                    given_up.set()

            with pytest.raises(PlatformError, match="lost contact"):
                self.run(size, arrive)

    def test_a_lost_peer_is_noticed(self) -> None:
        for size in self.many():

            def leave_or_wait(world: Collective) -> str:
                world.barrier(20)
                if world.rank == world.size - 1:
                    return "left"
                with pytest.raises(PlatformError, match=f"rank {world.rank} lost contact with"):
                    world.all_reduce(np.ones(4))
                return "noticed"

            assert self.run(size, leave_or_wait) == ["noticed"] * (size - 1) + ["left"]

    def test_a_vote_nobody_answers_does_not_hold_up_the_end(self) -> None:
        for size in self.sizes:

            def vote_and_leave(world: Collective) -> None:
                world.barrier(20)
                if world.rank == 0:
                    world.vote(1)
                world.close()
                world.close()

            self.run(size, vote_and_leave, timeout_s=10)

    def test_together_returns_each_ranks_own_value(self) -> None:
        for size in self.sizes:
            assert self.run(size, lambda world: together(world, "counting", lambda: world.rank)) == list(range(size))

    def test_together_spreads_an_error_and_keeps_its_kind(self) -> None:
        for size in self.many():

            def fail_on_last(world: Collective) -> None:
                if world.rank == world.size - 1:
                    raise UserError("line 7 of data.csv has 3 columns instead of 4")

            for rank, error in enumerate(self.run(size, lambda world: _error_of(world, fail_on_last))):
                text = "line 7 of data.csv has 3 columns instead of 4"
                prefix = "" if rank == size - 1 else f"rank {size - 1}, opening channel 'train': "
                assert isinstance(error, UserError)
                assert error.message == prefix + text

    def test_together_prefers_the_users_mistake(self) -> None:
        for size in self.many():

            def fail_everywhere(world: Collective) -> None:
                if world.rank == world.size - 1:
                    raise UserError("no such file")
                raise PlatformError("disk is full")

            for error in self.run(size, lambda world: _error_of(world, fail_everywhere)):
                assert isinstance(error, UserError)
                assert error.message.endswith("no such file")

    def test_together_keeps_the_traceback_of_foreign_errors(self) -> None:
        for size in self.many():

            def divide(world: Collective) -> None:
                if world.rank == 0:
                    _ = 1 // world.rank

            errors = self.run(size, lambda world: _error_of(world, divide))
            assert isinstance(errors[0], ZeroDivisionError)
            for error in errors[1:]:
                assert isinstance(error, AlgorithmError)
                assert "rank 0, opening channel 'train': ZeroDivisionError" in error.message
                assert "in divide" in error.details

    def test_a_world_goes_on_after_an_error_that_all_learnt(self) -> None:
        for size in self.sizes:

            def fail(world: Collective) -> None:
                raise UserError(f"rank {world.rank}")

            def fail_then_sum(world: Collective) -> int:
                assert isinstance(_error_of(world, fail), UserError)
                return int(world.all_reduce(np.array(1)))

            assert self.run(size, fail_then_sum) == [size] * size

    def test_values_that_are_neither_array_nor_json_are_refused(self) -> None:
        for size in self.many():
            for value in (object(), {1, 2}, np.array([None]), np.array(["text"])):
                with pytest.raises(TypeError, match="carry arrays"):
                    self.run(size, lambda world, value=value: world.all_gather(value))  # type: ignore[misc]


def _error_of(world: Collective, action: Callable[[Collective], None]) -> Exception:
    try:
        together(world, "opening channel 'train'", lambda: action(world))
    except Exception as error:
        return error
    raise AssertionError("an error was expected")


def _numbers(rank: int, dtype: str, shape: tuple[int, ...] = (3, 4)) -> Array:
    generator = np.random.default_rng([rank, *shape])
    if np.dtype(dtype).kind == "b":
        return np.asarray(generator.integers(0, 2, size=shape), dtype=bool)
    if np.dtype(dtype).kind == "u":
        return np.asarray(generator.integers(0, 80, size=shape), dtype=dtype)
    return np.asarray(generator.integers(-40, 40, size=shape), dtype=dtype)


def _assert_same(got: list[Array], wanted: list[Array]) -> None:
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        np.testing.assert_array_equal(mine, theirs)
