"""Which attempt may commit: one that was overtaken leaves nothing, whenever that happens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from phalanx import storage
from phalanx.checkpoint.fence import Pass, fence_name, put_fence
from phalanx.checkpoint.manifest import manifest_name
from phalanx.checkpoint.store import CheckpointStore, checkpoints_at
from phalanx.contracts import State
from phalanx.errors import PlatformError
from phalanx.parallel.collective import Solo
from phalanx.testing.places import FaultyPlace, MemoryPlace


class Part:
    def __init__(self, value: float) -> None:
        self.values = np.full(3, value)

    def state_dict(self) -> State:
        from phalanx.contracts import Entry

        return {"values": Entry(self.values, "global")}

    def load_state_dict(self, state: State) -> None:
        self.values = state["values"].value


def store(place: MemoryPlace | FaultyPlace, attempt: int, run: str = "a") -> CheckpointStore:
    return CheckpointStore("memory", world=Solo(), job_id="job", attempt=attempt, place=place, fence=run)


def fence(place: MemoryPlace, attempt: int, run: str = "a") -> None:
    place.put(fence_name("job"), json.dumps({"run": run, "attempt": attempt}).encode())


def save(of: CheckpointStore, step: int, value: float = 1.0) -> None:
    of.save(step, {"part": Part(value)})
    of.wait()


@pytest.mark.parametrize(("run", "attempt"), [("a", 1), ("b", 0)])
def test_an_attempt_that_was_overtaken_commits_nothing(run: str, attempt: int) -> None:
    place = MemoryPlace()
    fence(place, 0)
    old = store(place, 0)
    save(old, 1)
    fence(place, attempt, run)
    with pytest.raises(PlatformError, match="has taken over"):
        save(old, 2)
    assert [info.step for info in old.list()] == [1]


def test_a_newer_commit_is_never_replaced() -> None:
    place = MemoryPlace()
    fence(place, 1)
    save(store(place, 1), 5, 2.0)
    before = place.files[manifest_name(5)]
    fence(place, 0)  # what the old one sees when it looks before it commits
    with pytest.raises(PlatformError, match="attempt 1 of the job has committed step 5"):
        save(store(place, 0), 5, 9.0)
    assert place.files[manifest_name(5)] == before


def test_a_newer_attempt_replaces_what_the_one_before_committed() -> None:
    place = MemoryPlace()
    fence(place, 0)
    save(store(place, 0), 5)
    fence(place, 1)
    save(store(place, 1), 5, 2.0)
    part = Part(0.0)
    assert store(place, 1).restore({"part": part}) == 5
    assert part.values.tolist() == [2.0, 2.0, 2.0]


def test_whenever_it_is_overtaken_nothing_of_it_stays() -> None:
    calls = FaultyPlace(MemoryPlace(), at=10**9)
    save(store(calls, 0), 7)
    for at in range(1, calls.calls + 3):
        memory = MemoryPlace()
        fence(memory, 0)
        place = FaultyPlace(memory, at=at, meanwhile=lambda memory=memory: fence(memory, 1))  # type: ignore[misc]
        try:
            save(store(place, 0), 7)
        except PlatformError:
            assert manifest_name(7) not in memory.files, at
        else:  # it was overtaken after its last look, or not at all
            assert not place.fired or at >= calls.calls


@pytest.mark.parametrize("url", ["{folder}/new.txt", "memory://phalanx-put-new/new.txt"])
def test_of_two_who_put_a_new_file_one_does(url: str, tmp_path: Path) -> None:
    place = url.format(folder=tmp_path)
    assert storage.put_new(place, b"first")
    assert not storage.put_new(place, b"second")
    assert storage.read_bytes(place) == b"first"
    storage.remove(place)


def test_a_fence_is_no_checkpoint(tmp_path: Path) -> None:
    put_fence(str(tmp_path), "job", Pass("a", 3))
    assert json.loads((tmp_path / "fence" / "job.json").read_text()) == {"run": "a", "attempt": 3}
    assert list(checkpoints_at(str(tmp_path))) == []
