"""Steps of a forest's scores for several rows at once, in vectors: each row in a lane of its own.

What a lane holds does not depend on its company: every lane does the same operations in the same order, one rounding each.

Legend: a matrix is a flat array, and a place is where a row begins in it. D columns, P columns of stored rows (a multiple of
8), L lanes; `x` (D, L) holds a column of the rows after another, `found` (L,) their scores so far.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

MANY: Final = 16
FEW: Final = 4
WORDS: Final = 4  # of 64 bits: the leaves of a tree as a set

_FLOAT = ir.FloatType()
_WORD = ir.IntType(64)
_SET = ir.VectorType(_WORD, WORDS)
_EIGHT = ir.VectorType(_FLOAT, 8)


class _Code:
    """What the intrinsics below are written with."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, kind: Any) -> None:
        self.builder = builder
        self.kind = kind
        self._bases = {
            number: context.make_array(given)(context, builder, arg).data
            for number, (given, arg) in enumerate(zip(signature.args, args, strict=True))
            if isinstance(given, types.Array)
        }

    def number(self, array: int, at: Any) -> Any:
        return self.builder.load(self.builder.gep(self._bases[array], [at]))

    def vector(self, array: int, at: Any, kind: Any = None, align: int = 4) -> Any:
        return self.builder.load(self._place(array, at, kind), align=align)

    def keep(self, value: Any, array: int, at: Any) -> None:
        self.builder.store(value, self._place(array, at, value.type), align=4)

    def _place(self, array: int, at: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self._bases[array], [at]), (kind or self.kind).as_pointer())

    def same(self, value: Any) -> Any:
        """Return a vector whose numbers are all `value`."""
        one = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        return self.shuffled(one, one, [0] * self.kind.count)

    def shuffled(self, one: Any, other: Any, places: list[int]) -> Any:
        """Return a vector of the numbers at these places of two, one after the other."""
        return self.builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))

    def larger(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def loop(self, end: Any, step: int = 1) -> Any:
        return cgutils.for_range_slice(self.builder, _whole(0), end, _whole(step), _WORD, inc=True)

    def variable(self, kind: Any, value: Any) -> Any:
        """Return a variable of vectors; the compiler turns it into a register."""
        return cgutils.alloca_once_value(self.builder, ir.Constant(kind, [value] * kind.count))

    def some(self, lanes: Any) -> Any:
        """Return whether any bit of a vector of bits is set."""
        kind = ir.IntType(lanes.type.count)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(lanes, kind), ir.Constant(kind, 0))

    def turned(self, rows: list[Any]) -> list[Any]:
        """Return the columns of eight vectors of eight: bit by bit, the number of a row and of a column change places."""
        for bit in (1, 2, 4):
            low = [place + 8 - bit if place & bit else place for place in range(8)]
            high = [place + 8 if place & bit else place + bit for place in range(8)]
            pairs = {i: (rows[i], rows[i + bit]) for i in range(8) if not i & bit}
            for i, pair in pairs.items():
                rows[i], rows[i + bit] = self.shuffled(*pair, low), self.shuffled(*pair, high)
        return rows


