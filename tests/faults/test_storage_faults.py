"""A storage that fails or dies at the n-th call, for every n; damage of every byte; savers, readers and deleters at once."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable

import pytest

from phalanx.checkpoint import background
from phalanx.checkpoint.manifest import read_manifest, write_manifest
from phalanx.checkpoint.place import Place
from phalanx.checkpoint.policy import Retention
from phalanx.checkpoint.pruning import prune
from phalanx.checkpoint.reading import list_checkpoints
from phalanx.checkpoint.store import CheckpointStore
from phalanx.contracts import Collective
from phalanx.errors import PhalanxError, PlatformError
from phalanx.parallel.collective import Solo
from phalanx.parallel.threads import run_threads
from phalanx.testing.places import DEATHS, FAULTS, DiedError, Fault, FaultyPlace, MemoryPlace
from phalanx.testing.store_checks import Part, example_state, restored_step, save_steps, wanting

Case = Callable[[], None]


def clean(size: int, steps: int = 2) -> MemoryPlace:
    """Return a place with steps 1…`steps` saved by `size` ranks."""
    place = MemoryPlace()
    run_threads(size, lambda world: save_steps(place, world, range(1, steps + 1)))
    return place


def copy_of(place: MemoryPlace) -> MemoryPlace:
    other = MemoryPlace()
    other.files = dict(place.files)
    return other


def restored(place: Place, size: int, saved_by: int) -> int:
    """Restore on `size` ranks, checking every bit; return the step, the same on all."""
    steps = set(run_threads(size, lambda world: restored_step(place, world, saved_by)))
    assert len(steps) == 1, f"ranks restored different steps: {steps}"
    return steps.pop()


class TestEveryCallOfASave:
    """Steps 1 and 2 are committed; the n-th call of what follows goes wrong on one rank."""

    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize(("size", "faulty_rank"), [(1, 0), (2, 0), (2, 1), (3, 2)])
    @pytest.mark.parametrize("keep", [None, Retention(last=1)])
    def test_step_3_is_there_whole_or_step_2(
        self, case: Case, fault: Fault, size: int, faulty_rank: int, keep: Retention | None
    ) -> None:
        before = clean(size)
        for at in itertools.count(1):
            place = copy_of(before)
            faulty = FaultyPlace(place, at, fault)

            def save(world: Collective, place: Place = place, faulty: Place = faulty) -> None:
                mine = faulty if world.rank == faulty_rank else place
                save_steps(mine, world, range(3, 4), keep=keep, attempt=1)

            try:
                run_threads(size, save)
                survived = True
            except (PhalanxError, DiedError):
                survived = False
            step = restored(place, size, size)
            assert step in (2, 3)
            assert step == 3 or not survived, "a save that reported success is not there"
            case()
            run_threads(size, lambda world, place=place: save_steps(place, world, range(4, 6), keep=keep, attempt=2))
            assert restored(place, size, size) == 5
            if not faulty.fired:
                assert survived
                assert at > 3
                break

    @pytest.mark.parametrize("fault", ["refuse", "tear", "lose the answer"])
    def test_the_store_goes_on_after_an_error(self, case: Case, fault: Fault) -> None:
        before = clean(2)
        for at in itertools.count(1):
            place = copy_of(before)
            faulty = FaultyPlace(place, at, fault)

            def save(world: Collective, place: Place = place, faulty: Place = faulty) -> int:
                store = CheckpointStore("", world=world, job_id="job", place=faulty if world.rank else place)
                failures = 0
                for step in (3, 4):
                    store.save(step, {"part": Part(example_state(step, world.rank, world.size))})
                    try:
                        store.wait()
                    except PlatformError:
                        failures += 1
                return failures

            failures = run_threads(2, save)
            assert failures[0] == failures[1] <= 1, "a failed save is told to every rank"
            assert restored(place, 2, 2) >= 3
            case()
            if not faulty.fired:
                break

    @pytest.mark.parametrize("fault", FAULTS)
    def test_every_call_of_a_restore(self, case: Case, fault: Fault) -> None:
        place = clean(2)
        for at in itertools.count(1):
            faulty = FaultyPlace(place, at, fault)

            def restore(world: Collective, faulty: Place = faulty) -> int:
                return restored_step(faulty if world.rank == 1 else place, world, 2)

            try:
                assert run_threads(2, restore)[0] in (1, 2)
            except DiedError:
                assert fault in DEATHS
            except PlatformError:
                assert fault in DEATHS, "one that fails once has an older one to fall back to"
            case()
            if not faulty.fired:
                break

    def test_a_storage_that_is_down_is_no_fresh_start(self, case: Case) -> None:
        place = clean(1)
        for at in range(1, 5):
            with pytest.raises(PlatformError):
                restored_step(FaultyPlace(place, at, "refuse", lasting=True), Solo(), 1)
            case()


class TestDamage:
    """Something happens to the files of step 3 at rest: it is noticed, and step 2 is restored."""

    def test_every_bit_of_every_file(self, case: Case) -> None:
        place = clean(1, steps=3)
        for name, data in [(n, d) for n, d in place.files.items() if n.startswith("3/")]:
            for index in range(len(data)):
                flipped = bytes([data[index] ^ (1 << index % 8)])
                place.files[name] = data[:index] + flipped + data[index + 1 :]
                assert restored_step(place, Solo(), 1) == 2, f"byte {index} of {name}"
                case()
            place.files[name] = data
        assert restored_step(place, Solo(), 1) == 3

    @pytest.mark.parametrize(("saved_by", "size"), [(1, 1), (2, 2), (2, 1), (1, 2), (3, 2)])
    def test_torn_longer_missing_or_mixed_up(self, case: Case, saved_by: int, size: int) -> None:
        before = clean(saved_by, steps=3)
        for name, data in [(n, d) for n, d in before.files.items() if n.startswith("3/")]:
            others = [d for n, d in before.files.items() if n != name and n.rsplit(".", 1)[1] == name.rsplit(".", 1)[1]]
            damages = [None, b"", data[:1], data[: len(data) // 2], data[:-1], data + b"\0", b"\0" * len(data), *others]
            for damage in damages:
                place = copy_of(before)
                if damage is None:
                    del place.files[name]
                else:
                    place.files[name] = damage
                unneeded = name.endswith(".record.json") or damage == data
                assert restored(place, size, saved_by) == (3 if unneeded else 2), f"{name}: {damage!r:.40}"
                case()

    def test_only_one_rank_sees_the_damage(self, case: Case) -> None:
        before = clean(3, steps=3)
        for rank, size in itertools.product(range(3), (1, 2, 3)):
            place = copy_of(before)
            name = next(n for n in place.files if n.startswith("3/") and n.endswith(f"rank-{rank}.safetensors"))
            place.files[name] = place.files[name][:-1] + b"\xff"
            assert restored(place, size, 3) == 2
            info = list_checkpoints(place)[0]
            assert (info.step, info.verified) == (3, False)
            assert f"rank-{rank}.safetensors is damaged" in info.why
            case()

    def test_all_are_damaged(self, case: Case) -> None:
        place = clean(1)
        for name in place.files:
            place.files[name] = b"x"
        store = CheckpointStore("", world=Solo(), job_id="job", place=place)
        assert store.restore({"part": Part(wanting(0, 1))}) == 0
        assert [passed.step for passed in store.restored.passed_over] == [2, 1]
        assert store.prune(Retention(last=1)) == []
        case()

    def test_a_manifest_of_another_step_or_format(self, case: Case) -> None:
        place = clean(1, steps=3)
        manifest = place.files["3/manifest.json"]
        for changed in (
            place.files["2/manifest.json"],
            b"{}",
            b"[]",
            b"null",
            b'{"xxh3": 1}',
            manifest.replace(b'"version":1', b'"version":2'),
        ):
            place.files["3/manifest.json"] = changed
            assert restored_step(place, Solo(), 1) == 2
            case()
        assert write_manifest(read_manifest(manifest, 3)) == manifest


class TestAtOnce:
    """What one does at any moment of what another does."""

    @pytest.mark.parametrize("keep", [None, Retention(last=1)])
    def test_two_savers_of_the_same_steps(self, case: Case, keep: Retention | None) -> None:
        for at in itertools.count(1):
            place = clean(1)
            faulty = FaultyPlace(
                place,
                at,
                meanwhile=lambda p=place: save_steps(p, Solo(), range(3, 5), keep=keep, attempt=1),  # type: ignore[misc]
            )
            save_steps(faulty, Solo(), range(3, 4), keep=keep, attempt=0)
            assert restored_step(place, Solo(), 1) >= 3
            case()
            if not faulty.fired:
                break

    def test_two_savers_that_disagree_never_mix(self, case: Case) -> None:
        """The late one of a group that was thought dead holds other values at the same step: either is whole."""

        def save(place: Place, values: int) -> None:
            store = CheckpointStore("", world=Solo(), job_id="job", attempt=values, place=place)
            store.save(3, {"part": Part(example_state(values, 0, 1))})
            store.wait()

        for at in itertools.count(1):
            place = clean(1)
            faulty = FaultyPlace(place, at, meanwhile=lambda p=place: save(p, 8))  # type: ignore[misc]
            save(faulty, 7)
            part = Part(wanting(0, 1))
            assert CheckpointStore("", world=Solo(), job_id="job", place=place).restore({"part": part}) == 3
            history = part.state["history"].value["step"]
            assert history in (7, 8)
            assert {name: repr(entry) for name, entry in part.state.items()} == {
                name: repr(entry) for name, entry in example_state(history, 0, 1).items()
            }
            case()
            if not faulty.fired:
                break

    @pytest.mark.parametrize("size", [1, 2])
    def test_a_reader_whose_checkpoint_is_deleted(self, case: Case, size: int) -> None:
        def move_on(place: Place) -> None:
            run_threads(size, lambda world: save_steps(place, world, range(3, 7), keep=Retention(last=1), attempt=1))

        before = clean(size)
        for at in itertools.count(1):
            place = copy_of(before)
            faulty = FaultyPlace(place, at, meanwhile=lambda p=place: move_on(p))  # type: ignore[misc]

            def restore(world: Collective, place: Place = place, faulty: Place = faulty) -> int:
                return restored_step(faulty if world.rank == 0 else place, world, size)

            assert run_threads(size, restore)[0] >= 2, "a reader that lost its files found nothing"
            case()
            if not faulty.fired:
                break

    @pytest.mark.parametrize("fault", FAULTS)
    def test_every_call_of_deleting(self, case: Case, fault: Fault) -> None:
        before = clean(1, steps=4)
        before.files["1/0-dead-0/rank-0.safetensors"] = b"left by a save that died"
        for at in itertools.count(1):
            place = copy_of(before)
            faulty = FaultyPlace(place, at, fault)
            with contextlib.suppress(PlatformError, DiedError):
                prune(faulty, "job", Retention(last=2))
            assert restored_step(place, Solo(), 1) == 4
            assert all(info.verified for info in list_checkpoints(place)), "a half deleted checkpoint is listed"
            prune(place, "job", Retention(last=2))
            assert {name.split("/")[0] for name in place.files} == {"3", "4"}, "the next deletion ends what this one began"
            case()
            if not faulty.fired:
                break

    @pytest.mark.parametrize("damaged", [(4,), (4, 3), (4, 3, 2)])
    def test_deleting_never_takes_the_newest_that_verifies(self, case: Case, damaged: tuple[int, ...]) -> None:
        before = clean(1, steps=4)
        for last, missing in itertools.product((1, 2, 3), (False, True)):
            place = copy_of(before)
            for step in damaged:
                name = next(n for n in place.files if n.startswith(f"{step}/") and n.endswith(".safetensors"))
                if missing:
                    del place.files[name]
                else:
                    place.files[name] = b"\0" * len(place.files[name])
            prune(place, "job", Retention(last=last))
            assert restored_step(place, Solo(), 1) == min(damaged) - 1
            case()


class TestTheRest:
    def test_half_saves_of_others_are_no_checkpoints(self, case: Case) -> None:
        place = clean(1)
        for name, data in [(n, d) for n, d in place.files.items() if n.startswith("2/") and "manifest" not in n]:
            place.files[name.replace("2/", "9/", 1)] = data
            assert restored_step(place, Solo(), 1) == 2
            assert [info.step for info in list_checkpoints(place)] == [2, 1]
            case()
        for name in ("9/manifest.json.partial", "9/.manifest.json.ab.partial", "latest", "x/manifest.json", "09/manifest.json"):
            place.files[name] = place.files["2/manifest.json"]
            assert restored_step(place, Solo(), 1) == 2
            case()

    def test_a_clock_that_goes_back(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        place = MemoryPlace()
        for step, now in enumerate((1e9, 5e8, 0.0, -1.0), start=1):
            monkeypatch.setattr(background.time, "time", lambda now=now: now)
            save_steps(place, Solo(), range(step, step + 1), keep=Retention(last=2))
            assert restored_step(place, Solo(), 1) == step
            case()
        assert [info.step for info in list_checkpoints(place)] == [4, 3]

    def test_a_rank_that_never_writes_its_part(self, case: Case) -> None:
        before = clean(2)

        class Silent:
            """Takes rank 1's record and forgets it."""

            url = "silent"
            sizes, read, remove = before.sizes, before.read, before.remove

            def put(self, name: str, data: bytes | memoryview) -> None:
                if "record" not in name:
                    before.put(name, data)

        def save(world: Collective) -> str:
            place: Place = Silent() if world.rank else before
            store = CheckpointStore("", world=world, job_id="job", place=place, commit_timeout_s=0.05)
            store.save(3, {"part": Part(example_state(3, world.rank, world.size))})
            with pytest.raises(PlatformError) as caught:
                store.wait()
            return caught.value.message

        for message in run_threads(2, save):
            assert "rank 1 did not write its part of step 3 within 0.05 s" in message
        assert restored(before, 2, 2) == 2
        case()

    def test_closing_gives_up_what_is_in_flight(self, case: Case) -> None:
        place = clean(2)
        closing = threading.Event()

        def save(world: Collective) -> None:
            if world.rank == 1:
                assert closing.wait(20)
                return
            job = background.SaveJob(3, "3/1-x-0", _snapshot(world), 0, 2, "job", 1, ("part",), {}, 600)
            flying = background.BackgroundSave(place, job)
            flying.cancel()
            assert flying.join(20)
            with pytest.raises(PlatformError, match="the save of step 3 was given up; rank 1 had not written its part"):
                flying.result(0)
            closing.set()

        run_threads(2, save)
        assert not any(name.startswith("3/") for name in place.files)
        case()


def _snapshot(world: Collective) -> background.Snapshot:
    from phalanx.checkpoint.state import Copier

    return Copier().copy({"part": example_state(3, world.rank, world.size)}, world.rank)
