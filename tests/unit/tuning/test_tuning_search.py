"""Proposals and the sweep's memory: the same for the same seed and knowledge, whatever happened to the driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from phalanx import Categorical, Continuous, Integer, UserError
from phalanx.tuning import ranges
from phalanx.tuning.ledger import JOURNAL, Ledger, mend
from phalanx.tuning.search import Known, Search

SPACE = {"x": Continuous(-5.0, 5.0), "k": Integer(1, 4), "c": Categorical(["a", "b"])}


def loss(values: dict[str, Any]) -> float:
    return float((values["x"] - 2) ** 2 + values["k"] + (values["c"] == "a"))


def search(strategy: Any = "bayesian", *, space: Any = SPACE, seed: int = 1, **more: Any) -> Search:
    return Search(space, strategy=strategy, directions=["minimize"], seed=seed, **more)


def run(found: Search, count: int, value: Callable[[dict[str, Any]], float] = loss) -> list[dict[str, Any]]:
    points = []
    for number in range(count):
        point = found.propose(number)
        assert point is not None
        points.append(point)
        found.learn(number, Known("Completed", (value(point),), 1))
    return points


@pytest.mark.parametrize("strategy", ["bayesian", "random", "hyperband"])
def test_same_seed_same_points(strategy: str) -> None:
    assert run(search(strategy), 18) == run(search(strategy), 18)
    assert run(search(strategy), 3) != run(search(strategy, seed=2), 3)


def test_learns() -> None:
    points = run(search(space={"x": Continuous(-5.0, 5.0)}), 40, lambda v: (v["x"] - 2) ** 2)
    assert min(abs(p["x"] - 2) for p in points) < 0.1
    assert sum(abs(p["x"] - 2) < 1 for p in points[20:]) >= 8  # evenly spread: 4


def test_goes_on_as_if_never_interrupted() -> None:
    whole = run(search(), 16)
    again = search()
    for number, point in enumerate(whole[:12]):
        again.took(number, point)
    for number, point in enumerate(whole[:12]):
        again.learn(number, Known("Completed", (loss(point),), 1))
    for number in range(12, 16):
        assert again.propose(number) == whole[number]
        again.learn(number, Known("Completed", (loss(whole[number]),), 1))


def test_failures_and_stopped_trials_do_no_harm() -> None:
    found = search()
    for number in range(16):
        point = found.propose(number)
        assert point is not None
        state: Any = ("Failed", "Stopped", "Completed")[number % 3]
        found.learn(number, Known(state, () if state == "Failed" else (loss(point),), 3))


def test_a_stopped_trial_teaches_at_once_and_again_when_it_went_on() -> None:
    found, other = search(), search()
    for number in range(12):
        point = found.propose(number)
        assert point is not None
        other.took(number, point)
        stopped = Known("Stopped", (loss(point) + 1,), 3)
        found.learn(number, stopped)
        found.learn(number, stopped)  # nothing new
        if number % 3 == 0:  # it goes on, and comes to its end
            found.learn(number, Known("Completed", (loss(point),), 9))
        other.learn(number, Known("Completed", (loss(point),), 9) if number % 3 == 0 else stopped)
    assert found.propose(12) == other.propose(12)


def test_no_point_twice_and_an_end() -> None:
    space = {"k": Integer(1, 3), "c": Categorical(["a", "b"])}
    found = search(space=space)
    points = []
    for number in range(7):
        point = found.propose(number)
        points.append(point)
        if point is not None:
            found.learn(number, Known("Completed", (float(point["k"]),), 1))
    assert points[6] is None
    assert sorted(map(repr, points[:6])) == sorted(map(repr, ranges.grid(space)))


def test_grid_and_first_points() -> None:
    assert [search("grid", space={"k": Integer(1, 2)}).propose(n) for n in range(3)] == [{"k": 1}, {"k": 2}, None]
    assert search(first=[{"x": 0.0, "k": 1, "c": "a"}]).propose(0) == {"x": 0.0, "k": 1, "c": "a"}


def test_conditions_constraints_and_many_objectives() -> None:
    space = ranges.checked({"c": Categorical(["a", "b"]), "x": Continuous(0, 1, only_if={"c": "b"})})
    found = Search(space, strategy="bayesian", directions=["minimize", "maximize"], seed=0)
    for number in range(14):
        point = found.propose(number)
        assert point is not None
        assert ("x" in point) == (point["c"] == "b")
        violated = {"limit": 1.0 if number % 2 else -1.0}
        found.learn(number, Known("Completed", (point.get("x", 0.5), 1.0), 1, violated))


def test_earlier_trials_count() -> None:
    seen = [({"x": x / 4}, Known("Completed", ((x / 4 - 2) ** 2,), 1)) for x in range(-20, 21)]
    found = search(space={"x": Continuous(-5.0, 5.0)}, observed=seen)
    found_first = [found.propose(n) for n in range(14)][10:]
    assert sum(abs(p["x"] - 2) < 1.5 for p in found_first if p) >= 3


@pytest.mark.parametrize("url", [None, "sqlite"])
def test_ledger_remembers(tmp_path: Path, url: str | None) -> None:
    database = f"sqlite:///{tmp_path}/study.db" if url else None

    def opened(*, resume: bool) -> Ledger:
        return Ledger(str(tmp_path), name="s", url=database, ranges=SPACE, directions=["minimize"], resume=resume)

    points = [{"x": 0.1 * n, "k": 1 + n % 4, "c": "b"} for n in range(4)]
    with closing(opened(resume=False)) as ledger:
        for number, point in enumerate(points):
            ledger.begin(number, point, {"job": f"s-{number}"})
        ledger.finish(0, Known("Completed", (1.5,), 9, {"limit": -1.0}))
        ledger.finish(1, Known("Stopped", (2.5,), 4))
        ledger.finish(2, Known("Failed"))
        ledger.note(3, "stopped_at", 7)
    with pytest.raises(UserError, match="holds a study 's' already"):
        opened(resume=False)
    with closing(opened(resume=True)) as ledger:
        found = ledger.trials()
        ledger.begin(4, points[0], {"job": "s-4"})
    assert [t.values for t in found] == points
    assert found[0].known == Known("Completed", (1.5,), 0, {"limit": -1.0})
    assert found[1].known == Known("Stopped", (2.5,), 4)
    assert found[2].known is not None
    assert found[2].known.state == "Failed"
    assert found[3].known is None
    assert found[3].notes["stopped_at"] == 7


def test_a_torn_journal_is_mended(tmp_path: Path) -> None:
    def opened() -> Ledger:
        return Ledger(str(tmp_path), name="s", url=None, ranges=SPACE, directions=["minimize"], resume=True)

    with closing(opened()) as ledger:
        ledger.begin(0, {"x": 0.0, "k": 1, "c": "a"}, {})
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"wor')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(journal)  # of a writer that was killed
    with closing(opened()) as ledger:
        ledger.begin(1, {"x": 1.0, "k": 1, "c": "a"}, {})
    with closing(opened()) as ledger:
        assert [t.values["x"] for t in ledger.trials()] == [0.0, 1.0]
    mend(tmp_path / "not there")


def test_a_database_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        Ledger(str(tmp_path), name="s", url="nosuch://x:y@host/db", ranges=SPACE, directions=["minimize"], resume=False)
