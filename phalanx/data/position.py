"""How far an epoch has come, so that a job can go on where it was interrupted."""

from __future__ import annotations

from typing import final

from ..contracts import Entry, State


@final
class Position:
    """Rows of an epoch that were handed out over all ranks.

    A position that is put back counts for the next iteration alone, and only when that is over the same epoch.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._row = 0
        self._restored = False

    def begin(self, epoch: int) -> int:
        """Return how many rows of `epoch` are done already."""
        done = self._row if self._restored and epoch == self._epoch else 0
        self._restored = False
        self._epoch, self._row = epoch, done
        return done

    def reach(self, row: int) -> None:
        """Note that all rows before `row` have been handed out."""
        self._row = row

    def state_dict(self) -> State:
        """Return the epoch and the rows that are done."""
        return {"epoch": Entry(self._epoch), "row": Entry(self._row)}

    def load_state_dict(self, state: State) -> None:
        """Put a position back."""
        self._epoch, self._row = int(state["epoch"].value), int(state["row"].value)
        self._restored = True