def _whole(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _steps(lanes: int) -> tuple[Any, Any]:
    """Return `begin` and `rise` for so many lanes."""
    kind = ir.VectorType(_FLOAT, lanes)

    @intrinsic
    def begin(typing_context, x, columns, points, at, equal, share, found):
        """Write the scores at a leaf, `equal` for rows that are its point and `share` for others; return whether some are."""

        def generate(context, builder, signature, args):
            code = _Code(context, builder, signature, args, kind)
            differ = code.variable(ir.VectorType(ir.IntType(1), lanes), 0)
            with code.loop(args[1]) as (column, _):
                given = code.vector(0, builder.mul(column, _whole(lanes)))
                point = code.same(code.number(2, builder.add(args[3], column)))
                builder.store(builder.or_(builder.load(differ), builder.fcmp_unordered("!=", given, point)), differ)
            apart = builder.load(differ)
            code.keep(builder.select(apart, code.same(args[5]), code.same(args[4])), 6, _whole(0))
            return code.some(apart)

        return types.boolean(x, types.uint64, points, types.uint64, types.float32, types.float32, found), generate

    @intrinsic
    def rise(typing_context, x, columns, boxes, low, high, size, share, found):
        """Take the scores over a node: by the chance that a cut of the enlarged box parts a row from it, `share`.

        `low` and `high` are the places of the box's corners, `size` the sum of its sides. Returns whether some row is outside.
        """

        def generate(context, builder, signature, args):
            code = _Code(context, builder, signature, args, kind)
            nothing = ir.Constant(kind, [0.0] * lanes)
            total = code.variable(kind, 0.0)
            with code.loop(args[1]) as (column, _):
                given = code.vector(0, builder.mul(column, _whole(lanes)))
                below = builder.fsub(code.same(code.number(2, builder.add(args[3], column))), given)
                above = builder.fsub(given, code.same(code.number(2, builder.add(args[4], column))))
                beyond = code.larger(code.larger(below, above), nothing)
                builder.store(builder.fadd(builder.load(total), beyond), total)
            out, before = builder.load(total), code.vector(7, _whole(0))
            chance = builder.fdiv(out, builder.fadd(out, code.same(args[5])))
            more = builder.fmul(chance, builder.fsub(code.same(args[6]), before))
            code.keep(builder.fadd(before, more), 7, _whole(0))
            return code.some(builder.fcmp_ordered(">", out, nothing))

        given = (x, types.uint64, boxes, types.uint64, types.uint64, types.float32, types.float32, found)
        return types.boolean(*given), generate

    return begin, rise


begin_many, rise_many = _steps(MANY)
begin_few, rise_few = _steps(FEW)


@intrinsic
def turn(typing_context, rows, width, order, first, last, x):
    """Write the rows order[first : first + MANY] of (N, P) as columns (P, MANY); after `last` it stands for the others."""

    def generate(context, builder, signature, args):
        code = _Code(context, builder, signature, args, _EIGHT)
        places = []
        for lane in range(MANY):
            at = builder.add(args[3], _whole(lane))
            at = builder.select(builder.icmp_unsigned("<", at, args[4]), at, args[4])
            places.append(builder.mul(builder.zext(code.number(2, at), _WORD), args[1]))
        with code.loop(args[1], 8) as (column, _):
            given = [code.vector(0, builder.add(place, column)) for place in places]
            halves = zip(code.turned(given[:8]), code.turned(given[8:]), strict=True)
            for i, (one, other) in enumerate(halves):
                at = builder.mul(builder.add(column, _whole(i)), _whole(MANY))
                code.keep(code.shuffled(one, other, list(range(MANY))), 5, at)
        return context.get_dummy_value()

    return types.void(rows, types.uint64, order, types.uint64, types.uint64, x), generate


@intrinsic
def first_left(typing_context, places, n, columns, table, begins, sets):
    """Return the first leaf that none of a row's columns rules out.

    Args:
        typing_context: numba's.
        places: (N, D) u2: for each column where in `table` it is.
        n: the row.
        columns: D.
        table: u1, how many of the tree's cuts of that column lie below.
        begins: (D,) u8 of each column in `sets`.
        sets: (R, WORDS) u8, the leaves that so many cuts leave, as bits.
    """

    def generate(context, builder, signature, args):
        code = _Code(context, builder, signature, args, _SET)
        row, left = builder.mul(args[1], args[2]), code.variable(_SET, -1)
        with code.loop(args[2]) as (column, _):
            place = builder.zext(code.number(0, builder.add(row, column)), _WORD)
            at = builder.add(code.number(4, column), builder.zext(code.number(3, place), _WORD))
            some = code.vector(5, builder.mul(at, _whole(WORDS)), align=8)
            builder.store(builder.and_(builder.load(left), some), left)
        words, found = builder.load(left), None
        for number in reversed(range(WORDS)):
            word = builder.extract_element(words, ir.Constant(ir.IntType(32), number))
            lowest = builder.cttz(word, ir.Constant(ir.IntType(1), 0))
            later = lowest if found is None else builder.add(found, _whole(64))
            found = builder.select(builder.icmp_unsigned("==", word, _whole(0)), later, lowest)
        return found

    return types.uint64(places, types.uint64, types.uint64, table, begins, sets), generate
