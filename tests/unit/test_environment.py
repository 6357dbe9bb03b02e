"""Groups that others started, and what may be shown of an environment."""

from __future__ import annotations

import pytest

from phalanx import environment
from phalanx.errors import UserError

PLACE = environment.Placement


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "7"},
            PLACE(1, 2, 1, "h", 7),
        ),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, PLACE(3, 4, 0, "127.0.0.1", 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, PLACE(0, 1, 0, "127.0.0.1", 0, 1)),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "9"}, PLACE(0, 2, 0, "127.0.0.1", 0)),
    ],
)
def test_a_place_is_found(variables: dict[str, str], expected: environment.Placement | None) -> None:
    assert environment.placement(variables) == expected


@pytest.mark.parametrize(
    "variables", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}]
)
def test_a_place_that_cannot_be_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(UserError, match="RANK"):
        environment.placement(variables)


def test_credentials_are_masked() -> None:
    shown = environment.masked({"AWS_SECRET_ACCESS_KEY": "abcdef123", "HF_TOKEN": "t", "PATH": "/bin"})
    assert shown == {"AWS_SECRET_ACCESS_KEY": "***", "HF_TOKEN": "***", "PATH": "/bin"}


def test_secrets_are_found_longest_first() -> None:
    assert environment.secrets({"A_TOKEN": "123456", "B_PASSWORD": "12345678", "C_TOKEN": "short", "D": "987654"}) == [
        "12345678",
        "123456",
    ]
