"""Products of rows of two matrices, six rows of one against any number of rows of the other, in registers.

Compilers spill such loops to memory when they see them float by float; here they are written in vectors of sixteen floats, of
which six sums, or six rows, fit the registers of any processor with AVX2 or better (others run the same code, more slowly).

Legend: a matrix is (R, S) float32 and S a multiple of `LANES`; a place is where a row begins in it, row times S. `w` holds
GROUP rows one after another, `g` GROUP numbers for each row of the other matrix.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

GROUP: Final = 6
LANES: Final = 16
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORD = ir.IntType(64)
_FLAGS = ("contract", "reassoc", "nsz")


class _Code:
    """What the intrinsics below are written with."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.builder = builder
        self.bases = {
            number: context.make_array(kind)(context, builder, arg).data
            for number, (kind, arg) in enumerate(zip(signature.args, args, strict=True))
            if isinstance(kind, types.Array)
        }

    def place(self, array: int, at: Any) -> Any:
        return self.builder.gep(self.bases[array], [at])

    def number(self, array: int, at: Any) -> Any:
        return self.builder.load(self.place(array, at))

    def vector_place(self, array: int, at: Any) -> Any:
        return self.builder.bitcast(self.place(array, at), _VECTOR.as_pointer())

    def vector(self, array: int, at: Any) -> Any:
        return self.builder.load(self.vector_place(array, at), align=4)

    def keep(self, value: Any, array: int, at: Any) -> None:
        self.builder.store(value, self.vector_place(array, at), align=4)

    def same(self, value: Any) -> Any:
        """Return a vector whose numbers are all `value`."""
        one = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(
            one, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        )

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c."""
        return self.builder.fadd(c, self.builder.fmul(a, b, flags=_FLAGS), flags=_FLAGS)

    def total(self, vector: Any) -> Any:
        """Return the sum of a vector's numbers."""
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            kind = ir.VectorType(ir.IntType(32), lanes)
            nothing = ir.Constant(vector.type, ir.Undefined)
            low, high = (
                self.builder.shuffle_vector(vector, nothing, ir.Constant(kind, list(range(first, first + lanes))))
                for first in (0, lanes)
            )
            vector = self.builder.fadd(low, high, flags=_FLAGS)
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    @contextmanager
    def sums(self) -> Iterator[list[Any]]:
        """Give GROUP variables for vectors, zero at first; the compiler turns them into registers."""
        kept = [cgutils.alloca_once(self.builder, _VECTOR) for _ in range(GROUP)]
        for one in kept:
            self.builder.store(ir.Constant(_VECTOR, [0.0] * LANES), one)
        yield kept

    def columns(self, size: Any) -> Any:
        """Loop over the vectors of a row."""
        return cgutils.for_range_slice(self.builder, _whole(0), size, _whole(LANES), _WORD, inc=True)

    def rows(self, first: Any, last: Any) -> Any:
        """Loop over [first, last)."""
        return cgutils.for_range_slice(self.builder, first, last, _whole(1), _WORD, inc=True)


def _whole(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _generated(write: Callable[[_Code, Any], None]) -> Callable[[Any, Any, Any, Any], Any]:
    def generate(context, builder, signature, args):
        write(_Code(context, builder, signature, args), args)
        return context.get_dummy_value()

    return generate


@intrinsic
def take_group(typing_context, matrix, places, w, size):
    """Copy the GROUP rows at places to `w`."""

    def write(code, args):
        size = args[3]
        begins = [code.number(1, _whole(k)) for k in range(GROUP)]
        with code.columns(size) as (column, _):
            for k, begin in enumerate(begins):
                at = code.builder.add(code.builder.mul(_whole(k), size), column)
                code.keep(code.vector(0, code.builder.add(begin, column)), 2, at)

    return types.void(matrix, places, w, size), _generated(write)


@intrinsic
def dots(typing_context, matrix, place, w, g, at, size):
    """Write the products of a row and the rows in `w` to g[at : at + GROUP]."""

    def write(code, args):
        _, place, _, _, at, size = args
        add = code.builder.add
        with code.sums() as sums:
            with code.columns(size) as (column, _):
                x = code.vector(0, add(place, column))
                for k, one in enumerate(sums):
                    row = code.vector(2, add(code.builder.mul(_whole(k), size), column))
                    code.builder.store(code.fused(x, row, code.builder.load(one)), one)
            for k, one in enumerate(sums):
                code.builder.store(code.total(code.builder.load(one)), code.place(3, add(at, _whole(k))))

    return types.void(matrix, place, w, g, at, size), _generated(write)


@intrinsic
def add_to_group(typing_context, group, group_places, matrix, places, first, last, g, scale, size):
    """Add `scale` times the sums of rows at places[first:last], row c by g[c * GROUP + k], to row k of a group in a matrix."""

    def write(code, args):
        _, _, _, _, first, last, _, scale, size = args
        builder = code.builder
        wide = code.same(scale)
        with code.columns(size) as (column, _), code.sums() as sums:
            with code.rows(first, last) as (c, _):
                x = code.vector(2, builder.add(code.number(3, c), column))
                begin = builder.mul(c, _whole(GROUP))
                for k, one in enumerate(sums):
                    factor = code.same(code.number(6, builder.add(begin, _whole(k))))
                    builder.store(code.fused(factor, x, builder.load(one)), one)
            for k, one in enumerate(sums):
                at = builder.add(code.number(1, _whole(k)), column)
                code.keep(code.fused(wide, builder.load(one), code.vector(0, at)), 0, at)

    return types.void(group, group_places, matrix, places, first, last, g, scale, size), _generated(write)


@intrinsic
def add_group(typing_context, matrix, places, first, last, w, g, size):
    """Add the rows in `w`, row k by g[c * GROUP + k], to each row c of those at places[first:last]."""

    def write(code, args):
        _, _, first, last, _, _, size = args
        builder = code.builder
        with code.columns(size) as (column, _):
            group = [code.vector(4, builder.add(builder.mul(_whole(k), size), column)) for k in range(GROUP)]
            with code.rows(first, last) as (c, _):
                at = builder.add(code.number(1, c), column)
                begin = builder.mul(c, _whole(GROUP))
                x = code.vector(0, at)
                for k, row in enumerate(group):
                    x = code.fused(code.same(code.number(5, builder.add(begin, _whole(k)))), row, x)
                code.keep(x, 0, at)

    return types.void(matrix, places, first, last, w, g, size), _generated(write)
