"""Compiled kernels on disk, written by processes that do not wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import IndexDataCacheFile

from phalanx.data import kernel_cache

Cache = Callable[[str], Any]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Return what a process has that sees the source with this stamp."""
    return lambda stamp: IndexDataCacheFile(str(tmp_path), "kernels.f-12.py311", (stamp, 100))


def test_numba_saves_by_it() -> None:
    assert IndexDataCacheFile.save is kernel_cache._save


def test_what_is_saved_is_found_by_every_process_with_that_source(cache: Cache) -> None:
    cache("new").save("of floats", "code")
    cache("new").save("of doubles", "other code")
    assert cache("new").load("of floats") == "code"
    assert cache("new").load("of doubles") == "other code"
    assert cache("old").load("of floats") is None


def test_while_a_new_source_is_compiled_nobody_gets_the_old_code(cache: Cache) -> None:
    cache("old").save("of floats", "old code")
    one, seen = cache("new"), []

    def save(name: str, data: str) -> None:  # another process looks before, and after
        seen.append(cache("new").load("of floats"))
        IndexDataCacheFile._save_data(one, name, data)
        seen.append(cache("new").load("of floats"))

    one._save_data = save
    one.save("of floats", "new code")
    assert [*seen, cache("new").load("of floats")] == [None, None, "new code"]


def test_types_compiled_at_once_are_not_taken_for_each_other(cache: Cache) -> None:
    one, other = cache("new"), cache("new")
    one._load_index = dict  # it looked before the other had saved
    other.save("of doubles", "code of doubles")
    one.save("of floats", "code of floats")
    assert cache("new").load("of floats") == "code of floats"
    assert cache("new").load("of doubles") in (None, "code of doubles")


def test_a_numba_that_is_other_inside_saves_in_its_own_way(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[object] = []
    monkeypatch.setattr(kernel_cache, "_numbas_own", lambda self, *given: saved.append(given))
    one = cache("new")
    del one._data_name_pattern
    one.save("of floats", "code")
    assert saved == [("of floats", "code")]


def test_code_of_earlier_sources_does_not_pile_up(cache: Cache, tmp_path: Path) -> None:
    other = IndexDataCacheFile(str(tmp_path), "kernels.f-120.py311", ("old", 100))
    other.save("of floats", "code of another function")
    for stamp in ("old", "newer", "new"):
        cache(stamp).save("of floats", "code")
    assert len(list(tmp_path.glob("*.nbc"))) == 2
    assert other.load("of floats") == "code of another function"
