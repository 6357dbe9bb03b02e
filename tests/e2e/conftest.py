"""Data sets for whole jobs, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from phalanx.data.samples import write_sample


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_sample("digits", folder)
    return folder


@pytest.fixture(scope="session")
def cancer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cancer")
    write_sample("breast_cancer", folder)
    return folder
