"""How a global batch is cut into micro-batches: a pure function, so that every strategy sees the same rows at the same step."""

from __future__ import annotations

from dataclasses import dataclass

_MASK = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions [start, stop) of a global batch that are computed at once; weight 0: they only stand in for an empty piece."""

    number: int  # of all pieces of the batch
    start: int
    stop: int
    weight: float  # rows / rows of the global batch


def pieces(rows: int, *, data_rank: int, data_size: int, accumulate: int) -> list[Piece]:
    """Return the pieces that a rank computes of a global batch of `rows` rows, always `accumulate` of them.

    The batch is cut into data_size x accumulate runs of neighbouring rows whose lengths differ by at most one, longer ones
    first; rank r has runs r·accumulate to (r+1)·accumulate - 1. Where there are fewer rows than runs, the first rows stand
    in, with weight 0.
    """
    count = data_size * accumulate
    length, longer = divmod(rows, count)
    found = []
    for number in range(data_rank * accumulate, (data_rank + 1) * accumulate):
        start = number * length + min(number, longer)
        stop = start + length + (number < longer)
        if start == stop:
            found.append(Piece(number, 0, min(rows, length + 1), 0.0))
        else:
            found.append(Piece(number, start, stop, (stop - start) / rows))
    return found


def seed_of(seed: int, step: int, number: int) -> int:
    """Return the seed of torch's generators for piece `number` of step `step`: well mixed, below 2^63 (splitmix64)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + (number + 1) * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) & _MASK
