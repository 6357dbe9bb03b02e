"""When a worker takes up that it is to stop: alone at the next step, among others at the next vote, all at the same one."""

from __future__ import annotations

from pathlib import Path

from phalanx.contracts import Collective
from phalanx.errors import Stopped
from phalanx.parallel.collective import Solo
from phalanx.parallel.threads import run_threads
from phalanx.trainer.session import WorkerSession


def steps_done(world: Collective, folder: Path, *, asked_after: int) -> int:
    """Return the step after which a rank stops that is asked to after so many."""
    step = 0
    session = WorkerSession(
        world=world,
        channels={},
        seed=0,
        threads=1,
        device="cpu",
        output_data=folder,
        send=lambda event: None,
        stop_requested=lambda: step > asked_after and world.rank == 0,
    )
    while step < 1000:
        step += 1
        try:
            session.report(step, {})
        except Stopped:
            break
    return step


def test_alone_at_the_next_step(tmp_path: Path) -> None:
    assert steps_done(Solo(), tmp_path, asked_after=7) == 8


def test_together_at_the_same_step(tmp_path: Path) -> None:
    first, second = run_threads(2, lambda world: steps_done(world, tmp_path, asked_after=7))
    assert first == second
    assert 7 < first < 1000
