"""A group for the attaching launcher to join, made of threads of this process: what torchrun does, rehearsed."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from ..contracts import Event, Exit, Member, WorkerSpec
from ..groups import Group
from ..launch.attach import AttachedWorkers, AttachLauncher, Lead
from ..launch.following import Follower
from ..launch.local import LOOPBACK
from ..launch.meeting import Meeting, join, machine
from ..launch.stopping import StopRequest

_SECONDS = 30.0


def rehearsed_groups(size: int, **changes: Any) -> list[Group]:
    """Return what each rank of a group on this machine would find in its environment."""
    fields: dict[str, Any] = {"run": secrets.token_hex(8), "local_size": size, "address": LOOPBACK, "port": 0, **changes}
    return [Group(starter="a rehearsal", rank=rank, size=size, local_rank=rank, **fields) for rank in range(size)]


@final
class Once:
    """A `progress` of `TrainingJob.run` that acts once, when a step is reached."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self._step = step
        self._act = act
        self._done = False

    def started(self, name: str, headline: str) -> None:
        """See `tracking.console.Progress`."""

    def status(self, secondary: str, message: str) -> None:
        """See `tracking.console.Progress`."""

    def log(self, rank: int, line: str) -> None:
        """See `tracking.console.Progress`."""

    def step(self, step: int, metrics: Mapping[str, float | None], rows: int, total_steps: int | None) -> None:
        """See `tracking.console.Progress`."""
        if step >= self._step and not self._done:
            self._done = True
            self._act()

    def ended(self) -> None:
        """See `tracking.console.Progress`."""


@final
class RehearsedLauncher:
    """`AttachLauncher` with a new group for every start; its other ranks follow in threads."""

    def prepare(self, preload: Sequence[str]) -> None:
        """See `AttachLauncher.prepare`."""
        AttachLauncher().prepare(preload)

    def start(self, spec: WorkerSpec) -> RehearsedWorkers:
        """See `AttachLauncher.start`."""
        groups = rehearsed_groups(spec.workers)
        meeting = Meeting(groups[0], 0, {})
        threads = [threading.Thread(target=_follow, args=(group, spec), daemon=True) for group in groups[1:]]
        for thread in threads:
            thread.start()
        launcher = AttachLauncher(groups[0])
        meeting.gather(_SECONDS)
        lead = Lead(meeting, StopRequest())
        launcher.lead(lead)
        try:
            return RehearsedWorkers(launcher.start(spec), meeting, lead, threads)
        except BaseException:
            _end(meeting, lead, threads)
            raise


@final
class RehearsedWorkers:
    """`AttachedWorkers` that end their group with them."""

    def __init__(self, inner: AttachedWorkers, meeting: Meeting, lead: Lead, threads: Sequence[threading.Thread]) -> None:
        self._inner = inner
        self._meeting = meeting
        self._lead = lead
        self._threads = threads

    @property
    def members(self) -> Sequence[Member]:
        """See `contracts.Workers`."""
        return self._inner.members

    def poll(self, timeout_s: float) -> Sequence[Event | Exit]:
        """See `contracts.Workers`."""
        return self._inner.poll(timeout_s)

    def stop(self, grace_s: float) -> None:
        """See `contracts.Workers`."""
        self._inner.stop(grace_s)

    def dump(self, rank: int) -> None:
        """See `contracts.Workers`."""
        self._inner.dump(rank)

    def close(self) -> None:
        """See `contracts.Workers`."""
        self._inner.close()
        _end(self._meeting, self._lead, self._threads)


def _follow(group: Group, spec: WorkerSpec) -> None:
    found = join(group, 0, _SECONDS, lambda: False)
    if found is not None:
        connection, _ = found
        connection.send({"do": "hello", **machine()})
        Follower(connection, group.rank, group.size).serve(lambda: "", lambda said: spec)


def _end(meeting: Meeting, lead: Lead, threads: Sequence[threading.Thread]) -> None:
    meeting.tell({"do": "end"})
    for thread in threads:
        thread.join(_SECONDS)
    lead.close()
    meeting.close()
