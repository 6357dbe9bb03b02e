"""Faults: every test counts its cases; the summary of the run prints how many there were (`tests/conftest.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def case(record_property: Callable[[str, object], None]) -> Iterator[Callable[[], None]]:
    """Return what a test calls once for every case that it ran."""
    count = 0

    def ran() -> None:
        nonlocal count
        count += 1

    yield ran
    record_property("fault_cases", count)
