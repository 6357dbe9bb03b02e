"""What users say of a cluster, and numbers of workers: what is allowed, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from phalanx import Cluster, TrainingJob, UserError
from phalanx.cluster import Count, count_of


@pytest.mark.parametrize(
    ("given", "count"), [(1, Count(1, 1)), ("4", Count(4, 4)), ("2:4", Count(2, 4)), (" 3:3 ", Count(3, 3))]
)
def test_counts(given: int | str, count: Count) -> None:
    assert count_of("workers", given) == count


@pytest.mark.parametrize("given", [0, -1, True, "0", "4:2", "0:2", "a", "2:", "", 1.5, None])
def test_what_is_no_count(given: Any) -> None:
    with pytest.raises(UserError, match=r"workers=.*whole number of at least 1, or a range as 2:4"):
        count_of("workers", given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"placement": "STRICT"}, "no placement 'STRICT'.*STRICT_PACK"),
        ({"address": "somewhere"}, "auto, host:port"),
        ({"address": "host:99999"}, "auto, host:port"),
        ({"nodes": 0}, "cluster.nodes=0"),
        ({"workers_per_node": 2}, "goes with cluster.nodes"),
        ({"nodes": 2, "workers_per_node": 0}, "workers_per_node=0"),
        ({"cpus": -1}, "cluster.cpus=-1"),
        ({"gpus": float("inf")}, "cluster.gpus=inf"),
        ({"resources": {"tpu": "one"}}, "cluster.tpu='one'"),
        ({"memory": "much"}, "as 512MiB, 4GiB"),
        ({"start_timeout_s": 0}, "seconds above 0"),
        ({"ship": "folder"}, "list of texts"),
    ],
)
def test_what_is_not_allowed(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Cluster(**given)


@pytest.mark.parametrize(
    ("text", "amount"), [(1000, 1000), ("512MiB", 512 << 20), ("4GiB", 4 << 30), ("2G", 2 * 10**9), ("1.5k", 1500)]
)
def test_memory(text: int | str, amount: int) -> None:
    assert Cluster(memory=text).memory_bytes == amount


def test_nodes_say_how_many_workers() -> None:
    assert Cluster(nodes="1:2", workers_per_node=3).workers(1) == Count(3, 6)
    assert Cluster(nodes=2).workers(2) == Count(2, 2)
    with pytest.raises(UserError, match="workers=3, but 2 nodes with 1 workers each make 2"):
        Cluster(nodes=2).workers(3)


def test_a_workers_resources() -> None:
    assert Cluster().bundle(3) == {"CPU": 3.0}
    assert Cluster(cpus=0, gpus=1, memory="1KiB", resources={"tpu": 2}).bundle(3) == {"GPU": 1.0, "memory": 1024.0, "tpu": 2.0}


def test_a_cluster_is_for_ray(tmp_path: Any) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("1,2\n3,4\n")
    fields: dict[str, Any] = {"algorithm": "kmeans", "inputs": {"train": str(rows)}, "hyperparameters": {"k": 1}}
    with pytest.raises(UserError, match="give launcher 'ray'"):
        TrainingJob(**fields, cluster={"nodes": 2}).run(progress=False)
    with pytest.raises(UserError, match="cluster has no field 'node'"):
        TrainingJob(**fields, launcher="ray", cluster={"node": 2}).run(progress=False)
