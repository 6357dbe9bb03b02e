"""The Ray launcher under the launcher suite, on a private one-node cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

ray = pytest.importorskip("ray")

from phalanx.launch.ray import RayLauncher  # noqa: E402
from phalanx.testing.launcher_checks import LauncherChecks  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


class TestRay(LauncherChecks):
    groups_in_a_row: ClassVar[int] = 3
    gone_s: ClassVar[float] = 60.0  # Ray's own processes find out one after another

    @pytest.fixture
    def launcher(self, cluster: None) -> RayLauncher:
        return RayLauncher()
