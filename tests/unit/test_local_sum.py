"""Sums of one number a rank through shared memory."""

from __future__ import annotations

import numpy as np
import pytest

from phalanx.contracts import Collective
from phalanx.parallel import local_sum
from phalanx.parallel.collective import Solo
from phalanx.parallel.local_sum import LocalSum
from phalanx.parallel.threads import run_threads


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_ranks_get_the_sum_of_every_call(size: int) -> None:
    def run(world: Collective) -> list[float]:
        sums = LocalSum.open(world)
        assert sums is not None
        found = []
        for step in range(50):
            sums.put(float(np.float32(world.rank + 0.1 * step)))
            found.append(sums.total())
        sums.close()
        return found

    results = [[run(Solo())]] if size == 1 else [run_threads(size, run)]
    expected = [float(sum(float(np.float32(rank + 0.1 * step)) for rank in range(size))) for step in range(50)]
    assert all(found == expected for found in results[0])


def test_not_finite_numbers_stay_what_they_are() -> None:
    sums = LocalSum.open(Solo())
    assert sums is not None
    sums.put(float("nan"))
    assert np.isnan(sums.total())
    sums.close()


def test_ranks_that_cannot_see_the_memory_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_sum, "_opened", lambda path, token: None)
    assert run_threads(2, LocalSum.open) == [None, None]


def test_nothing_is_left_in_the_file_system() -> None:
    before = set(local_sum._FOLDER.iterdir()) if local_sum._FOLDER.is_dir() else set()
    sums = LocalSum.open(Solo())
    assert sums is not None
    left = {path for path in set(local_sum._FOLDER.iterdir()) - before if "phalanx-sum" in path.name}
    sums.close()
    assert not left
