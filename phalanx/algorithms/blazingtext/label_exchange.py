"""How ranks that learn to classify from different lines keep one model.

All rows that any rank moved go round every few lines: outputs begin at zero, and ranks that went far by themselves would find
other directions for the same labels. The distance grows with the lines learnt, as the model settles. Rare rows move by the sum
of what moved them on all ranks, as if one rank had read all lines; rows that are in most lines, whose moves answer the same
errors on every rank, by less, down to the mean. How much less follows from the outputs, the errors still made, and the rate.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ...contracts import Array, Collective, Entry, State
from ..kernels.moves import put_moves, take_moves
from .exchange import share

_GROWTH = 0.02  # lines between exchanges, over the lines that a rank has learnt from; these were chosen on 20 newsgroups
_FEWEST, _MOST = 2, 1024
_SETTLING = 0.04, 0.1  # how much nearer to its goal a line brings a row of inputs and outputs, over what is expected
_NUMBER = 2  # numbers of 16 bits that a row's own number takes


@final
class LabelExchange:
    """Matrices that all ranks change; they are the same again after every `turn`.

    Args:
        world: the ranks.
        inputs: (R, S) float32, the same on all ranks now.
        outputs: (L, S) float32, likewise.
        frequencies: (R,) the share of each row of inputs in a line, the mean over all lines.
        dimension: numbers of a row that are exchanged.
    """

    def __init__(self, world: Collective, inputs: Array, outputs: Array, frequencies: Array, dimension: int) -> None:
        self._world, self._dimension = world, dimension
        self._matrices = [inputs, outputs]
        self._base = [inputs.copy(), outputs.copy()]
        self._frequencies = frequencies.astype(np.float32)
        self._errors, self._length = 1.0, 0.0  # of the step before: share of the errors at the start, squared length of means
        self._spread = 0.0

    def begin_step(self) -> None:
        """Look at the outputs, which say how far a move of inputs reaches."""
        outputs = self._base[1]
        self._spread = float(np.square(outputs - outputs.mean(axis=0)).sum() / len(outputs))

    def turn(self, rows: Array, labels: Array, lines: float, rate: float) -> None:
        """Collective. Exchange all rows that any rank moved.

        Args:
            rows: of inputs that this rank moved.
            labels: rows of outputs that this rank moved.
            lines: that a rank learnt from in this turn, the mean over ranks.
            rate: learning rate.
        """
        both = (rows, labels)
        moves = [np.empty((len(moved), self._dimension), np.uint16) for moved in both]
        for matrix, base, moved, out in zip(self._matrices, self._base, both, moves, strict=True):
            take_moves(matrix, base, moved, out)
        first = len(self._matrices[0])  # a row of outputs has the numbers behind those of inputs
        numbers = np.concatenate([rows, first + labels]).astype(np.uint32).view(np.uint16)
        message = np.concatenate([numbers, *(one.ravel() for one in moves)])
        work = lines * rate * self._errors
        for got in self._world.all_gather(message):  # in the order of ranks, so that all come to the same bits
            count = len(got) // (self._dimension + _NUMBER)
            moved = got[: count * _NUMBER].view(np.uint32).astype(np.int64)
            inputs = np.searchsorted(moved >= first, True)
            shares = np.full(count, _SETTLING[1] * work * self._length / len(self._base[1]))
            shares[:inputs] = self._frequencies[moved[:inputs]] * (_SETTLING[0] * work * self._spread)
            shares = share(shares, self._world.size)
            moved[inputs:] -= first
            parts = got[count * _NUMBER :].reshape(count, self._dimension)
            for place, some in enumerate((slice(inputs), slice(inputs, None))):
                put_moves(self._matrices[place], self._base[place], moved[some], parts[some], shares[some])

    def end_step(self, loss: float, length: float) -> None:
        """Note what a step's lines came to on all ranks: the mean loss, and the mean squared length of the bags' means."""
        self._errors = min(loss / np.log(max(len(self._base[1]), 2)), 1.0)
        self._length = length

    def state_dict(self) -> State:
        """Return the matrices, which all ranks have, and what the last step was like."""
        return {
            "common_0": Entry(self._base[0]),
            "common_1": Entry(self._base[1]),
            "errors": Entry(self._errors),
            "length": Entry(self._length),
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what the last step was like; the matrices are those of all ranks."""
        if "errors" in state:
            self._errors, self._length = float(state["errors"].value), float(state["length"].value)


def turns(done: float, lines: float) -> Array:
    """Return where the turns of a step end, as shares of it, (turns,) from above 0 to 1.

    Args:
        done: lines that a rank has learnt from before the step.
        lines: of a rank in the step.
    """
    ends, at = [], 0.0
    while at < lines:
        at = min(at + min(max((done + at) * _GROWTH, _FEWEST), _MOST), lines)
        ends.append(at / lines)
    return np.array(ends or [1.0])
