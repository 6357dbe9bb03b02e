"""How many trials a machine has room for, and which GPUs each gets; GPUs are declared, for there is none here."""

from __future__ import annotations

import os
from typing import Any

import pytest

from phalanx import Cluster, TrainingJob, environment
from phalanx.errors import UserError
from phalanx.tuning.placing import Room, room_for


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * (1 << 30) // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,GPU-7, 5")


def room(wanted: int = 8, **given: Any) -> Room:
    needs = {"memory_gb": None, "gpus": 0, "deterministic": False}
    job = {key: given.pop(key) for key in list(given) if key not in needs}
    return room_for(TrainingJob(**{"script": "train.py", **job}), wanted, **{**needs, **given})


@pytest.mark.parametrize(
    ("given", "slots", "threads", "devices"),
    [
        ({}, 8, 1, []),
        ({"wanted": 3}, 3, 2, []),
        ({"wanted": 3, "deterministic": True}, 3, 1, []),
        ({"workers": 3}, 2, 1, []),
        ({"workers": 2, "threads_per_worker": 2}, 2, 2, []),
        ({"workers": 9}, 1, 1, []),
        ({"memory_gb": 5.0}, 3, 2, []),
        ({"gpus": 1}, 4, 2, ["3", "1", "GPU-7", "5"]),
        ({"gpus": 2}, 2, 4, ["3,1", "GPU-7,5"]),
        ({"gpus": 3}, 1, 8, ["3,1,GPU-7"]),
        ({"gpus": 1, "memory_gb": 8.0}, 2, 4, ["3", "1"]),
        ({"gpus": 1, "wanted": 1}, 1, 8, ["3"]),
    ],
)
def test_nothing_is_given_twice(given: dict[str, Any], slots: int, threads: int, devices: list[str]) -> None:
    found = room(**given)
    assert (found.slots, found.threads, list(found.devices)) == (slots, threads, devices)


def test_it_says_why() -> None:
    assert room(gpus=2, memory_gb=1).why == (
        "2 at once (not 8), 1 x 4 threads and 2 GPUs each: this machine has 8 cores, 16.0 GiB and 4 GPUs"
    )


def test_a_slot_is_taken_once() -> None:
    found = room(gpus=2)
    assert found.free(set()) == "3,1"
    assert found.free({"3,1"}) == "GPU-7,5"
    assert room().free({None}) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gpus": 5}, r"gpus_per_job=5: this machine has 4 that this process may use"),
        ({"gpus": 1, "environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "leave one of them out"),
        ({"gpus": 1, "launcher": "ray"}, r"cluster=\{'gpus': 1\}"),
        ({"memory_gb": 17.0}, r"memory_per_job_gb=17: this machine has 16\.0 GiB"),
        ({"memory_gb": 0}, "must be above 0"),
        ({"memory_gb": "4"}, "must be above 0"),
    ],
)
def test_what_has_no_room(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        room(**given)


def test_a_ray_cluster_finds_room_itself() -> None:
    assert room(launcher="ray", cluster=Cluster(gpus=1)).slots == 8


@pytest.mark.parametrize(
    ("shown", "found"), [("0,1", ["0", "1"]), ("", []), ("-1", []), ("2,-1,3", ["2"]), ("MIG-a/1", ["MIG-a/1"])]
)
def test_gpus_that_a_process_may_use(shown: str, found: list[str]) -> None:
    assert environment.gpus({"CUDA_VISIBLE_DEVICES": shown}) == found
